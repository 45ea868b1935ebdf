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
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch

from initlab.activations import Activation
from initlab.errors import positive_int
from initlab.expectations import hermite_coefficients


@dataclass(frozen=True)
class LengthLaw:
    """The law of E h² over draws of the weights, relative to its mean, in natural logarithms."""

    log_mean: float
    log_var: float

    def interval(self, sds: float = 1.96) -> tuple[float, float]:
        """The factors by which h² lies below and above its mean in 95 % of the draws."""
        half = sds * math.sqrt(self.log_var)
        return math.exp(self.log_mean - half), math.exp(self.log_mean + half)


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
    from scipy.stats import binom

    n = positive_int("width", width)
    positive_int("depth", depth)
    active = range(1, n + 1)
    weight = binom.pmf(active, n, 0.5) / (1 - 0.5**n)
    centre = digamma([k / 2 for k in active])
    mean = float(weight @ centre)
    scatter = float(weight @ polygamma(1, [k / 2 for k in active]))
    scatter += float(weight @ (centre - mean) ** 2)
    return LengthLaw(
        (depth - 1) * (mean + math.log(4 / n)) + float(digamma(n / 2)) + math.log(2 / n),
        (depth - 1) * scatter + float(polygamma(1, n / 2)),
    )


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


@dataclass(frozen=True)
class Scatter:
    """How the draws of the weights scatter a second moment, in natural logarithms.

    ``single`` is the log-variance of one sample's, ``pair`` the log-covariance of two samples',
    ``shift`` the mean of the pair's logarithm, and ``angle`` the mean square by which the two
    samples' correlation strays from its mean-field value.
    """

    single: float = 0.0
    pair: float = 0.0
    shift: float = 0.0
    angle: float = 0.0

    def step(self, slope: float, single: float, pair: float) -> Scatter:
        """One layer on: deviations grow by ``slope``; it adds these relative (co)variances."""
        return Scatter(
            slope**2 * self.single + math.log1p(single),
            slope**2 * self.pair + math.log1p(pair),
            slope * self.shift - math.log1p(pair) / 2,
            self.angle,
        )

    def over_units(self, width: int, decorrelation: float, rigid: float) -> Scatter:
        """The scatter of the mean square of ``width`` Gaussian units whose variance has this one.

        ``rigid`` is the share of that variance whose norm orthogonal weights keep exactly.
        """
        loose = 2 * (1 - rigid) / width
        return self.step(1.0, loose, loose * self.cosine_square(decorrelation))

    def cosine_square(self, decorrelation: float) -> float:
        """The mean square correlation of two samples."""
        return min((1 - decorrelation) ** 2 + self.angle, 1.0)

    def batch_law(self, batch_size: int) -> LengthLaw:
        """The law of the mean over a batch: the samples' own parts average out, shared ones stay.

        inf where the scatter has no finite variance left.
        """
        if max(self.single, self.pair) > 600:
            return LengthLaw(self.shift, math.inf)
        own = math.expm1(self.single) / batch_size
        shared = math.expm1(self.pair) * (1 - 1 / batch_size)
        log_var = math.log1p(own + shared)
        return LengthLaw(self.shift - (log_var - self.pair) / 2, log_var)


@dataclass(frozen=True)
class Layer:
    """A layer of pre-activations at its mean-field length, as far as its scatter depends on it.

    ``q`` and ``decorrelation`` (1 − c of two samples) are those of its pre-activations; ``rigid``
    is the share of q whose norm orthogonal weights keep exactly, 0 for i.i.d. weights; ``keep`` is
    the share of its activations that dropout leaves.
    """

    phi: Activation
    width: int
    q: float
    decorrelation: float
    rigid: float = 0.0
    keep: float = 1.0

    @cached_property
    def near(self) -> float:
        """A q that others share: within 3 %, or 1 where φ has no scale of its own."""
        return 1.0 if self.phi.homogeneous else 10 ** (round(48 * math.log10(self.q)) / 48)

    @cached_property
    def pairs(self) -> PairSeries:
        """The moments of two samples at any correlation, at ``near``."""
        return _pair_series(self.phi, self.near)

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


# ---------------------------------------------------------------- moments of pairs

_DEGREE = 12
_POWERS = np.arange(_DEGREE + 3)
_VALUE, _SQUARE, _CUBE, _SLOPE, _SLOPE_SQUARE = range(5)


class PairSeries:
    """E f(u)g(v) for f and g among φ, φ², φ³, φ', φ'² as a power series in the correlation c.

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

    def over_angles(self, decorrelation: float, angle: float) -> list[list[float]]:
        """The mean over correlations whose mean square distance from 1 − decorrelation is angle."""
        c = 1 - decorrelation
        stray = min(math.sqrt(angle), decorrelation, 2 - decorrelation)
        return (self._terms @ ((c + stray) ** _POWERS + (c - stray) ** _POWERS) / 2).tolist()


@lru_cache(maxsize=8192)
def _pair_series(phi: Activation, q: float) -> PairSeries:
    def integrands(x: np.ndarray) -> np.ndarray:
        z = torch.from_numpy(x)
        value, slope = phi.function(z).numpy(), phi.derivative(z).numpy()
        return np.stack([value, value**2, value**3, slope, slope**2])

    return PairSeries(*hermite_coefficients(integrands, q, _DEGREE, phi.kinks))


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
    moments, second = layer.phi.moments(layer.q), layer.one[_VALUE][_VALUE]
    if second * second == 0 or moments.second_moment == 0:  # or so small that its square is
        return scatter
    slope = layer.q * moments.slope / moments.second_moment
    fourth = layer.one[_SQUARE][_SQUARE] / (second * second)
    shared = layer.shared(scatter)[_SQUARE][_SQUARE] / (second * second)
    kept = 2 * slope**2 * layer.rigid
    return scatter.step(
        slope,
        max(fourth / layer.keep - 1 - kept, 0.0) / layer.width,
        max(shared - 1 - kept * scatter.cosine_square(layer.decorrelation), 0.0) / layer.width,
    )


def advanced(scatter: Scatter, layer: Layer, weight_var: float, next_q: float) -> Scatter:
    """From the scatter of a layer's pre-activation variance to that of the next layer's.

    ``weight_var`` is fan_in·Var(W) of the affine layer between, ``next_q`` the length after it.
    """
    after, one, two = activated(scatter, layer), layer.one, layer.two
    share = weight_var * layer.phi.moments(layer.q).second_moment / layer.keep / next_q
    scale, keep = weight_var / next_q * layer.q / layer.near, layer.keep
    second = one[_VALUE][_VALUE] / keep
    if second * second == 0:
        return after
    product, squares, cubes, fourth = (  # relative to E φ², whose own size may leave float64
        two[_VALUE][_VALUE] / second,
        two[_SQUARE][_SQUARE] / (second * second),
        two[_CUBE][_VALUE] / (second * second),
        one[_SQUARE][_SQUARE] / keep / (second * second),
    )
    c = 1 - scale * second * (1 - product)
    strays = (  # Var[φ(u)φ(v) − c·(φ(u)² + φ(v)²)/2] of what dropout leaves, scaled by 1/keep
        squares - 2 * c * cubes + c**2 * (fourth + squares) / 2
    ) / keep**2 - (product - c) ** 2
    angle = (scale * layer.near * two[_SLOPE][_SLOPE]) ** 2 * scatter.angle
    angle += (scale * second) ** 2 * max(strays, 0.0) / layer.width
    return Scatter(
        share**2 * after.single, share**2 * after.pair, share * after.shift, min(angle, 1.0)
    )


@dataclass(frozen=True)
class SlopeScatter:
    """What a layer's φ' does to the scatter of the gradients that pass it, per unit.

    ``single`` is E φ'⁴/(E φ'²)², ``shared`` E φ'(u)²φ'(v)²/(E φ'²)² of two samples, ``turned``
    E φ'(u)φ'(v)/E φ'², by which it shrinks the cosine between their gradients.
    """

    width: int
    single: float
    shared: float
    turned: float


def slope_scatter(signal: Scatter, layer: Layer) -> SlopeScatter | None:
    """The SlopeScatter of a layer with this forward scatter; None where φ' is 0."""
    second = layer.one[_SLOPE][_SLOPE]
    if second * second == 0:
        return None
    single = layer.one[_SLOPE_SQUARE][_SLOPE_SQUARE] / (second * second)
    shared = layer.shared(signal)[_SLOPE_SQUARE][_SLOPE_SQUARE] / (second * second)
    return SlopeScatter(layer.width, single, shared, layer.two[_SLOPE][_SLOPE] / second)


def passed_back(gradient: Scatter, slopes: SlopeScatter, rigid: float) -> Scatter:
    """From the scatter of the variance of a layer's ∂L/∂a to that of the mean of (∂L/∂h)².

    ``rigid`` is that of the weights above, seen from below. The angle is that between two samples'
    gradients, whose mean is 0.
    """
    angle, shared = gradient.angle, slopes.shared
    stepped = gradient.step(
        1.0,
        max(3 * slopes.single - 1 - 2 * rigid, 0.0) / slopes.width,
        max(shared * (1 + 2 * angle) - 1 - 2 * rigid * angle, 0.0) / slopes.width,
    )
    angle = slopes.turned**2 * angle + shared * (1 - angle) ** 2 / slopes.width
    return Scatter(stepped.single, stepped.pair, stepped.shift, min(angle, 1.0))


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
        if max(lengths.pair, self.single) > 600:
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
    second, slope = layer.one[_VALUE][_VALUE], layer.one[_SLOPE][_SLOPE]
    moments = layer.phi.moments(layer.q)
    if second * second == 0 or slope * slope == 0 or moments.second_moment == 0:
        return gap
    n, kept, rank = layer.width, 1 - masked, 2 * gap.concentrated
    of_gap = max(slopes.shared * (1 + rank) - 1 - layer.rigid * rank, 0.0) / n
    of_both = (layer.two[_SQUARE][_SLOPE_SQUARE] / (second * slope) - 1) / n
    of_length = max(layer.shared(lengths)[_SQUARE][_SQUARE] / (second * second) - 1, 0.0) / n
    fresh = kept**2 * of_gap + 2 * kept * masked * of_both + masked**2 * of_length
    if masked:
        masks = layer.one[_SQUARE][_SQUARE] / (second * second) * layer.keep / (1 - layer.keep)
        fresh += masked**2 * masks / (n * gap.batch_size)
    grown = layer.q * moments.slope / moments.second_moment  # d ln E φ² / d ln q
    share = passed / grown if grown else 0.0  # of the next layer's variance, the rest is the bias
    by_gap, by_length = kept * carried, kept * (1 - carried + response) + masked * grown
    fresh = math.log1p(max(fresh, 0.0))
    single = by_gap**2 * gap.single + 2 * by_gap * by_length * gap.both
    single = max(single + by_length**2 * lengths.pair + fresh, 0.0)
    both = passed * (by_gap * gap.both + by_length * lengths.pair)
    both += share * (kept * of_both + masked * of_length)
    return GapScatter(
        gap.batch_size,
        min(carried**2 * gap.alike + slopes.shared * (1 - gap.alike) ** 2 / n, 1.0),
        single,
        both,
        by_gap * gap.shift + by_length * lengths.shift - fresh / 2,
    )
