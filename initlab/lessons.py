"""check(): the exercises' checks, which say right or what to think about next."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from initlab.errors import unknown_name

Verdict = str | None
"""None for a right answer, else one sentence on what to think about next."""
Exercise = Callable[[Any], Verdict]


def _symmetry(answer: Any) -> Verdict:
    number = _number(answer)
    if number is None:
        return "the answer is a whole number: how many different rows there are"
    if number == 1:
        return None
    return "units with equal weights in and out get equal gradients; what are they after a step?"


def _std_for_relu(answer: Any) -> Verdict:
    number = _number(answer)
    if number is None:
        return "the answer is one positive number, a standard deviation"
    if math.isclose(number, math.sqrt(2 / 400), rel_tol=0.02):
        return None
    if math.isclose(number, math.sqrt(1 / 400), rel_tol=0.02):
        return "that keeps a linear network; how much of E h² does ReLU let through?"
    if math.isclose(number, 2 / 400, rel_tol=0.02):
        return "that is the variance; the question is for the standard deviation"
    return "set n · std² · E φ² to 1, with n = 400 and E φ² = ½ for ReLU under N(0, 1)"


def _overflow(answer: Any) -> Verdict:
    number = _number(answer)
    if number is None:
        return "the answer is one number, a layer"
    if 42 <= number <= 44:
        return None
    if 20 <= number <= 22:
        return "that is where the squares overflow; the activations themselves last longer"
    return "each layer multiplies |h| by about √(128 / 2) = 8; how often until 3.4 · 10³⁸?"


def _across(answer: Any) -> Verdict:
    number = _number(answer)
    if number is None:
        return "the answer is one number, a variance"
    if math.isclose(number, 0.2, rel_tol=0.02):
        return None
    if math.isclose(number, 1.8, rel_tol=0.02):
        return "that is E[uv], what the two inputs share; the variance is what they do not"
    return "write half the squared distance of u and v by E[u²], E[v²] and E[uv]"


def _layers_to_alike(answer: Any) -> Verdict:
    number = _number(answer)
    if number is None:
        return "the answer is a whole number of layers"
    if number == 13:
        return None
    if number in (12, 14):
        return "close: count ReLU layers, and the cosine of what comes out of them"
    return "apply the map again and again from c = 0, and count until 0.9"


def _var_of_relu(answer: Any) -> Verdict:
    number = _number(answer)
    if number is None:
        return "the answer is one number, a variance"
    if math.isclose(number, 1 - 1 / math.pi, rel_tol=0.02):
        return None
    if math.isclose(number, 1, rel_tol=0.02):
        return "that is E[φ²]; what is the mean of φ?"
    return "Var φ = E[φ²] − (E φ)², and E φ = √(q / 2π) for ReLU"


def _settled_length(answer: Any) -> Verdict:
    number = _number(answer)
    if number is None:
        return "the answer is one number, a second moment"
    if math.isclose(number, 0.5, rel_tol=0.01):
        return None
    if math.isclose(number, 0.25, rel_tol=0.01):
        return "that is what the biases add in every layer; what of it does the next one keep?"
    return "at q* a layer changes nothing: solve q = σ_w²·q/2 + σ_b² for q"


def _edge_of_sin(answer: Any) -> Verdict:
    number = _number(answer)
    if number is None:
        return "the answer is one number, a σ_w"
    if math.isclose(number, 1.0, rel_tol=0.01):
        return None
    if math.isclose(number, math.sqrt(2), rel_tol=0.01):
        return "that is ReLU's, which drops half of every signal; what is the slope of sin at 0?"
    return "set χ₁ = σ_w²·E φ'(√q z)² to 1, with the φ' of a very small argument"


def _horizon(answer: Any) -> Verdict:
    number = _number(answer)
    if number is None:
        return "the answer is one number of layers"
    if math.isclose(number, 331, rel_tol=0.03):
        return None
    if math.isclose(number, 55.14, rel_tol=0.03):
        return "that is ξ_c, where 1/e is left; the rule allows several of them"
    return "take xi_c of theory.depth_scales with these σ_w and σ_b, six times"


def _largest(answer: Any) -> Verdict:
    number = _number(answer)
    if number is None:
        return "the answer is one number, a singular value"
    if math.isclose(number, 2.0, rel_tol=0.01):
        return None
    if math.isclose(number, 4.0, rel_tol=0.01):
        return "that is its square; by how much does the layer stretch a vector?"
    return "where does the Marchenko-Pastur density of the squared values end?"


def _leaky(answer: Any) -> Verdict:
    number = _number(answer)
    if number is None:
        return "the answer is one number, a ratio"
    if math.isclose(number, 1.36, rel_tol=0.005):
        return None
    if math.isclose(number, 0.85, rel_tol=0.005):
        return "that is μ₂/μ₁; the denominator is squared"
    return "φ'² is 1 or ¼, each half of the time; average it, and its square"


def _layers(answer: Any) -> Verdict:
    number = _number(answer)
    if number is None:
        return "the answer is one whole number of layers"
    if 51 <= number <= 53:
        return None
    return "the variance is proportional to the number of layers; what does one add?"


def _one_number(right: float, otherwise: str, near: Mapping[float, str]) -> Exercise:
    """An exercise whose answer is one number, to 2 %: hints for near misses, and for the rest."""

    def judge(answer: Any) -> Verdict:
        number = _number(answer)
        if number is None:
            return "the answer is one number"
        if math.isclose(number, right, rel_tol=0.02):
            return None
        return next(
            (hint for miss, hint in near.items() if math.isclose(number, miss, rel_tol=0.02)),
            otherwise,
        )

    return judge


def _initial_loss(answer: Any) -> Verdict:
    number = _number(answer)
    if number is None:
        return "the answer is one number, a loss"
    if math.isclose(number, math.log(27), rel_tol=0.02):
        return None
    if math.isclose(number, 1 / 27, rel_tol=0.02):
        return "that is the probability of each letter; the loss is its negative logarithm"
    if math.isclose(number, math.log2(27), rel_tol=0.02):
        return "that is in bits; cross-entropy in PyTorch takes the natural logarithm"
    return "cross-entropy is −log of the probability that the right letter gets"


def _bound(answer: Any) -> Verdict:
    number = _number(answer)
    if number is None:
        return "the answer is one positive number, the bound a"
    if math.isclose(number, math.sqrt(6 / 128), rel_tol=0.02):
        return None
    if math.isclose(number, math.sqrt(2 / 128), rel_tol=0.02):
        return "that is the standard deviation; how wide is a uniform law that has it?"
    if math.isclose(number, math.sqrt(3 / 128), rel_tol=0.02):
        return "that keeps a linear network; how much of E h² does ReLU let through?"
    return "the variance of U(−a, a) is a²/3; set 128 · a²/3 · ½ to 1"


def _std_of_conv3d(answer: Any) -> Verdict:
    number = _number(answer)
    if number is None:
        return "the answer is one positive number, a standard deviation"
    if math.isclose(number, math.sqrt(2 / 432), rel_tol=0.02):
        return None
    if math.isclose(number, math.sqrt(2 / 16), rel_tol=0.02):
        return "each output also sums over the positions of the kernel; how many are there?"
    if math.isclose(number, math.sqrt(2 / (32 * 27)), rel_tol=0.02):
        return "that is for fan_out; forward, one output sums over the inputs"
    return "count the products that one output sums up, n, and set n · std² · ½ to 1"


def _number(answer: Any) -> float | None:
    """The answer as a finite float, or None: a list, a tensor of two, True, 10**400, …"""
    if isinstance(answer, bool):  # True is not how one answers 1
        return None
    try:
        number = float(answer)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if math.isfinite(number) else None


EXERCISES: Mapping[str, Exercise] = MappingProxyType(
    {
        "01-symmetry": _symmetry,
        "01-std-for-relu": _std_for_relu,
        "01-overflow": _overflow,
        "02-by-hand": _one_number(
            10.5,
            "an output is the sum of its weights times the inputs, and its bias",
            {10.0: "that is the sum of the products; what else does a layer add?"},
        ),
        "02-xavier-std": _one_number(
            (2 / 400) ** 0.5,
            "Var(w) = 2/(n_in + n_out), and a standard deviation is a square root",
            {
                2 / 400: "that is the variance; the question is for the standard deviation",
                (1 / 300) ** 0.5: "that is 1/fan_in, LeCun's; which of the two sizes is missing?",
            },
        ),
        "02-conv-std": _one_number(
            (2 / 288) ** 0.5,
            "how many products does one output of a 3 × 3 convolution sum up?",
            {
                (2 / 32) ** 0.5: "each of the 32 channels is read at how many positions?",
                (2 / 576) ** 0.5: "those are the outputs; E h² asks for what an output sums up",
                (1 / 288) ** 0.5: "that keeps a linear layer; how much of E h² comes through ReLU?",
                2 / 288: "that is the variance; the question is for the standard deviation",
            },
        ),
        "02-lecun-bound": _one_number(
            (3 / 48) ** 0.5,
            "the variance of U(−b, b) is b²/3; set it to 1/48",
            {(1 / 48) ** 0.5: "that is the standard deviation; a uniform's bound lies beyond it"},
        ),
        "03-lecun-slope": _one_number(
            1.0,
            "for which a of at least 0 is 2/(1 + a²), He's variance times fan_in, 1?",
            {5**0.5: "that gives 1/3, PyTorch's default"},
        ),
        "03-conv-std": _one_number(
            (3 * 400) ** -0.5,
            "U(±b) has the standard deviation b/√3; what is fan_in here?",
            {
                0.05: "that is the bound 1/√fan_in; how is a uniform's std related to it?",
                1 / 1200: "that is the variance; the question is for the standard deviation",
                (2 / 400) ** 0.5: "that is He's, which PyTorch does not use",
            },
        ),
        "03-gradient-factor": _one_number(
            6.0**10,
            "each layer multiplies by n · Var(w) and by ReLU's share; what do ten of them make?",
            {
                3.0**10: "the weights give a third per layer; what does ReLU do on the way back?",
                6.0: "that is one layer; what do ten of them make?",
                6.0**-10: "that is the factor itself; how many times *smaller* does it make E δ²?",
            },
        ),
        "07-across": _across,
        "07-layers": _layers_to_alike,
        "07-var-of-relu": _var_of_relu,
        "08-settled-length": _settled_length,
        "08-edge-of-sin": _edge_of_sin,
        "08-horizon": _horizon,
        "09-largest": _largest,
        "09-leaky": _leaky,
        "09-layers": _layers,
        "12-initial-loss": _initial_loss,
        "12-bound": _bound,
        "12-conv3d": _std_of_conv3d,
    }
)
"""Every exercise by name; a new one is one entry."""


def check(exercise: str, answer: Any) -> None:
    """Print one line: right, or what to think about next.

    Args:
        exercise: a name of ``EXERCISES``, such as "01-symmetry".
        answer: the reader's; None, as exercises are saved, is "not answered yet".

    Raises:
        ValueError: no such exercise.

    >>> check("01-symmetry", None)
    01-symmetry: not answered yet
    """
    if exercise not in EXERCISES:
        raise unknown_name("exercise", exercise, EXERCISES)
    if answer is None:
        print(f"{exercise}: not answered yet")
        return
    hint = EXERCISES[exercise](answer)
    print(f"{exercise}: right" if hint is None else f"{exercise}: not yet: {hint}")
