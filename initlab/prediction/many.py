"""What an activation makes of many Gaussian pre-activations at once, and of pairs of them.

Each is N(mean, variance) over the units of a layer at infinite width: one a sample, or one a sample
and position of an image. In the Hermite coefficients a_n of φ at each, E φ(u)φ(v) = Σ a_n(u)·a_n(v)
·cⁿ for a pair of correlation c (Mehler): φ is integrated once a sample, not once a pair. What tells
a pair apart is good to 1 % up to q = 10, and to 10 % where a saturating φ is a jump, at q = 50.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from initlab.activations import Activation, homogeneous_gap
from initlab.expectations import hermite_rows
from initlab.tables import SmoothTable, stretched, unstretched

_DEGREE = 12
_FIRST, _RATIO, _POWERS = 16, 4, 7
"""What is left of E φ² beyond the degree goes into the powers 16·4ʲ of c, j = 0 … 6, and falls
geometrically from one to the next, as a kink's does, so that E φ'² is right too."""

_ALL = np.array([*range(_DEGREE + 1), *(_FIRST * _RATIO**j for j in range(_POWERS))])
"""Those and the powers up to the degree."""

_PER_FOLD = 7
_KNOTS = np.linspace(-27.0, 27.0, 54 * _PER_FOLD + 1)
"""Of ln q: so many an e-fold."""

_FEW = 256
"""Up to so many pre-activations with means are integrated one by one, at 5 µs each."""

_CELLS = 3
"""Of the table for more of them: for each standard deviation of the mean about 0, and e-fold
beyond."""

_STILL, _FLAT = 1e-26, 1e-22
"""Var φ relative to E φ², and E φ'² to E φ²/E x², where φ is as good as constant."""


@dataclass(frozen=True, eq=False)
class Responses:
    """What φ makes of many pre-activations; all arrays are of their shape.

    Attributes:
        squares, slope_squares: E φ² and E φ'².
        shape: (a_0, a_1, …, √rest)/√E φ² along a first axis, and where pre-activations have means
            the same of φ − E φ; None where pairs have a closed form.
        decay: by which factor one power's share of the rest is less than the last's.
        means, variances, slope_means: E φ, Var φ, E φ'; None where pre-activations have mean 0.
    """

    squares: np.ndarray
    slope_squares: np.ndarray
    shape: np.ndarray | None = None
    decay: np.ndarray | None = None
    means: np.ndarray | None = None
    variances: np.ndarray | None = None
    slope_means: np.ndarray | None = None

    def at(self, indices: np.ndarray) -> Responses:
        """Those of some of the samples, the first axis, as pairs need them."""
        shape, decay, means, variances = self.shape, self.decay, self.means, self.variances
        return Responses(
            self.squares[indices],
            self.slope_squares,
            None if shape is None else shape.take(indices, axis=1),
            None if decay is None else decay[indices],
            None if means is None else means[indices],
            None if variances is None else variances[indices],
        )


def responses(phi: Activation, means: np.ndarray | None, variances: np.ndarray) -> Responses:
    """Of an activation to N(mean, variance), elementwise; None is a mean of 0 everywhere."""
    if means is not None:
        made = _shifted(phi, means, variances)
    elif variances.size == 1 or phi.homogeneous:
        made = _exact(phi, variances)
    else:
        made = _tabled(phi, variances)
    if variances.all():
        return made
    # Where nothing varies, φ' is that at one point: at a kink torch's, not the mean of its sides.
    at = np.zeros_like(variances) if means is None else means
    slopes = phi.derivative(torch.from_numpy(at)).numpy() ** 2
    return replace(made, slope_squares=np.where(variances > 0, made.slope_squares, slopes))


def pair_gaps(
    phi: Activation, made: tuple[Responses, Responses], sizes: np.ndarray, gaps: np.ndarray
) -> np.ndarray:
    """√(E φ(u)²·E φ(v)²) − E φ(u)φ(v) of many pairs.

    Args:
        made: what φ makes of u and of v.
        sizes: √(Var u·Var v).
        gaps: that minus Cov(u, v).
    """
    one, two = made
    apart = np.divide(gaps, sizes, out=np.zeros_like(gaps), where=sizes > 0).clip(0.0, 2.0)
    scale = np.sqrt(one.squares) * np.sqrt(two.squares)
    if one.variances is not None and two.variances is not None:
        assert one.means is not None
        assert two.means is not None
        varying = np.sqrt(one.variances) * np.sqrt(two.variances)
        unequal = np.maximum(scale - varying - one.means * two.means, 0.0)
        return unequal + varying * _series_gap(one, two, apart)
    if one.shape is not None:
        return scale * _series_gap(one, two, apart)
    if phi.homogeneous:
        right, left = phi.homogeneous
        return scale * homogeneous_gap(right, left, apart) * 2 / (right**2 + left**2)
    gap = phi.pair_moments(sizes.item(), apart.item()).gap if sizes.all() else 0.0
    return np.full_like(apart, gap)


def _series_gap(one: Responses, two: Responses, apart: np.ndarray) -> np.ndarray:
    """1 − Σ a_n(u)·a_n(v)·cⁿ, without cancellation where u and v are alike."""
    assert one.shape is not None
    assert two.shape is not None
    assert one.decay is not None
    assert two.decay is not None
    terms, c = one.shape * two.shape, 1 - apart
    gap = np.maximum(1 - np.einsum("n...->...", terms), 0.0)  # what unequal lengths alone leave
    lost = np.zeros_like(apart)  # 1 − cⁿ
    for term in terms[1:-1]:
        lost *= c
        lost += apart
        gap += term * lost
    for _ in range(_FIRST - _DEGREE):
        lost *= c
        lost += apart
    decay = (one.decay + two.decay) / 2
    share, shares = terms[-1], np.ones_like(decay)
    for _ in range(_POWERS - 1):
        shares *= decay
        shares += 1
    share /= shares
    for _ in range(_POWERS):
        gap += share * lost
        share *= decay
        lost *= 2 - lost
        lost *= 2 - lost
    return gap


def carried(phi: Activation, made: Responses, q: float, apart: float) -> float:
    """d ln gap after φ over d ln gap before it, of a typical pair of correlation 1 − apart, among
    pre-activations of mean variance q of which φ makes this.

    At most 1, since in powers of c all coefficients of E φφ are positive.
    """
    made = made if made.shape is not None else _tabled(phi, np.array([q]))
    assert made.shape is not None
    assert made.decay is not None
    terms, c = (made.shape.reshape(len(made.shape), -1) ** 2).mean(axis=1), 1 - apart
    shares = float(made.decay.mean()) ** np.arange(_POWERS)
    terms = np.concatenate([terms[:-1], terms[-1] * shares / shares.sum()])
    lost = -np.expm1(_ALL * math.log1p(-apart)) if apart < 0.5 else 1 - c**_ALL
    gap, slope = float(terms @ lost), float(terms[1:] @ (_ALL[1:] * c ** (_ALL[1:] - 1)))
    return min(slope * apart / gap, 1.0) if gap > 0 else 1.0


# ---------------------------------------------------------------- one sample


def _exact(phi: Activation, variances: np.ndarray) -> Responses:
    """Of one pre-activation, or where φ is indifferent to scale."""
    most = float(variances.max())
    at = 1.0 if phi.homogeneous and most > 0 else most
    scale = variances / at if at > 0 else np.ones_like(variances)
    one = phi.moments(at)
    slopes = np.full_like(variances, one.derivative_second_moment)
    return Responses(one.second_moment * scale, slopes)


def _shifted(phi: Activation, means: np.ndarray, variances: np.ndarray) -> Responses:
    """Of pre-activations with means; many of them at once by table."""
    unit = np.sqrt(np.where(variances > 0, variances, 1.0)) if phi.homogeneous else 1.0
    m, v = (means / unit).ravel(), (variances / unit**2).ravel()
    numbers = _numbers_of_many(phi, m, v) if m.size > _FEW else _numbers(phi, m, v)
    log_squares, mean, log_varying, log_steep, slope_mean, *coefficients = numbers.T
    squares, varying = np.exp(log_squares), np.maximum(np.exp(log_varying) - _STILL, 0.0)
    steep = np.exp(log_steep)
    per_slope = squares / np.maximum(m**2 + v, 1e-300)
    slope_squares = np.maximum(steep - _FLAT, 0.0) * per_slope
    scale = np.maximum(squares * varying, 1e-300)
    shape, decay = _shape(np.stack(coefficients), np.minimum(v * slope_squares / scale, 1e300))
    of = means.shape
    return Responses(
        squares.reshape(of) * unit**2,
        slope_squares.reshape(of),
        shape.reshape(-1, *of),
        decay.reshape(of),
        (mean * np.sqrt(squares)).reshape(of) * unit,
        (varying * squares).reshape(of) * unit**2,
        (slope_mean * np.sqrt(steep) * np.sqrt(per_slope)).reshape(of),
    )


def _numbers_of_many(phi: Activation, means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    places = _CELLS * np.arcsinh(means / np.sqrt(1 + variances)), stretched(variances)
    found = _shifted_table(phi).among(_DEGREE + 5, *places)
    rough = np.isnan(found[:, 0])
    if rough.any():
        found[rough] = _numbers(phi, means[rough], variances[rough])
    return found


@lru_cache(maxsize=64)
def _shifted_table(phi: Activation) -> SmoothTable:
    def fill(_: tuple[int, ...], nodes: list[np.ndarray]) -> np.ndarray:
        places, variances = np.meshgrid(nodes[0], unstretched(nodes[1]), indexing="ij")
        means = np.sinh(places / _CELLS) * np.sqrt(1 + variances)
        return _numbers(phi, means.ravel(), variances.ravel()).T.reshape(-1, *means.shape)

    return SmoothTable(fill, orders=(8, 6), tolerance=0.1)


def _numbers(phi: Activation, means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """All that is smooth in the mean and the variance, a row for each: ln E φ², E φ/√E φ²,
    ln Var φ/E φ², ln E φ'²·E x²/E φ², E φ'/√E φ'² and (a_1, …)/√Var φ.

    What is constant but for rounding stays smooth by the constants that are added.
    """
    found, varying, slope_means, slope_squares = hermite_rows(
        _profile(phi), means, variances, _DEGREE, phi.kinks, smooth=phi.homogeneous is not None
    )
    squares = np.maximum(found[:, 0] ** 2 + varying, 1e-300)
    with np.errstate(over="ignore", invalid="ignore"):  # beyond floats: inf or nan
        per_slope = squares / np.maximum(means**2 + variances, 1e-300)
        varying, steep = varying / squares + _STILL, slope_squares / per_slope + _FLAT
        return np.column_stack(
            [
                np.log(squares),
                found[:, 0] / np.sqrt(squares),
                np.log(varying),
                np.log(steep),
                slope_means / (np.sqrt(steep) * np.sqrt(per_slope)),
                found[:, 1:] / (np.sqrt(varying) * np.sqrt(squares))[:, None],
            ]
        )


def _profile(phi: Activation) -> Callable[[np.ndarray], np.ndarray]:
    def integrands(x: np.ndarray) -> np.ndarray:
        z = torch.from_numpy(x)
        return np.stack([phi.function(z).numpy(), phi.derivative(z).numpy()])

    return integrands


def _shape(relative: np.ndarray, steepness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of unit length with what they leave, and how that falls from power to power.

    ``relative`` are the last coefficients up to the degree, relative to that length;
    ``steepness`` is q·E φ'² = Σ n·a_n², relative to its square.
    """
    powers = np.arange(_DEGREE + 1)[-len(relative) :]
    rest = np.maximum(1 - (relative**2).sum(axis=0), 0.0)
    left = np.maximum(steepness - powers @ relative**2, 0.0)
    none = np.zeros((_DEGREE + 1 - len(relative), relative.shape[1]))
    shape = np.concatenate([none, relative, np.sqrt(rest)[None]])
    shape /= np.maximum(np.linalg.norm(shape, axis=0), 1e-300)
    power = np.divide(left, rest * _FIRST, out=np.ones_like(rest), where=rest > 1e-12)
    return shape, np.interp(power, *_decays())


@lru_cache
def _decays() -> tuple[np.ndarray, np.ndarray]:
    """The mean power of the rest, in units of the first, and the decay that gives it."""
    decay, steps = np.linspace(0, 1, 513), np.arange(_POWERS)
    shares = decay[:, None] ** steps
    return shares @ float(_RATIO) ** steps / shares.sum(axis=1), decay


def _tabled(phi: Activation, variances: np.ndarray) -> Responses:
    """By splines over ln q, good to 1e-6; beyond them by powers of q."""
    log = np.log(np.maximum(variances, 1e-300))
    inside = log.clip(_KNOTS[0], _KNOTS[-1])
    place = np.minimum(((inside - _KNOTS[0]) * _PER_FOLD).astype(int), len(_KNOTS) - 2)
    cubic, square, slope, value = _table(phi)[:, :, place]
    t = inside - _KNOTS[place]
    values = ((cubic * t + square) * t + slope) * t + value
    logs, shape, decay = values[:2], values[2:-1], values[-1]
    if (log != inside).any():
        slopes = (3 * cubic[:2] * t + 2 * square[:2]) * t + slope[:2]
        logs = logs + slopes * (log - inside)
    shape /= np.sqrt((shape**2).sum(axis=0))
    squares, slope_squares = np.exp(logs)
    return Responses(squares, slope_squares, shape, decay.clip(0.0, 1.0))


@lru_cache(maxsize=64)
def _table(phi: Activation) -> np.ndarray:
    """The cubics between the knots, from t³ on, of ln E φ², ln E φ'², the shape and the decay."""
    from scipy.interpolate import CubicSpline

    rows = [
        hermite_rows(_profile(phi), np.zeros_like(q), q, _DEGREE, phi.kinks)
        for q in np.array_split(np.exp(_KNOTS), 54)
    ]
    found, varying, _, slopes = (np.concatenate(each) for each in zip(*rows, strict=True))
    with np.errstate(over="ignore"):
        moments = np.stack([found[:, 0] ** 2 + varying, slopes])
    # Some are without end: of exp beyond q = 350, and E φ'² of √|z|.
    squares, slopes = np.nan_to_num(moments, nan=1e300, posinf=1e300).clip(1e-300, 1e300)
    found = np.nan_to_num(found, posinf=0.0, neginf=0.0)
    shape, decay = _shape(found.T / np.sqrt(squares), np.exp(_KNOTS) * (slopes / squares))
    logs = np.log(np.stack([squares, slopes]))
    spline = CubicSpline(_KNOTS, np.concatenate([logs, shape, decay[None]]).T)
    return np.ascontiguousarray(spline.c.swapaxes(1, 2))
