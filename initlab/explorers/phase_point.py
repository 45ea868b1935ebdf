"""One point of the plane: what theory says of it, what its network does, and both in words."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from initlab import theory
from initlab.activations import ACTIVATIONS, Activation
from initlab.activations import activation as resolve
from initlab.errors import finite_number, positive_int, unknown_name
from initlab.experiment import Experiment
from initlab.explorers.phase_picture import HORIZON, STARTS, Course, View
from initlab.explorers.plane import moment_table, plane, trajectories
from initlab.plots import nice_depth, power
from initlab.prediction import prescribed
from initlab.scripts import activation_class, module_call

_PAIRS = 8
_ON_THE_EDGE = 5e-4  # a χ₁ this close to 1 is 1 to all the digits that are shown
_BIASES = ("zeros", "normal", "pytorch_default")
_MOST_UNITS = 40_000_000  # weights held at once: 160 MB


@dataclass(frozen=True)
class Forecast:
    """What theory says of one point of the plane, and of one network there.

    Attributes:
        length: q*, to which q = 1 is drawn; None where it grows without bound.
        lengths: every fixed point of the length map; none where it keeps every q.
        chi: χ₁ at q*; None where there is no q*, unless it is the same at every q.
        correlation: c*, to which two inputs are drawn; None where nothing draws them.
        scales: the depth scales ξ_q and ξ_c.
        q: E h² of the layers 0 … depth, from q = 1.
        c: for each correlation that the inputs start from, those of the layers 0 … depth.
    """

    length: float | None
    lengths: tuple[theory.FixedPoint, ...]
    chi: float | None
    correlation: float | None
    scales: theory.DepthScales
    q: tuple[float, ...]
    c: dict[float, tuple[float, ...]]

    @property
    def repels(self) -> bool:
        """Is there a q from which signals are driven away?"""
        return any(point.q > 0 and not point.stable for point in self.lengths)

    @property
    def horizon(self) -> float | None:
        """6 ξ_c, the layers through which signals and gradients reach; None where undefined."""
        return None if self.scales.xi_c is None else HORIZON * self.scales.xi_c


# ---------------------------------------------------------------- the network


def network_at(
    activation: str, sigma_w: float, sigma_b: float, depth: int, width: int, seed: int
) -> Experiment:
    """The network of a point as an Experiment, or the sentence that refuses it."""
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise unknown_name("activation", activation, ACTIVATIONS)
    sigma_w = finite_number("sigma_w", sigma_w, positive=True)
    sigma_b = finite_number("sigma_b", sigma_b)
    if sigma_b < 0:
        raise ValueError(f"sigma_b={sigma_b} must be at least 0")
    depth, width = positive_int("depth", depth), positive_int("width", width)
    if width < 2 * _PAIRS:
        raise ValueError(f"width={width} must be at least {2 * _PAIRS}, to hold as many inputs")
    if nice_depth(depth) * width**2 > _MOST_UNITS:
        raise ValueError(
            f"depth={depth:,} with width={width:,} is too large to follow a moving point; "
            "take a smaller depth or width"
        )
    return Experiment(
        depth=depth,
        width=width,
        activation=activation,
        scheme="lecun_normal",
        gain=sigma_w,
        bias="normal",
        bias_std=sigma_b,
        data="noise",
        seed=seed,
    )


def sigma_w_of(experiment: Experiment) -> float:
    assert experiment.gain is not None
    return experiment.gain


def sigma_b_of(experiment: Experiment) -> float:
    return experiment.bias_std or 0.0


def on_the_plane(experiment: Experiment) -> Experiment:
    """The point of the plane at which an experiment's own network lies.

    Raises:
        ValueError: its layers are not those of the plane.
    """
    plain = experiment.architecture == "mlp" and experiment.norm == "none"
    if not plain:
        raise ValueError(
            f"architecture={experiment.architecture!r} with norm={experiment.norm!r} has no place "
            "on the plane; take an mlp with norm='none'"
        )
    width = experiment.width
    if len(set(experiment.layer_widths)) > 1:
        raise ValueError(f"widths={experiment.widths} differ; the plane is for equal widths")
    chosen, gain, bias = prescribed(experiment)
    if chosen.weight_mean(width, width) != 0:
        raise ValueError(
            f"scheme={experiment.scheme!r} gives the weights a mean; the plane is for a mean of 0"
        )
    spreads = {
        "zeros": 0.0,
        "normal": experiment.bias_std,
        "pytorch_default": 1 / math.sqrt(3 * width),
        0.0: 0.0,
    }
    if bias not in spreads:
        raise ValueError(f"bias={bias!r} has no place on the plane; take {', '.join(_BIASES)}")
    return network_at(
        experiment.activation,
        chosen.weight_std(width, width, gain) * math.sqrt(width),
        spreads[bias] or 0.0,
        experiment.depth,
        width,
        experiment.seed,
    )


@lru_cache(maxsize=4)
def _draws(depth: int, width: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of every layer for sigma_w = sigma_b = 1; those of a point are multiples.

    A shallower network with this seed has the first of them, so depth is a step of a ladder.
    """
    layers = network_at("identity", 1.0, 1.0, depth, width, seed).build()
    affine = [layer for layer in layers.children() if isinstance(layer, torch.nn.Linear)]
    return [each.weight.detach() for each in affine], [each.bias.detach() for each in affine]


@lru_cache(maxsize=8)
def inputs(width: int, seed: int) -> Tensor:
    """h₀ of shape (3 · pairs, width): _PAIRS inputs, then their partners for each of STARTS.

    Every h₀ has second moment 1, and partners have the correlation that they are named for, not
    only on average: they are combinations of orthogonal vectors.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(width, 2 * _PAIRS, generator=generator)
    first, other = (math.sqrt(width) * torch.linalg.qr(draw).Q.T).split(_PAIRS)
    partners = [c * first + math.sqrt(1 - c**2) * other for c in STARTS]
    return torch.cat([first, *partners])


def measure(experiment: Experiment) -> Course:
    """q and c of every layer of the network of a point, for the pairs of inputs that are followed.

    The same as a trace of ``experiment.build()``, without building it: moving the point scales
    weights that are drawn already.
    """
    now, phi = experiment, resolve(experiment.activation)
    weights, biases = _draws(nice_depth(now.depth), now.width, now.seed)
    layers = torch.empty(now.depth + 1, (1 + len(STARTS)) * _PAIRS, now.width)
    layers[0] = inputs(now.width, now.data_seed)
    with torch.no_grad():
        for weight, bias, below, h in zip(weights, biases, layers, layers[1:], strict=False):
            torch.addmm(
                bias, phi(below), weight.T, alpha=sigma_w_of(now), beta=sigma_b_of(now), out=h
            )
    return _course(layers.double())  # squares leave float32 long before h does


def _course(h: Tensor) -> Course:
    """q of every layer, and the cosine of the pairs for each of STARTS, averaged over them; nan
    where nothing is left that could have an angle."""
    q = h.square().mean(dim=(1, 2))
    first, *partners = torch.nn.functional.normalize(h, dim=-1, eps=1e-300).split(_PAIRS, dim=1)
    angles = [(first * partner).sum(dim=-1).mean(dim=-1) for partner in partners]
    c = torch.stack(angles, dim=-1)
    c[q == 0] = math.nan
    return Course(q.numpy(), c.numpy())


def script(experiment: Experiment) -> str:
    """A stand-alone PyTorch script that measures q and c of every layer of such a network.

    Raises:
        ValueError: the activation was registered from Python, so its code is not known.
    """
    return _SCRIPT.format(
        activation=activation_class(experiment.activation),
        phi=module_call(experiment.activation),
        depth=experiment.depth,
        width=experiment.width,
        sigma_w=sigma_w_of(experiment),
        sigma_b=sigma_b_of(experiment),
        seed=experiment.seed,
        starts=STARTS,
    )


_SCRIPT = """\
import torch
from torch import nn
{activation}
depth, width, sigma_w, sigma_b = {depth}, {width}, {sigma_w!r}, {sigma_b!r}
starts = {starts}
phi = {phi}

torch.manual_seed({seed})
first, other = (width**0.5 * torch.linalg.qr(torch.randn(width, 16)).Q.T).split(8)
h = torch.cat([first, *(c * first + (1 - c**2) ** 0.5 * other for c in starts)])

with torch.no_grad():
    for layer in range(1, depth + 1):
        affine = nn.Linear(width, width)
        nn.init.normal_(affine.weight, std=sigma_w / width**0.5)
        nn.init.normal_(affine.bias, std=sigma_b)
        h = affine(phi(h))
        q = h.double().square().mean().item()
        first, *partners = nn.functional.normalize(h.double(), dim=1).split(8)
        c = [(first * partner).sum(dim=1).mean().item() for partner in partners]
        print(f"layer {{layer}}: q = {{q:.6e}}, c = {{c[0]:.4f}} and {{c[1]:.4f}}")
"""


# ---------------------------------------------------------------- theory


def forecast(activation: str, sigma_w: float, sigma_b: float, *, depth: int) -> Forecast:
    """What theory says of a point and of a network of this depth there.

    >>> said = forecast("tanh", 1.5, 0.1, depth=3)
    >>> round(said.correlation, 3), round(said.horizon)
    (0.18, 89)
    """
    phi = resolve(activation)
    length = theory.settled_length(phi, sigma_w, sigma_b)
    chi = None
    if length is not None or phi.homogeneous:
        chi = theory.chi_1(phi, 1.0 if length is None else length, sigma_w)
    try:
        lengths = tuple(theory.fixed_points(phi, sigma_w, sigma_b))
    except ValueError:  # a continuum
        lengths = ()
    q, c = trajectories(phi, sigma_w, sigma_b, depth, STARTS)
    return Forecast(
        length,
        lengths,
        chi,
        theory.correlation_fixed_point(phi, sigma_w, sigma_b),
        theory.depth_scales(phi, sigma_w, sigma_b),
        tuple(q.tolist()),
        {start: tuple(c[:, k].tolist()) for k, start in enumerate(STARTS)},
    )


def view(experiment: Experiment, said: Forecast, seen: Course) -> View:
    phi, sigma_w, sigma_b = (
        resolve(experiment.activation),
        sigma_w_of(experiment),
        sigma_b_of(experiment),
    )
    table = moment_table(phi)
    lengths = np.geomspace(1e-4, 1e3, 141)
    # Angles at q* = 0 are those of a very short signal; where q has no end, those of q = 1.
    q = np.full(101, max(1.0 if said.length is None else said.length, 1e-8))
    apart = np.linspace(0, 1, 101) ** 2
    mapped = table.map_apart(apart, q, sigma_b, table.map_length(q, sigma_w, sigma_b))
    return View(
        sigma_w,
        sigma_b,
        (lengths, table.map_length(lengths, sigma_w, sigma_b)),
        [(point.q, point.stable) for point in said.lengths],
        (1 - apart, 1 - mapped),
        said.correlation,
        said.horizon,
        Course(np.array(said.q), np.array([said.c[start] for start in STARTS]).T),
        seen,
    )


# ---------------------------------------------------------------- in words


def finding(experiment: Experiment, said: Forecast, seen: Course) -> str:
    """What the point means, how far its network reaches, and whether the network obeys the maps."""
    parts = [_phase(experiment, said), _reach(experiment, said), _obeys(said, seen)]
    parts.append(_edge(resolve(experiment.activation)) or _left(experiment, said))
    return " ".join(part for part in parts if part)


def _phase(experiment: Experiment, said: Forecast) -> str:
    if said.length is None:
        words = "No phase: q grows without bound, so there is no length to settle at"
        return f"{words}; χ₁ = {said.chi:.3g} at every q." if said.chi else f"{words}."
    assert said.chi is not None
    settled = f"χ₁ = {said.chi:.3g} at q* = {power(said.length)}"
    if resolve(experiment.activation).homogeneous and abs(said.chi - 1) < _ON_THE_EDGE:
        return (
            f"On the edge of chaos: χ₁ = {said.chi:.3g} at every q, and q stays near where it is."
        )
    if abs(said.chi - 1) < _ON_THE_EDGE:
        return f"On the edge of chaos: {settled}; gradients neither vanish nor explode."
    if said.chi < 1:
        return f"Ordered phase: {settled}; gradients vanish."
    apart = "" if said.correlation is None else f", like inputs part to c* = {said.correlation:.2g}"
    return f"Chaotic phase: {settled}; gradients explode{apart}."


def _left(experiment: Experiment, said: Forecast) -> str:
    """Whether the point is on the edge of chaos at a length from which signals are driven away."""
    phi, sigma_w = resolve(experiment.activation), sigma_w_of(experiment)
    for point in said.lengths:
        repels = point.q > 0 and not point.stable
        if repels and abs(theory.chi_1(phi, point.q, sigma_w) - 1) < _ON_THE_EDGE:
            return f"The edge of chaos is here for q = {power(point.q)} alone, which signals leave."
    return ""


def _reach(experiment: Experiment, said: Forecast) -> str:
    depth, horizon = experiment.depth, said.horizon
    if horizon is None:
        if said.length == 0 and said.correlation is None:
            return "As q falls to 0 the network becomes linear and correlations freeze: no ξ_c."
        if said.length is None:
            return "Where q does not settle, c* and ξ_c are not defined."
        return "Correlations have nothing to settle at: no ξ_c."
    if math.isinf(horizon):
        return "ξ_c is infinite: correlations settle slower than any exponential."
    scale = f"ξ_c = {said.scales.xi_c:.3g}, so signals reach through about {horizon:.3g} layers"
    return f"{scale}, {'more' if horizon >= depth else 'fewer'} than these {depth}."


def _obeys(said: Forecast, seen: Course) -> str:
    """The measured q and c at the last layer where there is one, beside the maps'."""
    kept = np.flatnonzero(np.isfinite(seen.q) & (seen.q > 0) & np.isfinite(said.q))
    last = int(kept[-1])
    cut = ""
    if last < len(seen.q) - 1:
        cut = " (overflow above)" if not np.isfinite(seen.q[last + 1]) else " (0 above)"
    numbers = f"q = {power(seen.q[last])}, the map {power(said.q[last])}"
    pairs = ", ".join(
        f"{seen.c[last, k]:.2f} (map {said.c[start][last]:.2f})" for k, start in enumerate(STARTS)
    )
    starts = " and ".join(str(start) for start in STARTS)
    words = f"Measured at layer {last}{cut}: {numbers}; c from {starts}: {pairs}."
    if abs(math.log(seen.q[last] / said.q[last])) < math.log(1.5):
        return words
    if said.repels:
        return f"{words} It strays because small deviations grow at a repelling fixed point."
    return f"{words} It strays, as networks of finite width do with depth."


@lru_cache(maxsize=64)
def _edge(phi: Activation) -> str:
    """What is to be said where the plane shows no edge on which a signal settles."""
    drawn = plane(phi)
    if drawn.edge:
        return ""
    if drawn.repelling:
        return f"No signal settles on {phi.name}'s edge of chaos (dotted): q leaves it."
    widths = []
    for q in 10 ** np.linspace(-4, 4, 33):
        with suppress(ValueError):
            widths.append(theory.edge_of_chaos(phi, float(q))[0])
    if widths:
        beyond = f"{phi.name}'s edge of chaos lies beyond this plane"
        return f"{beyond}, at a σ_w of {min(widths):.2g} or more."
    return f"{phi.name} has no edge of chaos at any q."
