"""One layer and the scheme that draws it, as plain values; and what was drawn."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import skip_init

from initlab.activations import activation
from initlab.errors import finite_number, positive_int, seed_number, unknown_name
from initlab.initialize import InitRow, init_
from initlab.schemes import SCHEMES, Fans, Scheme, scheme
from initlab.weights.laws import Ensemble, WeightLaw, singular_value_law, weight_law

MOST_WEIGHTS = 2_000_000
"""Of a larger matrix the singular values take seconds."""


@dataclass(frozen=True)
class LayerKind:
    """A kind of layer: its class, the fields of a LayerDraw that say its size, and its call."""

    module: type[nn.Module]
    sizes: tuple[str, ...]
    call: Callable[[Any], str]


def _convolution(module: type[nn.Module]) -> LayerKind:
    def call(of: LayerDraw) -> str:
        groups = f", groups={of.groups}" if of.groups > 1 else ""
        return (
            f"nn.{module.__name__}({of.in_channels}, {of.out_channels}, {of.kernel_size}{groups})"
        )

    return LayerKind(module, ("in_channels", "out_channels", "kernel_size", "groups"), call)


LAYER_KINDS: Mapping[str, LayerKind] = MappingProxyType(
    {
        "Linear": LayerKind(
            nn.Linear,
            ("in_features", "out_features"),
            lambda of: f"nn.Linear({of.in_features}, {of.out_features})",
        ),
        **{each.__name__: _convolution(each) for each in (nn.Conv1d, nn.Conv2d, nn.Conv3d)},
    }
)
"""The layers to choose from."""


@dataclass(frozen=True)
class LayerDraw:
    """Everything that says how one layer is drawn.

    Args:
        scheme: a tensor-level name of ``SCHEMES``.
        scheme_params: values of its parameters; its defaults if None.
        layer: a name of ``LAYER_KINDS``; the sizes that it does not have are not used.
        in_features, out_features: of a Linear layer.
        in_channels, out_channels, kernel_size, groups: of a convolution.
        activation: the one whose output the layer reads; decides the gain of some schemes.
        gain: overrules the scheme's own.
        seed: equal seeds draw equal weights, those that ``code()`` draws.

    Raises:
        ValueError: an unknown name, a size below 1 or above what can be shown, groups that do not
            divide the channels, or a scheme that cannot fill this layer.
        TypeError: a size or seed that is not a whole number, or a parameter that the scheme lacks.

    >>> LayerDraw("xavier_normal", layer="Conv2d", out_channels=16).code().splitlines()[3:]
    ['layer = nn.Conv2d(64, 16, 3)', 'torch.manual_seed(0)', \
'nn.init.xavier_normal_(layer.weight)', 'nn.init.zeros_(layer.bias)']
    """

    scheme: str = "kaiming_normal"
    scheme_params: Mapping[str, Any] | None = None
    layer: str = "Linear"
    in_features: int = 256
    out_features: int = 256
    in_channels: int = 64
    out_channels: int = 64
    kernel_size: int = 3
    groups: int = 1
    activation: str = "relu"
    gain: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.layer not in LAYER_KINDS:
            raise unknown_name("layer", self.layer, LAYER_KINDS)
        for size in self.kind.sizes:
            positive_int(size, getattr(self, size))
        self._check_groups()
        seed_number(self.seed, least=0)
        if self.gain is not None:
            finite_number("gain", self.gain, positive=True)
        activation(self.activation)
        count = self.maps * math.prod(self.map_shape)
        if count > MOST_WEIGHTS:
            raise ValueError(
                f"{self.describe()} has {count:,} weights; at most {MOST_WEIGHTS:,} are shown"
            )
        if reason := self.chosen.why_not(self.map_shape):
            raise ValueError(reason)
        # Parameters at their defaults go without saying, so that equal draws are equal.
        defaults = SCHEMES[self.scheme].values
        own = {name: value for name, value in self.chosen.values.items() if value != defaults[name]}
        object.__setattr__(self, "scheme_params", MappingProxyType(own))

    def _check_groups(self) -> None:
        if self.layer == "Linear":
            return
        for channels in ("in_channels", "out_channels"):
            if getattr(self, channels) % self.groups:
                raise ValueError(
                    f"groups={self.groups} must divide {channels}={getattr(self, channels)}"
                )

    @property
    def kind(self) -> LayerKind:
        return LAYER_KINDS[self.layer]

    @property
    def chosen(self) -> Scheme:
        """The scheme with its parameters' values."""
        return scheme(self.scheme, **(self.scheme_params or {}))

    @property
    def maps(self) -> int:
        """The independent maps in the weight: the groups of a convolution."""
        return 1 if self.layer == "Linear" else self.groups

    @property
    def map_shape(self) -> tuple[int, ...]:
        """Of one map's weight."""
        if self.layer == "Linear":
            return self.out_features, self.in_features
        taps = (self.kernel_size,) * int(self.layer[-2])
        return self.out_channels // self.groups, self.in_channels // self.groups, *taps

    @property
    def used_gain(self) -> float:
        """ValueError where the scheme needs what the activation does not have."""
        if self.gain is not None and self.chosen.set_gain is None:
            return self.gain
        return self.chosen.gain_with(self.activation)

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes that can fill this layer, or could with other parameters."""
        return tuple(name for name in SCHEMES if not self._refusal(name))

    @property
    def left_out(self) -> Mapping[str, str]:
        """The other schemes → why they cannot fill this layer."""
        return {name: reason for name in SCHEMES if (reason := self._refusal(name))}

    def _refusal(self, name: str) -> str:
        own = name == self.scheme
        return (self.chosen if own else SCHEMES[name]).why_not(self.map_shape)

    def replace(self, **changes: Any) -> LayerDraw:
        """The same with other fields; another scheme comes with its own defaults."""
        if changes.get("scheme", self.scheme) != self.scheme:
            changes.setdefault("scheme_params", None)
        return dataclasses.replace(self, **changes)

    def describe(self) -> str:
        """The layer in one phrase."""
        return self.kind.call(self).removeprefix("nn.")

    def draw(self) -> DrawnLayer:
        """Draw the layer; nobody's random numbers are used up.

        Raises:
            ValueError: critical, where the activation has no critical point.
        """
        # A layer's own constructor would draw from torch's global generator.
        sizes = {size: getattr(self, size) for size in self.kind.sizes}
        layer = skip_init(self.kind.module, **sizes)
        generator = torch.Generator().manual_seed(self.seed)
        report = init_(
            layer, self.chosen, activation=self.activation, gain=self.gain, seed=generator
        )
        weight = layer.get_parameter("weight").detach()
        maps = weight.flatten(1).unflatten(0, (self.maps, -1))
        values = torch.linalg.svdvals(maps).flatten().sort(descending=True).values
        mean = self.chosen.mean_of(self.map_shape, gain=self.used_gain)
        rows, taps = self.map_shape[0], math.prod(self.map_shape[2:])
        row = report["weight"]
        fans = Fans(self.map_shape[1] * taps, rows * taps, self.used_gain, rows)
        ensemble = Ensemble(self.chosen, fans, mean, row.intended_std or 0.0)
        return DrawnLayer(weight.flatten(1).numpy(), row, values.numpy(), ensemble, self.maps)

    def code(self) -> str:
        """The PyTorch lines that draw the same; where torch draws in the same order, the same
        numbers."""
        chosen = self.chosen
        lines = chosen.code("layer", gain=self.used_gain)
        if self._needs_map_by_map():
            weight, bias = chosen.weight_code("part", self.used_gain), lines.splitlines()
            bias = bias[len(chosen.weight_code("layer.weight", self.used_gain).splitlines()) :]
            lines = (
                "with torch.no_grad():\n"
                "    for part in layer.weight.chunk(layer.groups):  # each group is a map\n"
                f"{textwrap.indent(weight, 8 * ' ')}\n" + "\n".join(bias)
            )
        return (
            "import torch\nfrom torch import nn\n\n"
            f"layer = {self.kind.call(self)}\ntorch.manual_seed({self.seed})\n{lines}\n"
        )

    def _needs_map_by_map(self) -> bool:
        """Whether what is written for the whole weight would take the groups for one map."""
        if self.maps == 1:
            return False
        whole = (self.maps * self.map_shape[0], *self.map_shape[1:])
        if self.chosen.ensemble in ("orthogonal", "structured"):
            return True
        std_of, gain = self.chosen.std_of, self.used_gain
        return not math.isclose(std_of(whole, gain=gain), std_of(self.map_shape, gain=gain))


@dataclass(frozen=True, eq=False)
class DrawnLayer:
    """What was drawn, and what should have been.

    Attributes:
        matrix: the weights, float32, outputs × inputs·taps.
        row: ``init_``'s report of them.
        singular_values: of all maps, from large to small.
        ensemble: what is known of each map.
        maps: how many maps there are.
    """

    matrix: np.ndarray
    row: InitRow
    singular_values: np.ndarray
    ensemble: Ensemble
    maps: int

    @cached_property
    def law(self) -> WeightLaw | None:
        """Of one weight."""
        return weight_law(self.ensemble)

    @cached_property
    def expected(self) -> tuple[str, np.ndarray] | None:
        """The name of the law of the singular values, and what it expects."""
        return singular_value_law(self.ensemble, self.maps)
