"""Mean-field facts about (activation, sigma_w, sigma_b): how signals and angles travel with depth.

In a wide network with independent zero-mean weights of variance sigma_w²/fan_in and biases of
variance sigma_b², the pre-activations are Gaussian, and two numbers per layer say all of them:
q = E h², how large they are, and c, the correlation between those of two inputs (Poole et al. 2016;
Schoenholz et al. 2017). Everything here is plain floats, for any activation of the registry and any
elementwise callable. What finite width adds is in ``finite_width.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from initlab.activations import Activation, ElementwiseFunction
from initlab.activations import activation as resolve
from initlab.errors import finite_number, positive_int, unknown_name
from initlab.expectations import gaussian_expectation

ActivationSpec = str | nn.Module | ElementwiseFunction | Activation

_MARGINAL = 1e-9  # a slope this close to 1 counts as 1
_HUGE = 1e300  # stands for inf where a root is bracketed


@dataclass(frozen=True)
class FixedPoint:
    """A second moment q that the length map keeps.

    ``slope`` is the map's derivative there (χ∥); ``stable`` says whether nearby q return to it. A
    signal never settles on a point that is not stable, though gains are often computed at one.
    """

    q: float
    slope: float
    stable: bool


@dataclass(frozen=True)
class DepthScales:
    """How many layers it takes for lengths (``xi_q``) and angles (``xi_c``) to forget the input.

    Deviations from the fixed point fall as exp(−l/ξ); inf at criticality, where they fall as a
    power of depth. None where there is nothing to fall to: q diverges, or the network becomes
    linear and its correlations freeze where they are.
    """

    xi_q: float | None
    xi_c: float | None


@dataclass(frozen=True)
class JacobianSpectrum:
    """The squared singular values of the input-output Jacobian: mean, variance, largest."""

    mean: float
    variance: float
    max: float


# ---------------------------------------------------------------- lengths


def length_map(activation: ActivationSpec, q: float, sigma_w: float, sigma_b: float) -> float:
    """One step of q → sigma_w²·E φ²(√q z) + sigma_b², z ~ N(0, 1) (Poole et al. 2016, eq. 3).

    Raises:
        ValueError: q negative, or a number that is not finite. TypeError: not an activation.

    >>> round(length_map("relu", 1.0, 2**0.5, 0.0), 12)
    1.0
    """
    finite_number("sigma_w", sigma_w)
    finite_number("sigma_b", sigma_b)
    return sigma_w**2 * resolve(activation).moments(q).second_moment + sigma_b**2


def length_map_slope(activation: ActivationSpec, q: float, sigma_w: float) -> float:
    """χ∥ = sigma_w²·d E φ²(√q z)/dq: by how much a deviation of q grows in one layer.

    >>> round(length_map_slope("tanh", 1.0, 1.0), 4)
    0.1818
    """
    finite_number("sigma_w", sigma_w)
    return sigma_w**2 * resolve(activation).moments(q).slope


def chi_1(activation: ActivationSpec, q: float, sigma_w: float) -> float:
    """sigma_w²·E φ'²(√q z): the factor by which a layer multiplies the gradient's second moment.

    Below 1 gradients vanish, above 1 they explode (Schoenholz et al. 2017, eq. 5).

    >>> round(chi_1("tanh", 0.0, 1.0), 12)
    1.0
    """
    finite_number("sigma_w", sigma_w)
    return sigma_w**2 * resolve(activation).moments(q).derivative_second_moment


def fixed_points(activation: ActivationSpec, sigma_w: float, sigma_b: float) -> list[FixedPoint]:
    """Every q with q = sigma_w²·E φ²(√q z) + sigma_b², in rising order; repelling ones included.

    Found as the roots of length_map(q) − q between 1e-16 and 1e16, not by iterating the map, which
    would only find the stable ones. An empty list means that q grows without bound.

    Raises:
        ValueError: every q is a fixed point (relu with sigma_w = √2 and no bias), or a number that
            is not finite. TypeError: not an activation.

    >>> [(round(point.q, 3), point.stable) for point in fixed_points("tanh", 1.5, 0.0)]
    [(0.0, False), (0.793, True)]
    """
    phi = resolve(activation)
    finite_number("sigma_w", sigma_w)
    finite_number("sigma_b", sigma_b)
    return list(_fixed_points(phi, abs(float(sigma_w)), abs(float(sigma_b))))


@lru_cache(maxsize=4096)
def _fixed_points(phi: Activation, sigma_w: float, sigma_b: float) -> tuple[FixedPoint, ...]:
    def excess(q: float) -> float:
        return min(length_map(phi, q, sigma_w, sigma_b) - q, _HUGE)

    def rise(q: float) -> float:
        return min(length_map_slope(phi, q, sigma_w) - 1, _HUGE)

    if sigma_w == 0:
        return (FixedPoint(sigma_b**2, 0.0, True),)
    table = _length_table(phi)
    values = np.minimum(sigma_w**2 * table.second_moment + sigma_b**2 - table.q, _HUGE)
    if sigma_b == 0 and phi.homogeneous and abs(values[0]) < 1e-12 * table.q[0]:
        raise ValueError(
            f"activation={phi.name!r} with sigma_w={sigma_w:.6g} and sigma_b=0 keeps every q: "
            "a continuum of fixed points"
        )
    known = dict(zip(table.q.tolist(), values.tolist(), strict=True))
    turns = np.flatnonzero(np.diff(np.sign(sigma_w**2 * table.slope - 1)))
    for turn in turns:  # without its turning points, a curve that only touches 0 would be missed
        q = _root(rise, *table.q[turn : turn + 2].tolist())
        known[q] = excess(q)
    if sigma_b > 0:  # no fixed point lies below the bias's own variance
        lowest = sigma_b**2
        known = {q: value for q, value in known.items() if q > lowest * (1 + 1e-9)}
        known = {lowest * (1 - 1e-9): lowest, lowest: excess(lowest)} | known
    roots = _roots(excess, sorted(known.items()))
    if length_map(phi, 0.0, sigma_w, sigma_b) < 1e-290:
        roots.insert(0, 0.0)
    return tuple(
        FixedPoint(q, slope, _is_stable(excess, q, slope))
        for q in roots
        for slope in [length_map_slope(phi, q, sigma_w)]
    )


def _roots(function: Callable[[float], float], known: list[tuple[float, float]]) -> list[float]:
    """Where a function of q > 0, monotone between these (q, value) pairs, is 0.

    A value below 1e-13·q is rounding: the pair itself is the root, unless its neighbours are 0 as
    well, as where the length map has q for its asymptote.
    """
    at = [q for q, _ in known]
    signs = [0.0 if abs(value) <= 1e-13 * q else math.copysign(1, value) for q, value in known]
    roots = []
    for index, sign in enumerate(signs):
        before = signs[index - 1] if index else 0.0
        after = signs[index + 1] if index + 1 < len(signs) else 0.0
        if sign == 0 and before and after:
            roots.append(at[index])
        elif sign * after < 0:
            roots.append(_root(function, at[index], at[index + 1]))
    return roots


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    from scipy.optimize import root_scalar

    return float(root_scalar(function, bracket=(low, high), xtol=1e-300, rtol=1e-14).root)


def _is_stable(excess: Callable[[float], float], q: float, slope: float) -> bool:
    if abs(slope - 1) > _MARGINAL:
        return abs(slope) < 1
    step = 1e-3 * q or 1e-6
    from_below = q == 0 or excess(q - step) > 0
    return from_below and excess(q + step) < 0


@dataclass(frozen=True)
class _LengthTable:
    """Moments on a grid of q that spans all that floats square without loss, finest around 1."""

    q: np.ndarray
    second_moment: np.ndarray
    slope: np.ndarray
    derivative_second_moment: np.ndarray


@lru_cache(maxsize=64)
def _length_table(phi: Activation) -> _LengthTable:
    exponents = [np.arange(-16, -4, 0.5), np.arange(-4, 4, 1 / 32), np.arange(4, 16.1, 1.0)]
    grid = 10 ** np.concatenate(exponents)
    moments = [phi.moments(q) for q in grid.tolist()]
    return _LengthTable(
        grid,
        np.array([at.second_moment for at in moments]),
        np.array([at.slope for at in moments]),
        np.array([at.derivative_second_moment for at in moments]),
    )


def settled_length(activation: ActivationSpec, sigma_w: float, sigma_b: float) -> float | None:
    """The stable fixed point that a signal of q = 1 is drawn to; None if q grows without bound.

    Where every q is kept (relu with √2) that is 1.

    >>> settled_length("relu", 2.0, 0.0) is None
    True
    """
    phi = resolve(activation)
    try:
        points = fixed_points(phi, sigma_w, sigma_b)
    except ValueError:
        if phi.homogeneous:
            return 1.0
        raise
    below = [point.q for point in points if point.q <= 1 and point.stable]
    above = [point.q for point in points if point.q > 1 and point.stable]
    rises = length_map(phi, 1.0, sigma_w, sigma_b) > 1
    if rises:
        return above[0] if above else None
    return below[-1] if below else (above[0] if above else None)


# ---------------------------------------------------------------- the edge of chaos


def edge_of_chaos(activation: ActivationSpec, q: float) -> tuple[float, float]:
    """(sigma_w, sigma_b) for which q is a fixed point and χ₁ = 1 there.

    sigma_w² = 1/E φ'²(√q z) and sigma_b² = q − sigma_w²·E φ²(√q z): the edge is a curve with q as
    its parameter (Schoenholz et al. 2017, sec. 3; Hayou et al. 2019, prop. 1).

    Raises:
        ValueError: q is not above 0, or sigma_b² would be negative: no critical network has this q.

    >>> [round(sigma, 4) for sigma in edge_of_chaos("tanh", 1.0)]
    [1.4674, 0.3885]
    """
    phi = resolve(activation)
    finite_number("q", q)
    if q <= 0:
        raise ValueError(f"q={q} must be above 0")
    moments = phi.moments(q)
    _require_gradient(phi, moments.derivative_second_moment, q)
    bias_var = q - moments.second_moment / moments.derivative_second_moment
    if bias_var < -1e-12 * q:
        raise ValueError(
            f"activation={phi.name!r} has no edge of chaos at q={q}: sigma_b² would be "
            f"{bias_var:.3g}, below 0"
        )
    sigma_b = math.sqrt(bias_var) if bias_var > 1e-13 * q else 0.0
    return 1 / math.sqrt(moments.derivative_second_moment), sigma_b


def _require_gradient(phi: Activation, derivative_second_moment: float, q: float) -> None:
    if not 0 < derivative_second_moment < math.inf:
        passes = "no gradient" if derivative_second_moment == 0 else "infinite gradients"
        raise ValueError(f"activation={phi.name!r} passes {passes} at q={q}: it has no edge")


def critical_sigma_w(activation: ActivationSpec, sigma_b: float) -> float:
    """The sigma_w at the edge of chaos for this sigma_b; of several the one of smallest q.

    At sigma_b = 0 the limit q → 0 where that is critical (tanh: 1, gelu: 2, relu: √2 at any q).

    Raises:
        ValueError: no sigma_w makes the network critical at this sigma_b.

    >>> round(critical_sigma_w("tanh", 0.05), 6), round(critical_sigma_w("relu", 0.0), 6)
    (1.122539, 1.414214)
    """
    moments = resolve(activation).moments(critical_length(activation, sigma_b))
    return 1 / math.sqrt(moments.derivative_second_moment)


def critical_length(activation: ActivationSpec, sigma_b: float) -> float:
    """The smallest q at which the network with this sigma_b is at the edge of chaos (0: a limit).

    Raises:
        ValueError: no q is.
    """
    phi = resolve(activation)
    finite_number("sigma_b", sigma_b)
    return _critical_length(phi, abs(float(sigma_b)))


@lru_cache(maxsize=4096)
def _critical_length(phi: Activation, sigma_b: float) -> float:
    def excess(q: float) -> float:
        moments = phi.moments(q)
        return q - moments.second_moment / moments.derivative_second_moment - sigma_b**2

    table = _length_table(phi)
    with np.errstate(divide="ignore", invalid="ignore"):
        tabled = table.q - table.second_moment / table.derivative_second_moment - sigma_b**2
        tabled[np.isinf(table.derivative_second_moment)] = np.nan
    if sigma_b == 0 and abs(tabled[0]) < 1e-6 * table.q[0]:
        return 0.0
    known = [
        (float(q), float(value))
        for q, value in zip(table.q, tabled, strict=True)
        if math.isfinite(value)
    ]
    roots = _roots(excess, known)
    if not roots:
        raise ValueError(
            f"activation={phi.name!r} has no edge of chaos at sigma_b={sigma_b:g}: "
            "no sigma_w keeps its gradients"
        )
    return roots[0]


# ---------------------------------------------------------------- angles


def correlation_map(
    activation: ActivationSpec, c: float, q: float, sigma_w: float, sigma_b: float
) -> float:
    """The correlation one layer on: (sigma_w²·E φ(u)φ(v) + sigma_b²) / length_map(q).

    u and v are N(0, q) of correlation c (Poole et al. 2016, eq. 5). At a fixed point of q the
    denominator is q; elsewhere it keeps c = 1 at 1.

    Raises:
        ValueError: c outside [−1, 1], q not above 0, or a network that passes nothing.

    >>> round(correlation_map("relu", 0.0, 1.0, 2**0.5, 0.0), 6)  # 1/π
    0.31831
    """
    phi = resolve(activation)
    finite_number("c", c)
    if not -1 <= c <= 1:
        raise ValueError(f"c={c} must be a correlation, in [-1, 1]")
    length = length_map(phi, q, sigma_w, sigma_b)
    if length == 0:
        raise ValueError(f"sigma_w={sigma_w} and sigma_b={sigma_b} pass nothing: no correlation")
    if math.isinf(length):
        raise ValueError(f"activation={phi.name!r} at q={q} has an infinite E φ²: no correlation")
    return 1 - sigma_w**2 * phi.pair_moments(q, 1 - c).gap / length


def correlation_fixed_point(
    activation: ActivationSpec, sigma_w: float, sigma_b: float
) -> float | None:
    """The correlation to which any two inputs are drawn at the settled length.

    1 in the ordered phase and on the edge; below 1 in the chaotic phase, where like inputs are
    driven apart. None where nothing draws it anywhere: q diverges, or falls to 0, where a smooth
    activation is linear and correlations freeze at the value that they have reached.

    >>> round(correlation_fixed_point("tanh", 1.5, 0.1), 4)
    0.1801
    """
    phi = resolve(activation)
    length = _length_for_angles(phi, sigma_w, sigma_b)
    if length is None:
        return None
    return 1 - _settled_decorrelation(phi, length, abs(float(sigma_w)), abs(float(sigma_b)))


def _length_for_angles(phi: Activation, sigma_w: float, sigma_b: float) -> float | None:
    """The q at which angles evolve in the end, or None where they freeze or q diverges."""
    if phi.homogeneous and sigma_b == 0:
        right, left = phi.homogeneous
        return None if right == left or sigma_w == 0 else 1.0  # angles do not depend on q
    length = settled_length(phi, sigma_w, sigma_b)
    if length is None or length > 0:
        return length
    near_zero = 1e-8  # a kink at 0 goes on bending angles however small q is; else φ is linear
    value = phi.moments(near_zero).second_moment
    if value == 0:
        return None
    moved = 0.5 - phi.pair_moments(near_zero, 0.5).gap / value
    return near_zero if abs(moved) > 1e-3 else None


@lru_cache(maxsize=4096)
def _settled_decorrelation(phi: Activation, q: float, sigma_w: float, sigma_b: float) -> float:
    """1 − c at the stable fixed point of the correlation map (convex in c, so there is one)."""
    length = length_map(phi, q, sigma_w, sigma_b)

    def excess(decorrelation: float) -> float:
        """By how much the map brings two inputs apart, per unit of 1 − c."""
        gap = phi.pair_moments(q, decorrelation).gap
        return sigma_w**2 * gap / length / decorrelation - 1

    if excess(1e-10) <= 1e-6:
        return 0.0
    if excess(1.0) >= -1e-12:
        return 1.0
    return _root(excess, 1e-10, 1.0)


def depth_scales(activation: ActivationSpec, sigma_w: float, sigma_b: float) -> DepthScales:
    """ξ_q = −1/ln χ∥ and ξ_c = −1/ln χ_c, χ_c = sigma_w²·E φ'(u)φ'(v) at the fixed points.

    Signals and gradients reach through about 6 ξ_c layers (Schoenholz et al. 2017, eqs. 9, 12).

    >>> scales = depth_scales("tanh", 1.5, 0.1)
    >>> round(scales.xi_q, 4), round(scales.xi_c, 4)
    (1.4172, 14.8451)
    """
    phi = resolve(activation)
    settled = settled_length(phi, sigma_w, sigma_b)
    xi_q = None if settled is None else _scale(length_map_slope(phi, settled, sigma_w))
    length = _length_for_angles(phi, sigma_w, sigma_b)
    if length is None:
        return DepthScales(xi_q, None)
    apart = _settled_decorrelation(phi, length, abs(float(sigma_w)), abs(float(sigma_b)))
    slope = phi.moments(length).derivative_second_moment
    if apart > 0:
        slope = _angle_slope(phi, length, apart)
    mapped = length_map(phi, length, sigma_w, sigma_b)
    return DepthScales(xi_q, _scale(sigma_w**2 * slope * length / mapped))


def _angle_slope(phi: Activation, q: float, apart: float) -> float:
    """E φ'(u)φ'(v) as d E φ(u)φ(v) / dE uv; by differences where φ jumps, which φ' does not see."""
    exact, step = phi.slope_product(q, apart), 1e-3 * apart
    beyond, before = (phi.pair_moments(q, apart + way * step).gap for way in (1, -1))
    difference = (beyond - before) / (2 * step * q)
    return exact if abs(exact - difference) < 1e-3 * abs(difference) else difference


def _scale(factor: float) -> float:
    """The depth over which factor^l falls to 1/e."""
    if abs(abs(factor) - 1) < _MARGINAL:
        return math.inf
    return -1 / math.log(abs(factor)) if factor else 0.0


# ---------------------------------------------------------------- the Jacobian


def jacobian_spectrum(
    activation: ActivationSpec,
    depth: int,
    weights: Literal["gaussian", "orthogonal"],
    q: float = 1.0,
    sigma_w: float | None = None,
) -> JacobianSpectrum:
    """Squared singular values of the Jacobian of ``depth`` wide layers whose length stays q.

    Mean χ₁^L; variance mean²·L·(μ₂/μ₁² − 1 − s₁), μ_k = E φ'^{2k}, s₁ = 0 for orthogonal and −1 for
    Gaussian weights; the largest is the edge of the spectrum by its S-transform (Pennington et al.
    2017 and 2018, eqs. 14 to 22). inf where φ' is unbounded.

    Args:
        activation: name, module or callable.
        depth: layers, at least 1.
        weights: the ensemble of the square weight matrices.
        q: second moment of the pre-activations.
        sigma_w: std of the weights times √width; None for the critical 1/√(E φ'²).

    Raises:
        ValueError: depth below 1, unknown weights, q not above 0.

    >>> jacobian_spectrum("identity", 10, "gaussian").variance
    10.0
    """
    phi = resolve(activation)
    positive_int("depth", depth)
    if weights not in ("gaussian", "orthogonal"):
        raise unknown_name("weights", weights, ("gaussian", "orthogonal"))
    finite_number("q", q)
    if q <= 0:
        raise ValueError(f"q={q} must be above 0")
    second, fourth = _slope_moments(phi, float(q))
    if sigma_w is None:
        _require_gradient(phi, second, q)
        sigma_w = 1 / math.sqrt(second)
    finite_number("sigma_w", sigma_w)
    if math.isinf(second):
        return JacobianSpectrum(math.inf, math.inf, math.inf)
    chi = sigma_w**2 * second
    mean = chi**depth
    spread = depth * (fourth / second**2 - (0 if weights == "gaussian" else 1)) if second else 0.0
    largest = mean * _edge(phi, float(q), depth, weights)
    return JacobianSpectrum(mean, mean**2 * max(spread, 0.0), largest)


@lru_cache(maxsize=1024)
def _slope_moments(phi: Activation, q: float) -> tuple[float, float]:
    """E φ'² and E φ'⁴."""

    def integrands(x: np.ndarray) -> np.ndarray:
        squared = phi.derivative(torch.from_numpy(x)).numpy() ** 2
        return np.stack([squared, squared**2])

    second, fourth = gaussian_expectation(integrands, q, phi.kinks)
    return float(second), float(fourth)


@lru_cache(maxsize=1024)
def _edge(phi: Activation, q: float, depth: int, weights: str) -> float:
    """The largest squared singular value for sigma_w² = 1/E φ'² (it scales as χ₁^L).

    The least value of (M/(1+M))^(L−1)·(w·sigma_w²)^L, times (1+M)^L for Gaussian weights, over w
    above the largest φ'², with M(w) = E φ'²/(w − φ'²).
    """
    from scipy.optimize import minimize_scalar

    squared_slope, weight, largest = _slope_profile(phi, q)
    if not math.isfinite(largest):
        return math.inf
    second = float(squared_slope @ weight)

    def log_edge(log_distance: float) -> float:
        w = largest * (1 + math.exp(log_distance))
        m = float((squared_slope / (w - squared_slope)) @ weight)
        value = (depth - 1) * (math.log(m) - math.log1p(m)) + depth * math.log(w / second)
        return value + depth * math.log1p(m) if weights == "gaussian" else value

    grid = np.linspace(-28, 14, 85)
    values = [log_edge(float(point)) for point in grid]
    best = int(np.argmin(values))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found: Any = minimize_scalar(log_edge, bounds=bounds, method="bounded", options={"xatol": 1e-9})
    return math.exp(min(found.fun, values[best]))


@lru_cache(maxsize=64)
def _slope_profile(phi: Activation, q: float) -> tuple[np.ndarray, np.ndarray, float]:
    """φ'² at quadrature nodes that crowd where it peaks, their weights, and its supremum.

    The supremum is inf where φ' still grows beyond all that a Gaussian of variance q reaches.
    """
    scale, reach = math.sqrt(q), 13.0

    def squared_slope(z: np.ndarray) -> np.ndarray:
        return phi.derivative(torch.from_numpy(scale * z)).numpy() ** 2

    peaks, largest = _peaks(squared_slope, reach)
    if squared_slope(np.array([-1e3, 1e3]) * max(reach, 1 / scale)).max() > 1.001 * largest:
        return np.zeros(1), np.zeros(1), math.inf
    halvings = 2.0 ** -np.arange(46)
    crowded = [peak + sign * halvings for peak in peaks for sign in (-1, 0, 1)]
    kinks = np.array(phi.kinks) / scale
    edges = np.unique(
        np.concatenate([np.arange(-reach, reach + 1), kinks, *crowded]).clip(-reach, reach)
    )
    nodes, weights = np.polynomial.legendre.leggauss(16)
    half = np.diff(edges)[:, None] / 2
    z = (edges[:-1, None] + half + half * nodes).ravel()
    weight = (half * weights).ravel() * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return squared_slope(z), weight, largest


def _peaks(function: Callable[[np.ndarray], np.ndarray], reach: float) -> tuple[list[float], float]:
    """Where a function on [−reach, reach] comes within 1 % of its supremum, and the supremum."""
    grid = np.linspace(-reach, reach, 20_001)
    value = function(grid)
    is_peak = (value[1:-1] >= value[:-2]) & (value[1:-1] > value[2:])
    candidates = grid[1:-1][is_peak & (value[1:-1] > 0.99 * value.max())][:8]
    peaks, largest = [], float(value.max())
    for peak in candidates:
        step = grid[1] - grid[0]
        for _ in range(4):
            near = np.linspace(peak - step, peak + step, 201)
            peak, step = near[function(near).argmax()], step / 100
        peaks.append(float(peak))
        largest = max(largest, float(function(np.array([peak]))[0]))
    return peaks, largest


# ---------------------------------------------------------------- convolutions and residual stacks


def padding_profile(size: int, kernel_size: int, depth: int) -> list[float]:
    """Second moment along one axis after ``depth`` zero-padded convolutions, per unit at the start.

    With zero padding a position at the border sees fewer pixels, and with them loses that share of
    its second moment in every layer; a homogeneous activation with its own gain (relu with He)
    passes it on. On a square image it is the product of two profiles; circular padding loses none.

    Args:
        size: pixels along the axis.
        kernel_size: odd; stride 1, "same" padding.
        depth: layers, at least 1.

    Raises:
        ValueError: a size below 1, or an even kernel.

    >>> [round(share, 3) for share in padding_profile(4, 3, depth=1)]
    [0.667, 1.0, 1.0, 0.667]
    """
    positive_int("size", size)
    positive_int("depth", depth)
    if positive_int("kernel_size", kernel_size) % 2 == 0:
        raise ValueError(f"kernel_size={kernel_size} must be odd: same padding needs a centre")
    profile = np.ones(size)
    taps = np.ones(kernel_size) / kernel_size
    reach = kernel_size // 2
    for _ in range(depth):
        profile = np.convolve(profile, taps)[reach : reach + size]
    return profile.tolist()


def residual_lengths(
    q: float, depth: int, branch_gain: float, branch_scale: float = 1.0, skip_scale: float = 1.0
) -> list[float]:
    """q after 0 … ``depth`` residual blocks h → skip_scale·h + branch_scale·f(h), independent of h.

    A branch with E f² = branch_gain·E h² (He: 1 for W relu(h), 2 for W₂ relu(W₁ h)) makes every
    block multiply q by skip_scale² + branch_scale²·branch_gain (Zhang et al. 2019, sec. 2); a
    gradient grows by the same factor on its way down. branch_scale = 1/√depth keeps the growth
    below e; 0 (Fixup's last layer, ReZero, SkipInit) makes the block the identity.

    Raises:
        ValueError: depth below 1, q or branch_gain negative, or a number that is not finite.

    >>> residual_lengths(1.0, 3, branch_gain=2.0)
    [1.0, 3.0, 9.0, 27.0]
    """
    positive_int("depth", depth)
    for argument, value in (("q", q), ("branch_gain", branch_gain)):
        if finite_number(argument, value) < 0:
            raise ValueError(f"{argument}={value} must be at least 0")
    finite_number("branch_scale", branch_scale)
    finite_number("skip_scale", skip_scale)
    factor = skip_scale**2 + branch_scale**2 * branch_gain
    return [q * factor**block for block in range(depth + 1)]


def residual_correlations(
    activation: ActivationSpec,
    c: float,
    depth: int,
    branch_scale: float = 1.0,
    skip_scale: float = 1.0,
) -> list[float]:
    """c after 0 … ``depth`` blocks h → skip_scale·h + branch_scale·W φ(h) with W's gain that of φ.

    c' = (s²·c + β²·κ(c)) / (s² + β²), κ the correlation map of φ at q = 1 without bias.

    >>> [round(c, 4) for c in residual_correlations("relu", 0.0, 2)]
    [0.0, 0.1592, 0.2805]
    """
    phi = resolve(activation)
    positive_int("depth", depth)
    correlations = [c]
    skip, branch = skip_scale**2, branch_scale**2
    for _ in range(depth):
        mapped = correlation_map(phi, correlations[-1], 1.0, 1.0, 0.0)
        correlations.append((skip * correlations[-1] + branch * mapped) / (skip + branch))
    return correlations
