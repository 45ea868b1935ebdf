"""predict(): what theory says for every site of an experiment.

Forward, layer by layer: E h² = fan_in·Var(W)·E φ²(√q z) + Var(b) (He et al. 2015, eq. 7, for any
activation). Backward, from the output down: E δ² = E φ'²(√q z)·fan_out·Var(W)·E δ'² (eq. 13). Both
hold at infinite width for independent zero-mean weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol, overload

from initlab.activations import Activation, activation
from initlab.data import batch
from initlab.errors import unknown_name
from initlab.schemes import Scheme, scheme

_GROUPS = 8
"""Inputs of unequal length are represented by this many groups of equal size."""

_OVERFLOW = 1e290  # beyond it squares leave float64


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
    """What theory says of one tensor: E x² over batch and units, at infinite width.

    ``across_samples_var``, ``low`` and ``high`` are None where theory does not give them.
    """

    second_moment: float
    across_samples_var: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class PredictedSite:
    """One site of the trace by name; ``backward`` is relative to the output's gradient."""

    name: str
    kind: str
    depth: int
    forward: PredictedStats | None
    backward: PredictedStats | None
    reason: str = ""


@dataclass(frozen=True)
class Prediction:
    """Theory's counterpart of a Trace: its sites in order, or the ``reason`` why there are none."""

    sites: tuple[PredictedSite, ...]
    reason: str = ""

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


@dataclass(frozen=True)
class _Layer:
    """One affine layer as theory knows it; forward and backward factors of its weights."""

    name: str
    act: str | None
    forward_factor: float  # fan_in · Var(W)
    backward_factor: float  # fan_out · Var(W)
    bias_var: float


def predict(experiment: Predictable) -> Prediction:
    """What theory says for every site that ``experiment.run()`` will measure.

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
    groups = _input_second_moments(
        experiment.data, experiment.batch_size, experiment.sizes[0], experiment.data_seed
    )
    phi = activation(experiment.activation)
    runs = [_propagate(phi, layers, q) for q in groups]
    forward = _mean_columns([run[0] for run in runs])
    backward = _mean_columns([run[1] for run in runs])
    return Prediction(tuple(_sites(layers, forward, backward)))


def prescribed(experiment: Predictable) -> tuple[Scheme, float, Any]:
    """An experiment's scheme, and the gain and the bias with which it is used there."""
    chosen = scheme(experiment.scheme, **(experiment.scheme_params or {}))
    gain = chosen.gain_with(experiment.activation) if experiment.gain is None else experiment.gain
    return chosen, gain, chosen.bias if experiment.bias is None else experiment.bias


def _silent(experiment: Predictable, chosen: Scheme) -> str:
    """Why theory says nothing of this experiment, or an empty string."""
    if experiment.architecture != "mlp":
        return f"No theory is drawn for the architecture {experiment.architecture!r} yet."
    if experiment.norm != "none":
        return "No theory is drawn: normalization rescales every layer by what it measures."
    if chosen.ensemble == "constant" and chosen.weight_mean(1, 1) != 0:
        return "No theory is drawn: equal weights make all units equal, so nothing is Gaussian."
    if chosen.ensemble == "structured":
        return "No theory is drawn: it is for independent weights, and these have a structure."
    if chosen.weight_mean(1, 1) != 0:
        return "No theory is drawn: the theory is for weights of mean 0, and these have another."
    if isinstance(experiment.bias, int | float) and experiment.bias != 0:
        return "No theory is drawn: a constant bias shifts the pre-activations' mean away from 0."
    return ""


def _layers(experiment: Predictable, chosen: Scheme, gain: float, bias: Any) -> list[_Layer]:
    sizes = experiment.sizes
    bias_std = chosen.bias_std if experiment.bias is None else experiment.bias_std
    layers = []
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        head = experiment.has_head and index == len(sizes) - 1
        variance = chosen.weight_std(fan_in, fan_out, gain) ** 2
        layers.append(
            _Layer(
                "head" if head else f"linear{index}",
                None if head else f"act{index}",
                fan_in * variance,
                fan_out * variance,
                _bias_variance(bias, bias_std, fan_in),
            )
        )
    return layers


def _bias_variance(bias: Any, bias_std: float | None, fan_in: int) -> float:
    if bias == "pytorch_default":
        return 1 / (3 * fan_in)
    if bias == "normal":
        return float(bias_std or 0.0) ** 2
    return 0.0


@lru_cache(maxsize=64)
def _input_second_moments(
    data: str, batch_size: int, features: int, seed: int
) -> tuple[float, ...]:
    """E x² of the inputs: 1 for noise, the groups' means of the samples' own for real data."""
    if data == "noise":
        return (1.0,)
    inputs = batch(data, batch_size, images=False, features=features, seed=seed).inputs.double()
    lengths = inputs.square().mean(dim=1).sort().values
    return tuple(float(part.mean()) for part in lengths.tensor_split(min(_GROUPS, batch_size)))


def _propagate(phi: Activation, layers: list[_Layer], q: float) -> tuple[list[float], list[float]]:
    """Second moments along [input, h_1, a_1, …, output]: of the signal, and of its gradient.

    Where the signal leaves the range of floats, it is inf from there on, and its gradient nan.
    """
    forward, slopes = [q], []
    for layer in layers:
        signal = layer.forward_factor * forward[-1] + layer.bias_var
        moments = phi.moments(signal) if layer.act and signal < _OVERFLOW else None
        forward.append(signal if signal < _OVERFLOW else math.inf)
        if layer.act is not None:
            forward.append(moments.second_moment if moments else math.inf)
        slopes.append(moments.derivative_second_moment if moments else math.nan)
    return forward, _backward(layers, slopes)


def _backward(layers: list[_Layer], slopes: list[float]) -> list[float]:
    gradient = [1.0]
    for index in range(len(layers) - 1, -1, -1):
        layer = layers[index]
        if layer.act is not None:
            gradient.append(gradient[-1] * slopes[index])
        gradient.append(gradient[-1] * layer.backward_factor)
    return gradient[::-1]


def _mean_columns(runs: list[list[float]]) -> list[float]:
    return [math.fsum(column) / len(runs) for column in zip(*runs, strict=True)]


def _sites(
    layers: list[_Layer], forward: list[float], backward: list[float]
) -> Iterator[PredictedSite]:
    names = [("input", "input", 0)]
    for depth, layer in enumerate(layers, start=1):
        names.append((layer.name, "affine", depth))
        if layer.act is not None:
            names.append((layer.act, "activation", depth))
    names.append(("output", "output", len(layers)))
    rows = zip(names, [*forward, forward[-1]], [*backward, backward[-1]], strict=True)
    for (name, kind, depth), signal, gradient in rows:
        if math.isfinite(signal):
            yield PredictedSite(
                name,
                kind,
                depth,
                PredictedStats(signal),
                PredictedStats(gradient) if math.isfinite(gradient) else None,
                "" if math.isfinite(gradient) else "The forward signal overflows further on.",
            )
        else:
            yield PredictedSite(name, kind, depth, None, None, "The signal overflows here.")
