"""What finite width adds to the mean-field theory: how far one draw of the weights strays from it.

A layer of n units averages over n numbers and not over infinitely many, so the second moments of a
network do not follow the length map but scatter around it, multiplicatively and more with every
layer: they are close to log-normal (Hanin and Nica 2020). To first order in 1/n a deviation that
exists is passed on by the slope of the map, and every layer adds Var φ²/n of its own. Two samples
share the weights, so their deviations are correlated, the more the more alike they have become; a
batch therefore averages less and less of it away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch

from initlab.activations import Activation, MeanSquare
from initlab.errors import positive_int
from initlab.expectations import hermite_coefficients
from initlab.tables import SmoothTable, stretched, unstretched

_SDS = 1.96
"""From the middle of a band of 95 % to its ends, in standard deviations."""

_NEARBY = 1e-3
"""Of ln q: what a slope is taken over at least."""


_MOST_ADDED = 4.0
"""Relative variance of one layer's own, above which logarithms have no finite variance: of n units
of relu it is 5/n, and of those of which a share p is active 3/(p·n)."""


@dataclass(frozen=True)
class LengthLaw:
    """The law of E h² over draws of the weights, relative to its mean, in natural logarithms.

    ``skew`` is that of a Scatter.
    """

    log_mean: float
    log_var: float
    skew: float = 0.0

    def interval(self, sds: float = _SDS) -> tuple[float, float]:
        """The factors by which h² lies below and above its mean in 95 % of the draws."""
        half = sds * math.sqrt(self.log_var)
        low, high = half * (1 - self.skew), half * (1 + self.skew)
        return math.exp(self.log_mean - low), math.exp(self.log_mean + high)


def relu_length_law(width: int, depth: int) -> LengthLaw:
    """The exact log-moments of |h_depth|² for one fixed input of a He-initialized ReLU network.

    Every layer multiplies |a|² by (2/n)·χ²_K with K ~ Binomial(n, 1/2) active units, independently
    of all others, and the last pre-activation by χ²_n/n (Hanin and Nica 2020, sec. 3). Given that
    no layer is wholly inactive, which happens with probability 1 − (1 − 2⁻ⁿ)^depth.

    Raises:
        ValueError: width or depth below 1.

    >>> law = relu_length_law(256, 50)
    >>> [round(math.log10(factor), 2) for factor in law.interval()]
    [-1.05, 0.63]
    """
    from scipy.special import digamma, polygamma

    n = positive_int("width", width)
    positive_int("depth", depth)
    layer = _relu_layer(n)
    return LengthLaw(
        (depth - 1) * layer.log_mean + float(digamma(n / 2)) + math.log(2 / n),
        (depth - 1) * layer.log_var + float(polygamma(1, n / 2)),
    )


@lru_cache(maxsize=1024)
def _relu_layer(n: int) -> LengthLaw:
    """By what one layer of n ReLUs multiplies |a|²: (2/n)·χ²_K."""
    from scipy.special import digamma, polygamma
    from scipy.stats import binom

    active = range(1, n + 1)
    weight = binom.pmf(active, n, 0.5) / (1 - 0.5**n)
    centre = digamma([k / 2 for k in active])
    mean = float(weight @ centre)
    scatter = float(weight @ polygamma(1, [k / 2 for k in active]))
    return LengthLaw(mean + math.log(4 / n), scatter + float(weight @ (centre - mean) ** 2))


def inactive_fraction(decorrelation: float, batch_size: int) -> float:
    """The share of ReLU units that are inactive on a whole batch of equally correlated samples.

    E Φ(−√(c/(1−c))·t)^B over t ~ N(0, 1), with pre-activations of correlation c = 1 −
    ``decorrelation`` and no bias. About 40 % at layer 50 of a He network with 64 independent
    inputs: normal, not a fault.

    Raises:
        ValueError: decorrelation outside [0, 1], or batch_size below 1.

    >>> round(inactive_fraction(1.0, 3), 6)  # independent: 2⁻³
    0.125
    """
    from scipy.integrate import quad
    from scipy.special import log_ndtr

    if not 0 <= decorrelation <= 1:
        raise ValueError(f"decorrelation={decorrelation} must be 1 − c, in [0, 1]")
    size = positive_int("batch_size", batch_size)
    if decorrelation == 0:
        return 0.5
    tilt = math.sqrt((1 - decorrelation) / decorrelation)

    def density(t: float) -> float:
        return math.exp(size * float(log_ndtr(-tilt * t)) - t * t / 2) / math.sqrt(2 * math.pi)

    turn = 3 / tilt if tilt else 0.0
    points = sorted({-turn, 0.0, turn}) if turn < 12 else [0.0]
    return float(quad(density, -12, 12, points=points, limit=200)[0])


class Correction(NamedTuple):
    """What one layer adds to logarithms, over what a log-normal law of its relative variance v
    would: to their variance, which is log(1 + v), and to their mean, −log(1 + v)/2."""

    mean: float
    var: float


_NONE = Correction(1.0, 1.0)


def diluted(ln: float, share: float) -> float:
    """The logarithm by which a sum grows if this share of it grows by ``ln``.

    >>> diluted(0.5, 1.0), round(diluted(0.5, 0.0), 12)
    (0.5, 0.0)
    """
    if share == 1:
        return ln
    return float(np.logaddexp(math.log(max(share, 1e-300)) + ln, math.log1p(-share)))


@dataclass(frozen=True)
class Scatter:
    """How the draws of the weights scatter a second moment, in natural logarithms.

    ``single`` is the log-variance of one sample's, ``pair`` the log-covariance of two samples',
    ``shift`` the middle of the pair's logarithm, and ``angle`` the mean square by which the two
    samples' correlation strays from its mean-field value. On images each position is a sample;
    ``common`` is the part of ``angle`` that is the same wherever in the image the two are.

    Above the middle 95 % of a pair's draws reach (1 + ``skew``)/(1 − skew) times as far as below
    it: beside a repelling fixed point some are held that others leave behind.
    """

    single: float = 0.0
    pair: float = 0.0
    shift: float = 0.0
    angle: float = 0.0
    common: float = 0.0
    skew: float = 0.0

    @property
    def edges(self) -> tuple[float, float]:
        """Between which 95 % of a pair's logarithms lie."""
        half = _SDS * math.sqrt(self.pair)
        return self.shift - half * (1 - self.skew), self.shift + half * (1 + self.skew)

    def mapped(self, to: Callable[[float], float]) -> tuple[Scatter, float]:
        """Behind a map of the logarithms that may bend, and its slope between the edges.

        Over what a deep network scatters the length map is no line: the middle and both edges go
        their own ways.
        """
        low, high = self.edges
        low, high = min(low, self.shift - _NEARBY), max(high, self.shift + _NEARBY)
        ends, middle = (to(low), to(high)), to(self.shift)
        slope = (ends[1] - ends[0]) / (high - low)
        apart = abs(ends[1] - ends[0])
        skew = (sum(ends) - 2 * middle) / apart if apart else 0.0
        pair = slope**2 * self.pair
        return replace(
            self,
            single=pair + slope**2 * self.own,
            pair=pair,
            shift=middle,
            skew=min(max(skew, -1.0), 1.0),
        ), slope

    def diluted(self, share: float) -> Scatter:
        """Of a sum of which this is but a share, and the rest the same in all draws."""
        return self if share == 1 else self.mapped(lambda ln: diluted(ln, share))[0]

    def widened(self, single: float, pair: float, of_first_order: Correction = _NONE) -> Scatter:
        """With these relative (co)variances, which a layer adds.

        inf where so few units are active that the next draw may have none.
        """
        if single > _MOST_ADDED:
            return replace(self, single=math.inf)
        fresh = of_first_order.var * math.log1p(pair)
        below, above = (
            math.sqrt(self.pair * (1 + side * self.skew) ** 2 + fresh) for side in (-1, 1)
        )
        together = ((below + above) / 2) ** 2
        return replace(
            self,
            single=together
            + self.single
            - self.pair
            + of_first_order.var * math.log1p(single)
            - fresh,
            pair=together,
            shift=self.shift - of_first_order.mean * math.log1p(pair) / 2,
            skew=(above - below) / (above + below) if together else 0.0,
        )

    def turned(self, turned: float, fresh: float, alike: float, image: Image | None) -> Scatter:
        """With strays of the correlation that grow by ``turned`` while ``fresh`` ones are added.

        A convolution averages over its taps what differs between the positions: of fresh strays all
        but the share ``alike``.
        """
        if image is None:
            return replace(self, angle=min(turned * self.angle + fresh, 1.0))
        alike += (1 - alike) / image.positions
        common = turned * self.common + fresh * alike
        varying = turned * (self.angle - self.common) + fresh * (1 - alike)
        return replace(self, angle=min(common + image.kept * varying, 1.0), common=min(common, 1.0))

    def over_positions(self, positions: int) -> Scatter:
        """Of the mean over an image, whose positions are as alike as two samples."""
        if positions == 1 or self.single > 600:
            return self
        shared, own = math.expm1(self.pair), math.expm1(self.single) - math.expm1(self.pair)
        return replace(self, single=math.log1p(shared + max(own, 0.0) / positions))

    def over_units(
        self, width: int, decorrelation: float, rigid: float, offset: float = 0.0
    ) -> Scatter:
        """The scatter of the mean square of ``width`` Gaussian units whose variance has this one.

        ``rigid`` is the share of that variance whose norm orthogonal weights keep exactly,
        ``offset`` the square of a mean that all units have, over that variance.
        """
        share = 1 / (1 + offset)
        loose, leaning = (share**2 * each / width for each in (2 * (1 - rigid), 4 * offset))
        squares = loose * self.cosine_square(decorrelation)
        of_all = self.diluted(share)
        return of_all.widened(loose + leaning, squares + leaning * (1 - decorrelation))

    @property
    def own(self) -> float:
        """The log-variance between the samples of one draw."""
        return max(self.single - self.pair, 0.0)

    def cosine_square(self, decorrelation: float) -> float:
        """The mean square correlation of two samples."""
        return min((1 - decorrelation) ** 2 + self.angle, 1.0)

    def batch_law(self, batch_size: int) -> LengthLaw:
        """The law of the mean over a batch: the samples' own parts average out, shared ones stay.

        Its variance is inf where the scatter has no finite one left, or where the samples' own is
        more than 2·ln ``batch_size``: the longest then outweighs all others together, and nothing
        averages (Derrida 1981, the frozen phase of the random energy model).
        """
        frozen = self.own > 2 * math.log(batch_size) > 0
        if frozen or max(self.single, self.pair, abs(self.shift)) > 600:
            return LengthLaw(self.shift, math.inf)
        own = math.expm1(self.single) / batch_size
        shared = math.expm1(self.pair) * (1 - 1 / batch_size)
        log_var = math.log1p(own + shared)
        return LengthLaw(self.shift - (log_var - self.pair) / 2, log_var, self.skew)


_TAPS = 9
"""Positions that an output of a convolution reads."""


@dataclass(frozen=True)
class Image:
    """The positions that a 3×3 convolution averages over: ``size`` in a row and in a column."""

    size: int

    @property
    def positions(self) -> int:
        return self.size**2

    @cached_property
    def kept(self) -> float:
        """What an average over 3×3 positions keeps of the variance between positions, in a stack.

        Each wave across the image keeps b² of its power in a layer. If every layer adds strays
        without spatial structure, what is left of them all is the mean over waves of b²/(1 − b²);
        this is the one share, the same for all waves and layers, that leaves as much.
        """
        phases = 2 * np.pi * np.arange(self.size) / self.size
        beside = (1 + 2 * np.cos(phases)) / 3
        power = np.outer(beside, beside).ravel()[1:] ** 2
        left = float((power / (1 - power)).sum() / max(power.size, 1))
        return left / (1 + left)


@dataclass(frozen=True)
class Layer:
    """A layer of pre-activations at its mean-field length, as far as its scatter depends on it.

    ``q`` and ``decorrelation`` (1 − c of two samples) are those of its pre-activations; ``rigid``
    is the share of q whose norm orthogonal weights keep exactly, 0 for i.i.d. weights; ``keep`` is
    the share of its activations that dropout leaves; ``image`` is that of a convolution.
    """

    phi: Activation
    width: int
    q: float
    decorrelation: float
    rigid: float = 0.0
    keep: float = 1.0
    image: Image | None = None

    @cached_property
    def pairs(self) -> PairSeries:
        """The moments of two samples at any correlation, each relative to its own size."""
        return _pair_series(self.phi, 1.0 if self.phi.homogeneous else self.q)

    @cached_property
    def one(self) -> list[list[float]]:
        """Those moments of one sample."""
        return self.pairs.at(1.0)

    @cached_property
    def two(self) -> list[list[float]]:
        """Those moments of two samples at their mean-field correlation."""
        return self.pairs.at(1 - self.decorrelation)

    def shared(self, scatter: Scatter) -> list[list[float]]:
        """Those moments of two samples, over the correlations that they scatter to."""
        return self.pairs.over_angles(self.decorrelation, scatter.angle)

    def response(self, scatter: Scatter, own: float = 0.0) -> tuple[float, float]:
        """What scattered lengths do to ln E φ'²: its change per ln q, and by how much its mean is
        off that at the mean-field length.

        Taken between one deviation below and one above, not at a point: over what a deep network
        scatters, it bends. ``own`` is the variance of ln q between the samples of one draw.
        """
        if self.phi.homogeneous:
            return 0.0, 0.0
        stray = math.sqrt(scatter.pair) + _NEARBY
        of, at = "derivative_second_moment", math.log(self.q)
        moves = (0.0, 0.0), (scatter.shift - stray, own), (scatter.shift + stray, own)
        here, low, high = (_log_mean(self.phi, of, at + move, spread) for move, spread in moves)
        return (high - low) / (2 * stray), (high + low) / 2 - here

    def mean_square(self, scatter: Scatter) -> tuple[Scatter, float]:
        """The scatter of E φ² behind that of the length, and by how much one grows per other."""
        if self.phi.homogeneous:
            return scatter, 1.0
        return scatter.mapped(lambda ln: self.change("second_moment", ln))

    def change(self, of: MeanSquare, ln: float) -> float:
        """What ``ln`` more of ln q adds to the logarithm of E φ² or E φ'²."""
        at = math.log(self.q)
        return _log_moment(self.phi, of, at + ln) - _log_moment(self.phi, of, at)

    @property
    def correction(self) -> Correction:
        """That of few ReLUs, whose law is known: of which a layer has by chance too many or few."""
        slopes = self.phi.homogeneous
        plain = not self.rigid and self.keep == 1 and self.image is None
        if slopes is None or not plain or min(map(abs, slopes)) > 0:
            return _NONE
        exact, rough = _relu_layer(self.width), math.log1p(5 / self.width)
        return Correction(-2 * exact.log_mean / rough, exact.log_var / rough)

    @property
    def curvature(self) -> float:
        """q²·(E φ²)''/E φ²: by how much E φ² rises when q scatters, per half its variance."""
        if self.phi.homogeneous:
            return 0.0
        return _curvature(self.phi, round(math.log(self.q) * _KNOTS))

    def gap_response(self, at_small: float) -> tuple[float, float]:
        """What scattered lengths do to the gap E (φ(u) − φ(v))²/2 at the mean-field correlation:
        its change per ln q, which at a small gap is 1 + ``at_small``, and its ``curvature``."""
        if self.phi.homogeneous:
            return 1.0 + at_small, 0.0
        middle = round(min(max(math.log(self.q), -300.0), 300.0) * _KNOTS)
        knots, c = (middle - 1, middle, middle + 1), 1 - self.decorrelation
        slopes = [_log_moment_at(self.phi, "derivative_second_moment", knot) for knot in knots]
        gaps = [_pair_series(self.phi, math.exp(knot / _KNOTS)).gap(c) for knot in knots]
        if min(gaps) > 1e-9:
            squares = [_log_moment_at(self.phi, "second_moment", knot) for knot in knots]
            logs = [square + math.log(gap) for square, gap in zip(squares, gaps, strict=True)]
        else:  # q·E φ'², up to a factor
            logs = [slope + knot / _KNOTS for slope, knot in zip(slopes, knots, strict=True)]
        above_slopes = (logs[2] - logs[0] - slopes[2] + slopes[0]) * _KNOTS / 2
        return above_slopes + at_small, _bend(*logs)


_KNOTS = 8  # per e-fold of q: what networks share, all of it smooth on a scale of 1


def _log_mean(phi: Activation, of: MeanSquare, log_q: float, own: float) -> float:
    """ln of the moment, as a mean over samples whose ln q has the variance ``own``."""
    if not own:
        return _log_moment(phi, of, log_q)
    centre, way = log_q - own / 2, math.sqrt(own)
    low, high = (_log_moment(phi, of, each) for each in (centre - way, centre + way))
    return max(low, high) + math.log1p(math.exp(-abs(high - low))) - math.log(2)


def _log_moment(phi: Activation, of: MeanSquare, log_q: float) -> float:
    place = min(max(log_q, -300.0), 300.0) * _KNOTS
    below = math.floor(place)
    first, second = _log_moment_at(phi, of, below), _log_moment_at(phi, of, below + 1)
    return first + (place - below) * (second - first)


@lru_cache(maxsize=65536)
def _log_moment_at(phi: Activation, of: MeanSquare, knot: int) -> float:
    return math.log(max(getattr(phi.moments(math.exp(knot / _KNOTS)), of), 1e-300))


@lru_cache(maxsize=8192)
def _curvature(phi: Activation, knot: int) -> float:
    low, here, high = (
        _log_moment_at(phi, "second_moment", at) for at in (knot - 1, knot, knot + 1)
    )
    return _bend(low, here, high)


def _bend(low: float, here: float, high: float) -> float:
    """q²·f''/f from ln f at three knots."""
    slope = (high - low) * _KNOTS / 2
    return (high - 2 * here + low) * _KNOTS**2 + slope**2 - slope


# ---------------------------------------------------------------- moments of pairs

_DEGREE = 12
_POWERS = np.arange(_DEGREE + 3)
_VALUE, _SQUARE, _CUBE, _SLOPE, _SLOPE_SQUARE = range(5)
_KINDS = 5


class PairSeries:
    """E f(u)g(v) for f and g among φ, φ², φ³, φ', φ'² as a power series in the correlation c, each
    in units of the root mean square of its φ or φ'.

    Cut off after degree 12, with what is left at c = 1 put into the next even power: good to a few
    per cent, which a scatter needs, and at no cost for another c.
    """

    def __init__(self, coefficients: np.ndarray, at_one: np.ndarray) -> None:
        terms = coefficients[:, None] * coefficients
        rest = at_one - terms.sum(axis=-1)
        self._at_one = at_one
        self._terms = np.concatenate(
            [terms, np.zeros_like(rest)[..., None], rest[..., None]], axis=-1
        )

    def at(self, c: float) -> list[list[float]]:
        """E f(u)g(v) at correlation c, for every f and g."""
        return (self._at_one if c == 1 else self._terms @ c**_POWERS).tolist()

    def gap(self, c: float) -> float:
        """1 − E φ(u)φ(v)/E φ² at correlation c."""
        return float(self._terms[_VALUE, _VALUE] @ (1 - c**_POWERS))

    @lru_cache(maxsize=8)  # noqa: B019  (eight at most outlive their use)
    def over_angles(self, decorrelation: float, angle: float) -> list[list[float]]:
        """The mean over correlations whose mean square distance from 1 − decorrelation is angle."""
        c = 1 - decorrelation
        stray = min(math.sqrt(angle), decorrelation, 2 - decorrelation)
        return (self._terms @ ((c + stray) ** _POWERS + (c - stray) ** _POWERS) / 2).tolist()


@lru_cache(maxsize=8192)
def _pair_series(phi: Activation, q: float) -> PairSeries:
    found = _pair_table(phi).at(stretched(q))
    numbers = _pair_numbers(phi, q) if found is None else found
    split = _KINDS * (_DEGREE + 1)
    return PairSeries(numbers[:split].reshape(_KINDS, -1), numbers[split:].reshape(_KINDS, _KINDS))


@lru_cache(maxsize=256)
def _pair_table(phi: Activation) -> SmoothTable:
    def fill(_: tuple[int, ...], nodes: list[np.ndarray]) -> np.ndarray:
        return np.stack([_pair_numbers(phi, q) for q in unstretched(nodes[0]).tolist()], axis=1)

    return SmoothTable(fill, orders=(8,), tolerance=1e-2)


def _pair_numbers(phi: Activation, q: float) -> np.ndarray:
    """The coefficients of the series and its values at c = 1, one after the other."""
    moments = phi.moments(q)
    size, steep = (
        math.sqrt(max(each, 1e-300))
        for each in (moments.second_moment, moments.derivative_second_moment)
    )

    def integrands(x: np.ndarray) -> np.ndarray:
        z = torch.from_numpy(x)
        value, slope = phi.function(z).numpy() / size, phi.derivative(z).numpy() / steep
        return np.stack([value, value**2, value**3, slope, slope**2])

    coefficients, at_one = hermite_coefficients(integrands, q, _DEGREE, phi.kinks)
    return np.concatenate([coefficients.ravel(), at_one.ravel()])


# ---------------------------------------------------------------- one layer on


def rigidity(q: float, orthogonal: float, bias_var: float, *, uniform_bias: bool) -> float:
    """The share of a Gaussian unit's Var h² that orthogonal weights and uniform biases do without.

    Orthogonal rows keep the norm of what they read (``orthogonal`` is min(1, outputs/inputs), 0 for
    i.i.d. weights), but not that of the bias; and uniform biases have a fourth moment of 9/5 of
    their squared variance where Gaussian ones have 3.
    """
    bias_share = min(bias_var / q, 1.0)
    return orthogonal * (1 - bias_share) ** 2 + (0.6 * bias_share**2 if uniform_bias else 0.0)


def activated(scatter: Scatter, layer: Layer) -> Scatter:
    """From the scatter of a layer's pre-activation variance to that of the mean of φ²."""
    after, slope = layer.mean_square(scatter)
    fourth, shared = layer.one[_SQUARE][_SQUARE], layer.shared(scatter)[_SQUARE][_SQUARE]
    kept = 2 * slope**2 * layer.rigid
    fresh = max(shared - 1 - kept * scatter.cosine_square(layer.decorrelation), 0.0) / layer.width
    single = max(fourth / layer.keep - 1 - kept, 0.0) / layer.width
    after = after.widened(single, fresh, layer.correction)
    # Where E φ² bends, its mean moves with what scatters: the samples' own lengths, and the norm
    # that orthogonal weights keep from scattering as a Gaussian layer's does.
    moved = layer.curvature * (scatter.own / 2 - layer.rigid / layer.width)
    return replace(after, shift=after.shift + moved)


def advanced(
    scatter: Scatter, after: Scatter, layer: Layer, weight_var: float, bias_var: float
) -> Scatter:
    """From the scatter of a layer's pre-activation variance to that of the next layer's.

    ``after`` is ``activated`` of it, ``weight_var`` is fan_in·Var(W) of the affine layer between,
    ``bias_var`` the variance of its biases.
    """
    moments, keep = layer.phi.moments(layer.q), layer.keep
    next_q = weight_var * moments.second_moment / keep + bias_var
    share = weight_var * moments.second_moment / keep / next_q
    product, squares, cubes, fourth = (  # relative to E φ²/keep, which the next layer reads
        layer.two[_VALUE][_VALUE] * keep,
        layer.two[_SQUARE][_SQUARE] * keep**2,
        layer.two[_CUBE][_VALUE] * keep**2,
        layer.one[_SQUARE][_SQUARE] * keep,
    )
    c = 1 - share * (1 - product)
    strays = (  # Var[φ(u)φ(v) − c·(φ(u)² + φ(v)²)/2] of what dropout leaves, scaled by 1/keep
        squares - 2 * c * cubes + c**2 * (fourth + squares) / 2
    ) / keep**2 - (product - c) ** 2
    alike = scatter.cosine_square(layer.decorrelation)
    slope = weight_var * layer.q * moments.derivative_second_moment / next_q
    turned = (slope * layer.two[_SLOPE][_SLOPE]) ** 2
    fresh = max(share**2 * strays - turned * layer.rigid * (1 - alike) ** 2, 0.0) / layer.width
    read = after if layer.image is None else after.over_positions(_TAPS)
    return read.diluted(share).turned(turned, fresh, alike, layer.image)


@dataclass(frozen=True)
class SlopeScatter:
    """What a layer's φ' does to the scatter of the gradients that pass it.

    ``single`` is E φ'⁴/(E φ'²)² of one sample, ``shared`` E φ'(u)²φ'(v)²/(E φ'²)² of two, and
    ``turned`` E φ'(u)φ'(v)/E φ'², by which it shrinks the cosine between their gradients. Of one
    sample and of two, ``held`` is what orthogonal weights, which keep the norm of h, hold of the
    former; and ``with_length`` the covariance of the mean φ'² with the mean φ², from which the
    layers above have their lengths.
    """

    width: int
    single: float
    shared: float
    turned: float
    held: tuple[float, float] = (0.0, 0.0)
    with_length: tuple[float, float] = (0.0, 0.0)
    image: Image | None = None
    correction: Correction = _NONE


def slope_scatter(signal: Scatter, layer: Layer) -> SlopeScatter | None:
    """The SlopeScatter of a layer with this forward scatter; None where φ' is 0."""
    if layer.phi.moments(layer.q).derivative_second_moment == 0:
        return None
    one, shared = layer.one, layer.shared(signal)
    alike = signal.cosine_square(layer.decorrelation)
    kept = kept_both = 0.0
    if layer.rigid:
        steeper, _ = layer.response(signal)
        _, longer = layer.mean_square(signal)
        kept, kept_both = 2 * layer.rigid * steeper**2, 2 * layer.rigid * steeper * longer
    return SlopeScatter(
        layer.width,
        one[_SLOPE_SQUARE][_SLOPE_SQUARE],
        shared[_SLOPE_SQUARE][_SLOPE_SQUARE],
        layer.two[_SLOPE][_SLOPE],
        (kept, kept * alike),
        (
            (one[_SQUARE][_SLOPE_SQUARE] - 1 - kept_both) / layer.width,
            (shared[_SQUARE][_SLOPE_SQUARE] - 1 - kept_both * alike) / layer.width,
        ),
        layer.image,
        layer.correction,
    )


def passed_back(gradient: Scatter, slopes: SlopeScatter, rigid: float) -> Scatter:
    """From the scatter of the variance of a layer's ∂L/∂a to that of the mean of (∂L/∂h)².

    ``rigid`` is that of the weights above, seen from below. The angle is that between two samples'
    gradients, whose mean is 0.
    """
    angle, shared, (held, held_both) = gradient.angle, slopes.shared, slopes.held
    stepped = gradient.widened(
        max(3 * slopes.single - 1 - 2 * rigid - held, 0.0) / slopes.width,
        max(shared * (1 + 2 * angle) - 1 - 2 * rigid * angle - held_both, 0.0) / slopes.width,
        slopes.correction,
    )
    fresh = shared * (1 - angle) ** 2 / slopes.width
    return stepped.turned(slopes.turned**2, fresh, min(angle, 1.0), slopes.image)


# ---------------------------------------------------------------- what tells samples apart


@dataclass(frozen=True)
class GapScatter:
    """How the draws scatter the gap between the samples of a batch, half their squared distance.

    The gap's own part, across the rays from 0; samples of one ray grow apart in length, which
    ``law`` adds. Per layer it is a mean over n units of φ'² times the variance of the unit's inputs
    over the batch, so that it scatters as a gradient does.

    ``single`` is the log-variance of its mean over the batch's pairs, ``both`` the log-covariance
    with their length, ``shift`` the mean of its logarithm; ``alike`` is the mean square cosine
    between two differences of samples, 1 over the number of directions in which samples differ.
    """

    batch_size: int
    alike: float
    single: float = 0.0
    both: float = 0.0
    shift: float = 0.0

    @property
    def concentrated(self) -> float:
        """``alike`` of the batch at hand, which has no more directions than samples."""
        return self.alike + (1 - self.alike) / self.batch_size

    def law(self, lengths: Scatter, shared: float, width: int, rigid: float) -> LengthLaw:
        """The law of the variance across samples over ``width`` units, relative to mean-field's.

        Samples of like direction whose log-lengths scatter apart by s add s/8 of E xy to their half
        squared distance, s = 2·(single − pair). ``shared`` is E xy over the mean-field variance;
        ``lengths`` is the scatter of the units' variance.
        """
        apart = max(lengths.single - lengths.pair, 0.0)
        if max(lengths.pair, self.single, abs(lengths.shift), abs(self.shift)) > 600:
            return LengthLaw(self.shift, math.inf)
        added = max(shared, 0.0) * -math.expm1(-apart / 4)
        own = 1 / (1 + added)
        units = 2 * self.concentrated * (1 - rigid) / width
        log_var = own**2 * self.single + 2 * own * (1 - own) * self.both
        log_var += (1 - own) ** 2 * (lengths.pair + 2 * self.concentrated)
        log_var = max(log_var, 0.0) + math.log1p(units)
        log_mean = own * self.shift + (1 - own) * lengths.shift - math.log1p(units) / 2
        return LengthLaw(math.log1p(added) + log_mean, log_var)


def parted(
    gap: GapScatter,
    lengths: Scatter,
    layer: Layer,
    slopes: SlopeScatter,
    response: float,
    *,
    carried: float,
    masked: float,
    passed: float,
) -> GapScatter:
    """From the scatter of the gap in a layer's pre-activations to that in the next layer's.

    Args:
        gap, lengths: of the gap and of the units' variance before the activation.
        layer, slopes: the layer between.
        response: d ln E φ'² / d ln q.
        carried: d ln gap after φ over d ln gap before it, at given lengths.
        masked: the share of the gap behind the layer that dropout makes.
        passed: d ln q of the next layer over d ln q.
    """
    moments, n, kept = layer.phi.moments(layer.q), layer.width, 1 - masked
    grown = layer.q * moments.slope / max(moments.second_moment, 1e-300)  # d ln E φ² / d ln q
    share = passed / grown if grown else 0.0  # of the next layer's variance, the rest is the bias
    longer, curvature = layer.gap_response(response)
    of_gap, of_both, of_length = _fresh(gap, lengths, layer, slopes, carried, longer, grown)
    fresh = kept**2 * of_gap + 2 * kept * masked * of_both + masked**2 * of_length
    if masked:
        masks = layer.one[_SQUARE][_SQUARE] * layer.keep / (1 - layer.keep)
        fresh += masked**2 * masks / (n * gap.batch_size)
    by_gap, by_length = kept * carried, kept * (longer - carried) + masked * grown
    mean_length = lengths.pair + lengths.own / gap.batch_size
    fresh = math.log1p(max(fresh, 0.0))
    single = by_gap**2 * gap.single + 2 * by_gap * by_length * gap.both
    single = max(single + by_length**2 * mean_length + fresh, 0.0)
    both = passed * (by_gap * gap.both + by_length * mean_length)
    both += share * (kept * of_both + masked * of_length)
    shift = by_gap * gap.shift + by_length * lengths.shift
    return GapScatter(
        gap.batch_size,
        min(carried**2 * gap.alike + slopes.shared * (1 - gap.alike) ** 2 / n, 1.0),
        single,
        both,
        shift
        + _moved(lengths, layer, longer, kept * curvature + masked * layer.curvature)
        - fresh / 2,
    )


def _moved(lengths: Scatter, layer: Layer, longer: float, bend: float) -> float:
    """By how much the mean gap moves, in logarithms, with what scatters where it bends.

    The Gram matrix of a Gaussian layer scatters, and moves a mean, as if all of it were longer by
    one factor of variance 2/n; orthogonal weights keep it. Of what it reads scatter the samples'
    own lengths: as much as in a Gaussian layer of fewer or more units. That moves all of ``bend``
    where samples are independent, and where they are alike what stretches their distance.
    """
    apart, n = min(max(layer.decorrelation, 1e-9), 1.0), layer.width
    of_own = apart * bend + (1 - apart) * 2 * (longer - 1)
    return of_own * min(lengths.own / (2 * apart * (2 - apart)), 1 / n) - bend * layer.rigid / n


def _fresh(
    gap: GapScatter,
    lengths: Scatter,
    layer: Layer,
    slopes: SlopeScatter,
    carried: float,
    longer: float,
    grown: float,
) -> tuple[float, float, float]:
    """What a layer adds to the relative variances of the mean gap and of E φ², and between them.

    Exact where samples are nearly alike and where they are independent, and between the two in
    proportion. Of all the Gram matrix of a Gaussian layer that the mean gap follows, orthogonal
    weights add none: the part across what the samples share, and the part along it.
    """
    apart, size = min(layer.decorrelation, 1.0), gap.batch_size
    c, kurtosis = 1 - layer.decorrelation, layer.one[_SQUARE][_SQUARE]
    across, along = longer * (1 - c) + c * carried, c * (longer - carried)
    near, rigid, rank = (1 - apart) * slopes.shared, 2 * layer.rigid, gap.concentrated
    of_gap = near + apart * layer.two[_SLOPE_SQUARE][_SLOPE_SQUARE] - 1
    of_gap += 2 * gap.alike * (near + apart * across**2)
    of_gap += (1 - gap.alike) / size * (2 * near + apart * (kurtosis - 1))
    of_gap -= rigid * (across**2 * rank + along**2)
    of_both = layer.two[_SQUARE][_SLOPE_SQUARE] - 1
    of_both += apart * (2 * gap.alike * across * grown + (1 - gap.alike) / size * (kurtosis - 1))
    of_both -= rigid * grown * (c * along + (1 - c) * across * rank)
    of_length = layer.shared(lengths)[_SQUARE][_SQUARE] - 1
    of_length -= rigid * grown**2 * lengths.cosine_square(layer.decorrelation)
    return max(of_gap, 0.0) / layer.width, of_both / layer.width, max(of_length, 0.0) / layer.width
