"""Where one sample of a batch may come to outweigh all others.

The band of ``theory.finite_width`` takes the samples of a batch for alike. Beside a repelling fixed
point they are not: the longest may be held while the others fall, and is then the batch's mean by
itself. So the longest sample is followed on its own way, and the band reaches up to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from initlab.prediction.scattering import Draw, weights_share
from initlab.theory import Scatter, diluted


@dataclass(frozen=True)
class Outlier:
    """By how much the logarithm of one sample's second moment exceeds that of the batch's mean.

    Of a layer before its activation and behind it, and of the gradients there.
    """

    before: float = 0.0
    after: float = 0.0
    gradient: float = 0.0
    gradient_after: float = 0.0


def outliers(draws: Sequence[Draw], batch_size: int) -> list[Outlier]:
    """That of the longest sample, in every layer; in 97.5 % of the draws it is less."""
    if not draws or _all_alike(draws[0]) or any(draw.kernel is None for draw in draws):
        return [Outlier()] * len(draws)
    lengths = _lengths(draws, NormalDist().inv_cdf(1 - 0.025 / batch_size))
    found: list[Outlier] = []
    slope = 0.0  # of ln δ², all that this sample has more of it
    for draw, (before, after) in zip(reversed(draws), reversed(lengths), strict=True):
        steeper = slope
        if draw.step.phi is not None:
            steeper += draw.at.change("derivative_second_moment", before)
        offset = draw.step.offset**2  # of a constant bias, which all samples have
        varying = draw.step.varying.second_moment
        length = diluted(before, varying / (varying + offset))
        found.append(Outlier(length, after, steeper, slope))
        slope = steeper
    return found[::-1]


def _all_alike(first: Draw) -> bool:
    """Whether φ has no fixed point to part samples, or their positions are too many to part."""
    phi = first.step.phi
    return phi is None or phi.homogeneous is not None or first.image is not None


def _lengths(draws: Sequence[Draw], sds: float) -> list[tuple[float, float]]:
    """By how much ln q of the longest sample exceeds the mean's, before φ and behind it."""
    variances = draws[0].step.variances
    ln = math.log(variances.max() / variances.mean())
    rows: list[tuple[float, float]] = []
    below: Draw | None = None
    for draw in draws:
        kernel = draw.kernel
        assert kernel is not None
        if below is None:
            ln = math.hypot(ln, sds * math.sqrt(kernel.own))
        else:
            ln = diluted(rows[-1][1], min(weights_share(below.step, draw.step), 1.0))
        rows.append((ln, _activated(ln, kernel, draw, sds) if draw.step.phi else 0.0))
        below = draw
    return rows


def _activated(ln: float, kernel: Scatter, draw: Draw, sds: float) -> float:
    behind, slope = draw.at.mean_square(kernel)
    after = draw.activated
    assert after is not None
    apart = max(draw.at.change("second_moment", ln) - behind.shift, 0.0)
    drawn = max(after.own - slope**2 * kernel.own, 0.0)
    return after.shift + math.hypot(apart, sds * math.sqrt(drawn))
