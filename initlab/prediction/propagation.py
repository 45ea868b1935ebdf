"""How second moments travel through one given stack of layers, forward and backward.

Weights i.i.d. or orthogonal: Var h = fan_in·Var(W)·E φ² + Var(b) (He et al. 2015, eq. 7, for any
activation) and backward E δ² = E φ'²·fan_out·Var(W)·E δ'² (eq. 13), per sample and per position of
an image; with the gap between two samples at the same position (Poole et al. 2016, eq. 5). Weights
or biases of nonzero mean move all units together: E h = fan_in·E W·E φ + E b. None of it depends on
the width but through fan_in·Var(W) and fan_in·E W, so that networks of most schemes share it at any
width; what does is in ``scattering``. Gradients are relative to the output's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from initlab.activations import Activation
from initlab.prediction.many import Responses, carried, pair_gaps, responses
from initlab.theory import Scatter, rigidity

OVERFLOW = 1e290
"""A second moment from which on float64 cannot follow."""


@dataclass(frozen=True)
class Flow:
    """All of an affine layer that second moments depend on at infinite width.

    ``factor`` is fan_in·Var(W), ``shift`` is fan_in·E W; the rest is as in ``Affine``.
    """

    factor: float
    shift: float
    bias_mean: float
    bias_var: float
    keep: float
    border: str

    def blur(self, image: np.ndarray) -> np.ndarray:
        """The mean over a kernel's taps of (…, 8, 8) moments; else unchanged."""
        if not self.border or image.ndim < 3:
            return image
        rows, columns = (_taps(size, self.border) for size in image.shape[-2:])
        return rows @ image @ columns.T


@dataclass(frozen=True)
class Affine:
    """One affine layer as theory knows it.

    ``inputs`` and ``outputs`` count units or channels, ``taps`` the weights that an output has for
    each input (9 for a 3×3 kernel); ``border`` is "zeros" or "circular" for a convolution on an
    8×8 image, "" for a matrix; ``keep`` is the share of its outputs' activations that dropout
    leaves, scaled by 1/keep.
    """

    inputs: int
    outputs: int
    var: float
    mean: float = 0.0
    bias_mean: float = 0.0
    bias_var: float = 0.0
    uniform_bias: bool = False
    orthogonal: bool = False
    keep: float = 1.0
    taps: int = 1
    border: str = ""

    @cached_property
    def flow(self) -> Flow:
        """fan_in·Var(W) to 14 digits: networks of equal theory then share their moments."""
        fan_in = self.inputs * self.taps
        factor, shift = (float(f"{fan_in * each:.14g}") for each in (self.var, self.mean))
        return Flow(factor, shift, self.bias_mean, self.bias_var, self.keep, self.border)

    @property
    def backward_factor(self) -> float:
        """fan_out·Var(W)."""
        return self.outputs * self.taps * self.var

    def rigidity(self, q: float) -> float:
        """What of its outputs' scatter orthogonal rows and uniform biases do without."""
        kept = min(1.0, self.outputs / (self.inputs * self.taps)) if self.orthogonal else 0.0
        return rigidity(q, kept, self.bias_var, uniform_bias=self.uniform_bias)

    @property
    def rigidity_below(self) -> float:
        """The same for the gradients that it passes down."""
        return min(1.0, self.inputs / self.outputs) if self.orthogonal and self.taps == 1 else 0.0


@lru_cache
def _taps(size: int, border: str) -> np.ndarray:
    """What each of ``size`` pixels in a row reads of the others, a kernel of 3 averaging."""
    around = np.eye(size)
    if border == "circular":
        beside = np.roll(around, 1, axis=0) + np.roll(around, -1, axis=0)
    else:
        beside = np.eye(size, k=1) + np.eye(size, k=-1)
    return (around + beside) / 3


# ---------------------------------------------------------------- forward


@dataclass(frozen=True, eq=False)
class Batch:
    """Which samples stand for a batch, by their weights, and which pairs of them for its pairs.

    What the weights of pairs sum up to differs from 1 by what a few samples are further apart, or
    less, than those that they stand for. ``unpaired`` is 0 where all pairs are followed; else half
    the mean square distance of any two is this much larger than their variance.
    """

    weights: np.ndarray
    left: np.ndarray
    right: np.ndarray
    pair_weights: np.ndarray
    unpaired: float = 0.0

    @cached_property
    def pairs(self) -> float:
        """What the weights of pairs sum up to."""
        return float(self.pair_weights.sum())

    def mean(self, values: np.ndarray) -> float:
        """Over samples and positions."""
        return float(self.weights @ _each(values))

    def pair_mean(self, values: np.ndarray) -> float:
        """Over pairs and positions."""
        return float(self.pair_weights @ _each(values))

    def scatter(self, values: np.ndarray) -> float:
        """The variance between samples, relative to the square of the mean."""
        each = _each(values)
        mean = self.weights @ each
        return float(self.weights @ (each / mean - 1) ** 2) if mean > 0 else 0.0

    def beyond_pairs(self, means: np.ndarray | None) -> float:
        """By how much the means of any two samples differ more than those of the pairs do: half of
        their mean squares."""
        if not self.unpaired or means is None:
            return 0.0
        spread = self.mean((means - np.tensordot(self.weights, means, 1)) ** 2)
        differences = (means[self.left] - means[self.right]) ** 2 / 2
        return self.pairs * self.unpaired * spread - self.pair_mean(differences)

    def sizes(self, lengths: np.ndarray) -> np.ndarray:
        """√(E x²·E y²) of the pairs."""
        roots = np.sqrt(lengths)
        return roots[self.left] * roots[self.right]

    def unequal(self, lengths: np.ndarray) -> np.ndarray:
        """(√E x² − √E y²)²/2 of the pairs: by how much E x² on average exceeds ``sizes``."""
        roots = np.sqrt(lengths)
        return (roots[self.left] - roots[self.right]) ** 2 / 2


def _each(values: np.ndarray) -> np.ndarray:
    """The mean over the positions, of each sample or pair."""
    return values if values.ndim == 1 else values.reshape(len(values), -1).mean(axis=1)


@dataclass(frozen=True, eq=False)
class Signal:
    """What theory knows of the signal in one place, per sample or per sample and position.

    Attributes:
        batch: the samples and pairs.
        lengths: E x², of shape (samples,), or (samples, 8, 8) for images.
        gaps: of pairs of samples, √(E x²·E y²) − E xy; of shape (pairs,) or (pairs, 8, 8).
        means: E x over the units; None where weights of nonzero mean do not ask for it.
    """

    batch: Batch
    lengths: np.ndarray
    gaps: np.ndarray
    means: np.ndarray | None = None

    @cached_property
    def sizes(self) -> np.ndarray:
        """√(E x²·E y²) of the pairs."""
        return self.batch.sizes(self.lengths)

    @cached_property
    def second_moment(self) -> float:
        return self.batch.mean(self.lengths)

    @cached_property
    def gap(self) -> float:
        """The mean of ``gaps``."""
        return self.batch.pair_mean(self.gaps)

    @cached_property
    def across_samples_var(self) -> float:
        """E over pairs of samples of half their squared distance."""
        across = self.gap + self.batch.pair_mean(self.batch.unequal(self.lengths))
        return max(across + self.batch.beyond_pairs(self.means), 0.0)

    @cached_property
    def cosine(self) -> float | None:
        """E xy / √(E x²·E y²), the mean over pairs of samples that are not 0; None without any."""
        products, lengths = _each(self.sizes - self.gaps), _each(self.lengths)
        sizes = self.sizes if self.lengths.ndim == 1 else self.batch.sizes(lengths)
        weights = self.batch.pair_weights
        if not lengths.all():
            alive = sizes > 0
            if not alive.any():
                return None
            products, sizes, weights = products[alive], sizes[alive], weights[alive]
            weights = weights * (self.batch.pairs / weights.sum())
        cosine = 1 - float(weights @ (1 - products / sizes))
        if self.means is not None:
            units = np.sqrt(np.maximum(lengths, 1e-300)).reshape(-1, *[1] * (self.means.ndim - 1))
            cosine -= self.batch.beyond_pairs(self.means / units)
        return round(cosine, 9) + 0.0  # to the digits of the quadrature: no −1e-12

    @cached_property
    def decorrelation(self) -> float:
        """1 − c of a typical pair."""
        size = self.batch.pair_mean(self.sizes) / self.batch.pairs
        return min(max(self.gap / size, 0.0), 2.0) if size > 0 else 0.0


@dataclass(frozen=True, eq=False)
class Step:
    """One layer: the signal before and after its activation, as a mean over its units.

    Before it, a unit is N(``means``, ``variances``) over draws of the weights, and ``apart`` is
    √(Var x·Var y) − Cov(x, y) of pairs. ``means`` is None where weights have mean 0: then it is
    ``offset``, a constant bias, in all units and samples, and ``phi`` takes what is left without it
    (so that all that holds of units of mean 0 holds here). ``passed`` is d ln q of it over d ln q
    of the layer below, 0 in the first. Networks that begin alike share their steps, and with them
    what is computed here once.
    """

    flow: Flow
    phi: Activation | None
    batch: Batch
    means: np.ndarray | None
    offset: float
    variances: np.ndarray
    apart: np.ndarray
    passed: float

    @cached_property
    def sizes(self) -> np.ndarray:
        """√(Var x·Var y) of the pairs."""
        return self.batch.sizes(self.variances)

    @cached_property
    def varying(self) -> Signal:
        """The pre-activations without their means."""
        return Signal(self.batch, self.variances, self.apart)

    @cached_property
    def before(self) -> Signal:
        if self.means is None and not self.offset:
            return self.varying
        means = np.full_like(self.variances, self.offset) if self.means is None else self.means
        lengths = means**2 + self.variances
        left, right = means[self.batch.left], means[self.batch.right]
        sizes = self.batch.sizes(lengths) - self.sizes
        return Signal(self.batch, lengths, sizes - left * right + self.apart, means)

    @cached_property
    def made(self) -> Responses | None:
        """What the activation makes of the samples."""
        if self.phi is None:
            return None
        means = self.means
        if self.offset and self.variances.size > 1:  # no table of φ reaches as far as a kink's tail
            means = np.zeros_like(self.variances)
        return responses(self.phi, means, self.variances)

    @cached_property
    def after(self) -> Signal | None:
        if self.phi is None or self.made is None:
            return None
        ends = self.made.at(self.batch.left), self.made.at(self.batch.right)
        gaps = pair_gaps(self.phi, ends, self.sizes, self.apart)
        return Signal(self.batch, self.made.squares, gaps, self.made.means)

    @cached_property
    def read(self) -> Signal | None:
        """The activations as the next layer reads them, behind dropout."""
        keep, after = self.flow.keep, self.after
        if after is None or keep == 1:
            return after
        # Masks are drawn for each sample, so that E xy stays while E x² grows by 1/keep.
        gaps = after.gaps + after.sizes * (1 / keep - 1)
        return Signal(self.batch, after.lengths / keep, gaps, after.means)

    @property
    def slopes(self) -> np.ndarray | None:
        """E φ'², as ``variances``; None without an activation."""
        return None if self.made is None else self.made.slope_squares

    @cached_property
    def masked(self) -> float:
        """The share of the gap between two samples that dropout's masks make."""
        if self.after is None or self.read is None or not self.read.gap > 0:
            return 0.0
        return 1 - self.after.gap / self.read.gap

    @cached_property
    def carried(self) -> float:
        """d ln gap after φ over d ln gap before it: the share that φ carries on."""
        q, apart = self.varying.second_moment, self.varying.decorrelation
        if self.phi is None or self.made is None or self.after is None:
            return 1.0
        moves = q > 0 and self.after.gap > 0
        return carried(self.phi, self.made, q, apart) if moves else 1.0


@lru_cache(maxsize=2048)
def first_step(source: Signal, flow: Flow, phi: Activation | None) -> Step | None:
    """The first layer; None where its second moments leave the range of floats."""
    return _step(source, flow, phi, 0.0)


@lru_cache(maxsize=2048)
def next_step(step: Step, flow: Flow, phi: Activation | None) -> Step | None:
    """The layer that reads a step's activation; None where second moments overflow."""
    signal, inner, q = step.read, step.phi, step.varying.second_moment
    assert signal is not None  # only the last layer may lack an activation
    assert inner is not None
    length = flow.factor * signal.second_moment + flow.bias_var
    passed = 0.0
    if step.means is None and q > 0 and length > 0:
        passed = flow.factor / step.flow.keep * inner.moments(q).slope * q / length
    following = _step(signal, flow, phi, passed)
    return step if following is not None and _rests(step, following) else following


def _rests(step: Step, following: Step) -> bool:
    """Whether a layer with means is as the one below it; all further ones then are."""
    if step.means is None or following.means is None:
        return False
    if (step.flow, step.phi) != (following.flow, following.phi):
        return False
    rows = (
        (step.means, following.means),
        (step.variances, following.variances),
        (step.apart, following.apart),
    )
    return all((np.abs(a - b) <= 1e-12 * np.abs(a).max()).all() for a, b in rows)


def _step(signal: Signal, flow: Flow, phi: Activation | None, passed: float) -> Step | None:
    batch, means, offset = signal.batch, None, 0.0
    variances = flow.factor * flow.blur(signal.lengths) + flow.bias_var
    if flow.shift and signal.means is not None:
        means = flow.shift * flow.blur(signal.means) + flow.bias_mean
    else:
        offset = flow.bias_mean
        phi = shifted(phi, offset) if phi and offset else phi
    if not variances.max() + (offset**2 if means is None else (means**2).max()) < OVERFLOW:
        return None
    apart = flow.factor * flow.blur(signal.gaps)
    if len(signal.lengths) > 1:  # what is unequal here and there, is less so in the mean
        sizes = flow.factor * flow.blur(signal.sizes) + flow.bias_var
        apart += np.maximum(batch.sizes(variances) - sizes, 0.0)
    return Step(flow, phi, batch, means, offset, variances, apart, passed)


@lru_cache(maxsize=256)
def shifted(phi: Activation, by: float) -> Activation:
    """z ↦ φ(z + by), whose moments are tabulated as any activation's are."""
    kinks = tuple(kink - by for kink in phi.kinks)
    return replace(phi, function=lambda z: phi.function(z + by), kinks=kinks)


# ---------------------------------------------------------------- backward


@dataclass(frozen=True)
class Gradient:
    """E δ² in one place relative to the output's, and its scatter (None where not followed)."""

    second_moment: float
    scatter: Scatter | None


@dataclass(frozen=True)
class GradientStep:
    """The gradients of one layer: of its activation (None where it has none), and before it.

    ``read`` is that of the activation behind dropout.
    """

    after: Gradient | None
    before: Gradient | None
    read: Gradient | None = None


@dataclass(frozen=True)
class Shares:
    """What is left of E δ² on its way down: behind φ (None where there is none), then behind Wᵀ."""

    slope: float | None
    kept: float


@lru_cache(maxsize=16)
def gradient_shares(steps: tuple[Step, ...]) -> list[Shares]:
    """Of every layer, from the first on; fan_out·Var(W) and dropout apart.

    Where lengths differ, between inputs or positions, what one layer leaves weighs in the next. A
    last layer without an activation reads the mean over the image of the layer below it.
    """
    rows: list[Shares] = []
    batch = steps[0].batch
    image = np.ones_like(steps[-1].variances)  # its mean stays 1, and no product underflows
    for index in range(len(steps) - 1, -1, -1):
        step, slope, kept = steps[index], None, 1.0
        if step.slopes is not None:
            image, slope = _normalized(image * step.slopes, batch)
        lower = steps[max(index - 1, 0)].variances.shape
        if not step.flow.border and len(lower) == 3:  # the head under the average over positions
            image, kept = np.ones(lower), 1 / (lower[1] * lower[2]) ** 2
        else:
            image, kept = _normalized(step.flow.blur(image), batch)
        rows.append(Shares(slope, kept))
    return rows[::-1]


def _normalized(image: np.ndarray, batch: Batch) -> tuple[np.ndarray, float]:
    mean = batch.mean(image) if image.size > 1 else image.item()
    return (image / mean if mean > 0 else np.ones_like(image)), mean


_SCATTERED = 1 / 3
"""A relative standard deviation."""


@lru_cache(maxsize=16)
def shifted_gradients(
    steps: tuple[Step, ...], layers: tuple[Affine, ...], batch_size: int
) -> tuple[list[GradientStep], Gradient | None]:
    """As ``scattering.backward``, of images where weights have a mean μ; no head behind an average.

    Wᵀδ has in every unit the mean μ·Σδ over taps and units, and the variance τ²·Σδ²: E δ² passes
    down, and E of two units' product, the same for all of them, at all pairs of positions. Of
    products of one unit at two positions only the units' common part is followed, 1/n of the sum.
    None from where a batch's mean of E δ² scatters with the inputs in it by more than
    ``_SCATTERED``.
    """
    rows: list[GradientStep] = []
    batch, square = steps[0].batch, np.ones_like(steps[-1].variances)
    size, count, scattered = square[0].size, min(batch_size, len(square)), False
    sums = np.zeros((len(square), size, size))

    def gradient(values: np.ndarray) -> Gradient | None:
        nonlocal scattered
        scattered = scattered or batch.scatter(values) / count > _SCATTERED**2
        return None if scattered else Gradient(batch.mean(values), None)

    shared = sums
    for step, layer in zip(reversed(steps), reversed(layers), strict=True):
        if scattered:
            rows.append(GradientStep(None, None))
            continue
        after = read = None
        if step.made is not None and step.made.slope_means is not None:
            read, square = gradient(square), square / step.flow.keep
            after = gradient(square)
            square, n = square * step.made.slope_squares, layer.outputs
            means = n * step.made.slope_means.reshape(len(square), size)
            sums = means[:, :, None] * means[:, None, :] * shared
            diagonal = np.einsum("gpp->gp", sums)  # a view
            diagonal += n * square.reshape(len(square), size) - diagonal / n
        rows.append(GradientStep(after, gradient(square), read))
        shared = _summed(sums, step.flow, square.shape)
        shared *= (layer.mean * layer.taps) ** 2
        square = layer.backward_factor * step.flow.blur(square)
        square = square + np.einsum("gpp->gp", shared).reshape(square.shape)
    return rows[::-1], gradient(square)


def _summed(sums: np.ndarray, flow: Flow, shape: tuple[int, ...]) -> np.ndarray:
    """Products of two positions, each a mean over the taps that read it."""
    groups, height, width = shape
    ahead = flow.blur(sums.reshape(groups, -1, height, width)).reshape(sums.shape)
    back = flow.blur(ahead.swapaxes(1, 2).reshape(groups, -1, height, width))
    return back.reshape(sums.shape).swapaxes(1, 2)
