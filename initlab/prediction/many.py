"""What an activation makes of many Gaussian pre-activations at once, and of pairs of them.

Each is N(mean, variance) over the units of a layer at infinite width: one a sample, or one a sample
and position of an image. In the Hermite coefficients a_n of φ at each, E φ(u)φ(v) = Σ a_n(u)·a_n(v)
·cⁿ for a pair of correlation c (Mehler): φ is integrated once a sample, not once a pair. What tells
a pair apart is good to 1 % up to q = 10, and to 10 % where a saturating φ is a jump, at q = 50.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from initlab.activations import Activation, homogeneous_gap
from initlab.expectations import hermite_rows

_DEGREE = 12
_FIRST, _RATIO, _POWERS = 16, 4, 7
"""What is left of E φ² beyond the degree goes into the powers 16·4ʲ of c, j = 0 … 6, and falls
geometrically from one to the next, as a kink's does, so that E φ'² is right too."""

_KNOTS = np.linspace(-27.0, 27.0, 54 * 7 + 1)
"""Of ln q: seven an e-fold."""


@dataclass(frozen=True, eq=False)
class Responses:
    """What φ makes of many pre-activations; all arrays are of their shape.

    Attributes:
        squares, slope_squares: E φ² and E φ'².
        shape: (a_0, a_1, …, √rest)/√E φ² along a last axis; None where pairs have a closed form.
        decay: by which factor one power's share of the rest is less than the last's.
        means, slope_means: E φ and E φ'; None where the pre-activations' means are 0.
    """

    squares: np.ndarray
    slope_squares: np.ndarray
    shape: np.ndarray | None = None
    decay: np.ndarray | None = None
    means: np.ndarray | None = None
    slope_means: np.ndarray | None = None

    def at(self, indices: np.ndarray) -> Responses:
        """Those of some of the samples, the first axis, as pairs need them."""
        shape, decay = self.shape, self.decay
        if shape is None or decay is None:
            return Responses(self.squares[indices], self.slope_squares)
        return Responses(self.squares[indices], self.slope_squares, shape[indices], decay[indices])


def responses(phi: Activation, means: np.ndarray | None, variances: np.ndarray) -> Responses:
    """Of an activation to N(mean, variance), elementwise; None is a mean of 0 everywhere."""
    if means is not None:
        made = _integrated(phi, means, variances)
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
    apart = np.divide(gaps, sizes, out=np.zeros_like(gaps), where=sizes > 0).clip(0.0, 2.0)
    scale = np.sqrt(made[0].squares) * np.sqrt(made[1].squares)
    if made[0].shape is not None:
        return scale * _series_gap(*made, apart)
    if phi.homogeneous:
        right, left = phi.homogeneous
        return scale * homogeneous_gap(right, left, apart) * 2 / (right**2 + left**2)
    one = phi.pair_moments(sizes.item(), apart.item()).gap if sizes.all() else 0.0
    return np.full_like(apart, one)


def _series_gap(one: Responses, two: Responses, apart: np.ndarray) -> np.ndarray:
    """1 − Σ a_n(u)·a_n(v)·cⁿ, without cancellation where u and v are alike."""
    assert one.shape is not None
    assert two.shape is not None
    assert one.decay is not None
    assert two.decay is not None
    terms = np.moveaxis(one.shape * two.shape, -1, 0)
    gap = np.maximum(1 - terms.sum(axis=0), 0.0)  # what unequal lengths alone leave
    lost, c = np.zeros_like(apart), 1 - apart  # lost = 1 − cⁿ
    for term in terms[1:-1]:
        lost = lost * c + apart
        gap += term * lost
    for _ in range(_FIRST - _DEGREE):
        lost = lost * c + apart
    decay = (one.decay + two.decay) / 2
    share = terms[-1] / (decay[..., None] ** np.arange(_POWERS)).sum(axis=-1)
    for _ in range(_POWERS):
        gap += share * lost
        share = share * decay
        lost = lost * (2 - lost)
        lost = lost * (2 - lost)
    return gap


# ---------------------------------------------------------------- one sample


def _exact(phi: Activation, variances: np.ndarray) -> Responses:
    """Of one pre-activation, or where φ is indifferent to scale."""
    most = float(variances.max())
    at = 1.0 if phi.homogeneous and most > 0 else most
    scale = variances / at if at > 0 else np.ones_like(variances)
    one = phi.moments(at)
    slopes = np.full_like(variances, one.derivative_second_moment)
    return Responses(one.second_moment * scale, slopes)


def _integrated(phi: Activation, means: np.ndarray, variances: np.ndarray) -> Responses:
    linear = phi.homogeneous is not None
    unit = np.sqrt(np.where(variances > 0, variances, 1.0)) if linear else np.ones_like(variances)
    found, squares, slope_means, slope_squares = hermite_rows(
        _profile(phi), (means / unit).ravel(), (variances / unit**2).ravel(), _DEGREE, phi.kinks,
        smooth=linear,
    )  # fmt: skip
    of = means.shape
    shape, decay = _shape(found, squares, (variances / unit**2).ravel() * slope_squares)
    return Responses(
        squares.reshape(of) * unit**2,
        slope_squares.reshape(of),
        shape.reshape(*of, -1),
        decay.reshape(of),
        found[:, 0].reshape(of) * unit,
        slope_means.reshape(of),
    )


def _profile(phi: Activation) -> Callable[[np.ndarray], np.ndarray]:
    def integrands(x: np.ndarray) -> np.ndarray:
        z = torch.from_numpy(x)
        return np.stack([phi.function(z).numpy(), phi.derivative(z).numpy()])

    return integrands


def _shape(
    found: np.ndarray, squares: np.ndarray, steepness: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of unit length with what they leave, and how that falls from power to power.

    ``steepness`` is q·E φ'² = Σ n·a_n².
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.nan_to_num(found / np.sqrt(squares)[:, None], posinf=0.0, neginf=0.0)
        steep = np.nan_to_num(steepness / squares, posinf=0.0)
    rest = np.maximum(1 - (relative**2).sum(axis=1), 0.0)
    left = np.maximum(steep - relative**2 @ np.arange(_DEGREE + 1), 0.0)
    shape = np.concatenate([relative, np.sqrt(rest)[:, None]], axis=1)
    shape /= np.maximum(np.linalg.norm(shape, axis=1, keepdims=True), 1e-300)
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
    spline = _table(phi)
    values = spline(inside)
    logs, shape, decay = values[..., :2], values[..., 2:-1], values[..., -1]
    if (log != inside).any():
        logs = logs + spline(inside, 1)[..., :2] * (log - inside)[..., None]
    shape = shape / np.linalg.norm(shape, axis=-1, keepdims=True)
    squares, slope_squares = np.moveaxis(np.exp(logs), -1, 0)
    return Responses(squares, slope_squares, shape, decay.clip(0.0, 1.0))


@lru_cache(maxsize=64)
def _table(phi: Activation):
    """ln E φ², ln E φ'², the shape and the decay over ln q."""
    from scipy.interpolate import CubicSpline

    rows = [
        hermite_rows(_profile(phi), np.zeros_like(q), q, _DEGREE, phi.kinks)
        for q in np.array_split(np.exp(_KNOTS), 54)
    ]
    found, squares, _, slopes = (np.concatenate(each) for each in zip(*rows, strict=True))
    shape, decay = _shape(found, squares, np.exp(_KNOTS) * slopes)
    logs = np.log(np.stack([squares, slopes], axis=1).clip(1e-300))
    return CubicSpline(_KNOTS, np.concatenate([logs, shape, decay[:, None]], axis=1))
