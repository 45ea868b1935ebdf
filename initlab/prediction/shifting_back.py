"""Gradients under weights of nonzero mean, and how far one draw of the weights strays from them.

Of each sample the loss depends on the mean m and the variance V that all units of a layer share,
and ∂L/∂m and ∂L/∂V pass down by the slopes of E φ and E φ², as deviations pass up. A unit's ∂L/∂φ
is μ·∂L/∂m + 2 Var W·φ·∂L/∂V and, besides, noise of variance Var W·Σδ², δ = ∂L/∂h: W is as good as
drawn anew for it, given all that goes up (but for the part along φ, which ∂L/∂V already is).

Units are independent given the layer above. So the means of D = Σδ², of S = ∂L/∂m and of their
products, of one sample or two, follow from those above exactly, and with them the scatter of D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from initlab.data import CLASSES
from initlab.prediction.propagation import Affine, Gradient, GradientStep, Signal, Step
from initlab.prediction.scattering import Scatters
from initlab.prediction.shifting import MOST, Moved, Sampling, carried, first_moved, next_moved
from initlab.prediction.units import (
    ONE,
    SLOPE,
    SLOPE_SQUARE,
    SQUARE,
    SQUARE_SLOPE_SQUARE,
    VALUE,
    VALUE_SLOPE,
    VALUE_SLOPE_SQUARE,
)

_LOSSES = 2000
"""Draws of logits over which the softmax is averaged."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over a layer's units of δ, relative to the output's, and their moments.

    Attributes:
        log: of the scale, squared, that is taken out of all of them.
        shared: E X Xᵀ of X = (∂L/∂m, s·∂L/∂V), of shape (samples, 2, 2).
        along: the direction of X; to second order only a multiple S of it is followed.
        single: E S², E D, E S⁴, E S²D, E D².
        pair: of a left and a right sample E S²S², S²D, DS², DD, GG and GSS, where G is Σ of the
            products of their δ.
        known: whether ∂L/∂V is as it is whatever the noise, as behind a loss.
        reach: by how much the deviations of this layer's units change ln E S² and ln E D of it,
            (samples, 2, 2).
        drift: what those of the layers above have made of the two: covariances, of samples and of
            pairs.
        loose: samples of whose units too few pass a gradient.
    """

    log: float
    shared: np.ndarray
    along: np.ndarray
    single: np.ndarray
    pair: np.ndarray
    known: bool
    reach: np.ndarray
    drift: tuple[np.ndarray, np.ndarray]
    loose: np.ndarray


def _at_output(of: Sampling) -> Sums:
    """A random cotangent: noise that comes down to the last layer."""
    samples, pairs = len(of.weights), len(of.left)
    single, pair = np.zeros((5, samples)), np.zeros((6, pairs))
    single[[1, 4]], pair[3] = 1.0, 1.0
    none, both = np.zeros((samples, 2, 2)), np.zeros((pairs, 2, 2))
    along = np.tile([1.0, 0.0], (samples, 1))
    loose = np.zeros(samples, bool)
    return Sums(0.0, none, along, single, pair, False, none, (none, both), loose)


def _at_loss(head: Moved) -> Sums:
    """softmax − y, which leans on the logits and so on ∂L/∂V, but adds up to 0."""
    of = head.sampling
    variance = max(float(of.weights @ head.step.variances), 1e-12)
    alike = float(head.correlation.mean())
    single, pair = _softmax(round(4 * math.log2(variance)) / 4, round(alike, 2))
    per = 1 / head.deviations
    left, right, one = per[of.left], per[of.right], np.ones(len(of.left))
    powers = np.stack([per**2, np.ones_like(per), per**4, per**2, np.ones_like(per)])
    both = np.stack([(left * right) ** 2, left**2, right**2, one, one, left * right])
    shared = np.zeros((len(per), 2, 2))
    shared[:, 1, 1] = single[0] * per**2
    return replace(
        _at_output(of),
        shared=shared,
        along=np.tile([0.0, 1.0], (len(per), 1)),
        single=single[:, None] * powers,
        pair=pair[:, None] * both,
        known=True,
    )


@lru_cache(maxsize=1024)
def _softmax(log_variance: float, alike: float) -> tuple[np.ndarray, np.ndarray]:
    """The moments of ``Sums`` of δ = softmax(√variance·z) − y, over z and y, relative to E D.

    S is Σδz/2 here; the logits of two samples have the correlation ``alike``.
    """
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, _LOSSES, CLASSES))
    z[1] = alike * z[0] + math.sqrt(max(1 - alike**2, 0.0)) * z[1]
    delta = np.exp(2.0 ** (log_variance / 2) * (z - z.max(axis=-1, keepdims=True)))
    delta /= delta.sum(axis=-1, keepdims=True)
    delta -= np.eye(CLASSES)[rng.integers(0, CLASSES, (2, _LOSSES))]
    (one, two), (d, e) = (delta * z).sum(axis=-1) / 2, (delta**2).sum(axis=-1)
    g = (delta[0] * delta[1]).sum(axis=-1)
    single = np.stack([one**2, d, one**4, one**2 * d, d**2]).mean(axis=1)
    pair = np.stack([(one * two) ** 2, one**2 * e, d * two**2, d * e, g**2, g * one * two]).mean(
        axis=1
    )
    return single / d.mean() ** _ORDERS, pair / d.mean() ** 2


_FEWEST = 4.0
"""Of n active units none is active in one draw of eⁿ."""

_ORDERS = np.array([1, 1, 2, 2, 2])

_F, _D, _FF, _DD, _FD, _G, _GG, _VALUE, _SQUARE = range(9)
"""Of a unit's ∂L/∂φ = g·S + noise and its δ = f·S + d·noise: the functions f, d, f², d², fd, g and
g² of its pre-activation, and φ and φ²."""


class _Layer:
    """A layer that the gradient passes on its way down from the one above (None: the output)."""

    def __init__(self, sums: Sums, at: Moved, above: Moved | None) -> None:
        self.sums, self.at, self.n = sums, at, at.layer.outputs
        samples = len(at.sizes)
        self.carried, coherent, self.noise = np.zeros((samples, 2)), np.zeros((samples, 2)), 1.0
        if above is not None:
            self.carried = carried(at.sizes, above, at.layer.keep)
            coherent = self.carried * (above.sizes / at.sizes / self.n)[:, None] * [1, 2]
            self.noise = above.layer.var
        self.coherent = coherent

    @cached_property
    def made(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of the nine functions E, slopes, products, and products over pairs."""
        units, pairs = self.at.units, self.at.pairs
        straight, lean = (self.sums.along * self.coherent).T
        root = math.sqrt(self.noise)
        rows = np.zeros((len(lean), 9, 9))
        rows[:, _F, SLOPE], rows[:, _F, VALUE_SLOPE] = straight, lean
        rows[:, _D, SLOPE] = root
        rows[:, _FF, SLOPE_SQUARE], rows[:, _FF, SQUARE_SLOPE_SQUARE] = straight**2, lean**2
        rows[:, _FF, VALUE_SLOPE_SQUARE] = 2 * straight * lean
        rows[:, _DD, SLOPE_SQUARE] = root**2
        rows[:, _FD, SLOPE_SQUARE], rows[:, _FD, VALUE_SLOPE_SQUARE] = root * straight, root * lean
        rows[:, _G, ONE], rows[:, _G, VALUE] = straight, lean
        rows[:, _GG, ONE], rows[:, _GG, VALUE], rows[:, _GG, SQUARE] = (
            straight**2, 2 * straight * lean, lean**2
        )  # fmt: skip
        rows[:, _VALUE, VALUE] = rows[:, _SQUARE, SQUARE] = 1.0
        products = rows @ units.products @ rows.swapaxes(1, 2)
        shared = rows[pairs.left] @ units.shared @ rows[pairs.right].swapaxes(1, 2)
        means = (rows @ units.means[:, :, None])[:, :, 0]
        return means, rows @ units.slopes, products, shared

    # ------------------------------------------------------------ before φ'

    def read(self) -> Gradient:
        """∂L/∂φ, as the layer above reads it."""
        sums, n, noise, pairs = self.sums, self.n, self.noise, self.at.pairs
        s2, d1, s4, s2d, d2 = sums.single
        means, slopes, products, shared = self.made
        gg = means[:, _GG]
        mean = gg * s2 + noise * d1
        fourth = products[:, _GG, _GG] * s4 + 6 * noise * gg * s2d + 3 * noise**2 * d2
        square = gg**2 * s4 + 2 * gg * noise * s2d + noise**2 * d2
        left, right = gg[pairs.left], gg[pairs.right]
        ss, sd, ds, dd, g2, gss = sums.pair
        both = left * right * ss + noise * (left * sd + right * ds) + noise**2 * dd
        common = shared[:, _GG, _GG] * ss + noise * (left * sd + right * ds)
        common += 4 * noise * shared[:, _G, _G] * gss + noise**2 * (dd + 2 * g2)
        parts = np.stack([gg * s2, noise * d1], axis=1) / np.maximum(mean, 1e-280)[:, None]
        gained = slopes[:, _GG] * (s2 / np.maximum(mean, 1e-280))[:, None]
        reach = ((parts[:, None] @ sums.reach)[:, 0] * self.carried)[:, None] @ self.at.slopes
        one, two = self.at.spread(reach[:, 0] + gained)
        drift = self._drifted(parts[:, None] @ sums.reach, parts[:, None])
        one, two = one + drift[0][:, 0, 0], two + drift[1][:, 0, 0]
        single = square + (fourth - square) / n
        return _gradient(
            sums, self.at, mean, single, both + (common - both) / n, (one, two), sums.loose
        )

    def _drifted(
        self, reach: np.ndarray, mixing: np.ndarray, by: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The drift from above and what this layer adds: of quantities that are mixtures of S² and
        D above, change by ``reach`` with the next layer's deviations, and by ``by`` with the means
        of f, f² and d² here."""
        at, (one, two), (own, both) = self.at, self.sums.drift, self.at.added
        left, right = at.pairs.left, at.pairs.right
        reach = reach * self.carried[:, None]
        one = mixing @ one @ mixing.swapaxes(1, 2) + reach @ own @ reach.swapaxes(1, 2)
        two = mixing[left] @ two @ mixing[right].swapaxes(1, 2)
        two = two + reach[left] @ both @ reach[right].swapaxes(1, 2)
        if by is None:
            return one, two
        # The units that make what is above longer are those that pass the gradient here.
        means, _, products, shared = self.made
        up, down = [_VALUE, _SQUARE], [_F, _FF, _DD]
        lengths, slopes = means[:, up], means[:, down]
        own = products[:, up][:, :, down] / at.layer.keep - lengths[:, :, None] * slopes[:, None]
        cross = reach @ own @ by.swapaxes(1, 2) / self.n
        one = one + cross + cross.swapaxes(1, 2)
        ahead = shared[:, up][:, :, down] - lengths[left][:, :, None] * slopes[right][:, None]
        back = shared[:, down][:, :, up] - slopes[left][:, :, None] * lengths[right][:, None]
        two = two + reach[left] @ ahead @ by[right].swapaxes(1, 2) / self.n
        return one, two + by[left] @ back @ reach[right].swapaxes(1, 2) / self.n

    # ------------------------------------------------------------ behind φ'

    def through(self) -> Sums:
        """The sums of this layer's own δ."""
        sums, at = self.sums, self.at
        shared, kept = self._shared()
        noisy = kept if sums.known else np.ones_like(kept)
        single = self._single(noisy)
        pair = self._pair(noisy)
        reach, drift = self._reach(single, noisy)
        first = shared[:, 0, 0]
        along = np.ones((len(first), 2))
        along[:, 1] = np.divide(shared[:, 0, 1], first, np.zeros_like(first), where=first > 0)
        mean = float(at.sampling.weights @ single[1])
        scale = mean if 0 < mean < math.inf else 1.0
        return Sums(
            sums.log + math.log(scale),
            shared / scale,
            along,
            single / scale ** _ORDERS[:, None],
            pair / scale**2,
            False,
            reach,
            drift,
            sums.loose | self._few(),
        )

    def _few(self) -> np.ndarray:
        """Samples of whose units so few pass a gradient that another draw may have none."""
        units = self.at.units
        fourth = units.products[:, SLOPE_SQUARE, SLOPE_SQUARE]
        return self.n * units.means[:, SLOPE_SQUARE] ** 2 < _FEWEST * fourth

    def _shared(self) -> tuple[np.ndarray, np.ndarray]:
        """E X Xᵀ, and the share of the noise in ∂L/∂m that is not already in ∂L/∂V above."""
        units, n, keep, sums = self.at.units, self.n, self.at.layer.keep, self.sums
        slopes = units.slopes[:, VALUE : SQUARE + 1].swapaxes(1, 2) / [1, 2]
        passed = slopes * self.coherent[:, None] * n
        total = passed @ sums.shared @ passed.swapaxes(1, 2) * (1 - 1 / n)
        # E of φ'²·(1, φ, φ²), bare and as ∂h/∂V weighs them
        which = [SLOPE_SQUARE, VALUE_SLOPE_SQUARE, SQUARE_SLOPE_SQUARE]
        bare, once, twice = (
            each[:, which] for each in (units.means, units.leaning[..., 0], units.leaning[..., 1])
        )
        weighed = np.stack([np.stack([bare, once], 1), np.stack([once, twice], 1)], 1)
        outer = sums.shared * self.coherent[:, :, None] * self.coherent[:, None]
        powers = np.stack([outer[:, 0, 0], 2 * outer[:, 0, 1], outer[:, 1, 1]], axis=1)
        total += n / keep * (weighed * powers[:, None, None]).sum(axis=-1)
        noise = self.noise / keep * weighed[..., 0]
        lost = slopes[:, :, 1]
        squares = np.maximum(units.means[:, SQUARE], 1e-280)[:, None, None]
        known = self.noise * lost[:, :, None] * lost[:, None] / squares
        known = known * bool(self.carried.any())
        total += n * sums.single[1][:, None, None] * (noise - known)
        alone = noise[:, 0, 0]
        kept = 1 - np.divide(known[:, 0, 0], alone, np.zeros_like(alone), where=alone > 0)
        return total, kept.clip(0.0, 1.0)

    @cached_property
    def _powers(self) -> tuple[np.ndarray, ...]:
        """E of f, f², d², f³, fd², f⁴, d⁴ and f²d² over units and masks."""
        means, _, products, _ = self.made
        keep = self.at.layer.keep
        return (
            means[:, _F],
            means[:, _FF] / keep,
            means[:, _DD] / keep,
            products[:, _F, _FF] / keep**2,
            products[:, _F, _DD] / keep**2,
            products[:, _FF, _FF] / keep**3,
            products[:, _DD, _DD] / keep**3,
            products[:, _FD, _FD] / keep**3,
        )

    def _single(self, noisy: np.ndarray) -> np.ndarray:
        """``Sums.single`` of this layer.

        With u = f·S + d·noise of a unit, E (Σu)⁴ and the like sum over which indices are equal.
        ``noisy`` is the share of the noise that is left in S.
        """
        f1, f2, d2, f3, fd2, f4, d4, ffdd = self._powers
        s2, d1, s4, s2d, dd = self.sums.single
        n = float(self.n)
        two, three, four = n * (n - 1), n * (n - 1) * (n - 2), n * (n - 1) * (n - 2) * (n - 3)
        e2 = d2 * noisy
        fourth = f4 * s4 + 6 * ffdd * s2d + 3 * d4 * dd
        third = f1 * (f3 * s4 + 3 * fd2 * s2d)
        squares = f2**2 * s4 + 2 * f2 * d2 * s2d + d2**2 * dd
        ours = f2**2 * s4 + 2 * f2 * e2 * s2d + e2**2 * dd
        both = f2**2 * s4 + f2 * (e2 + d2) * s2d + e2 * d2 * dd
        single = np.stack([
            n * (f2 * s2 + e2 * d1) + two * f1**2 * s2,
            n * (f2 * s2 + d2 * d1),
            n * fourth + 4 * two * third + 3 * two * ours
            + 6 * three * f1**2 * (f2 * s4 + e2 * s2d) + four * f1**4 * s4,
            n * fourth + 2 * two * third + two * both + three * f1**2 * (f2 * s4 + d2 * s2d),
            n * fourth + two * squares,
        ])  # fmt: skip
        return single

    def _pair(self, noisy: np.ndarray) -> np.ndarray:
        """``Sums.pair`` of this layer; m21 is E u²v·E v and so on, u and v of the two samples."""
        left, right, keep = self.at.pairs.left, self.at.pairs.right, self.at.layer.keep
        ss, sd, ds, dd, gg, gss = self.sums.pair
        f1, f2, d2, *_ = self._powers
        e2, n, q = d2 * noisy, float(self.n), self.made[3]
        two, three, four = n * (n - 1), n * (n - 1) * (n - 2), n * (n - 1) * (n - 2) * (n - 3)
        fa, fb, ffa, ffb = f1[left], f1[right], f2[left], f2[right]
        ff, noise = q[:, _F, _F], q[:, _D, _D]
        less = noise * np.sqrt(noisy[left] * noisy[right])
        m22 = q[:, _FF, _FF] * ss + q[:, _FF, _DD] * sd + q[:, _DD, _FF] * ds
        m22 = (m22 + 4 * q[:, _FD, _FD] * gss + q[:, _DD, _DD] * (dd + 2 * gg)) / keep**2
        m21 = q[:, _FF, _F] * ss + q[:, _DD, _F] * ds + 2 * q[:, _FD, _D] * gss
        m12 = q[:, _F, _FF] * ss + q[:, _F, _DD] * sd + 2 * q[:, _D, _FD] * gss
        m21, m12 = fb * m21 / keep, fa * m12 / keep

        def m11(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return ff**2 * ss + ff * (x + y) * gss + x * y * gg

        def m20(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return ffa * ffb * ss + ffa * y * sd + x * ffb * ds + x * y * dd

        def m20_01(x: np.ndarray) -> np.ndarray:
            return fb**2 * (ffa * ss + x * ds)

        def m02_10(y: np.ndarray) -> np.ndarray:
            return fa**2 * (ffb * ss + y * sd)

        m11_10_01 = fa * fb * (ff * ss + less * gss)
        xa, xb, ya, yb = d2[left], d2[right], e2[left], e2[right]
        return n * m22 + np.stack([
            2 * two * (m21 + m12) + two * (m20(ya, yb) + 2 * m11(less, less))
            + three * (m20_01(ya) + m02_10(yb) + 4 * m11_10_01) + four * (fa * fb) ** 2 * ss,
            2 * two * m12 + two * m20(ya, xb) + three * m02_10(xb),
            2 * two * m21 + two * m20(xa, yb) + three * m20_01(xa),
            two * m20(xa, xb),
            two * m11(noise, noise),
            two * (m21 + m12) + two * m11(noise, less) + three * m11_10_01,
        ])  # fmt: skip

    def _reach(
        self, single: np.ndarray, noisy: np.ndarray
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """``Sums.reach`` and ``Sums.drift`` of this layer."""
        f1, f2, d2, *_ = self._powers
        (s2, d1, *_), n, keep = self.sums.single, float(self.n), self.at.layer.keep
        two, new = n * (n - 1), np.maximum(single[:2].T, 1e-280)[:, :, None]
        mixing = np.empty((len(f1), 2, 2))
        mixing[:, 0] = np.stack([(n * f2 + two * f1**2) * s2, n * d2 * noisy * d1], axis=1)
        mixing[:, 1] = np.stack([n * f2 * s2, n * d2 * d1], axis=1)
        by = np.zeros((len(f1), 2, 3))
        by[:, 0, 0] = 2 * two * f1 * s2
        by[:, :, 1], by[:, :, 2] = (n / keep * s2)[:, None], (n / keep * d1)[:, None]
        mixing, by = mixing / new, by / new
        reach = mixing @ self.sums.reach
        drift = self._drifted(reach, mixing, by)
        gained = by @ self.made[1][:, [_F, _FF, _DD]]
        return (reach * self.carried[:, None]) @ self.at.slopes + gained, drift


def _gradient(
    sums: Sums,
    at: Moved,
    sizes: np.ndarray,
    single: np.ndarray,
    pair: np.ndarray,
    drift: tuple[np.ndarray, np.ndarray],
    loose: np.ndarray,
) -> Gradient:
    """A mean over units and batch from E D, E D² and E DD of it, and the drift of ln E D."""
    of, (one, two) = at.sampling, drift
    mean = float(of.weights @ sizes)
    loose = loose | at.loose | ~(one < MOST) | (sizes < 1e-100 * mean)
    d = np.maximum(sizes, 1e-100 * mean)
    single = single / d**2 * np.exp(np.where(loose, 0.0, one)) - 1
    loose = loose | ~np.isfinite(single)
    held = loose[of.left] | loose[of.right]
    pair = pair / (d[of.left] * d[of.right]) * np.exp(np.where(held, 0.0, two)) - 1
    single, pair = np.where(loose, 0.0, single), np.where(held, 0.0, pair)
    scatter = of.scatter(sizes, single, pair, loose)
    return Gradient(math.exp(min(sums.log, 700.0)) * mean, scatter)


def _own(sums: Sums, at: Moved) -> Gradient:
    """δ itself, summed over its units."""
    one, two = at.spread(sums.reach[:, 1])
    drift = one + sums.drift[0][:, 1, 1], two + sums.drift[1][:, 1, 1]
    return _gradient(sums, at, sums.single[1], sums.single[4], sums.pair[3], drift, sums.loose)


def _of_input(sums: Sums, first: Moved, source: Signal) -> Gradient:
    """∂L/∂x: as of units that are what they are."""
    assert source.means is not None
    sizes = np.sqrt(np.maximum(source.lengths, 1e-280))
    along = sums.along * carried(sizes, first, 1.0) * (first.sizes / sizes)[:, None]
    straight, lean = (along / first.layer.inputs * [1, 2]).T
    gg = straight**2 + 2 * straight * lean * source.means / sizes + lean**2
    of, noise = first.sampling, first.layer.var
    s2, d1, s4, s2d, d2 = sums.single
    ss, sd, ds, dd, *_ = sums.pair
    mean = gg * s2 + noise * d1
    square = gg**2 * s4 + 2 * gg * noise * s2d + noise**2 * d2
    left, right = gg[of.left], gg[of.right]
    both = left * right * ss + noise * (left * sd + right * ds) + noise**2 * dd
    square = square * (1 + 2 / first.layer.inputs)
    one, two = first.spread(sums.reach[:, 1])
    drift = one + sums.drift[0][:, 1, 1], two + sums.drift[1][:, 1, 1]
    return _gradient(sums, first, mean, square, both, drift, sums.loose)


def _bare(gradient: Gradient | None) -> Gradient | None:
    return gradient and Gradient(gradient.second_moment, None)


def _scaled(gradient: Gradient, factor: float) -> Gradient:
    return Gradient(gradient.second_moment * factor, gradient.scatter)


@lru_cache(maxsize=16)
def moved(
    source: Signal,
    of: Sampling,
    angle: float,
    steps: tuple[Step, ...],
    layers: tuple[Affine, ...],
    has_head: bool,
    band: bool,
) -> tuple[list[Scatters], list[GradientStep], Gradient | None]:
    """How the signal scatters in each layer; the gradients of each, and that of the input.

    Args:
        source, of: the inputs, and the batch that they stand for.
        angle: the mean square cosine of random inputs.
        steps, layers: fewer steps than layers, where the signal overflows on the way: there are no
            gradients then.
        has_head: whether a loss reads the last layer.
        band: whether to tell scatters.
    """
    stack = [first_moved(steps[0], layers[0], of, angle)]
    for step, layer in zip(steps[1:], layers[1:], strict=False):
        stack.append(next_moved(stack[-1], step, layer))
    scatters = [Scatters(None, None)] * len(stack)
    if band:
        scatters = [Scatters(at.before, at.after if at.step.phi else None) for at in stack]
    if len(steps) < len(layers):
        return scatters, [GradientStep(None, None)] * len(steps), None
    rows, at_input = _gradients(stack, source, has_head)
    if not band:
        rows = [GradientStep(*map(_bare, (row.after, row.before, row.read))) for row in rows]
        at_input = _bare(at_input)
    return scatters, rows, at_input


def _gradients(
    stack: Sequence[Moved], source: Signal, has_head: bool
) -> tuple[list[GradientStep], Gradient]:
    rows: list[GradientStep] = []
    above, outputs, sums = None, 1, _at_output(stack[0].sampling)
    if has_head:
        above, sums = stack[-1], _at_loss(stack[-1])
        outputs, stack = above.layer.outputs, stack[:-1]
        rows.append(GradientStep(None, _own(sums, above)))
    for at in reversed(stack):
        layer, keep = _Layer(sums, at, above), at.layer.keep
        read = _scaled(layer.read(), outputs)
        sums = layer.through()
        own = _scaled(_own(sums, at), outputs / at.layer.outputs)
        rows.append(GradientStep(_scaled(read, 1 / keep), own, read))
        above = at
    first = above
    assert first is not None
    return rows[::-1], _scaled(_of_input(sums, first, source), outputs)
