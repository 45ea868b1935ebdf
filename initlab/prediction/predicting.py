"""predict(): what theory says for every site of an experiment.

This file says what of an experiment theory needs, and where theory is silent; how the numbers
travel through the layers is in ``propagation.py``, how they scatter in ``scattering.py`` and, where
weights have a mean, in ``shifting.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, Protocol, overload

import numpy as np

from initlab.activations import Activation, activation
from initlab.data import CLASSES, batch
from initlab.errors import unknown_name
from initlab.prediction.outliers import Outlier, outliers
from initlab.prediction.propagation import (
    Affine,
    Batch,
    Gradient,
    GradientStep,
    Signal,
    first_step,
    next_step,
    shifted_gradients,
)
from initlab.prediction.scattering import Draw, Scatters, backward, first_draw, next_draw
from initlab.prediction.shifting import sampling, weighed
from initlab.prediction.shifting_back import moved
from initlab.schemes import Scheme, scheme
from initlab.theory import GapScatter, LengthLaw, Scatter

_SAMPLES, _IMAGES = 32, 8
"""A batch of digits is represented by this many samples or images, and all their pairs: those that
together come nearest to it. With 8 images, each of which has 64 positions, second moments stray by
1 % from what 48 give after 15 layers, what tells them apart by up to 6 %. Weights of nonzero mean
see each position by its mean over channels alone, and ask for as many images as samples."""

_APART = np.array([2, 6, 10, 14])
"""Of many images each makes a pair with those chosen so much later: the very next ones were chosen
because they differ most."""

_FEW_WEIGHTS = (
    "No theory is drawn of the input's gradient: a kernel of 9 weights is too small for the "
    "gradient behind an average over the image to be independent of it."
)

_COHERENT = (
    "No theory is drawn of the gradient: behind an average over an image weights of nonzero mean "
    "add up what is alike in its pixels."
)

_LEANING = (
    "Under a loss the gradient leans on the signal: behind an average over an image, and with "
    "n channels of relu or its like, it lies above theory's line by some 3/n a layer."
)

_UNCENTRED = (
    "No theory is drawn of the variance: with weights or biases of nonzero mean it is not the "
    "second moment."
)

_NO_BAND = "No band is drawn of the variance across samples: it is for weights of mean 0."

_MASKED = (
    "No theory is drawn of the variance across samples: dropout's masks vary the sums that weights "
    "of nonzero mean see."
)

_NO_IMAGE_BAND = "No band is drawn: of images it is for weights of mean 0."

_FEW_PASS = (
    "No theory is drawn of the gradient where a few inputs of the batch pass nearly all of it: "
    "which ones is a matter of the draw."
)

_OVERFLOW = "The signal overflows here."

_STEEP = "The gradient overflows here."

_ROUNDING = 3e-6
"""By as much float32 strays, where the weights do not."""

_SUMS = 2.0 ** np.arange(-8, 4)
"""Noise under weights of nonzero mean: by sums over its features between these, in deviations,
crowding where a saturating activation changes sides."""


class Predictable(Protocol):
    """The fields of an Experiment that a prediction depends on."""

    @property
    def architecture(self) -> str: ...
    @property
    def activation(self) -> str: ...
    @property
    def scheme(self) -> str: ...
    @property
    def scheme_params(self) -> Mapping[str, Any] | None: ...
    @property
    def gain(self) -> float | None: ...
    @property
    def bias(self) -> Any: ...
    @property
    def bias_std(self) -> float | None: ...
    @property
    def norm(self) -> str: ...
    @property
    def dropout(self) -> float: ...
    @property
    def padding(self) -> str: ...
    @property
    def data(self) -> str: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def data_seed(self) -> int: ...
    @property
    def sizes(self) -> tuple[int, ...]: ...
    @property
    def has_head(self) -> bool: ...


@dataclass(frozen=True)
class PredictedStats:
    """What theory says of one tensor.

    Attributes:
        second_moment: E x² over batch and units, at infinite width.
        across_samples_var: the variance over all inputs at a unit, at infinite width; a batch of
            B shows 1 − 1/B of it. None where theory does not follow it.
        low, high: where the measured second moment lies in 95 % of the draws of the weights (and
            of noise), at this width and batch; see ``theory.finite_width``. None where theory does
            not follow it; 0 and inf where one draw, or one sample of the batch, may outweigh all
            others, so that what they are on average says nothing of a single network.
        across_low, across_high: the same of the measured variance across samples; of gradients and
            pre-activations only.
    """

    second_moment: float
    across_samples_var: float | None = None
    low: float | None = None
    high: float | None = None
    across_low: float | None = None
    across_high: float | None = None


@dataclass(frozen=True)
class PredictedSite:
    """One site of the trace by name; ``backward`` is relative to the output's gradient.

    ``cosine`` is that between two samples' tensors, the mean over pairs; None where theory does not
    follow it.
    """

    name: str
    kind: str
    depth: int
    forward: PredictedStats | None
    backward: PredictedStats | None
    reason: str = ""
    cosine: float | None = None


@dataclass(frozen=True)
class Prediction:
    """Theory's counterpart of a Trace: its sites in order, or the ``reason`` why there are none.

    ``batch_size`` is that of the experiment; ``centred`` says that every E h is 0. ``unsaid`` holds
    a sentence for everything that theory does not say of any site here: "across_samples_var",
    "cosine", "var", "band", "across_samples_var band"; and under "backward" where a few units stray
    from its line one way.
    """

    sites: tuple[PredictedSite, ...]
    reason: str = ""
    batch_size: int | None = None
    centred: bool = True
    unsaid: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __len__(self) -> int:
        return len(self.sites)

    def __iter__(self) -> Iterator[PredictedSite]:
        return iter(self.sites)

    @overload
    def __getitem__(self, key: int | str) -> PredictedSite: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[PredictedSite, ...]: ...
    def __getitem__(self, key):
        if isinstance(key, str):
            found = [site for site in self.sites if site.name == key]
            if not found:
                raise KeyError(str(unknown_name("site", key, [site.name for site in self.sites])))
            return found[0]
        return self.sites[key]

    def __repr__(self) -> str:
        return f"Prediction({len(self.sites)} sites{', ' + self.reason if self.reason else ''})"


def predict(experiment: Predictable, *, band: bool = True) -> Prediction:
    """What theory says for every site that ``experiment.run()`` will measure.

    Args:
        experiment: or whatever has the fields of one.
        band: whether to follow ``low`` and ``high`` too, which takes up to 40 % of the time.

    Returns:
        A Prediction whose sites are named as the trace's. Its ``reason`` is a sentence where
        theory is silent about the whole network (its sites are then empty).

    Raises:
        ValueError, TypeError: as for the experiment's own fields.
    """
    chosen, gain, bias = prescribed(experiment)
    reason = _silent(experiment, chosen)
    if reason:
        return Prediction((), reason)
    layers = _layers(experiment, chosen, gain, bias)
    phi = activation(experiment.activation)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # each ends in a reason
        rows = _follow(experiment, layers, phi, band)
    if _masks_vary(layers):
        rows = [replace(row, forward=_not_across(row.forward)) for row in rows]
    sites = tuple(_sites(experiment, rows))
    unsaid = _unsaid(experiment, layers)
    return Prediction(sites, "", experiment.batch_size, not _moved(layers), unsaid)


def prescribed(experiment: Predictable) -> tuple[Scheme, float, Any]:
    """An experiment's scheme, and the gain and the bias with which it is used there."""
    chosen = scheme(experiment.scheme, **(experiment.scheme_params or {}))
    gain = chosen.gain_with(experiment.activation) if experiment.gain is None else experiment.gain
    return chosen, gain, chosen.bias if experiment.bias is None else experiment.bias


def _silent(experiment: Predictable, chosen: Scheme) -> str:
    """Why theory says nothing of this experiment, or an empty string."""
    if experiment.norm != "none":
        return "No theory is drawn: normalization rescales every layer by what it measures."
    if chosen.ensemble == "structured":
        return "No theory is drawn: it is for independent weights, and these have a structure."
    return ""


def _unsaid(experiment: Predictable, layers: Sequence[Affine]) -> dict[str, str]:
    """What theory says of no site of a network, or with reserve, each with the reason."""
    image, summed = bool(layers[0].border), _summed(layers)
    sentences = {"backward": _LEANING} if image and experiment.has_head and not summed else {}
    if _moved(layers):
        sentences |= {"var": _UNCENTRED}
    if summed:
        sentences |= {"band": _NO_IMAGE_BAND} if image else {"across_samples_var band": _NO_BAND}
    if _masks_vary(layers):
        sentences |= {"across_samples_var": _MASKED}
    return sentences


def _moved(layers: Sequence[Affine]) -> bool:
    """Whether weights or biases of nonzero mean move the units of a layer together."""
    return any(layer.mean or layer.bias_mean for layer in layers)


def _summed(layers: Sequence[Affine]) -> bool:
    """Whether weights of nonzero mean see what the units of a layer add up to."""
    return any(layer.mean for layer in layers)


def _masks_vary(layers: Sequence[Affine]) -> bool:
    """Whether what tells samples apart is what dropout does to the sums of a finite layer."""
    return any(above.mean and below.keep < 1 for below, above in pairwise(layers))


def _layers(experiment: Predictable, chosen: Scheme, gain: float, bias: Any) -> list[Affine]:
    sizes = experiment.sizes
    bias_std = chosen.bias_std if experiment.bias is None else experiment.bias_std

    @cache  # most layers of a deep network are alike
    def layer(inputs: int, outputs: int, is_last: bool) -> Affine:
        head = experiment.has_head and is_last
        border = experiment.padding if experiment.architecture == "cnn" and not head else ""
        taps = 9 if border else 1
        fans = inputs * taps, outputs * taps
        spread = 0.0
        if chosen.ensemble != "constant":
            spread = chosen.weight_std(*fans, gain, rows=outputs)
        return Affine(
            inputs,
            outputs,
            var=spread**2,
            mean=chosen.weight_mean(*fans, rows=outputs),
            bias_mean=_constant(bias),
            bias_var=_bias_variance(bias, bias_std, fans[0]),
            uniform_bias=bias == "pytorch_default",
            orthogonal=chosen.ensemble == "orthogonal",
            keep=1.0 if is_last else 1 - experiment.dropout,
            taps=taps,
            border=border,
        )

    last = len(sizes) - 1
    return [layer(*pair, index == last) for index, pair in enumerate(pairwise(sizes), start=1)]


def _constant(bias: Any) -> float:
    return float(bias) if isinstance(bias, int | float) else 0.0


def _bias_variance(bias: Any, bias_std: float | None, fan_in: int) -> float:
    if bias == "pytorch_default":
        return 1 / (3 * fan_in)
    if bias == "normal":
        return float(bias_std or 0.0) ** 2
    return 0.0


# ---------------------------------------------------------------- the sites' numbers


@dataclass(frozen=True)
class _Row:
    """The numbers of one site before it has a name; None is what theory does not say."""

    forward: PredictedStats | None
    backward: PredictedStats | None
    cosine: float | None = None
    reason: str = ""


def _follow(
    experiment: Predictable, layers: Sequence[Affine], phi: Activation, band: bool
) -> list[_Row]:
    image, size, summed = bool(layers[0].border), experiment.batch_size, _summed(layers)
    source = _source(experiment, layers)
    if summed and not image:
        source = _weighed(source, experiment, layers[0].inputs)
    draws = _drawn(source, layers, phi, experiment.has_head, band and not summed)
    scatters = [draw.scatters for draw in draws]
    if summed and not image:
        of = sampling(source.signal, size, random=experiment.data == "noise")
        steps = tuple(draw.step for draw in draws)
        scatters, gradients, at_input = moved(
            source.signal, of, source.scatter.angle, steps, tuple(layers), experiment.has_head, band
        )
        silent = ""
    else:
        gradients, at_input, silent = _gradients(draws, layers, experiment.has_head, size)
    longest = outliers(draws, size)
    rows = [_input_row(source.signal, at_input, layers[0], experiment, silent, longest)]
    for draw, scatter, at, outlier in zip(draws, scatters, gradients, longest, strict=True):
        if image and draw.step.after is None:
            rows += _pooled_rows(draw, at, size, silent)
        else:
            rows += _layer_rows(draw, scatter, at, size, silent, outlier)
    return _until_parted(rows)


def _until_parted(rows: Sequence[_Row]) -> list[_Row]:
    """Behind a layer where single networks part, and for gradients below it, no band comes back."""
    first = next((index for index, row in enumerate(rows) if _is_boundless(row.forward)), len(rows))
    last = max((index for index, row in enumerate(rows) if _is_boundless(row.backward)), default=-1)
    return [
        replace(
            row,
            forward=_boundless(row.forward) if index >= first else row.forward,
            backward=_boundless(row.backward) if index <= last else row.backward,
        )
        for index, row in enumerate(rows)
    ]


def _is_boundless(stats: PredictedStats | None) -> bool:
    return stats is not None and stats.high == math.inf


def _boundless(stats: PredictedStats | None) -> PredictedStats | None:
    if stats is None:
        return None
    return replace(stats, low=0.0, high=math.inf, across_low=0.0, across_high=math.inf)


def _gradients(
    draws: Sequence[Draw], layers: Sequence[Affine], has_head: bool, size: int
) -> tuple[Sequence[GradientStep], Gradient | None, str]:
    """Those of every layer and of the input, and why theory is silent of them."""
    nothing = [GradientStep(None, None)] * len(draws)
    if len(draws) < len(layers):  # the signal overflows on the way
        return nothing, None, ""
    if not _summed(layers):
        outputs, parted = layers[-1].outputs, _part(draws, size)
        if has_head:
            return *backward(draws, 1 / (CLASSES - 1), 0, parted), ""
        return *backward(draws, 1 / outputs, outputs, parted), ""
    if has_head and layers[0].border:
        return nothing, None, _COHERENT
    return *shifted_gradients(tuple(draw.step for draw in draws), tuple(layers), size), _FEW_PASS


def _row(
    signal: Signal,
    forward: PredictedStats,
    gradient: Gradient | None,
    ln: float,
    size: int,
    silent: str,
) -> _Row:
    """Of one place; ``ln`` is that of an Outlier's gradient, ``silent`` why there is none."""
    backward = _gradient_stats(gradient, size, ln)
    if not math.isfinite(signal.second_moment):  # φ may square what is still finite
        return _Row(None, backward, None, _OVERFLOW)
    silent = "" if backward else _STEEP if gradient else silent
    return _Row(forward, backward, signal.cosine, silent)


def _part(draws: Sequence[Draw], size: int) -> bool:
    """Whether lengths on which the gradients depend have no law any more."""
    phi = draws[0].step.phi
    lengths = [draw.before for draw in draws if phi and not phi.homogeneous]
    return not all(_has_law(each.batch_law(size)) for each in lengths if each)


def _not_across(stats: PredictedStats | None) -> PredictedStats | None:
    return stats and replace(stats, across_samples_var=None, across_low=None, across_high=None)


def _input_row(
    signal: Signal,
    gradient: Gradient | None,
    first: Affine,
    experiment: Predictable,
    silent: str,
    longest: Sequence[Outlier],
) -> _Row:
    size = experiment.batch_size
    stats = _stats(signal, None, size)
    # Nine weights decide which taps pass a gradient that is alike all over the image.
    if gradient and experiment.has_head and first.border and first.inputs == 1:
        return _Row(stats, None, signal.cosine, _FEW_WEIGHTS)
    return _row(signal, stats, gradient, longest[0].gradient if longest else 0.0, size, silent)


def _layer_rows(
    draw: Draw, scatters: Scatters, at: GradientStep, size: int, silent: str, outlier: Outlier
) -> Iterator[_Row]:
    """A layer's pre-activations, its activations, and these behind dropout."""
    step = draw.step
    forward = _stats(step.before, scatters.before, size, outlier.before, scatters.across)
    yield _row(step.before, forward, at.before, outlier.gradient, size, silent)
    if step.after is None or step.read is None:
        return
    forward = _stats(step.after, scatters.after, size, outlier.after)
    yield _row(step.after, forward, at.after, outlier.gradient_after, size, silent)
    if draw.layer.keep != 1 and math.isfinite(step.after.second_moment):
        forward = _stats(step.read, scatters.after, size, outlier.after)
        yield _row(step.read, forward, at.read, outlier.gradient_after, size, silent)


def _pooled_rows(draw: Draw, at: GradientStep, size: int, silent: str) -> list[_Row]:
    """The average over an image, the same flattened, and the head that reads it."""
    through = Gradient(draw.layer.backward_factor, None)
    average = _Row(None, None if silent else _gradient_stats(through, size))
    return [average, average, _Row(None, _gradient_stats(at.before, size))]


def _drawn(
    source: Source, layers: Sequence[Affine], phi: Activation, has_head: bool, band: bool
) -> list[Draw]:
    """The layers as far as floats reach; a ``band`` is followed or not."""
    draws: list[Draw] = []
    scatter, gap = (source.scatter, source.gap) if band else (None, None)
    for index, layer in enumerate(layers):
        act = None if has_head and index == len(layers) - 1 else phi
        if draws:
            step = next_step(draws[-1].step, layer.flow, act)
        else:
            step = first_step(source.signal, layer.flow, act)
        if step is None:
            break
        draw = next_draw(draws[-1], step, layer) if draws else first_draw(scatter, gap, step, layer)
        draws.append(draw)
    return draws


def _stats(
    signal: Signal,
    scatter: Scatter | None,
    batch_size: int,
    ln: float = 0.0,
    across: LengthLaw | None = None,
) -> PredictedStats:
    """``ln`` is that of an Outlier."""
    second, var = signal.second_moment, signal.across_samples_var
    if scatter is None:
        return PredictedStats(second, var)
    alone = second / batch_size
    band = _interval(second, scatter.batch_law(batch_size), alone * _more(ln))
    across_band: tuple[float | None, float | None] = None, None
    if across is not None and var is not None:  # a batch's variance divides by B, not by B − 1
        longer = _more(ln / 2) ** 2  # of one direction it is as far from the others
        across_band = _interval(var * (1 - 1 / batch_size), across, alone * longer)
    return PredictedStats(second, var, *band, *across_band)


def _gradient_stats(
    gradient: Gradient | None, batch_size: int, ln: float = 0.0
) -> PredictedStats | None:
    """Gradients of different samples are independent in direction: all of E δ² is across them."""
    if gradient is None or not math.isfinite(gradient.second_moment):
        return None
    second, shown = gradient.second_moment, 1 - 1 / batch_size
    if gradient.scatter is None:
        return PredictedStats(second, second)
    law = gradient.scatter.batch_law(batch_size)
    low, high = _interval(second, law, second / batch_size * _more(ln))
    return PredictedStats(second, second, low, high, shown * low, shown * high)


def _has_law(law: LengthLaw) -> bool:
    """Whether 95 % of the draws are within 34 orders of magnitude."""
    return law.log_var < 400


def _more(ln: float) -> float:
    return math.expm1(min(max(ln, 0.0), 300.0))


def _interval(mean: float, law: LengthLaw, lone: float) -> tuple[float, float]:
    if not _has_law(law):
        return 0.0, math.inf
    rounded = replace(law, log_var=law.log_var + _ROUNDING**2)
    low, high = (mean * factor for factor in rounded.interval())
    return (low, max(high, lone)) if high < math.inf else (0.0, math.inf)


@dataclass(frozen=True)
class Source:
    """The batch as theory sees it; ``scatter`` and ``gap`` are those of another draw of it."""

    signal: Signal
    scatter: Scatter
    gap: GapScatter


def _source(experiment: Predictable, layers: Sequence[Affine]) -> Source:
    size, image, inputs = experiment.batch_size, bool(layers[0].border), layers[0].inputs
    summed, moved = any(layer.mean for layer in layers), _moved(layers)
    if experiment.data == "noise":  # theory knows its law, not the draw
        return _noise(image, inputs, size, moved, summed)
    count = _IMAGES if image and not summed else _SAMPLES
    return _given(experiment.data, image, size, inputs, experiment.data_seed, moved, count)


@lru_cache(maxsize=64)
def _noise(image: bool, inputs: int, batch_size: int, moved: bool, summed: bool) -> Source:
    like = 1 / (inputs * (9 if image else 1))  # of two samples, or positions
    numbers = inputs * batch_size * (64 if image else 1)
    gap = GapScatter(batch_size, like, single=2 / numbers, both=2 / numbers)
    signal = _summed_noise(image, inputs) if summed else _white(image, moved)
    return Source(signal, Scatter(single=math.log1p(2 * like), angle=like), gap)


@lru_cache
def _white(image: bool, moved: bool) -> Signal:
    """All samples alike, and all positions."""
    ones, first = np.ones((1, 8, 8) if image else 1), np.zeros(1, int)
    batch = Batch(np.ones(1), first, first, np.ones(1))
    return Signal(batch, ones, ones, np.zeros_like(ones) if moved else None)


def _summed_noise(image: bool, inputs: int) -> Signal:
    """By the means over the features, or channels, which weights of nonzero mean see: N(0, 1/n)."""
    if image:
        means = _fields(_SAMPLES)
        weights = np.full(len(means), 1 / len(means))
        left, right = _ring(len(means))
        shares, unpaired = np.ones(len(left)), 1.0
    else:
        edges = np.concatenate([-_SUMS[::-1], [0.0], _SUMS])
        nodes, weights = np.polynomial.legendre.leggauss(3)
        half = np.diff(edges)[:, None] / 2
        means = (edges[:-1, None] + half + half * nodes).ravel()
        weights = (half * weights).ravel() * np.exp(-(means**2) / 2)
        weights /= weights.sum()
        left, right = np.triu_indices(len(means))
        shares, unpaired = weights[left] * weights[right] * np.where(left == right, 1, 2), 0.0
    means = means / math.sqrt(inputs)
    batch = Batch(weights, left, right, shares / shares.sum(), unpaired)
    return Signal(batch, np.ones_like(means), 1 - means[left] * means[right], means)


def _ring(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images make pairs, as ``_APART`` says."""
    left = np.repeat(np.arange(count), len(_APART))
    return left, (left + np.tile(_APART, count)) % count


def _fields(count: int) -> np.ndarray:
    """Few images of noise with two of many images' second moments: of their means, which deep
    layers see, and of means over 3×3 pixels, which the first does."""
    from scipy.special import ndtri

    fields = np.random.default_rng(0).standard_normal((count, 8, 8))
    fields -= fields.mean(axis=(1, 2), keepdims=True)
    rows = fields + np.roll(fields, 1, axis=1) + np.roll(fields, -1, axis=1)
    blurred = (rows + np.roll(rows, 1, axis=2) + np.roll(rows, -1, axis=2)) / 9
    fields *= math.sqrt((1 / 9 - 1 / 64) / (blurred**2).mean())
    means = ndtri((np.arange(count) + 0.5) / count)
    return fields + (means / means.std(ddof=1) / 8)[:, None, None]


@lru_cache(maxsize=64)
def _given(
    data: str, image: bool, batch_size: int, inputs: int, seed: int, moved: bool, most: int
) -> Source:
    given = batch(data, batch_size, images=False, features=inputs, seed=seed).inputs.double()
    x = given.numpy()
    squares = (x**2).mean(axis=1)
    chosen = x[_representative(x, most)]
    chosen *= math.sqrt(squares.mean() / (chosen**2).mean())
    count = len(chosen)
    if image and count > 2 * _APART[-1]:
        (left, right), unpaired = _ring(count), count / (count - 1)
    else:
        left, right = np.triu_indices(count, k=1) if count > 1 else np.zeros((2, 1), int)
        unpaired = 0.0
    shown = chosen.reshape(-1, 1, 8, 8) if image else chosen
    lengths, means = (shown**2).mean(axis=1), shown.mean(axis=1)
    products = (shown[left] * shown[right]).mean(axis=1)
    pair_weights = np.full(len(left), 1 / len(left))
    of = Batch(np.full(count, 1 / count), left, right, pair_weights, unpaired)
    signal = Signal(of, lengths, of.sizes(lengths) - products, means if moved else None)
    if signal.across_samples_var > 0 and count < batch_size:
        apart = x.var(axis=0, ddof=1).mean() / signal.across_samples_var
        of = replace(of, pair_weights=of.pair_weights * apart)
        signal = replace(signal, batch=of)
    scatter = _scatter_of_patches(x) if image else Scatter(angle=_scatter_of_cosines(x))
    return Source(signal, scatter, GapScatter(batch_size, _alike(x)))


def _weighed(source: Source, experiment: Predictable, inputs: int) -> Source:
    """Digits by weights that are right for what weights of nonzero mean see, their sums."""
    if experiment.data == "noise":
        return source
    return _weighed_as(source, experiment.data, experiment.batch_size, inputs, experiment.data_seed)


@lru_cache(maxsize=64)
def _weighed_as(source: Source, data: str, batch_size: int, inputs: int, seed: int) -> Source:
    x = batch(data, batch_size, images=False, features=inputs, seed=seed).inputs.double().numpy()
    return replace(source, signal=weighed(source.signal, (x**2).mean(axis=1), x.mean(axis=1)))


def _scatter_of_cosines(x: np.ndarray) -> float:
    """The variance of the cosines between samples."""
    if len(x) == 1:
        return 0.0
    directions = x / np.linalg.norm(x, axis=1, keepdims=True)
    return float(np.var((directions @ directions.T)[np.triu_indices(len(x), k=1)]))


def _scatter_of_patches(x: np.ndarray) -> Scatter:
    """The same of the patches that a convolution reads, wherever in the images they are.

    They are weighted by their squares, on which all that is behind them depends. ``common`` is how
    much of the scatter is left in the mean over the positions of two images, at each displacement.
    """
    images = x[:_PATCHED].reshape(-1, 8, 8)
    around = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    patches = np.lib.stride_tricks.sliding_window_view(around, (3, 3), axis=(1, 2)).reshape(-1, 9)
    products = patches @ patches.T / (9 * (patches**2).mean())
    waves = np.fft.fft2(images)
    lagged = np.fft.ifft2(waves[:, None] * waves.conj()).real / (64 * (images**2).mean())
    return Scatter(angle=float(products.var()), common=float(lagged.var()))


_PATCHED = 16
"""Images whose patches are compared with each other."""


def _representative(x: np.ndarray, count: int) -> list[int]:
    """Of the samples those that, one after the other, bring the means over them nearest to all's.

    Those of x, of x² and of what weights of nonzero mean see, the sum over x and its square (kernel
    herding, Welling 2009, with these features).
    """
    if len(x) <= count:
        return list(range(len(x)))
    sums = x.sum(axis=1, keepdims=True) / 2
    features = np.concatenate([x, x**2, np.abs(sums), sums**2], axis=1)
    features = features - features.mean(axis=0)
    chosen: list[int] = []
    total = np.zeros(features.shape[1])
    free = np.ones(len(x), bool)
    for _ in range(count):
        off = ((features + total) ** 2).sum(axis=1)
        best = int(np.where(free, off, math.inf).argmin())
        chosen.append(best)
        free[best] = False
        total += features[best]
    return chosen


def _alike(x: np.ndarray) -> float:
    """The mean square cosine between differences of samples, weighted by their squares."""
    products = np.linalg.eigvalsh(np.cov(x, rowvar=False, ddof=0).reshape(x.shape[1], -1))
    total = products.sum() ** 2
    return float((products**2).sum() / total) if total > 0 else 1.0


# ---------------------------------------------------------------- the sites' names


def _sites(experiment: Predictable, rows: Sequence[_Row]) -> Iterator[PredictedSite]:
    names = list(_names(experiment))
    pooled = "No theory is drawn: the average over an image depends on how alike its pixels are."
    missing = "The forward signal overflows further on."
    last = rows[-1] if len(rows) == len(names) - 1 else None
    for index, (name, kind, depth) in enumerate(names):
        row = rows[index] if index < len(rows) else last if index == len(rows) else None
        if row is None:
            yield PredictedSite(name, kind, depth, None, None, _OVERFLOW)
            continue
        reason = row.reason or ("" if row.backward else missing)
        if row.forward is None:
            reason = row.reason or pooled
        yield PredictedSite(name, kind, depth, row.forward, row.backward, reason, row.cosine)


def _names(experiment: Predictable) -> Iterator[tuple[str, str, int]]:
    """Name, kind and depth of every site, as a trace gives them."""
    affine = "conv" if experiment.architecture == "cnn" else "linear"
    hidden = len(experiment.sizes) - 1 - experiment.has_head
    yield "input", "input", 0
    for depth in range(1, hidden + 1):
        yield f"{affine}{depth}", "affine", depth
        yield f"act{depth}", "activation", depth
        if experiment.dropout and (depth < hidden or experiment.has_head):
            yield f"drop{depth}", "other", depth
    if experiment.has_head:
        if experiment.architecture == "cnn":
            yield "pool", "other", hidden
            yield "flatten", "other", hidden
        yield "head", "affine", hidden + 1
    yield "output", "output", hidden + experiment.has_head
