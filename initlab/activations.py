"""The activations: function, module, derivative, kinks, tails, Gaussian moments, gain.

An activation is an elementwise function φ of the pre-activation z. At initialization z is close to
Gaussian, so a handful of Gaussian expectations of φ and φ' decide whether a signal survives depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initlab.errors import finite_number, unknown_name
from initlab.expectations import (
    PAIR_REACH,
    gaussian_expectations,
    pair_expectation,
    unresolved_edges,
)
from initlab.tables import SmoothTable, stretched, unstretched

ElementwiseFunction = Callable[[Tensor], Tensor]
Saturates = Literal["none", "low", "high", "both"]

MeanSquare = Literal["second_moment", "derivative_second_moment"]

_LINEAR_BELOW = 1e-13  # a pair this close differs by φ' times its distance

SATURATED_SLOPE = 0.05
"""An activation counts as saturated where |φ'| stays below this: a gradient passes at under 5 %."""


@dataclass(frozen=True)
class Moments:
    """Gaussian moments of an activation at pre-activation second moment q (plain floats).

    ``mean`` is E φ, ``second_moment`` E φ², ``derivative_second_moment`` E φ'², and ``slope`` is
    d E φ² / dq = E[φ φ' z] / √q, all for a pre-activation √q·z with z ~ N(0, 1).
    """

    mean: float
    second_moment: float
    derivative_second_moment: float
    slope: float

    @property
    def variance(self) -> float:
        return self.second_moment - self.mean**2


@dataclass(frozen=True)
class PairMoments:
    """Gaussian moments of an activation at two pre-activations u, v of variance q, correlation c.

    ``product`` is E φ(u)φ(v), ``gap`` is E φ² − E φ(u)φ(v) without cancellation.
    """

    product: float
    gap: float


@dataclass(frozen=True)
class Activation:
    """An elementwise function φ and what the theory of initialization needs to know of it.

    Attributes:
        name: as in torch where torch has one.
        function: φ, from a float tensor to a tensor of the same shape.
        make_module: builds the ``nn.Module`` that computes φ.
        kinks: where φ or φ' jumps; the quadrature splits there.
        tails: ``(low, high)``; the activation is saturated where z < low or z > high
            (±inf on a side that does not saturate), or None where it never saturates.
        arguments: the slope of a leaky relu, α of an ELU, …, which with the name say which it is.
        code: where torch has no module for it, φ(z) as a script spells it; empty if not known.
    """

    name: str
    function: ElementwiseFunction
    make_module: Callable[[], nn.Module]
    kinks: tuple[float, ...] = ()
    tails: tuple[float, float] | None = None
    arguments: tuple[float, ...] = ()
    code: str = ""

    def __call__(self, z: Tensor) -> Tensor:
        return self.function(z)

    def __repr__(self) -> str:
        return f"Activation({self.name})"

    def module(self) -> nn.Module:
        """A new ``nn.Module`` that computes φ."""
        return self.make_module()

    def derivative(self, z: Tensor) -> Tensor:
        """φ'(z), of z's shape, exactly as autograd computes it in z's precision."""
        return _autograd_derivative(self.function, z)

    def moments(self, q: float = 1.0) -> Moments:
        """E φ, E φ², E φ'² for a pre-activation distributed as N(0, q), to about 1e-12.

        To 1e-4 where φ jumps or bends more than some hundred times within reach.
        At q = 0 these are the limits q → 0 (for relu E φ'² = 1/2, not φ'(0)²).

        Raises:
            TypeError: q is no number. ValueError: it is negative or not finite.

        >>> round(ACTIVATIONS["tanh"].moments(1.0).second_moment, 6)
        0.394294
        """
        if finite_number("q", q) < 0:
            raise ValueError(f"q={q} must be a finite variance of at least 0")
        return _moments(self, float(q))

    def pair_moments(self, q: float, decorrelation: float) -> PairMoments:
        """The moments of two pre-activations of variance q and correlation 1 − ``decorrelation``.

        Closed forms for positively homogeneous φ (relu: Cho and Saul 2009), else quadrature to
        1e-8 or better. Takes 1 − c, so that its digits survive where deep networks bring c to 1.

        Raises:
            ValueError: q is not above 0 and finite, ``decorrelation`` lies outside [0, 2], or φ
                varies or grows too fast to be resolved at this q.

        >>> round(ACTIVATIONS["relu"].pair_moments(2.0, 1.0).product, 6)  # independent: 1/π
        0.31831
        """
        _check_pair(q, decorrelation)
        return _pair_moments(self, float(q), float(decorrelation))

    def slope_product(self, q: float, decorrelation: float) -> float:
        """E φ'(u)φ'(v) at the same two pre-activations, with the same restrictions.

        >>> round(ACTIVATIONS["relu"].slope_product(2.0, 1.0), 6)  # both active: 1/4
        0.25
        """
        _check_pair(q, decorrelation)
        return _slope_product(self, float(q), float(decorrelation))

    @property
    def homogeneous(self) -> tuple[float, float] | None:
        """(a, b) where φ(z) = a·z for z > 0 and b·z for z < 0 (relu: (1, 0)), else None."""
        return _homogeneous(self.function)


ActivationSpec = str | nn.Module | ElementwiseFunction | Activation
"""Whatever ``activation`` takes."""


class Elementwise(nn.Module):
    """The module of an activation for which torch has none: one site in a trace."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, z: Tensor) -> Tensor:
        return self.activation.function(z)

    def extra_repr(self) -> str:
        return self.activation.name


# ---------------------------------------------------------------- moments


@lru_cache(maxsize=65536)
def _moments(phi: Activation, q: float) -> Moments:
    q, slopes = max(q, 1e-300), phi.homogeneous
    if slopes is not None:
        right, left = slopes
        slope = (right**2 + left**2) / 2
        return Moments(math.sqrt(q / (2 * math.pi)) * (right - left), q * slope, slope, slope)
    offset = _offset(phi)
    if q < 1e-10 and offset:
        # E[φ φ' z]/√q cancels where φ(0) ≠ 0; the slope is at its limit here.
        return replace(_expect_moments(phi, q), slope=_moments(phi, 1e-10).slope)
    # A ratio is as good as the larger of its terms, so that of a short signal is not tabulated;
    # nor is a signal so large that few ask for it, and that a wave takes long to integrate.
    tabulated = q < 1e4 and (q > 1e-3 or not offset)
    found = _moments_table(phi).at(stretched(q)) if tabulated else None
    if found is None:
        return _expect_moments(phi, q)
    log_second, log_slope, mean, slope = found.tolist()
    power, slope_power = _powers(phi)
    second = math.exp(log_second + power * math.log(q))
    slope_second = math.exp(log_slope + slope_power * math.log(q))
    return Moments(mean * math.sqrt(second), second, slope_second, slope * slope_second)


@lru_cache(maxsize=512)
def _offset(phi: Activation) -> float:
    return float(phi.function(torch.zeros(1, dtype=torch.float64)))


@lru_cache(maxsize=512)
def _powers(phi: Activation) -> tuple[float, float]:
    """The powers of q, in halves, with which E φ² and E φ'² begin."""
    small = 2.0**-80
    seconds = _expect_many(phi, np.array([small, small / 16]))[1:3].tolist()
    value, slope = (math.log2(a / b) / 4 if 0 < a < math.inf and b else 0.0 for a, b in seconds)
    return round(2 * value) / 2, round(2 * slope) / 2


@lru_cache(maxsize=256)
def _moments_table(phi: Activation) -> SmoothTable:
    """ln E φ² and ln E φ'² without their powers, E φ/√(E φ²), and (d E φ²/dq)/E φ'²."""

    def fill(_: tuple[int, ...], nodes: list[np.ndarray]) -> np.ndarray:
        q, (power, slope_power) = unstretched(nodes[0]), _powers(phi)
        mean, second, slope_second, slope = _expect_many(phi, q)
        logs = np.log(second) - power * np.log(q), np.log(slope_second) - slope_power * np.log(q)
        return np.stack([*logs, mean / np.sqrt(second), slope / slope_second])

    return SmoothTable(fill, orders=(15,), tolerance=1e-12)


def _expect_moments(phi: Activation, q: float) -> Moments:
    return Moments(*_expect_many(phi, np.array([q]))[:, 0].tolist())


def _expect_many(phi: Activation, q: np.ndarray) -> np.ndarray:
    """The fields of Moments, of shape (4, m)."""

    def integrands(x: np.ndarray) -> np.ndarray:
        z = torch.from_numpy(x)
        value, slope = phi.function(z).numpy(), phi.derivative(z).numpy()
        return np.stack([value, value**2, slope**2, value * slope * x, (value * x) ** 2])

    mean, second, slope_second, weighted, spread = gaussian_expectations(integrands, q, phi.kinks)
    slope = weighted / q
    with np.errstate(invalid="ignore"):  # inf − inf
        by_parts = (spread / q - second) / (2 * q)  # cancels more, but sees jumps, as φ' does not
        slope = np.where(np.abs(by_parts - slope) > 1e-9 * second / q, by_parts, slope)
    return np.stack([mean, second, slope_second, slope])


def _check_pair(q: float, decorrelation: float) -> None:
    finite_number("q", q, positive=True)
    if not 0 <= finite_number("decorrelation", decorrelation) <= 2:
        raise ValueError(f"decorrelation={decorrelation} must be 1 − c, in [0, 2]")


@lru_cache(maxsize=65536)
def _pair_moments(phi: Activation, q: float, decorrelation: float) -> PairMoments:
    slopes = phi.homogeneous
    if slopes is not None:
        return _homogeneous_pair(*slopes, q, decorrelation)

    if decorrelation < _LINEAR_BELOW:
        close = _pair_moments(phi, q, _LINEAR_BELOW)
        return PairMoments(close.product, close.gap * decorrelation / _LINEAR_BELOW)
    second = phi.moments(q).second_moment
    product, gap = _expect_pair(phi, _values, q, decorrelation, second)
    if 2 * product < second:  # nothing cancels, and E φ² is known to more digits
        gap = second - product
    return PairMoments(product, gap)


@lru_cache(maxsize=4096)
def _slope_product(phi: Activation, q: float, decorrelation: float) -> float:
    slopes = phi.homogeneous
    if slopes is not None:
        alpha, beta = sum(slopes) / 2, (slopes[0] - slopes[1]) / 2
        return alpha**2 + beta**2 * 2 / math.pi * (math.pi / 2 - _angle(decorrelation))

    second = phi.moments(q).derivative_second_moment
    return _expect_pair(phi, _slopes, q, decorrelation, second)[0]


Profile = Callable[["Activation", np.ndarray], np.ndarray]
"""φ or φ' at many points."""


def _expect_pair(
    phi: Activation, of: Profile, q: float, decorrelation: float, second: float
) -> tuple[float, float]:
    """The product and the gap of a profile whose mean square is ``second``."""
    for reach in (PAIR_REACH, 3 * PAIR_REACH):  # the latter for what grows like an exponential
        edges = _edges(phi, of, math.ceil(math.log2(reach * math.sqrt(q))))
        product, gap = pair_expectation(partial(of, phi), q, decorrelation, phi.kinks, edges, reach)
        if math.isinf(second) or abs(product + gap - second) <= 1e-6 * second:
            return product, gap
    raise ValueError(
        f"activation={phi.name!r} varies or grows too fast for moments of pairs at q={q:g}"
    )


@lru_cache(maxsize=512)
def _edges(phi: Activation, of: Profile, octave: int) -> np.ndarray:
    return unresolved_edges(partial(of, phi), 2.0**octave, phi.kinks)


def _values(phi: Activation, x: np.ndarray) -> np.ndarray:
    return phi.function(torch.from_numpy(x)).detach().numpy()


def _slopes(phi: Activation, x: np.ndarray) -> np.ndarray:
    return phi.derivative(torch.from_numpy(x)).numpy()


def _homogeneous_pair(right: float, left: float, q: float, decorrelation: float) -> PairMoments:
    gap = float(homogeneous_gap(right, left, np.array(decorrelation)))
    alpha, beta = (right + left) / 2, (right - left) / 2
    c, theta = 1 - decorrelation, _angle(decorrelation)
    sine = math.sqrt(decorrelation * (2 - decorrelation))
    absolute = 2 / math.pi * (sine + c * (math.pi / 2 - theta))
    return PairMoments(product=q * (alpha**2 * c + beta**2 * absolute), gap=q * gap)


def homogeneous_gap(right: float, left: float, decorrelation: np.ndarray) -> np.ndarray:
    """E φ² − E φ(u)φ(v) of pairs at q = 1, where φ(z) = right·z for z > 0 and left·z for z < 0.

    φ(z) = α·z + β·|z|: the odd and the even part do not mix, and each has a closed form. The
    arc-cosine kernel of order 1 (Cho and Saul 2009, eq. 6) is the case α = β = 1/2.
    """
    alpha, beta = (right + left) / 2, (right - left) / 2
    c, sine = 1 - decorrelation, np.sqrt(decorrelation * (2 - decorrelation))
    absolute = decorrelation - 2 / math.pi * (sine - np.arctan2(sine, c) * c)
    return alpha**2 * decorrelation + beta**2 * absolute


def _angle(decorrelation: float) -> float:
    """arccos c, which keeps its digits where c is close to 1."""
    return math.atan2(math.sqrt(decorrelation * (2 - decorrelation)), 1 - decorrelation)


@lru_cache(maxsize=512)
def _homogeneous(function: ElementwiseFunction) -> tuple[float, float] | None:
    right, left = (
        float(function(torch.ones(1, dtype=torch.float64))),
        float(-function(-torch.ones(1, dtype=torch.float64))),
    )
    z = torch.tensor([-1e6, -37.0, -0.1, -1e-6, 0.0, 1e-6, 0.1, 37.0, 1e6], dtype=torch.float64)
    linear = torch.where(z > 0, right * z, left * z)
    return (right, left) if torch.allclose(function(z), linear, rtol=1e-12, atol=0.0) else None


def gain(
    activation: ActivationSpec,
    preserve: Literal["forward", "backward"] = "forward",
) -> float:
    """The gain g for which weights of variance g²/fan keep a unit-variance signal at unit variance.

    ``"forward"`` is 1/√(E φ²): it preserves the second moment of the pre-activations.
    ``"backward"`` is 1/√(E φ'²): it preserves the second moment of the gradients. Expectations
    are over N(0, 1); for most activations no single gain preserves both (He et al. 2015, sec. 2.2,
    derives the ReLU case; the general one is Poole et al. 2016, eq. 3 and Schoenholz et al. 2017).

    Differs from ``torch.nn.init.calculate_gain``, which holds a few published constants:

    ============  ==========  ==========  =======================================================
    activation    forward     torch       why they differ
    ============  ==========  ==========  =======================================================
    identity      1           1           (torch calls it "linear")
    relu          1.414214    1.414214
    leaky_relu    1.414143    1.414143    (slope 0.01)
    tanh          1.592537    1.666667    5/3 is LeCun's target for Var φ, not a fixed point
    sigmoid       1.846229    1           torch has no rule for it; E φ ≠ 0 enters E φ²
    selu          1           0.75        SELU is built for 1; torch's 3/4 is empirical
    gelu          1.533530    error       not tabulated
    silu          1.676532    error       not tabulated
    ============  ==========  ==========  =======================================================

    Raises:
        ValueError: unknown name, unknown ``preserve``, or an activation that is 0 everywhere.
        TypeError: not an elementwise function.

    >>> round(gain("tanh"), 6), round(gain("tanh", preserve="backward"), 6)
    (1.592537, 1.467414)
    """
    if preserve not in ("forward", "backward"):
        raise unknown_name("preserve", preserve, ("forward", "backward"))
    phi = _resolve(activation)
    moments = phi.moments(1.0)
    kept = moments.second_moment if preserve == "forward" else moments.derivative_second_moment
    if not kept > 0:
        raise ValueError(f"activation {phi.name!r} passes no {preserve} signal, so has no gain")
    return 1 / math.sqrt(kept)


# ---------------------------------------------------------------- tails


def _find_tails(function: ElementwiseFunction, saturates: Saturates) -> tuple[float, float] | None:
    """Where |φ'| drops below SATURATED_SLOPE for good, on the sides that saturate."""
    if saturates == "none":
        return None
    low = -_outermost_slope(lambda z: function(-z)) if saturates in ("low", "both") else -math.inf
    high = _outermost_slope(function) if saturates in ("high", "both") else math.inf
    return (low, high)


def _outermost_slope(function: ElementwiseFunction) -> float:
    """The largest z at which |φ'(z)| is still SATURATED_SLOPE."""
    low, high = -60.0, 60.0
    for _ in range(6):  # each time a thousandth of the range is left
        grid = torch.linspace(low, high, 1_001, dtype=torch.float64)
        steep = _autograd_derivative(function, grid).abs() >= SATURATED_SLOPE
        last = int(steep.nonzero().max())
        low, high = float(grid[last]), float(grid[min(last + 1, len(grid) - 1)])
    return round(high, 12)


def _autograd_derivative(function: ElementwiseFunction, z: Tensor) -> Tensor:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = function(z)
        if not value.requires_grad:  # a constant function
            return torch.zeros_like(z)
        (slope,) = torch.autograd.grad(value.sum(), z, allow_unused=True)
    return torch.zeros_like(z) if slope is None else slope


def _guess_saturation(function: ElementwiseFunction) -> Saturates:
    """ "both" for a function that goes flat on both sides at two different values, else "none"."""
    far = torch.tensor([-40.0, -30.0, 30.0, 40.0], dtype=torch.float64)
    flat = (_autograd_derivative(function, far).abs() < SATURATED_SLOPE).all()
    bounded = flat and abs(float(function(far)[0] - function(far)[-1])) > SATURATED_SLOPE
    rises = (
        _autograd_derivative(function, torch.linspace(-3, 3, 61)).abs() > SATURATED_SLOPE
    ).any()
    return "both" if bounded and rises else "none"


# ---------------------------------------------------------------- kinks


def _find_kinks(function: ElementwiseFunction) -> tuple[float, ...]:
    """Where φ or φ' jumps within |z| < 40: the intervals of largest change, bisected to 1e-12."""
    edges = torch.linspace(-40, 40, 5000, dtype=torch.float64)
    values, slopes = function(edges).detach(), _autograd_derivative(function, edges)
    found: set[float] = set()
    for profile, curve in (
        (values, function),
        (slopes, lambda z: _autograd_derivative(function, z)),
    ):
        size = float(profile.abs().max())
        if not (math.isfinite(size) and size > 0):
            continue
        near_first = 1 - 1e-3 * edges[:-1].abs() / 40  # of many equal ones, those close to 0
        steepest = (profile.diff().abs() * near_first).topk(512).indices
        low, high = edges[steepest], edges[steepest + 1]
        for _ in range(38):
            middle = (low + high) / 2
            left = (curve(middle) - curve(low)).abs() >= (curve(high) - curve(middle)).abs()
            low, high = torch.where(left, low, middle), torch.where(left, middle, high)
        jumps = (curve(high) - curve(low)).abs().detach() > 1e-6 * size
        found |= {round(float(kink), 10) + 0.0 for kink in ((low + high) / 2)[jumps]}
    return tuple(sorted(found))


# ---------------------------------------------------------------- the registry


def _named(
    name: str,
    function: ElementwiseFunction,
    make_module: Callable[[], nn.Module],
    kinks: tuple[float, ...] = (),
    saturates: Saturates = "none",
    arguments: tuple[float, ...] = (),
) -> Activation:
    tails = _find_tails(function, saturates)
    return Activation(name, function, make_module, kinks, tails, arguments)


def _elementwise(
    name: str,
    function: ElementwiseFunction,
    kinks: tuple[float, ...] = (),
    saturates: Saturates = "none",
    code: str = "",
) -> Activation:
    """An activation without a torch module: its module is an Elementwise around itself."""

    def make_module() -> nn.Module:
        return Elementwise(made)

    made = replace(_named(name, function, make_module, kinks, saturates), code=code)
    return made


class Family(NamedTuple):
    """The activations that one torch module computes, told apart by its arguments.

    Attributes:
        module: their class.
        function: what it calls.
        fields: the arguments, as attributes of the module and as keywords of the function.
        kinks: where φ or φ' jumps, from the arguments.
        saturates: on which side.
    """

    module: type[nn.Module]
    function: Callable[..., Tensor]
    fields: tuple[str, ...]
    kinks: Callable[..., tuple[float, ...]] = lambda *_: ()
    saturates: Saturates = "none"


def _at_zero(*_: float) -> tuple[float, ...]:
    return (0.0,)


def _at_both(bound: float) -> tuple[float, ...]:
    return (-bound, bound)


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "leaky_relu": Family(nn.LeakyReLU, F.leaky_relu, ("negative_slope",), _at_zero),
        "elu": Family(nn.ELU, F.elu, ("alpha",), _at_zero, "low"),
        "celu": Family(nn.CELU, F.celu, ("alpha",), _at_zero, "low"),
        "softplus": Family(nn.Softplus, F.softplus, ("beta", "threshold")),
        "hardtanh": Family(
            nn.Hardtanh, F.hardtanh, ("min_val", "max_val"), lambda *ends: ends, "both"
        ),
        "threshold": Family(
            nn.Threshold, F.threshold, ("threshold", "value"), lambda at, value: (at,)
        ),
        "softshrink": Family(nn.Softshrink, F.softshrink, ("lambd",), _at_both),
        "hardshrink": Family(nn.Hardshrink, F.hardshrink, ("lambd",), _at_both),
    }
)
"""Every activation with arguments whose module and function name them alike."""

# Cached, so that equal arguments give the same object and share its cached moments.


@lru_cache(maxsize=1024)
def _member(name: str, *arguments: float) -> Activation:
    family = FAMILIES[name]
    keywords = dict(zip(family.fields, arguments, strict=True))
    function, module = partial(family.function, **keywords), partial(family.module, *arguments)
    kinks = family.kinks(*arguments)
    return _named(name, function, module, kinks, family.saturates, arguments)


@lru_cache
def _prelu(slope: float) -> Activation:
    function = partial(F.leaky_relu, negative_slope=slope)
    return _named("prelu", function, partial(nn.PReLU, init=slope), (0.0,), arguments=(slope,))


@lru_cache
def _gelu(approximate: str) -> Activation:
    name = "gelu" if approximate == "none" else "gelu_tanh"
    function = partial(F.gelu, approximate=approximate)
    return _named(name, function, partial(nn.GELU, approximate))


def _tanhshrink(z: Tensor) -> Tensor:
    """z − tanh z, by its series where torch's difference cancels."""
    square = z.clamp(-0.1, 0.1) ** 2
    series = 1 / 3 - square * (
        2 / 15 - square * (17 / 315 - square * (62 / 2835 - square * 1382 / 155925))
    )
    return torch.where(z.abs() < 0.1, z**3 * series, F.tanhshrink(z))


def _hardsigmoid(z: Tensor) -> Tensor:
    """relu6(z + 3)/6: torch's derivative has only the digits of a float32."""
    return F.relu6(z + 3) / 6


def _relu_squared(z: Tensor) -> Tensor:
    return F.relu(z).square()


_BUILT_IN = (
    _named("identity", lambda z: z * 1, nn.Identity),
    _named("relu", F.relu, nn.ReLU, (0.0,)),
    _member("leaky_relu", 0.01),
    _prelu(0.25),
    _member("elu", 1.0),
    _named("selu", F.selu, nn.SELU, (0.0,), "low"),
    _member("celu", 1.0),
    _gelu("none"),
    _gelu("tanh"),
    _named("silu", F.silu, nn.SiLU),
    _named("mish", F.mish, nn.Mish),
    _member("softplus", 1.0, 20.0),
    _named("tanh", torch.tanh, nn.Tanh, (), "both"),
    _named("sigmoid", torch.sigmoid, nn.Sigmoid, (), "both"),
    _member("hardtanh", -1.0, 1.0),
    _named("hardswish", F.hardswish, nn.Hardswish, (-3.0, 3.0)),
    _named("hardsigmoid", _hardsigmoid, nn.Hardsigmoid, (-3.0, 3.0), "both"),
    _named("relu6", F.relu6, nn.ReLU6, (0.0, 6.0), "high"),
    _named("softsign", F.softsign, nn.Softsign, (0.0,), "both"),
    _named("tanhshrink", _tanhshrink, nn.Tanhshrink),
    _named("logsigmoid", F.logsigmoid, nn.LogSigmoid),
    _elementwise("sin", torch.sin, code="torch.sin(z)"),
    _elementwise("erf", torch.erf, (), "both", "torch.erf(z)"),
    _elementwise("relu_squared", _relu_squared, (0.0,), code="torch.relu(z) ** 2"),
)

_registry: dict[str, Activation] = {entry.name: entry for entry in _BUILT_IN}

ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(_registry)
"""Every activation by name, in the order in which menus show them."""

_OF_ARGUMENTS: dict[type[nn.Module], Callable[..., Activation]] = {
    Elementwise: lambda m: m.activation,
    nn.GELU: lambda m: _gelu(m.approximate),
    nn.PReLU: lambda m: _prelu(_rms_slope(m.weight)),
    nn.RReLU: lambda m: _member("leaky_relu", (m.lower + m.upper) / 2),  # the mean of its slopes
}
_OF_CLASS = {type(entry.module()): entry for entry in _BUILT_IN}


def _of_module(module: nn.Module) -> Activation | None:
    """The activation that a module of a known class, not of one derived, has by its arguments."""
    kind = type(module)
    for name, family in FAMILIES.items():
        if kind is family.module:
            return _member(name, *(float(getattr(module, field)) for field in family.fields))
    make = _OF_ARGUMENTS.get(kind)
    return make(module) if make is not None else _OF_CLASS.get(kind)


def known_activation(name: str, arguments: tuple[float, ...] = ()) -> Activation | None:
    """The activation of this name, and of these arguments where it takes some; None if unknown.

    >>> known_activation("leaky_relu", (0.2,)).homogeneous
    (1.0, 0.2)
    """
    if arguments and name == "prelu":
        return _prelu(*arguments)
    family = "leaky_relu" if name == "rrelu" else name
    if arguments and family in FAMILIES:
        return _member(family, *arguments)
    return _registry.get(name)


_FROM_FUNCTION: dict[object, str] = {
    torch.relu: "relu",
    torch.selu: "selu",
    torch.celu: "celu",
    torch.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    torch.sin: "sin",
    torch.erf: "erf",
    torch.special.erf: "erf",
    torch.special.expit: "sigmoid",
    **{getattr(F, name): name for name in _registry if hasattr(F, name) and name != "prelu"},
}


def _rms_slope(weight: Tensor) -> float:
    """One slope for PReLU: with several channels the root mean square, exact for E φ² and E φ'²."""
    return float(
        weight.detach().double().square().mean().sqrt() * (1 if (weight >= 0).all() else -1)
    )


def activation(spec: ActivationSpec) -> Activation:
    """The Activation for a name, an ``nn.Module`` (instance or class) or an elementwise callable.

    Args:
        spec: a name of ``ACTIVATIONS``; a module such as ``nn.LeakyReLU(0.2)``, whose parameters
            are honoured; or a function of a float tensor, differentiable by autograd.

    Raises:
        ValueError: a name that is not registered.
        TypeError: something that is not an elementwise function (Softmax, GLU, Dropout, …).

    >>> activation("relu"), activation(nn.Tanh()), activation(torch.sin)
    (Activation(relu), Activation(tanh), Activation(sin))
    """
    if isinstance(spec, Activation):
        return spec
    if isinstance(spec, str):
        if spec not in _registry:
            raise unknown_name("activation", spec, _registry)
        return _registry[spec]
    if isinstance(spec, type) and issubclass(spec, nn.Module):
        spec = spec()
    if isinstance(spec, nn.Module) and (known := _of_module(spec)) is not None:
        return known
    if not callable(spec):
        raise TypeError(
            f"activation={spec!r} must be a name, an nn.Module or an elementwise function"
        )
    if spec in _FROM_FUNCTION:
        return _registry[_FROM_FUNCTION[spec]]
    return _from_callable(spec)


_resolve = activation  # for functions whose own argument is named activation


@lru_cache(maxsize=256)
def _from_callable(function: ElementwiseFunction) -> Activation:
    name = getattr(function, "__name__", type(function).__name__)
    _require_elementwise(name, function)
    return _elementwise(name, function, _find_kinks(function), _guess_saturation(function))


def _require_elementwise(name: str, function: ElementwiseFunction) -> None:
    """Raise TypeError unless function maps each element on its own, repeatably, by autograd."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    refused = f"activation {name!r} is not an elementwise function of a float tensor"
    try:
        with torch.random.fork_rng(devices=[]):  # a Dropout draws from torch's global generator
            value = function(z)
            part = function(z[1:3, :4])
            _autograd_derivative(function, z)  # refused: numpy's, and what works in place
    except Exception as error:
        raise TypeError(f"{refused}: it raised {type(error).__name__}: {error}") from error
    if not isinstance(value, Tensor) or value.shape != z.shape:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{refused}: an input of shape {tuple(z.shape)} became {shape}")
    if value.is_floating_point() and value.dtype != z.dtype:
        raise TypeError(f"{refused}: an input of {z.dtype} became {value.dtype}")
    if not value.is_floating_point() or not torch.allclose(value[1:3, :4], part, rtol=1e-6):
        raise TypeError(
            f"{refused}: an element's output depends on other elements or on chance "
            "(Softmax, GLU, Dropout and normalization layers are no activations in this sense)"
        )


def register_activation(
    name: str,
    function: ElementwiseFunction,
    *,
    module: Callable[[], nn.Module] | None = None,
    kinks: tuple[float, ...] | None = None,
    saturates: Saturates | None = None,
) -> Activation:
    """Add an activation to ``ACTIVATIONS``: menus, catalogue and theory pick it up by themselves.

    Args:
        name: a new name.
        function: elementwise, differentiable by autograd.
        module: builds its ``nn.Module``; an ``Elementwise`` if not given.
        kinks: where φ or φ' jumps; searched for within |z| < 40 if not given.
        saturates: the sides on which it saturates; guessed from φ' if not given.

    Raises:
        ValueError: the name is taken or empty, or ``saturates`` is no side.
        TypeError: not an elementwise function.
    """
    if not name or name in _registry:
        raise ValueError(f"activation name {name!r} is empty or already registered")
    if saturates is not None and saturates not in get_args(Saturates):
        raise unknown_name("saturates", saturates, get_args(Saturates))
    _require_elementwise(name, function)
    sides = saturates or _guess_saturation(function)
    kinks = _find_kinks(function) if kinks is None else tuple(kinks)
    if module is None:
        entry = _elementwise(name, function, kinks, sides)
    else:
        entry = _named(name, function, module, kinks, sides)
        _OF_CLASS.setdefault(type(module()), entry)
    _registry[name] = entry
    return entry
