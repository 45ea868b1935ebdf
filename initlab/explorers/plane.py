"""The numbers of the (sigma_w, sigma_b) plane: where signals settle, in which phase, how deep.

A whole plane and a moving point ask for thousands of Gaussian moments, theory for a few exact ones.
So the moments are tabled once per activation, by theory's own quadrature, and splines do the rest:
to about 1e-4, which no eye sees. What is said in words comes from ``initlab.theory`` itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from initlab.activations import Activation
from initlab.theory import edge_of_chaos

SIGMA_W = (0.0, 3.0)
SIGMA_B = (0.0, 1.0)
"""What of the plane is drawn."""

_COLUMNS, _ROWS = 73, 41
_LOG_Q = np.linspace(-5, 4, 109)  # of the moments of one pre-activation
_LOG_Q_PAIRS = np.array([-6.0, -4.4, -3.2, *np.linspace(-2.2, 1.8, 13), 3.0])  # of those of two
_LOG_APART = np.log10(
    [1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.08, 0.16, 0.28, 0.42, 0.56, 0.72, 0.86, 1.0]
)  # of 1 − c
_FINE = np.linspace(_LOG_Q[0], _LOG_Q[-1], 433)

Spline = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class MomentTable:
    """E φ² and E φ'² over q, and E φ² − E φ(u)φ(v) over (q, 1 − c), as functions of arrays."""

    second_moment: Spline
    derivative_second_moment: Spline
    gap_share: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """gap / (E φ²·(1 − c)): by how much φ brings two inputs apart, per unit of 1 − c."""
    gap_slope: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """d ln gap / d ln(1 − c). At a fixed point of the correlation map it is χ_c."""

    def spread(self, q: np.ndarray, apart: np.ndarray, sigma_w: np.ndarray) -> np.ndarray:
        """What a layer multiplies 1 − c by at a settled length q: 1 at a fixed point of c."""
        return sigma_w**2 * self.second_moment(q) / q * self.gap_share(q, apart)

    def map_length(self, q: np.ndarray, sigma_w: float, sigma_b: float) -> np.ndarray:
        return sigma_w**2 * self.second_moment(q) + sigma_b**2

    def map_apart(
        self, apart: np.ndarray, q: np.ndarray, sigma_b: float, next_q: np.ndarray
    ) -> np.ndarray:
        """1 − c one layer on, from 1 − c, the length q, and the length one layer on."""
        from_weights = 1 - sigma_b**2 / next_q  # of that length: biases are the same for all inputs
        return from_weights * self.gap_share(q, apart) * apart


@lru_cache(maxsize=32)
def moment_table(phi: Activation) -> MomentTable:
    """The table of an activation; about 0.3 s when it is first asked for."""
    from scipy.interpolate import RectBivariateSpline

    moments = [phi.moments(float(q)) for q in 10**_LOG_Q]
    gap_share = np.array(
        [
            [phi.pair_moments(q, apart).gap / apart for apart in (10**_LOG_APART).tolist()]
            / np.array(phi.moments(q).second_moment)
            for q in (10**_LOG_Q_PAIRS).tolist()
        ]
    )
    log_share = RectBivariateSpline(
        _LOG_Q_PAIRS, _LOG_APART, np.log10(np.maximum(gap_share, 1e-300))
    )

    def at(q: np.ndarray, apart: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Beyond the table φ is homogeneous, or all c are alike: the nearest entry serves."""
        with np.errstate(divide="ignore"):
            log_q, log_apart = np.log10(q), np.log10(apart)
        return (
            np.clip(log_q, _LOG_Q_PAIRS[0], _LOG_Q_PAIRS[-1]),
            np.clip(log_apart, _LOG_APART[0], _LOG_APART[-1]),
        )

    return MomentTable(
        _power_spline([each.second_moment for each in moments]),
        _power_spline([each.derivative_second_moment for each in moments]),
        lambda q, apart: 10 ** log_share.ev(*at(q, apart)),
        lambda q, apart: 1 + log_share.ev(*at(q, apart), dy=1),
    )


def _power_spline(values: list[float]) -> Spline:
    """A function of q through these values: cubic in logarithms, a power law beyond the table."""
    from scipy.interpolate import CubicSpline

    log_values = np.log10(np.maximum(values, 1e-300))
    inside = CubicSpline(_LOG_Q, log_values)
    ends = _LOG_Q[[0, -1]]
    slopes = inside(ends, 1)

    def spline(q: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            log_q = np.log10(q)
            nearest = np.clip(log_q, *ends)
            beyond = np.where(log_q < ends[0], slopes[0], slopes[1])
            # 0 · −inf would be nan where E φ² of q = 0 is not 0
            rest = np.where(beyond == 0, 0.0, beyond * (log_q - nearest))
            return 10 ** (inside(nearest) + rest)

    return spline


# ---------------------------------------------------------------- the plane


@dataclass(frozen=True)
class Plane:
    """What theory says over a grid of the plane; arrays are indexed [sigma_b, sigma_w].

    Attributes:
        sigma_w, sigma_b: the columns and the rows.
        length: q*, to which q = 1 is drawn; nan where it grows without bound.
        growth: above 0 where q grows without bound, below 0 where it does not.
        chi: χ₁ at q*; nan where there is none.
        rate: 1/ξ_c with a sign: below 0 in the ordered phase, 0 on the edge, above 0 in the chaotic
            phase. Where correlations freeze (sigma_b = 0, q* = 0), its limit for small sigma_b.
        edge: the edge of chaos, by the q that the network keeps there: pieces of shape (2, points).
        repelling: those pieces of it from which q leaves, so that no signal settles there.
    """

    sigma_w: np.ndarray
    sigma_b: np.ndarray
    length: np.ndarray
    growth: np.ndarray
    chi: np.ndarray
    rate: np.ndarray
    edge: list[np.ndarray]
    repelling: list[np.ndarray]


@lru_cache(maxsize=32)
def plane(phi: Activation) -> Plane:
    """The plane of an activation; computed once."""
    table = moment_table(phi)
    sigma_w = np.linspace(*SIGMA_W, _COLUMNS)
    sigma_b = np.linspace(*SIGMA_B, _ROWS)
    length, growth = _settle(table, sigma_w[None, :], sigma_b[:, None])
    some = np.maximum(length, 10 ** _LOG_Q[0])  # q* = 0 is the limit of small q
    chi = sigma_w**2 * table.derivative_second_moment(some)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.log(chi)
        chaotic = chi > 1
    rate[chaotic] = _chaotic_rate(table, some, np.broadcast_to(sigma_w, chi.shape), chaotic)
    edge, repelling = _edge(phi, table)
    return Plane(sigma_w, sigma_b, length, growth, chi, rate, edge, repelling)


def _settle(
    table: MomentTable, sigma_w: np.ndarray, sigma_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """q*, to which q = 1 is drawn, and how far q is from finding one (``Plane.growth``).

    The length map is compared with q on a grid: the first crossing above 1 where q rises, else
    the last one below.
    """
    q = 10**_FINE
    start = int(np.searchsorted(_FINE, 0.0))
    second = table.second_moment(q)
    excess = sigma_w[..., None] ** 2 * (second / q) + sigma_b[..., None] ** 2 / q - 1
    above, below = excess[..., start:], excess[..., start::-1]
    rises = above[..., 0] > 0
    up = _first_crossing(-above, _FINE[start:])
    down = _first_crossing(below, _FINE[start::-1])
    down = np.where(np.isnan(down), -np.inf, down)  # no crossing down to the table's end: q* = 0
    return 10 ** np.where(rises, up, down), above.min(axis=-1)


def _first_crossing(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Where values, along the last axis, first reach 0 from below; nan where they never do."""
    reached = values >= 0
    index = np.maximum(reached.argmax(axis=-1), 1)
    before, after = (
        np.take_along_axis(values, each[..., None], axis=-1)[..., 0] for each in (index - 1, index)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip(np.where(after > before, before / (before - after), 0.0), 0, 1)
    crossing = at[index - 1] + share * (at[index] - at[index - 1])
    return np.where(reached.any(axis=-1), crossing, np.nan)


def _chaotic_rate(
    table: MomentTable, length: np.ndarray, sigma_w: np.ndarray, where: np.ndarray
) -> np.ndarray:
    """1/ξ_c in the chaotic phase: −ln χ_c at the correlation that the map keeps there."""
    q, columns = length[where], sigma_w[where]
    log_apart = np.linspace(_LOG_APART[0], 0.0, 81)
    apart = np.broadcast_to(10**log_apart, (len(q), len(log_apart)))
    lengths = np.broadcast_to(q[:, None], apart.shape)
    spread = table.spread(lengths, apart, columns[:, None])
    crossing = _first_crossing(1 - spread, log_apart)
    settled = 10 ** np.where(np.isnan(crossing), 0.0, crossing)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.maximum(-np.log(np.clip(table.gap_slope(q, settled), 1e-12, 1.0)), 0.0)


def _edge(phi: Activation, table: MomentTable) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The edge of chaos within the plane, cut where it ends and where it begins to repel q."""
    if phi.homogeneous:  # χ₁ is the same at every q; above sigma_b = 0 q grows along the line
        sigma_w, _ = edge_of_chaos(phi, 1.0)
        return [np.array([[sigma_w, sigma_w], SIGMA_B])], []
    pieces: dict[bool, list[np.ndarray]] = {True: [], False: []}
    points: list[tuple[float, float]] = []
    settles_now = True
    for q in 10 ** np.linspace(-5, 4, 145):
        found = _edge_point(phi, float(q))
        settles = bool(found) and _slope(table, float(q), found[0]) < 1 + 1e-6
        if points and (not found or settles != settles_now):
            pieces[settles_now].append(np.array(points).T)
            points = points[-1:] if found else []
        settles_now = settles
        if found:
            points.append(found)
    if points:
        pieces[settles_now].append(np.array(points).T)
    return (
        [piece for piece in pieces[True] if piece.shape[1] > 1],
        [piece for piece in pieces[False] if piece.shape[1] > 1],
    )


def _edge_point(phi: Activation, q: float) -> tuple[float, float] | tuple[()]:
    try:
        sigma_w, sigma_b = edge_of_chaos(phi, q)
    except ValueError:
        return ()
    inside = sigma_w <= 1.1 * SIGMA_W[1] and sigma_b <= 1.1 * SIGMA_B[1]
    return (sigma_w, sigma_b) if inside else ()


def _slope(table: MomentTable, q: float, sigma_w: float) -> float:
    """χ∥, the slope of the length map at q."""
    near = q * np.array([1 - 1e-4, 1 + 1e-4])
    low, high = sigma_w**2 * table.second_moment(near)
    return (high - low) / (near[1] - near[0])


# ---------------------------------------------------------------- one network along its depth


def trajectories(
    phi: Activation, sigma_w: float, sigma_b: float, depth: int, correlations: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """q and c of layers 0 … depth as the maps carry them, from q = 1 and these correlations.

    Returns:
        q of shape (depth + 1,), inf where it grows beyond floats; c of shape
        (depth + 1, correlations), nan where there is no length left.

    >>> from initlab import ACTIVATIONS
    >>> q, c = trajectories(ACTIVATIONS["relu"], 2**0.5, 0.0, 2, (0.0,))
    >>> q.round(3).tolist(), c[:, 0].round(2).tolist()
    ([1.0, 1.0, 1.0], [0.0, 0.32, 0.49])
    """
    table = moment_table(phi)
    q, apart = np.ones(depth + 1), np.empty((depth + 1, len(correlations)))
    apart[0] = 1 - np.array(correlations)
    for layer in range(depth):
        here, mapped = q[layer], table.map_length(q[layer], sigma_w, sigma_b)
        q[layer + 1] = mapped
        if not 1e-290 < mapped < 1e290:
            q[layer + 1 :] = math.inf if mapped > 1 else 0.0
            apart[layer + 1 :] = math.nan
            break
        lengths = np.full(len(correlations), here)
        apart[layer + 1] = table.map_apart(apart[layer], lengths, sigma_b, mapped)
    return q, 1 - apart
