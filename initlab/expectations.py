"""Gaussian expectations by quadrature: of one normal variable, and of correlated pairs.

Both split their panels where a function has kinks and refine around them, so that piecewise smooth
functions are integrated to eight digits or more without sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Integrands = Callable[[np.ndarray], np.ndarray]
"""Maps x of shape (n,) to the values of k functions there, of shape (k, n), all float64."""

_ORDER = 24
_ENDS = np.array([-1 + 1e-9, 1 - 1e-9])  # just inside a panel, so that a kink at its edge is none
_REACH = 13.0  # beyond 13 standard deviations a Gaussian weighs less than 1e-37
_FAR_REACH = 37.0  # where exp(−z²/2) leaves floats; for functions that grow as fast as it falls
_ROUNDS = 200  # a power that is singular at 0 is resolved there down to 2^−200
_MOST_PANELS = 1024
_SAMPLED_STEP = 1e-4 * math.sqrt(5)  # irrational, to be in step with no period
_BUT_LAST, _BUT_FIRST = slice(None, -1), slice(1, None)


def _gauss_legendre(order: int, highest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes and weights of a panel, and the map from values at the nodes to what is unresolved.

    That is the highest Legendre coefficients, and what the interpolating polynomial misses at
    either end, where no Gauss node would see a kink; it weighs as much as the part without nodes.
    """
    nodes, weights = np.polynomial.legendre.leggauss(order)
    to_coefficients = weights[:, None] * np.polynomial.legendre.legvander(nodes, order - 1)
    to_coefficients *= (2 * np.arange(order) + 1) / 2
    at_ends = np.polynomial.legendre.legvander(_ENDS, order - 1)
    missed = np.concatenate([-to_coefficients @ at_ends.T, np.eye(2)]) * (1 - nodes[-1])
    tail = np.concatenate([to_coefficients[:, -highest:], np.zeros((2, highest))])
    return np.append(nodes, _ENDS), weights, np.concatenate([tail, missed], axis=1)


_NODES, _WEIGHTS, _UNRESOLVED = _gauss_legendre(_ORDER, 3)


def gaussian_expectation(
    integrands: Integrands, q: float, kinks: tuple[float, ...] = ()
) -> np.ndarray:
    """E f(x) for x ~ N(0, q) and each of the k functions f, by adaptive Gauss-Legendre panels.

    Args:
        integrands: maps x of shape (n,) to values of shape (k, n), float64.
        q: variance of x, above 0.
        kinks: points where a function or its derivative jumps; others are found by bisection.

    Returns:
        Array of shape (k,); inf where the expectation is infinite, leaves floats, or has not
        converged within 37 standard deviations.
    """
    return gaussian_expectations(integrands, np.array([q]), kinks)[:, 0]


def gaussian_expectations(
    integrands: Integrands, q: np.ndarray, kinks: tuple[float, ...] = ()
) -> np.ndarray:
    """The same for m variances at once: of shape (k, m)."""
    for reach in (_REACH, _FAR_REACH):
        expected, ends = _expectations(integrands, np.sqrt(q), kinks, reach)
        if not ends.any():
            break
    return np.where(ends | ~np.isfinite(expected), np.inf, expected)


def _expectations(
    integrands: Integrands, scale: np.ndarray, kinks: tuple[float, ...], reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """The integrals within ±reach, and whether an integrand is cut off there while it weighs."""
    rows = [_panel_edges(each, kinks, reach) for each in scale.tolist()]
    low, high = (np.concatenate([row[part] for row in rows]) for part in (_BUT_LAST, _BUT_FIRST))
    owner = np.repeat(np.arange(len(rows)), [len(row) - 1 for row in rows])
    first = np.searchsorted(owner, np.arange(len(rows)))
    total: Any = 0.0
    size: Any = np.finfo(float).tiny
    ends: Any = None
    pole: Any = False
    for last in (*[False] * _ROUNDS, True):
        values, parts, rough = _panels(integrands, scale[owner], low, high)
        size = np.maximum(size, _summed(np.abs(parts), owner, len(scale)))
        if ends is None:
            ends = _at_ends(values, first)
        fine = (rough <= 1e-14 * size[:, owner]) | ~np.isfinite(parts)  # nan is no less
        rough = ~fine.all(axis=0)
        width = (high - low) / np.maximum(np.abs(low), np.abs(high))
        bad = rough & (width > 1e-12)
        crowd = 2 * bad.sum() > _MOST_PANELS * len(scale)
        stop = last or crowd or not bad.any()
        # What halving does not shrink is a pole.
        narrow = rough & (last | (width < (1e-6 if stop else 1e-12)))
        pole = pole | (
            _summed(np.where(narrow, np.abs(parts), 0.0), owner, len(scale)) > 1e-3 * size
        )
        if stop:
            total = total + _summed(parts, owner, len(scale))
            for each in np.unique(owner[bad]) if crowd else ():
                total[:, each] = _sampled(integrands, float(scale[each]), reach)
            return np.where(pole, np.inf, total), ends
        total = total + _summed(np.where(bad, 0.0, parts), owner, len(scale))
        middle = (low[bad] + high[bad]) / 2
        low, high = np.concatenate([low[bad], middle]), np.concatenate([middle, high[bad]])
        owner = np.concatenate([owner[bad], owner[bad]])
    raise AssertionError("unreachable: the last round returns")


def _sampled(integrands: Integrands, scale: float, reach: float) -> np.ndarray:
    """By equal steps, which meet a wave that is too short for panels at every phase."""
    z = np.arange(-reach, reach, _SAMPLED_STEP)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    with np.errstate(over="ignore", invalid="ignore"):
        return integrands(scale * z) @ density * _SAMPLED_STEP


def _panels(
    integrands: Integrands, scale: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The integrands times the density at the nodes of each panel, their integrals over it, and
    how much of them it leaves unresolved."""
    half = (high - low) / 2
    z = (low + half)[:, None] + half[:, None] * _NODES
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    with np.errstate(over="ignore", invalid="ignore"):  # beyond floats: inf or nan
        values = integrands((scale[:, None] * z).ravel()).reshape(-1, *z.shape) * density
        parts = values[..., :_ORDER] @ _WEIGHTS * half
        return values, parts, np.abs(values @ _UNRESOLVED).max(axis=-1) * half


def _at_ends(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Whether the integrands still weigh at the outer ends of the panels from ``first`` on."""
    final = np.append(first[1:], values.shape[1]) - 1
    outer = np.maximum(np.abs(values[:, first, -2]), np.abs(values[:, final, -1]))
    most = np.maximum.reduceat(np.abs(values).max(axis=-1), first, axis=1)
    return outer > 1e-14 * most


def _summed(parts: np.ndarray, owner: np.ndarray, owners: int) -> np.ndarray:
    """The sums over the panels of each owner: (k, panels) to (k, owners)."""
    if owners == 1:
        return parts.sum(axis=1, keepdims=True)
    return np.stack([np.bincount(owner, row, owners) for row in parts])


def _panel_edges(scale: float, kinks: tuple[float, ...], reach: float = _REACH) -> np.ndarray:
    """Panel edges in z: unit steps, the kinks, and steps that double away from the kinks.

    The doubling resolves what φ does on its own scale of x = scale·z when scale is huge.
    """
    edges = np.append(_doubling(_features(kinks), 0.5, scale) / scale, np.arange(-reach, reach + 1))
    return np.unique(edges[np.abs(edges) <= reach])


def _features(kinks: tuple[float, ...]) -> np.ndarray:
    """Where a function may vary fast, rising: at its kinks and on its own scale around 0."""
    return np.array(sorted({0.0, *kinks}))


def _doubling(points: np.ndarray, width: float, widest: float) -> np.ndarray:
    """The rising points, and steps away from each that double from ``width`` to below ``widest``
    or to the middle between two points."""
    steps = width * 2.0 ** np.arange(math.ceil(math.log2(max(widest / width, 1.0))))
    room = np.diff(points, prepend=-math.inf, append=math.inf)[:, None] / 2
    below = (points[:, None] - steps)[steps < room[:-1]]
    above = (points[:, None] + steps)[steps < room[1:]]
    return np.sort(np.concatenate([points, below, above]))


def hermite_coefficients(
    integrands: Integrands, q: float, degree: int, kinks: tuple[float, ...] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """E f(√q z)·h_n(z) for each function f and normalized Hermite polynomial h_n, n = 0 … degree.

    For z, z' of correlation c, E f(√q z) g(√q z') is the sum of their products times cⁿ (Mehler).

    Returns:
        The coefficients, of shape (k, degree + 1), and E f_i f_j, of shape (k, k).
    """
    scale = math.sqrt(q)
    edges = _panel_edges(scale, kinks)
    half = np.diff(edges)[:, None] / 2
    z = (edges[:-1, None] + half + half * _NODES[:_ORDER]).ravel()
    weight = (half * _WEIGHTS).ravel() * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    with np.errstate(over="ignore", invalid="ignore"):
        values = integrands(scale * z)
        weighted = values * weight
        products = weighted @ values.T
    polynomials = [np.ones_like(z), z]
    for n in range(1, degree):
        following = (z * polynomials[n] - math.sqrt(n) * polynomials[n - 1]) / math.sqrt(n + 1)
        polynomials.append(following)
    return weighted @ np.stack(polynomials[: degree + 1], axis=1), products


# ---------------------------------------------------------------- correlated pairs

PAIR_REACH = 8.0
"""In standard deviations."""
_PAIR_STEP = 2.0
_SMOOTH_STEP = 3.2  # where the functions have no kinks and vary on a scale of 1 or more
_PAIR_NODES, _PAIR_WEIGHTS = np.polynomial.legendre.leggauss(10)
_PAIR_PROBES, _, _PAIR_UNRESOLVED = _gauss_legendre(10, 2)
_PAIR_ROUGH = 1e-5  # of that; a panel's integral is then good to about the square of it
_FINEST = 1e-7  # a narrower feature weighs nothing, and a panel edge lies on it already
_MOST_EDGES = 1024


def pair_expectation(
    function: Callable[[np.ndarray], np.ndarray],
    q: float,
    decorrelation: float,
    kinks: tuple[float, ...] = (),
    edges: np.ndarray | None = None,
    reach: float = PAIR_REACH,
) -> tuple[float, float]:
    """E f(u)f(v) for u, v ~ N(0, q) of correlation c, and by how much it stays below E f².

    With a shared part y and own parts z, u = √q (√c y + √(1−c) z), the expectation is that of
    the square of the inner mean over z; so is the gap E f² − E f(u)f(v), which is the mean over y
    of the variance over z and therefore keeps its digits however close c is to 1.

    Args:
        function: f, from x of shape (n,) to as many values, float64.
        q: variance of u and of v, above 0.
        decorrelation: 1 − c, in [0, 2].
        kinks: points where f or its derivative jumps.
        edges: ``unresolved_edges`` of f.
        reach: of the integrals, in standard deviations of y and of z.

    Returns:
        The product and the gap, which add up to what the same nodes make of E f².
    """
    opposite = decorrelation > 1
    own = 2 - decorrelation if opposite else decorrelation
    parts = _Parts(
        math.sqrt(q),
        math.sqrt(1 - own),
        math.sqrt(own),
        kinks,
        np.zeros(0) if edges is None else edges,
        reach,
    )
    y, weight_y = parts.shared_nodes(both_sides=opposite)
    z, weight_z = parts.own_nodes(y)
    x = math.sqrt(q) * (parts.shared * y[:, None] + parts.own * z)
    with np.errstate(over="ignore", invalid="ignore"):  # beyond floats: inf or nan
        values = function(x.ravel()).reshape(x.shape)
        inner = (values * weight_z).sum(axis=-1)
        apart = float((((values - inner[:, None]) ** 2 * weight_z).sum(axis=-1)) @ weight_y)
        if not opposite:
            return float(inner**2 @ weight_y), apart
        other = inner[::-1]
        return float((inner * other) @ weight_y), apart + float((inner - other) ** 2 @ weight_y) / 2


@dataclass(frozen=True)
class _Parts:
    """A pair of scale √q as its shared and its own parts, and what f has in store for them.

    Attributes:
        scale: √q.
        shared, own: the parts of a pair of unit scale.
        kinks: those of f.
        fine: the further edges that f needs.
        reach: in standard deviations.
    """

    scale: float
    shared: float
    own: float
    kinks: tuple[float, ...]
    fine: np.ndarray
    reach: float

    @property
    def step(self) -> float:
        return _PAIR_STEP if self.kinks or self.scale > 1 else _SMOOTH_STEP

    def shared_nodes(self, *, both_sides: bool) -> tuple[np.ndarray, np.ndarray]:
        """Nodes and weights of y; ``both_sides`` makes them symmetric, for u and −v."""
        if self.shared == 0:
            return np.zeros(1), np.ones(1)
        # A kink is blurred by the own parts; what is merely steep varies on the scale 1/√q.
        blur = max(self.own if self.kinks else max(self.own, 1 / self.scale), _FINEST)
        features, fine = _features(self.kinks) / self.scale, self.fine / self.scale
        edges = _apart(fine, self.own / 2, both_sides=both_sides)
        if blur < self.shared * self.step / 2:
            seen = _apart(features, blur / 2, both_sides=both_sides)
            edges = np.append(edges, _doubling(seen, blur, self.shared * self.step / 2))
        edges = edges[np.abs(edges) < self.shared * self.reach]
        return _pair_panels(edges / self.shared, self.step, self.reach)

    def own_nodes(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Nodes and weights of z, a row for each y."""
        if self.own == 0:
            return np.zeros((len(y), 1)), np.ones((len(y), 1))
        edges, widest = self.fine, self.scale * self.own * self.step / 2
        if self.kinks or widest > 1:
            edges = np.sort(np.append(edges, _doubling(_features(self.kinks), 1.0, widest)))
        near = _near(edges, self.scale * self.shared * y, self.scale * self.own * self.reach)
        z = (near / self.scale - self.shared * y[:, None]) / self.own
        return _pair_panels(z, self.step, self.reach)


def unresolved_edges(
    function: Callable[[np.ndarray], np.ndarray], reach: float, kinks: tuple[float, ...] = ()
) -> np.ndarray:
    """Where to split panels that double away from 0 and the kinks, so that they resolve f.

    Nothing for a function that varies on a scale of 1 there; for a steeper or a periodic one the
    edges at which halving ended, within [−reach, reach].
    """
    start = np.unique(np.clip(_doubling(_features(kinks), 1.0, 2 * reach), -reach, reach))
    low, high = start[:-1], start[1:]
    found: list[np.ndarray] = []
    while len(low):
        half = (high - low) / 2
        x = (low + half)[:, None] + half[:, None] * _PAIR_PROBES
        values = np.nan_to_num(function(x.ravel()).reshape(x.shape))
        tail = np.abs(values @ _PAIR_UNRESOLVED).max(axis=-1)
        bad = (tail > _PAIR_ROUGH * np.abs(values).max()) & (half > 1e-7 * reach)
        low, high, middle = low[bad], high[bad], (low + half)[bad]
        found.append(middle)
        if sum(map(len, found)) > _MOST_EDGES:
            break
        low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
    return np.sort(np.concatenate(found)) if found else np.zeros(0)


def _near(points: np.ndarray, centres: np.ndarray, reach: np.ndarray | float) -> np.ndarray:
    """Of the rising points those within reach of each centre; further ones fill shorter rows."""
    if not len(points):
        return np.zeros((len(centres), 0))
    first = np.searchsorted(points, centres - reach)
    count = (np.searchsorted(points, centres + reach) - first).max()
    return points[np.minimum(first[:, None] + np.arange(count), len(points) - 1)]


def _apart(points: np.ndarray, distance: float, *, both_sides: bool) -> np.ndarray:
    """The points without those that are closer than this to the one kept before; ``both_sides``
    adds their mirror images."""
    kept: list[float] = []
    for point in (np.unique(np.abs(points)) if both_sides else points).tolist():
        if not kept or point - kept[-1] >= distance:
            kept.append(point)
    return np.array([-point for point in reversed(kept)] * both_sides + kept)


def _pair_panels(edges: np.ndarray, step: float, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and Gaussian weights along the last axis, on panels of a step, split at the edges."""
    base = np.arange(-reach, reach + step / 2, step)
    base = np.broadcast_to(base, (*edges.shape[:-1], len(base)))
    edges = np.sort(np.clip(np.concatenate([base, edges], axis=-1), -reach, reach), axis=-1)
    low, high = edges[..., :-1, None], edges[..., 1:, None]
    half = (high - low) / 2
    nodes = low + half + half * _PAIR_NODES
    weights = half * _PAIR_WEIGHTS * np.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi)
    return nodes.reshape(*edges.shape[:-1], -1), weights.reshape(*edges.shape[:-1], -1)


# ---------------------------------------------------------------- many variables at once

_SHARED_BELOW = 2.0
"""Deviations up to which a smooth function of scale 1 needs no panels of its own."""


def hermite_rows(
    integrands: Integrands,
    means: np.ndarray,
    variances: np.ndarray,
    degree: int,
    kinks: tuple[float, ...] = (),
    *,
    smooth: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """E f(x)·h_n(z) for many variables x = mean + √variance·z at once, each with its own panels.

    Args:
        integrands: maps x of shape (n,) to the values of f and of its derivative, of shape (2, n).
        means, variances: of shape (rows,).
        degree: of the last normalized Hermite polynomial h_n.
        kinks: points where f or its derivative jumps.
        smooth: f has no scale of its own between its kinks, as where it is linear there.

    Returns:
        The coefficients of f, of shape (rows, degree + 1), and Var f, E f' and E f'², each of shape
        (rows,); to 1e-6 or better.
    """
    scales, features = np.sqrt(variances), _features(kinks)
    low, high = (
        np.searchsorted(features, means + way * scales) for way in (-PAIR_REACH, PAIR_REACH)
    )
    near = low < high
    widest = 1.0 if smooth else float(scales[near].max(initial=1.0))
    own = near if kinks or widest > _SHARED_BELOW else np.zeros_like(near)
    found = np.empty((len(means), degree + 4))
    for rows in (own, ~own):
        if rows.any():
            mean, scale = means[rows], scales[rows]
            edges = np.zeros((1, 0))
            if rows is own:
                around = _near(_doubling(features, 1.0, widest), mean, PAIR_REACH * scale)
                edges = (around - mean[:, None]) / np.maximum(scale, 1e-300)[:, None]
            panels = _pair_panels(edges, _PAIR_STEP, PAIR_REACH)
            found[rows] = _row_moments(integrands, mean, scale, degree, *panels)
    return found[:, :-3], *found.T[-3:]


def _row_moments(
    integrands: Integrands,
    means: np.ndarray,
    scales: np.ndarray,
    degree: int,
    z: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """The coefficients, Var f, E f' and E f'² as columns, with nodes for each row or for all."""
    with np.errstate(over="ignore", invalid="ignore"):  # beyond floats: inf or nan
        x = means[:, None] + scales[:, None] * z
        values, slopes = integrands(x.ravel()).reshape(2, *x.shape)
        centre = integrands(means)[0]  # what varies little about it keeps its digits
        values -= centre[:, None]
        weighted, steep = values * weights, slopes * weights
        square, rest = (
            (weighted * values).sum(axis=1),
            [steep.sum(axis=1), (steep * slopes).sum(axis=1)],
        )
        powers = [weighted.sum(axis=1)]
        for _ in range(degree):
            weighted *= z
            powers.append(weighted.sum(axis=1))
        found = np.stack(powers, axis=1) @ _to_hermite(degree)
        var = np.maximum(square - found[:, 0] ** 2, 0.0)
        found[:, 0] += centre
        return np.column_stack([found, var, *rest])


@lru_cache
def _to_hermite(degree: int) -> np.ndarray:
    """From the powers of z, by rows, to the normalized Hermite polynomials."""
    rows = [
        np.pad(np.polynomial.hermite_e.herme2poly([0] * n + [1]), (0, degree - n))
        for n in range(degree + 1)
    ]
    return np.stack(rows, axis=1) / np.sqrt([math.factorial(n) for n in range(degree + 1)])
