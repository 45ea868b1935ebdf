"""predict(): what theory says for every site of an experiment.

This file says what of an experiment theory needs, and where theory is silent; how the numbers
travel through the layers is in ``propagation.py``, how they scatter in ``scattering.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, Protocol, overload

import numpy as np

from initlab.activations import Activation, activation
from initlab.data import CLASSES, batch
from initlab.errors import unknown_name
from initlab.prediction.propagation import (
    Affine,
    Gradient,
    GradientStep,
    Shared,
    Signal,
    first_step,
    next_step,
    shifted_backward,
    shifted_forward,
)
from initlab.prediction.scattering import Draw, backward, first_draw, next_draw
from initlab.schemes import Scheme, scheme
from initlab.theory import GapScatter, LengthLaw, Scatter

_GROUPS = 8
"""Inputs of unequal length are represented by this many groups of equal size."""

_PAIRS = {True: 16, False: 2}
"""Pairs of inputs likewise, by angle: more where the activation has a closed form."""

_IMAGES = 64
"""Images, whose lengths differ from pixel to pixel, are represented by this many of the batch."""

_FEW_WEIGHTS = (
    "No theory is drawn of the input's gradient: a kernel of 9 weights is too small for the "
    "gradient behind an average over the image to be independent of it."
)

_OVERFLOW = "The signal overflows here."

_POOLED = (
    "Behind an average over an image the gradients of its pixels are alike, and those of a few "
    "channels lie above theory's line."
)

_SUMS = 2.0 ** np.arange(-12, 4)
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
            not follow it.
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
    "cosine", "var", "band"; and under "backward" where its line is no more than a first guess.
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
    centred = not any(layer.mean or layer.bias_mean for layer in layers)
    with np.errstate(over="ignore", invalid="ignore"):  # what leaves floats ends in a reason
        if centred:
            rows = _follow_centred(experiment, layers, phi, band)
        else:
            rows = _follow_shifted(experiment, layers, phi)
    sites = tuple(_sites(experiment, rows))
    unsaid = _unsaid(experiment, centred)
    return Prediction(sites, "", experiment.batch_size, centred, unsaid)


def prescribed(experiment: Predictable) -> tuple[Scheme, float, Any]:
    """An experiment's scheme, and the gain and the bias with which it is used there."""
    chosen = scheme(experiment.scheme, **(experiment.scheme_params or {}))
    gain = chosen.gain_with(experiment.activation) if experiment.gain is None else experiment.gain
    return chosen, gain, chosen.bias if experiment.bias is None else experiment.bias


def _silent(experiment: Predictable, chosen: Scheme) -> str:
    """Why theory says nothing of this experiment, or an empty string."""
    moved = chosen.weight_mean(1, 1) != 0
    if experiment.norm != "none":
        return "No theory is drawn: normalization rescales every layer by what it measures."
    if chosen.ensemble == "structured":
        return "No theory is drawn: it is for independent weights, and these have a structure."
    if experiment.architecture == "cnn" and moved:
        return "No theory is drawn: for convolutions it is for weights of mean 0 only."
    if experiment.architecture == "cnn" and _constant(experiment.bias):
        return "No theory is drawn: for convolutions it is for a constant bias of 0 only."
    return ""


def _unsaid(experiment: Predictable, centred: bool) -> dict[str, str]:
    """What theory says of no site of a network, each with the reason."""
    if not centred:
        told_apart = "it is for weights and biases of mean 0."
        return {
            "across_samples_var": f"No theory is drawn of what tells inputs apart: {told_apart}",
            "cosine": f"No theory is drawn of what tells inputs apart: {told_apart}",
            "var": "No theory is drawn of the variance: with weights or biases of nonzero mean it "
            "is not the second moment.",
            "band": f"No band is drawn: {told_apart}",
        }
    if experiment.architecture == "cnn" and experiment.data != "noise":
        pixels = (
            "No theory is drawn of what tells images apart: it depends on how alike pixels are."
        )
        return {"across_samples_var": pixels, "cosine": pixels}
    return {}


def _layers(experiment: Predictable, chosen: Scheme, gain: float, bias: Any) -> list[Affine]:
    sizes = experiment.sizes
    bias_std = chosen.bias_std if experiment.bias is None else experiment.bias_std

    @cache  # most layers of a deep network are alike
    def layer(inputs: int, outputs: int, is_last: bool) -> Affine:
        head = experiment.has_head and is_last
        border = experiment.padding if experiment.architecture == "cnn" and not head else ""
        taps = 9 if border else 1
        fans = inputs * taps, outputs * taps
        spread = 0.0 if chosen.ensemble == "constant" else chosen.weight_std(*fans, gain)
        return Affine(
            inputs,
            outputs,
            var=spread**2,
            mean=chosen.weight_mean(*fans),
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


# ---------------------------------------------------------------- zero-mean weights


@dataclass(frozen=True)
class _Row:
    """The numbers of one site before it has a name; None is what theory does not say."""

    forward: PredictedStats | None
    backward: PredictedStats | None
    cosine: float | None = None
    reason: str = ""


def _follow_centred(
    experiment: Predictable, layers: Sequence[Affine], phi: Activation, band: bool
) -> list[_Row]:
    source = _source(experiment, layers[0].inputs, phi)
    draws = _drawn(source, layers, phi, experiment.has_head, band)
    gradients: list[GradientStep] = []
    at_input = None
    if len(draws) == len(layers):
        likeness = 1 / (CLASSES - 1) if experiment.has_head else 1 / layers[-1].outputs
        gradients, at_input = backward(draws, likeness)
    size = experiment.batch_size
    # Nine weights decide which taps pass a gradient that is alike all over the image.
    alike = experiment.has_head and bool(layers[0].border) and layers[0].inputs == 1
    rows = [
        _Row(
            _stats(source.signal, None, size),
            None if alike else _gradient_stats(at_input, size),
            source.signal.cosine,
            _FEW_WEIGHTS if alike and at_input else "",
        )
    ]
    for index, draw in enumerate(draws):
        step = draw.step
        at = gradients[index] if gradients else GradientStep(None, None)
        pooled = step.after is None and bool(draws[index - 1].layer.border)
        if pooled:
            through = Gradient(draw.layer.backward_factor, None)
            rows += [_Row(None, _gradient_stats(through, size))] * 2
        forward = None if pooled else _stats(step.before, draw.before, size, draw.across)
        cosine = None if pooled else step.before.cosine
        rows.append(_Row(forward, _gradient_stats(at.before, size), cosine))
        if step.after is not None:
            forward = _stats(step.after, draw.after, size)
            if not math.isfinite(forward.second_moment):  # φ may square what is still finite
                rows.append(_Row(None, _gradient_stats(at.after, size), None, _OVERFLOW))
                break
            rows.append(_Row(forward, _gradient_stats(at.after, size), step.after.cosine))
        if step.read is not None and draw.layer.keep != 1:
            forward = _stats(step.read, draw.after, size)
            rows.append(_Row(forward, _gradient_stats(at.read, size), step.read.cosine))
    return rows


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
    signal: Signal, scatter: Scatter | None, batch_size: int, across: LengthLaw | None = None
) -> PredictedStats:
    second, var = signal.second_moment, signal.across_samples_var
    across_band = (None, None)
    if across is not None and var is not None:  # a batch's variance divides by B, not by B − 1
        across_band = _interval(var * (1 - 1 / batch_size), across)
    return PredictedStats(second, var, *_band(second, scatter, batch_size), *across_band)


def _gradient_stats(gradient: Gradient | None, batch_size: int) -> PredictedStats | None:
    """Gradients of different samples are independent in direction: all of E δ² is across them."""
    if gradient is None or not math.isfinite(gradient.second_moment):
        return None
    second, shown = gradient.second_moment, 1 - 1 / batch_size
    band = _band(second, gradient.scatter, batch_size)
    across_band = (None if bound is None else shown * bound for bound in band)
    return PredictedStats(second, second, *band, *across_band)


def _band(
    second_moment: float, scatter: Scatter | None, batch_size: int
) -> tuple[float | None, float | None]:
    if scatter is None:
        return None, None
    return _interval(second_moment, scatter.batch_law(batch_size))


def _interval(mean: float, law: LengthLaw) -> tuple[float | None, float | None]:
    if not law.log_var < 400:
        return None, None
    low, high = (mean * factor for factor in law.interval())
    return (low, high) if math.isfinite(high) else (None, None)


@dataclass(frozen=True)
class Source:
    """The batch as theory sees it: a few groups by length, a few groups of pairs by angle.

    ``scatter`` and ``gap`` are those of another draw of it; ``gap`` is None where the variance
    across samples is not followed.
    """

    signal: Signal
    scatter: Scatter
    gap: GapScatter | None


def _source(experiment: Predictable, inputs: int, phi: Activation) -> Source:
    size, image = experiment.batch_size, experiment.architecture == "cnn"
    if experiment.data == "noise":  # theory knows its law, not the draw
        return _noise(image, inputs, size)
    fine = phi.homogeneous is not None
    return _given(experiment.data, image, size, inputs, experiment.data_seed, fine)


@lru_cache
def _white(image: bool) -> Signal:
    ones = np.ones((1, 8, 8) if image else (1,))
    return Signal(ones, ones, ones)


@lru_cache(maxsize=64)
def _noise(image: bool, inputs: int, batch_size: int) -> Source:
    like = 1 / (inputs * (9 if image else 1))  # of two samples, or positions
    numbers = inputs * batch_size * (64 if image else 1)
    gap = GapScatter(batch_size, like, single=2 / numbers, both=2 / numbers)
    return Source(_white(image), Scatter(single=math.log1p(2 / inputs), angle=like), gap)


@lru_cache(maxsize=64)
def _given(data: str, image: bool, batch_size: int, inputs: int, seed: int, fine: bool) -> Source:
    given = batch(data, batch_size, images=False, features=inputs, seed=seed).inputs.double()
    x = given.numpy()
    squares = (x**2).mean(axis=1)
    pair_lengths, pair_gaps, angle = _angles(x, 1 if image else _PAIRS[fine])
    if image:
        lengths = x[:_IMAGES].reshape(-1, 8, 8) ** 2
        lengths *= squares.mean() / lengths.mean()
    else:
        groups = np.array_split(np.sort(squares), min(_GROUPS, batch_size))
        lengths = _evenly([group.mean() for group in groups], [len(group) for group in groups])
    gap = None if image else GapScatter(batch_size, _alike(x))
    return Source(Signal(lengths, pair_lengths, pair_gaps), Scatter(angle=angle), gap)


def _alike(x: np.ndarray) -> float:
    """The mean square cosine between differences of samples, weighted by their squares."""
    products = np.linalg.eigvalsh(np.cov(x, rowvar=False, ddof=0).reshape(x.shape[1], -1))
    total = products.sum() ** 2
    return float((products**2).sum() / total) if total > 0 else 1.0


def _evenly(values: list[float], counts: list[int]) -> np.ndarray:
    """The groups' values, scaled by their shares so that their plain mean is the batch's."""
    shares = np.array(counts) * len(counts) / sum(counts)
    return np.array(values) * shares


def _angles(x: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray, float]:
    """√(E x²·E y²), its excess over E xy, by groups of pairs of like angle; Var of the cosine."""
    products = x @ x.T / x.shape[1]
    lengths = np.sqrt(np.diag(products))
    pairs = np.triu_indices(len(x), k=1)
    if not len(pairs[0]):
        return lengths[:1] ** 2, np.zeros(1), 0.0
    sizes = np.outer(lengths, lengths)[pairs]
    gaps = sizes - products[pairs]
    order = np.argsort(gaps / sizes)
    parts = np.array_split(order, min(groups, len(order)))
    return (
        np.array([sizes[part].mean() for part in parts]),
        np.array([gaps[part].mean() for part in parts]),
        float(np.var(gaps / sizes)),
    )


# ---------------------------------------------------------------- weights or biases of nonzero mean


def _follow_shifted(
    experiment: Predictable, layers: Sequence[Affine], phi: Activation
) -> list[_Row]:
    """Means over inputs, each of which all units see through the sum over its features."""
    inputs = _sums(experiment.data, experiment.batch_size, layers[0].inputs, experiment.data_seed)
    walks = [shifted_forward(at, layers, phi, not experiment.has_head) for at in inputs]
    reached = min(len(walk) for walk in walks)
    total = 0.0 if experiment.has_head else float(layers[-1].outputs)  # Σ (softmax − y) is 0
    back = [shifted_backward(w, layers, total) for w in walks] if reached == len(layers) else []

    def mean(values: Sequence[float]) -> PredictedStats | None:
        average = math.fsum(at.weight * v for at, v in zip(inputs, values, strict=True))
        return PredictedStats(average) if math.isfinite(average) else None

    def gradient(index: int, place: str) -> PredictedStats | None:
        if not back:
            return None
        at = [getattr(rows[index], place) for rows, _ in back]
        return mean([each.second_moment for each in at])

    at_input = mean([below.second_moment for _, below in back]) if back else None
    rows = [_Row(mean([at.second_moment for at in inputs]), at_input)]
    for index in range(reached):
        steps = [walk[index] for walk in walks]
        before = mean([step.mean**2 + step.var for step in steps])
        rows.append(_Row(before, gradient(index, "before")))
        after = [step.after.second_moment for step in steps if step.after is not None]
        if after:
            rows.append(_Row(mean(after), gradient(index, "after")))
        if after and steps[0].keep != 1:
            kept = [second / steps[0].keep for second in after]
            rows.append(_Row(mean(kept), gradient(index, "read")))
    return rows


@lru_cache(maxsize=64)
def _sums(data: str, batch_size: int, features: int, seed: int) -> tuple[Shared, ...]:
    if data == "noise":
        edges = np.concatenate([-_SUMS[::-1], [0.0], _SUMS])
        nodes, weights = np.polynomial.legendre.leggauss(3)
        half = np.diff(edges)[:, None] / 2
        sums = (edges[:-1, None] + half + half * nodes).ravel()
        density = (half * weights).ravel() * np.exp(-(sums**2) / 2)
        return tuple(
            Shared(at / math.sqrt(features), 1.0, share)
            for at, share in zip(sums.tolist(), (density / density.sum()).tolist(), strict=True)
        )
    x = batch(data, batch_size, images=False, features=features, seed=seed).inputs.double()
    means, squares = x.mean(dim=1).tolist(), x.square().mean(dim=1).tolist()
    return tuple(Shared(m, q, 1 / len(means)) for m, q in zip(means, squares, strict=True))


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
