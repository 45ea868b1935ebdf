"""How second moments travel through one given stack of layers, forward and backward.

Weights of mean zero, i.i.d. or orthogonal: E h² = fan_in·Var(W)·E φ²(√q z) + Var(b) (He et al.
2015, eq. 7, for any activation) and backward E δ² = E φ'²(√q z)·fan_out·Var(W)·E δ'² (eq. 13), per
group of inputs and per position of an image; with the gap between two samples (Poole et al. 2016,
eq. 5). None of it depends on the width but through fan_in·Var(W), so that networks of most schemes
share it at any width; what does is in ``scattering``. Weights or biases of nonzero mean move all
units together: there each input's sum over the units is followed too. Gradients are relative to the
output's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch

from initlab.activations import Activation
from initlab.expectations import gaussian_expectation
from initlab.theory import Scatter, rigidity

OVERFLOW = 1e290
"""A second moment from which on float64 cannot follow."""


@dataclass(frozen=True)
class Flow:
    """All of an affine layer that second moments depend on at infinite width.

    ``factor`` is fan_in·Var(W); the rest is as in ``Affine``.
    """

    factor: float
    bias_var: float
    keep: float
    border: str

    def blur(self, image: np.ndarray) -> np.ndarray:
        """The mean over a kernel's taps of (groups, 8, 8) second moments; else unchanged."""
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
        factor = float(f"{self.inputs * self.taps * self.var:.14g}")
        return Flow(factor, self.bias_var, self.keep, self.border)

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


# ---------------------------------------------------------------- the moments of many lengths


def _second_moments(phi: Activation, q: np.ndarray) -> np.ndarray:
    """E φ²(√q z), elementwise."""
    return _each(phi, q, "second_moment")


def _slopes(phi: Activation, q: np.ndarray) -> np.ndarray:
    """E φ'²(√q z), elementwise."""
    return _each(phi, q, "derivative_second_moment")


def _each(phi: Activation, q: np.ndarray, field: str) -> np.ndarray:
    if q.size == 1:
        return np.full_like(q, getattr(phi.moments(q.item()), field))
    if phi.homogeneous:  # E φ² is in proportion to q, E φ'² the same at every q
        at_one = getattr(phi.moments(1.0), field)
        return at_one * q if field == "second_moment" else np.full_like(q, at_one)
    if q.min() == q.max():
        return np.full_like(q, getattr(phi.moments(q.flat[0].item()), field))
    return np.exp(_interpolated(phi, field)(np.log(q.clip(*_INTERPOLATED))))


_INTERPOLATED = (1e-12, 1e12)


@lru_cache(maxsize=64)
def _interpolated(phi: Activation, field: str):
    """ln of a moment over ln q as a cubic spline, good to 1e-6."""
    from scipy.interpolate import CubicSpline

    low, high = _INTERPOLATED
    grid = np.linspace(math.log(low), math.log(high), 24 * 16 + 1)
    values = np.array([getattr(phi.moments(q), field) for q in np.exp(grid).tolist()])
    return CubicSpline(grid, np.log(values.clip(1e-300)))


# ---------------------------------------------------------------- zero-mean weights


@dataclass(frozen=True, eq=False)
class Signal:
    """What theory knows of the signal in one place, for a batch as a few groups stand for it.

    Attributes:
        lengths: E x², of shape (groups,), or (groups, 8, 8) for images.
        pair_lengths, pair_gaps: of pairs of samples, √(E x²·E y²) and that minus E xy. Of shapes
            like ``lengths``; or of shape (1,), where only a typical pair is followed.
    """

    lengths: np.ndarray
    pair_lengths: np.ndarray
    pair_gaps: np.ndarray

    @cached_property
    def second_moment(self) -> float:
        return float(self.lengths.mean())

    @cached_property
    def gap(self) -> float:
        """The mean of ``pair_gaps``."""
        return float(self.pair_gaps.mean())

    @cached_property
    def across_samples_var(self) -> float | None:
        """E over pairs of samples of half their squared distance."""
        if self.pair_gaps.ndim != self.lengths.ndim:
            return None
        unequal = self.second_moment - float(self.pair_lengths.mean())
        return self.gap + max(unequal, 0.0)

    @cached_property
    def cosine(self) -> float | None:
        """E xy / √(E x²·E y²), the mean over pairs of samples."""
        if self.pair_gaps.ndim != self.lengths.ndim:
            return None
        places = tuple(range(1, self.pair_gaps.ndim))
        sizes = self.pair_lengths.sum(axis=places)
        if not sizes.all():
            return None
        cosine = float(np.mean(1 - self.pair_gaps.sum(axis=places) / sizes))
        return round(cosine, 9) + 0.0  # to the digits of the quadrature: no −1e-12

    @cached_property
    def decorrelation(self) -> float:
        """1 − c of a typical pair."""
        size = float(self.pair_lengths.mean())
        return min(max(self.gap / size, 0.0), 2.0) if size > 0 else 0.0


@dataclass(frozen=True, eq=False)
class Step:
    """One layer: the signal before and after its activation, as a mean over its units.

    ``passed`` is d ln q of it over d ln q of the layer below, 0 in the first. Networks that begin
    alike share their steps, and with them what is computed here once.
    """

    flow: Flow
    phi: Activation | None
    before: Signal
    passed: float

    @cached_property
    def after(self) -> Signal | None:
        if self.phi is None:
            return None
        lengths = _second_moments(self.phi, self.before.lengths)
        return Signal(lengths, *_paired(self.before, self.phi))

    @cached_property
    def read(self) -> Signal | None:
        """The activations as the next layer reads them, behind dropout."""
        keep, after = self.flow.keep, self.after
        if after is None or keep == 1:
            return after
        # Masks are drawn for each sample, so that E xy stays while E x² grows by 1/keep.
        gaps = after.pair_gaps + after.pair_lengths * (1 / keep - 1)
        return Signal(after.lengths / keep, after.pair_lengths / keep, gaps)

    @cached_property
    def slopes(self) -> np.ndarray | None:
        """E φ'², as ``before.lengths``; None without an activation."""
        return None if self.phi is None else _slopes(self.phi, self.before.lengths)

    @cached_property
    def masked(self) -> float:
        """The share of the gap between two samples that dropout's masks make."""
        if self.after is None or self.read is None or not self.read.gap > 0:
            return 0.0
        return 1 - self.after.gap / self.read.gap

    @cached_property
    def carried(self) -> float:
        """d ln gap after φ over d ln gap before it, at given lengths: the share that φ carries on.

        At most 1, since in powers of c all coefficients of E φφ are positive.
        """
        q, apart = self.before.second_moment, self.before.decorrelation
        if self.phi is None or self.after is None or not (q > 0 and self.after.gap > 0):
            return 1.0
        return min(self.phi.slope_product(q, apart) * self.before.gap / self.after.gap, 1.0)


@lru_cache(maxsize=2048)
def first_step(source: Signal, flow: Flow, phi: Activation | None) -> Step | None:
    """The first layer; None where its second moments leave the range of floats."""
    return _step(source, flow, phi, 0.0)


@lru_cache(maxsize=2048)
def next_step(step: Step, flow: Flow, phi: Activation | None) -> Step | None:
    """The layer that reads a step's activation; None where second moments overflow."""
    signal, inner, q = step.read, step.phi, step.before.second_moment
    assert signal is not None  # only the last layer may lack an activation
    assert inner is not None
    following = flow.factor * signal.second_moment + flow.bias_var
    passed = 0.0
    if q > 0 and following > 0:
        passed = flow.factor / step.flow.keep * inner.moments(q).slope * q / following
    return _step(signal, flow, phi, passed)


def _step(signal: Signal, flow: Flow, phi: Activation | None, passed: float) -> Step | None:
    lengths = flow.factor * flow.blur(signal.lengths) + flow.bias_var
    pair_lengths = flow.factor * flow.blur(signal.pair_lengths) + flow.bias_var
    if not max(lengths.max(), pair_lengths.max()) < OVERFLOW:
        return None
    pair_gaps = flow.factor * flow.blur(signal.pair_gaps)
    return Step(flow, phi, Signal(lengths, pair_lengths, pair_gaps), passed)


def _paired(before: Signal, phi: Activation) -> tuple[np.ndarray, np.ndarray]:
    """E φ² of the pairs and the gap between them; those on mirrored pixels are computed once."""
    lengths, gaps = before.pair_lengths, before.pair_gaps
    keys = np.stack([lengths.ravel(), gaps.ravel()], axis=1)
    different, where = np.unique(keys, axis=0, return_inverse=True)
    apart = [
        phi.pair_moments(q, min(max(gap / q, 0.0), 2.0)).gap if q > 0 else 0.0
        for q, gap in different.tolist()
    ]
    return _second_moments(phi, lengths), np.array(apart)[where].reshape(lengths.shape)


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
    image = np.ones_like(steps[-1].before.lengths)  # its mean stays 1, and no product underflows
    for index in range(len(steps) - 1, -1, -1):
        step, slope, kept = steps[index], None, 1.0
        if step.slopes is not None:
            image, slope = _normalized(image * step.slopes)
        lower = steps[index - 1].before.lengths.shape if index else step.before.lengths.shape
        if not step.flow.border and len(lower) == 3:  # the head under the average over positions
            image, kept = np.ones(lower), 1 / (lower[1] * lower[2]) ** 2
        else:
            image, kept = _normalized(step.flow.blur(image))
        rows.append(Shares(slope, kept))
    return rows[::-1]


def _normalized(image: np.ndarray) -> tuple[np.ndarray, float]:
    mean = float(image.mean()) if image.size > 1 else image.item()
    return (image / mean if mean > 0 else np.ones_like(image)), mean


# ---------------------------------------------------------------- weights or biases of nonzero mean


@dataclass(frozen=True)
class Shared:
    """One input as weights of nonzero mean see it: the mean and mean square over its units."""

    mean: float
    second_moment: float
    weight: float


@dataclass(frozen=True)
class ShiftedStep:
    """One layer under one input: E h and Var h over the units, and after φ both again."""

    mean: float
    var: float
    after: Shared | None
    keep: float = 1.0
    slope_mean: float = 1.0
    slope_second_moment: float = 1.0


def shifted_forward(
    source: Shared, layers: Sequence[Affine], phi: Activation, headless: bool
) -> list[ShiftedStep]:
    """The layers that one input passes, as far as floats reach.

    Given the input's sum S = n·E a and sum of squares P = n·E a², pre-activations are
    N(μS + E b, τ²P + Var b) independently over the units, μ and τ² the weights' mean and variance.
    """
    steps: list[ShiftedStep] = []
    at = source
    for index, layer in enumerate(layers):
        fan_in = layer.inputs * layer.taps
        mean = layer.mean * fan_in * at.mean + layer.bias_mean
        var = layer.var * fan_in * at.second_moment + layer.bias_var
        if not mean**2 + var < OVERFLOW:
            break
        if headless or index < len(layers) - 1:
            moments = _shifted_moments(phi, mean, var)
            after = Shared(moments[0], moments[1], source.weight)
            at = Shared(moments[0], moments[1] / layer.keep, source.weight)
            steps.append(ShiftedStep(mean, var, after, layer.keep, moments[2], moments[3]))
        else:
            steps.append(ShiftedStep(mean, var, None))
    return steps


@lru_cache(maxsize=65536)
def _shifted_moments(phi: Activation, mean: float, var: float) -> tuple[float, float, float, float]:
    """E φ, E φ², E φ', E φ'² for a pre-activation N(mean, var)."""

    def integrands(x: np.ndarray) -> np.ndarray:
        z = torch.from_numpy(x + mean)
        value, slope = phi.function(z).numpy(), phi.derivative(z).numpy()
        return np.stack([value, value**2, slope, slope**2])

    if var <= 0:
        first, second, slope, slope_second = integrands(np.zeros(1))[:, 0]
    else:
        kinks = tuple(kink - mean for kink in (0.0, *phi.kinks))
        first, second, slope, slope_second = gaussian_expectation(integrands, var, kinks)
    return float(first), float(second), float(slope), float(slope_second)


def shifted_backward(
    steps: Sequence[ShiftedStep], layers: Sequence[Affine], total: float
) -> tuple[list[GradientStep], Gradient]:
    """As ``backward``, for one input under weights of nonzero mean.

    Wᵀδ has in every unit the mean μ·Σδ and the variance τ²·Σδ²: two numbers pass down. ``total`` is
    E (Σδ)² at the output, per unit of E δ².
    """
    rows: list[GradientStep] = []
    square = 1.0  # E δ² of a unit
    shared = 0.0  # E of two units' product
    for step, layer in zip(reversed(steps), reversed(layers), strict=True):
        after = read = None
        if step.after is not None:
            read, square = Gradient(square, None), square / step.keep
            after = Gradient(square, None)
            n = layer.outputs
            total = n * step.slope_second_moment * square
            total += n * (n - 1) * step.slope_mean**2 * shared
            square *= step.slope_second_moment
        rows.append(GradientStep(after, Gradient(square, None), read))
        fan_out = layer.outputs * layer.taps
        shared = layer.mean**2 * total
        square = layer.var * fan_out * square + shared
    return rows[::-1], Gradient(square, None)
