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
from dataclasses import dataclass

from initlab.activations import Activation, PairMoments
from initlab.errors import positive_int


@dataclass(frozen=True)
class LengthLaw:
    """The law of E h² over draws of the weights, relative to its mean, in natural logarithms."""

    log_mean: float
    log_var: float

    @property
    def relative_var(self) -> float:
        """Variance over squared mean, were the law log-normal."""
        return math.expm1(self.log_var)

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
    is the share of q whose norm orthogonal weights keep exactly, 0 for i.i.d. weights.
    """

    phi: Activation
    width: int
    q: float
    decorrelation: float
    rigid: float = 0.0

    @property
    def fourth_moment(self) -> float:
        """E φ⁴."""
        return self.phi.pair_moments(self.q, 0.0).square_product

    def over_angles(self, moment: Callable[[PairMoments], float], angle: float) -> float:
        """The mean of a pair moment over correlations that stray by ``angle`` from theirs."""
        stray = min(math.sqrt(angle), self.decorrelation, 2 - self.decorrelation)
        apart = {self.decorrelation - stray, self.decorrelation + stray}
        return sum(moment(self.phi.pair_moments(self.q, at)) for at in apart) / len(apart)


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
    moments = layer.phi.moments(layer.q)
    second = moments.second_moment
    if second == 0:
        return scatter
    shared = layer.over_angles(lambda pair: pair.square_product, scatter.angle)
    kept = 2 * (layer.q * moments.slope) ** 2 * layer.rigid
    scale = 1 / (layer.width * second**2)
    return scatter.step(
        layer.q * moments.slope / second,
        max(layer.fourth_moment - second**2 - kept, 0.0) * scale,
        max(shared - second**2 - kept * scatter.cosine_square(layer.decorrelation), 0.0) * scale,
    )


def advanced(scatter: Scatter, layer: Layer, weight_var: float, next_q: float) -> Scatter:
    """From the scatter of a layer's pre-activation variance to that of the next layer's.

    ``weight_var`` is fan_in·Var(W) of the affine layer between, ``next_q`` the length after it.
    """
    after = activated(scatter, layer)
    share = weight_var * layer.phi.moments(layer.q).second_moment / next_q
    pair = layer.phi.pair_moments(layer.q, layer.decorrelation)
    second = pair.product + pair.gap
    scale = weight_var / next_q
    c = 1 - scale * pair.gap
    strays = (  # Var[φ(u)φ(v) − c·(φ(u)² + φ(v)²)/2]
        pair.square_product
        - 2 * c * pair.cube_product
        + c**2 * (layer.fourth_moment + pair.square_product) / 2
        - (pair.product - c * second) ** 2
    )
    angle = (scale * layer.q * pair.slope_product) ** 2 * scatter.angle
    angle += scale**2 * max(strays, 0.0) / layer.width
    return Scatter(
        share**2 * after.single, share**2 * after.pair, share * after.shift, min(angle, 1.0)
    )


def passed_back(gradient: Scatter, signal: Scatter, layer: Layer, rigid: float) -> Scatter:
    """From the scatter of the variance of a layer's ∂L/∂a to that of the mean of (∂L/∂h)².

    ``signal`` is the forward scatter there; ``rigid`` that of the weights above, seen from below.
    The angle is that between two samples' gradients, whose mean is 0.
    """
    second = layer.phi.moments(layer.q).derivative_second_moment
    if second == 0:
        return gradient
    fourth = layer.phi.pair_moments(layer.q, 0.0).slope_square_product
    shared = layer.over_angles(lambda pair: pair.slope_square_product, signal.angle)
    turned = layer.phi.pair_moments(layer.q, layer.decorrelation).slope_product / second
    angle, scale = gradient.angle, 1 / (layer.width * second**2)
    stepped = gradient.step(
        1.0,
        max(3 * fourth - (1 + 2 * rigid) * second**2, 0.0) * scale,
        max(shared * (1 + 2 * angle) - (1 + 2 * rigid * angle) * second**2, 0.0) * scale,
    )
    angle = turned**2 * angle + shared * scale * (1 - angle) ** 2
    return Scatter(stepped.single, stepped.pair, stepped.shift, min(angle, 1.0))
