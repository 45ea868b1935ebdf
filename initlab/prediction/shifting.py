"""How far one draw of weights of nonzero mean strays from the mean field, layer by layer.

The units of a layer then have a common mean, μ·Σφ, and the variance Var W·Σφ², of each sample, and
both are as uncertain as n units leave these sums. To first order in 1/n the two deviations, of each
sample and shared by every two, pass from layer to layer by the slopes of E φ and E φ². Of networks
of matrices only; how gradients stray is in ``shifting_back``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from initlab.prediction.propagation import Affine, Batch, Signal, Step
from initlab.prediction.units import CUBE, SLOPE, SQUARE, VALUE, Pairs, Units, pairs_of, units
from initlab.theory import Scatter

_PAIRS = 64
"""So many pairs of samples stand for all of them."""

_FLAT = 1e-6
"""Units that deviate less from their mean, relative to it, are taken to deviate as much."""

MOST = 4.0
"""A relative variance above which a logarithm has none to speak of."""

_NOTHING = 1e-140
"""A size that is 0."""

_FEW = 1.5
"""Relative variance of a mean of φ² over units; more of it have relu's if fewer than 4 of them are
active, so that another draw may have none."""

_MOST_LOOSE = 0.5
"""Above this share of loose samples nothing is known."""


@dataclass(frozen=True, eq=False)
class Sampling:
    """Samples that stand for a batch of ``size``, a ``random`` one or a given one.

    Attributes:
        weights: of the samples.
        left, right, which: pairs of them of equal weight, and where the batch lists them.
        missed: leaves of a number per sample what the samples were not chosen by.
    """

    size: int
    random: bool
    weights: np.ndarray
    left: np.ndarray
    right: np.ndarray
    which: np.ndarray
    missed: np.ndarray

    def scatter(
        self, sizes: np.ndarray, single: np.ndarray, pair: np.ndarray, loose: np.ndarray
    ) -> Scatter:
        """Of the mean over the batch, given each sample's part and their relative (co)variances.

        Samples that are ``loose`` widen it by their share; where they are most of it, nothing is
        known.
        """
        total = float(self.weights @ sizes)
        if not 0 < total < math.inf:
            return Scatter(single=math.inf)
        parts = sizes / total
        own = float(self.weights @ (parts**2 * single))
        shared = float((parts[self.left] * parts[self.right] * pair).mean())
        count, share = len(parts), float(self.weights @ (parts * loose))
        if self.random:  # another draw has other samples
            own += float(self.weights @ parts**2) - 1
        else:  # some stand for others
            between = max(1 / count - 1 / self.size, 0.0)
            shared += between * float(self.weights @ (self.missed @ parts) ** 2)
        if not (share < _MOST_LOOSE and math.isfinite(own + shared)):
            return Scatter(single=math.inf)
        shared = math.log1p(max(shared, 0.0) + share**2)
        return Scatter(math.log1p(max(own, 0.0)), shared, -shared / 2)


@lru_cache(maxsize=64)
def sampling(signal: Signal, size: int, *, random: bool) -> Sampling:
    """Of the samples of a batch, which are random for another draw of it."""
    batch, means = signal.batch, signal.means
    assert means is not None
    known = _known(signal.lengths, means)
    missed = np.eye(len(means)) - known @ np.linalg.pinv(known)
    left, right, which = _thinned(batch, means)
    return Sampling(size, random, batch.weights, left, right, which, missed)


def _known(lengths: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Of each sample what its second moments depend on first: (samples, 6)."""
    one, side = np.ones_like(means), np.sign(means)
    return np.stack([one, lengths, means, means**2, side * means**2, side], axis=1)


def weighed(signal: Signal, lengths: np.ndarray, means: np.ndarray) -> Signal:
    """The samples so weighed that they stand for a batch of these lengths and means."""
    batch = signal.batch
    assert signal.means is not None
    mine, all_of_them = _known(signal.lengths, signal.means), _known(lengths, means)
    scale = np.abs(all_of_them).mean(axis=0)
    mine, wanted = mine / scale, (all_of_them / scale).mean(axis=0)
    weights = batch.weights
    for _ in weights:  # as near as may be to equal ones; a negative one is 0 from then on
        free = weights > 0
        weights = free * batch.weights
        weights = weights + free * (
            np.linalg.pinv((mine * free[:, None]).T) @ (wanted - weights @ mine)
        )
        if (weights >= 0).all():
            break
    weights = np.maximum(weights, 0.0)
    pairs = batch.pair_weights * weights[batch.left] * weights[batch.right]
    pairs *= batch.pair_weights.sum() / pairs.sum()
    return replace(signal, batch=replace(batch, weights=weights, pair_weights=pairs))


def _thinned(batch: Batch, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Few pairs that represent all: two independent samples, at evenly spread ranks by their sums.

    The second rank jumps by the golden ratio from one pair to the next.
    """
    place = np.full((len(sums), len(sums)), -1)
    place[batch.left, batch.right] = place[batch.right, batch.left] = np.arange(len(batch.left))
    order = np.argsort(sums)
    ranks = np.cumsum(batch.weights[order])
    first = (np.arange(_PAIRS) + 0.5) / _PAIRS
    second = (np.arange(_PAIRS) * (math.sqrt(5) - 1) / 2 + 0.25) % 1
    left, right = (
        order[np.searchsorted(ranks, at * ranks[-1]).clip(max=len(sums) - 1)]
        for at in (first, second)
    )
    kept = place[left, right] >= 0
    if not kept.any():
        return batch.left, batch.right, np.arange(len(batch.left))
    return left[kept], right[kept], place[left, right][kept]


@dataclass(frozen=True, eq=False)
class Moved:
    """One layer of given width under weights of nonzero mean.

    Deviations of a sample are relative to its root mean square s: (δmean/s, δvariance/s²).

    Attributes:
        step, layer: as every width has it, and with its width.
        sampling: the batch.
        single, pair: covariances of the deviations of each sample, (samples, 2, 2), and those of
            the left with the right sample of each pair.
        stray: the mean square by which the correlation of a pair strays.
        loose: samples whose mean has become as uncertain as all of their pre-activations, or of
            which few units were active.
        below: the layer that it reads.
    """

    step: Step
    layer: Affine
    sampling: Sampling
    single: np.ndarray
    pair: np.ndarray
    stray: np.ndarray
    loose: np.ndarray
    below: Moved | None = None

    @cached_property
    def sizes(self) -> np.ndarray:
        """s."""
        assert self.step.means is not None
        return np.sqrt(np.maximum(self.step.means**2 + self.step.variances, _NOTHING**2))

    @cached_property
    def means(self) -> np.ndarray:
        assert self.step.means is not None
        return self.step.means / self.sizes

    @cached_property
    def deviations(self) -> np.ndarray:
        return np.maximum(np.sqrt(self.step.variances) / self.sizes, _FLAT)

    @cached_property
    def correlation(self) -> np.ndarray:
        """Of the units of each pair."""
        left, right, which = self.sampling.left, self.sampling.right, self.sampling.which
        roots = np.sqrt(self.step.variances)
        both = roots[left] * roots[right]
        apart = self.step.apart[which]
        return 1 - np.divide(apart, both, np.ones_like(both), where=both > 0).clip(0.0, 2.0)

    @cached_property
    def pairs(self) -> Pairs:
        return pairs_of(self.sampling.left, self.sampling.right, self.correlation, self.stray)

    @cached_property
    def units(self) -> Units:
        """What the activation makes of them, in units of s."""
        phi, below = self.step.phi, self.below
        assert phi is not None
        if below is not None and self._as(below):  # deep networks come to rest
            return below.units
        return units(phi, self.means, self.deviations, self.sizes, self.pairs)

    def _as(self, other: Moved) -> bool:
        """Whether an activation makes the same of another layer's units."""
        if not (self.step.phi and self.step.phi.homogeneous) and _differ(self.sizes, other.sizes):
            return False
        both = (self.means, other.means), (self.deviations, other.deviations)
        return not any(_differ(*each) for each in (*both, (self.pairs.powers, other.pairs.powers)))

    @cached_property
    def added(self) -> tuple[np.ndarray, np.ndarray]:
        """What n units leave uncertain of the means of φ and φ²: of each sample, and of pairs."""
        made, pairs, n = self.units, self.pairs, self.layer.outputs
        means = made.means[:, VALUE : SQUARE + 1]
        own = made.products[:, VALUE : SQUARE + 1, VALUE : SQUARE + 1] / self.layer.keep
        own = own - means[:, :, None] * means[:, None, :]
        both = made.shared[:, VALUE : SQUARE + 1, VALUE : SQUARE + 1]
        both = both - means[pairs.left][:, :, None] * means[pairs.right][:, None, :]
        return own / n, both / n

    @cached_property
    def slopes(self) -> np.ndarray:
        """Of E φ and E φ² by the deviations."""
        return self.units.slopes[:, VALUE : SQUARE + 1]

    def spread(self, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The (co)variances of what has these slopes: of samples, and of pairs."""
        one = (slopes[:, None] @ self.single @ slopes[:, :, None])[:, 0, 0]
        left, right = slopes[self.pairs.left], slopes[self.pairs.right]
        return one, (left[:, None] @ self.pair @ right[:, :, None])[:, 0, 0]

    @cached_property
    def before(self) -> Scatter:
        """Of the pre-activations' mean square."""
        pairs, n, means, deviations = self.pairs, self.layer.outputs, self.means, self.deviations
        one, two = self.spread(np.stack([2 * means, np.ones_like(means)], axis=1))
        own = 2 * deviations**4 + 4 * (means * deviations) ** 2
        left, right = pairs.left, pairs.right
        both, shifts = deviations[left] * deviations[right], means[left] * means[right]
        alike = 2 * both**2 * pairs.powers[:, 2] + 4 * shifts * both * pairs.powers[:, 1]
        single, pair = _grown(one, own / n), _grown(two, alike / n)
        return self.sampling.scatter(self.sizes**2, single, pair, self.loose)

    @cached_property
    def after(self) -> Scatter:
        """Of the activations' mean square."""
        squares, pairs = np.maximum(self.units.means[:, SQUARE], 1e-140), self.pairs
        one, two = self.spread(self.slopes[:, 1] / squares[:, None])
        own, both = (each[:, 1, 1] for each in self.added)
        single = _grown(one, own / squares**2)
        pair = _grown(two, both / (squares[pairs.left] * squares[pairs.right]))
        return self.sampling.scatter(squares * self.sizes**2, single, pair, self.loose)


def _differ(one: np.ndarray, two: np.ndarray) -> bool:
    return bool((np.abs(one - two) > 1e-6 * np.abs(two) + 1e-9).any())


def _grown(below: np.ndarray, added: np.ndarray) -> np.ndarray:
    """Relative variances, of logarithms from below and of what a layer adds.

    A large one is that of a sample near 0, to which all is large, and no logarithm's.
    """
    logs = below + np.log1p(np.maximum(added, -0.5))
    return np.maximum(np.expm1(np.minimum(logs, MOST)), logs)


def first_moved(step: Step, layer: Affine, of: Sampling, angle: float) -> Moved:
    """The first layer; ``angle`` is the mean square cosine of random inputs."""
    single, pair = np.zeros((len(of.weights), 2, 2)), np.zeros((len(of.left), 2, 2))
    loose = np.zeros(len(of.weights), bool)
    first = Moved(step, layer, of, single, pair, np.full(len(of.left), angle), loose)
    if of.random:
        single[:, 1, 1] = 2 / layer.inputs * first.deviations**4
    return first


def next_moved(below: Moved, step: Step, layer: Affine) -> Moved:
    """The layer that reads another's activations."""
    above, pairs = replace(below, step=step, layer=layer, below=below), below.pairs
    scale = carried(below.sizes, above, below.layer.keep)
    slopes, (own, both) = scale[:, :, None] * below.slopes, below.added
    single = slopes @ below.single @ slopes.swapaxes(1, 2)
    single += scale[:, :, None] * own * scale[:, None, :]
    pair = slopes[pairs.left] @ below.pair @ slopes[pairs.right].swapaxes(1, 2)
    pair += scale[pairs.left][:, :, None] * both * scale[pairs.right][:, None, :]
    single[above.sizes <= _NOTHING] = 0.0  # of no unit is anything left, in no draw
    squares = below.units.means[:, SQUARE]
    few = own[:, 1, 1] > _FEW * squares**2
    loose = below.loose | few | ~(single[:, 0, 0] < 1)
    single[loose] = 0.0
    pair[loose[pairs.left] | loose[pairs.right]] = 0.0
    return replace(above, single=single, pair=pair, stray=_strayed(below, above), loose=loose)


def carried(sizes: np.ndarray, above: Moved, keep: float) -> np.ndarray:
    """By what the means of φ and φ² below, in units of ``sizes``, make a layer's mean and variance:
    of shape (samples, 2)."""
    flow, grown = above.layer.flow, sizes / above.sizes
    return np.stack([flow.shift * grown, flow.factor / keep * grown**2], axis=1)


def _strayed(below: Moved, above: Moved) -> np.ndarray:
    """The mean square by which the next layer's correlations stray: see ``theory.advanced``."""
    made, pairs, keep, n = below.units, below.pairs, below.layer.keep, below.layer.outputs
    left, right, shared = pairs.left, pairs.right, below.units.shared
    grown = below.sizes / above.sizes / above.deviations
    scale = above.layer.flow.factor * grown[left] * grown[right]
    squares = np.maximum(made.means[:, SQUARE] / keep, 1e-30)
    fourths = made.products[:, SQUARE, SQUARE] / keep**3
    ratio, c = np.sqrt(squares[right] / squares[left]), above.correlation
    both = shared[:, SQUARE, SQUARE] / keep**2
    cubes = shared[:, CUBE, VALUE] * ratio + shared[:, VALUE, CUBE] / ratio
    strays = both - c * cubes / keep**2
    strays += c**2 * (ratio**2 * fourths[left] + 2 * both + fourths[right] / ratio**2) / 4
    strays -= (shared[:, VALUE, VALUE] - c * np.sqrt(squares[left] * squares[right])) ** 2
    deviations = below.deviations[left] * below.deviations[right]
    turned = (scale * deviations * shared[:, SLOPE, SLOPE]) ** 2
    strays = turned * below.stray + scale**2 * np.maximum(strays, 0.0) / n
    return np.nan_to_num(strays, nan=1.0).clip(max=1.0)
