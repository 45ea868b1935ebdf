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
"""Judges an answer; a new one is an entry of ``EXERCISES``."""


def _overflow(answer: Any) -> Verdict:
    number = _number(answer)
    if number is None:
        return "the answer is one number, a layer"
    if 42 <= number <= 44:
        return None
    if 20 <= number <= 22:
        return "that is where the squares overflow; the activations themselves last longer"
    return "each layer multiplies |h| by about √(128 / 2) = 8; how often until 3.4 · 10³⁸?"


def _layers(answer: Any) -> Verdict:
    number = _number(answer)
    if number is None:
        return "the answer is one whole number of layers"
    if 51 <= number <= 53:
        return None
    return "the variance is proportional to the number of layers; what does one add?"


def _one_number(
    right: float,
    otherwise: str,
    near: Mapping[float, str],
    *,
    asks: str = "one number",
    rel_tol: float = 0.02,
) -> Exercise:
    """An exercise whose answer is one number, to ``rel_tol``: hints for near misses, and the rest.

    ``asks`` completes "the answer is …", for an answer that is no number.
    """

    def judge(answer: Any) -> Verdict:
        number = _number(answer)
        if number is None:
            return f"the answer is {asks}"
        if math.isclose(number, right, rel_tol=rel_tol):
            return None
        return next(
            (hint for miss, hint in near.items() if math.isclose(number, miss, rel_tol=rel_tol)),
            otherwise,
        )

    return judge


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
        "01-symmetry": _one_number(
            1,
            "units with equal weights in and out get equal gradients; what are they after a step?",
            {},
            asks="a whole number: how many different rows there are",
            rel_tol=0,
        ),
        "01-std-for-relu": _one_number(
            math.sqrt(2 / 400),
            "set n · std² · E φ² to 1, with n = 400 and E φ² = ½ for ReLU under N(0, 1)",
            {
                math.sqrt(1 / 400): (
                    "that keeps a linear network; how much of E h² does ReLU let through?"
                ),
                2 / 400: "that is the variance; the question is for the standard deviation",
            },
            asks="one positive number, a standard deviation",
        ),
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
        "07-across": _one_number(
            0.2,
            "write half the squared distance of u and v by E[u²], E[v²] and E[uv]",
            {1.8: "that is E[uv], what the two inputs share; the variance is what they do not"},
            asks="one number, a variance",
        ),
        "07-layers": _one_number(
            13,
            "apply the map again and again from c = 0, and count until 0.9",
            dict.fromkeys(
                (12, 14), "close: count ReLU layers, and the cosine of what comes out of them"
            ),
            asks="a whole number of layers",
            rel_tol=0,
        ),
        "07-var-of-relu": _one_number(
            1 - 1 / math.pi,
            "Var φ = E[φ²] − (E φ)², and E φ = √(q / 2π) for ReLU",
            {1: "that is E[φ²]; what is the mean of φ?"},
            asks="one number, a variance",
        ),
        "08-settled-length": _one_number(
            0.5,
            "at q* a layer changes nothing: solve q = σ_w²·q/2 + σ_b² for q",
            {
                0.25: (
                    "that is what the biases add in every layer; what of it does the next one keep?"
                ),
            },
            asks="one number, a second moment",
            rel_tol=0.01,
        ),
        "08-edge-of-sin": _one_number(
            1.0,
            "set χ₁ = σ_w²·E φ'(√q z)² to 1, with the φ' of a very small argument",
            {
                math.sqrt(2): (
                    "that is ReLU's, which drops half of every signal; "
                    "what is the slope of sin at 0?"
                ),
            },
            asks="one number, a σ_w",
            rel_tol=0.01,
        ),
        "08-horizon": _one_number(
            331,
            "take xi_c of theory.depth_scales with these σ_w and σ_b, six times",
            {55.14: "that is ξ_c, where 1/e is left; the rule allows several of them"},
            asks="one number of layers",
            rel_tol=0.03,
        ),
        "09-largest": _one_number(
            2.0,
            "where does the Marchenko-Pastur density of the squared values end?",
            {4.0: "that is its square; by how much does the layer stretch a vector?"},
            asks="one number, a singular value",
            rel_tol=0.01,
        ),
        "09-leaky": _one_number(
            1.36,
            "φ'² is 1 or ¼, each half of the time; average it, and its square",
            {0.85: "that is μ₂/μ₁; the denominator is squared"},
            asks="one number, a ratio",
            rel_tol=0.005,
        ),
        "09-layers": _layers,
        "12-initial-loss": _one_number(
            math.log(27),
            "cross-entropy is −log of the probability that the right letter gets",
            {
                1 / 27: (
                    "that is the probability of each letter; the loss is its negative logarithm"
                ),
                math.log2(27): (
                    "that is in bits; cross-entropy in PyTorch takes the natural logarithm"
                ),
            },
            asks="one number, a loss",
        ),
        "12-bound": _one_number(
            math.sqrt(6 / 128),
            "the variance of U(−a, a) is a²/3; set 128 · a²/3 · ½ to 1",
            {
                math.sqrt(2 / 128): (
                    "that is the standard deviation; how wide is a uniform law that has it?"
                ),
                math.sqrt(3 / 128): (
                    "that keeps a linear network; how much of E h² does ReLU let through?"
                ),
            },
            asks="one positive number, the bound a",
        ),
        "12-conv3d": _one_number(
            math.sqrt(2 / 432),
            "count the products that one output sums up, n, and set n · std² · ½ to 1",
            {
                math.sqrt(2 / 16): (
                    "each output also sums over the positions of the kernel; how many are there?"
                ),
                math.sqrt(2 / (32 * 27)): (
                    "that is for fan_out; forward, one output sums over the inputs"
                ),
            },
            asks="one positive number, a standard deviation",
        ),
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
