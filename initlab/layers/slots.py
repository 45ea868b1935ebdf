"""Which parameter belongs to which layer, what it does there, and with which true fans.

``torch.nn.init`` reads fans off a tensor's shape, which misleads it for transposed, grouped and
depthwise convolutions and for stacked matrices (attention's ``in_proj``, the gates of recurrent
layers). The layer knows better. A new kind of layer is one entry in ``LAYERS``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm

Role = Literal["weight", "recurrent", "bias", "second bias", "embedding", "hooked", "kept", "own"]
WEIGHTS = ("weight", "recurrent")
BIASES = ("bias", "second bias")
Law = tuple[str, Mapping[str, float]]
"""A scheme's name and its parameters."""
Split = Callable[[Tensor], list[Tensor]]

ZEROS: Law = ("zeros", {})


def _uniform(bound: float) -> Law:
    return "uniform", {"low": -bound, "high": bound}


def _over_root(fan: float) -> Law:
    """U(±1/√fan), and 0 for a layer that reads nothing."""
    return _uniform(fan**-0.5) if fan else ZEROS


def _whole(weight: Tensor) -> list[Tensor]:
    return [weight]


def _stacked(count: int) -> Split:
    """Matrices that are stacked along the rows, as gates and attention's projections are."""
    return lambda weight: list(weight.chunk(count))


@dataclass(frozen=True)
class Part:
    """What one parameter does in its kind of layer.

    Attributes:
        role: "weight", "recurrent" (from step to step), "bias", "second bias" (added to the first),
            "embedding", "hooked" (what a hook computes the weight from), "kept" (torch's own, left
            alone) or "own" (of a user's module).
        fan_in: terms that one output sums up.
        fan_out: outputs that one input enters, on average over inputs.
        default: what torch fills it with, as a scheme.
        split: the separate maps in it, as views of shape (outputs, inputs, *kernel).
        gates: how many gates are stacked in it.
        inner: whether it reads what its own layer has computed.
    """

    role: Role
    fan_in: float | None = None
    fan_out: float | None = None
    default: Law | None = None
    split: Split = field(default=_whole, repr=False)
    gates: int = 1
    inner: bool = False


Parts = Mapping[str, Part]


# ---------------------------------------------------------------- the kinds of layers


def _affine(fan_in: float, fan_out: float, default: Law, split: Split = _whole) -> Parts:
    """A weight and its bias, which torch draws alike."""
    return {
        "weight": Part("weight", fan_in, fan_out, default, split),
        "bias": Part("bias", fan_in, fan_out, default),
    }


def _linear(layer: nn.Linear) -> Parts:
    fan_in, fan_out = layer.in_features, layer.out_features
    return _affine(fan_in, fan_out, _over_root(fan_in))


def _attention_output(layer: nn.Linear) -> Parts:
    return {**_linear(layer), "bias": Part("bias", layer.in_features, layer.out_features, ZEROS)}


def _bilinear(layer: nn.Bilinear) -> Parts:
    """y = xᵀ W x′ sums in1·in2 products; torch's default knows of the first factor alone."""
    fan_in = layer.in1_features * layer.in2_features
    default = _over_root(layer.in1_features)
    return _affine(fan_in, layer.out_features, default, lambda weight: [weight.flatten(1)])


def _convolution(layer: nn.modules.conv._ConvNd) -> Parts:
    """An output reads C_in·k/groups inputs; an input enters C_out·k/(groups·stride) outputs."""
    taps, steps = math.prod(layer.kernel_size), math.prod(layer.stride)
    fan_in = layer.in_channels // layer.groups * taps
    fan_out = layer.out_channels * taps / (layer.groups * steps)
    return _affine(fan_in, fan_out, _over_root(fan_in), _stacked(layer.groups))


def _transposed_convolution(layer: nn.modules.conv._ConvTransposeNd) -> Parts:
    """The weight is C_in × C_out/groups × k; with stride s an output reads k/s positions.

    Torch's default takes C_out·k/groups for the fan_in: the two are swapped.
    """
    taps, steps = math.prod(layer.kernel_size), math.prod(layer.stride)
    fan_in = layer.in_channels * taps / (layer.groups * steps)
    fan_out = layer.out_channels // layer.groups * taps
    return _affine(fan_in, fan_out, _over_root(fan_out), _phases(layer.groups, layer.stride))


def _phases(groups: int, stride: Sequence[int]) -> Split:
    """The maps of a transposed convolution: a group's outputs at each position modulo the stride
    read taps of their own."""

    def split(weight: Tensor) -> list[Tensor]:
        offsets = list(itertools.product(*(range(step) for step in stride)))
        return [
            part
            for group in weight.chunk(groups)
            for offset in offsets
            if (part := _every(group, offset, stride).transpose(0, 1)).numel()
        ]

    return split


def _every(weight: Tensor, offset: Sequence[int], stride: Sequence[int]) -> Tensor:
    taps = (slice(start, None, step) for start, step in zip(offset, stride, strict=True))
    return weight[(slice(None), slice(None), *taps)]


def _recurrent(layer: nn.RNNBase | nn.RNNCellBase) -> Parts:
    """Every gate is a matrix of its own; torch draws all of a layer from U(±1/√hidden)."""
    hidden = layer.hidden_size
    gates = next((count for kinds, count in _GATES if isinstance(layer, kinds)), 1)
    default = _over_root(hidden)
    bias = {"fan_in": hidden, "fan_out": hidden, "default": default, "gates": gates}
    parts: dict[str, Part] = {}
    for end, reads, inner in _recurrent_inputs(layer):
        gated = {"default": default, "split": _stacked(gates), "gates": gates}
        passed_on = getattr(layer, "proj_size", 0) or hidden
        parts[f"weight_ih{end}"] = Part("weight", reads, hidden, inner=inner, **gated)
        parts[f"weight_hh{end}"] = Part("recurrent", passed_on, hidden, inner=True, **gated)
        parts[f"weight_hr{end}"] = Part("weight", hidden, passed_on, default, inner=True)
        parts[f"bias_ih{end}"] = Part("bias", **bias)
        parts[f"bias_hh{end}"] = Part("second bias", **bias)
    return parts


_GATES = (((nn.LSTM, nn.LSTMCell), 4), ((nn.GRU, nn.GRUCell), 3))


def _recurrent_inputs(layer: nn.RNNBase | nn.RNNCellBase) -> Iterator[tuple[str, int, bool]]:
    """The ends of the parameters' names, how much those weights read, and whether of the layer."""
    if isinstance(layer, nn.RNNCellBase):
        yield "", layer.input_size, False
        return
    directions = ("", "_reverse") if layer.bidirectional else ("",)
    stacked = (layer.proj_size or layer.hidden_size) * len(directions)
    for depth, direction in itertools.product(range(layer.num_layers), directions):
        yield f"_l{depth}{direction}", stacked if depth else layer.input_size, depth > 0


def _attention(layer: nn.MultiheadAttention) -> Parts:
    """Query, key and value are three projections, stacked where their inputs are equally wide.

    Torch draws them by xavier_uniform of the tensor that holds them, stacked or not.
    """
    width = layer.embed_dim
    apart = {"q": width, "k": layer.kdim, "v": layer.vdim}
    return {
        "in_proj_weight": Part("weight", width, width, _xavier(3 * width, width), _stacked(3)),
        **{
            f"{letter}_proj_weight": Part("weight", fan_in, width, _xavier(width, fan_in))
            for letter, fan_in in apart.items()
        },
        "in_proj_bias": Part("bias", width, width, ZEROS),
        "bias_k": Part("kept"),
        "bias_v": Part("kept"),
    }


def _xavier(rows: int, columns: int) -> Law:
    return _uniform(math.sqrt(6 / (rows + columns)))


def _embedding(layer: nn.Embedding | nn.EmbeddingBag) -> Parts:
    """A look-up adds nothing up: every output is one weight."""
    default: Law = ("normal", {"mean": 0.0, "std": 1.0})
    return {"weight": Part("embedding", 1, layer.embedding_dim, default)}


LAYERS: Mapping[type[nn.Module], Callable[[Any], Parts]] = {
    NonDynamicallyQuantizableLinear: _attention_output,
    nn.Linear: _linear,
    nn.Bilinear: _bilinear,
    nn.modules.conv._ConvTransposeNd: _transposed_convolution,
    nn.modules.conv._ConvNd: _convolution,
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _recurrent,
    nn.MultiheadAttention: _attention,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding,
}
"""Every kind of layer that schemes can reach; a subclass counts as its nearest ancestor."""


def parts_of(layer: nn.Module) -> Parts:
    """What each parameter of this layer does; empty where the layer is of no known kind.

    >>> parts_of(nn.ConvTranspose2d(64, 128, 4, stride=2))["weight"].fan_in
    256.0
    """
    kind = _known_kind(layer)
    return {} if kind is None or not _has_shape(layer) else LAYERS[kind](layer)


def is_layer(module: nn.Module) -> bool:
    """Whether schemes can reach it."""
    return _known_kind(module) is not None


def _known_kind(module: nn.Module) -> type[nn.Module] | None:
    return next((kind for kind in type(module).__mro__ if kind in LAYERS), None)


# ---------------------------------------------------------------- the parameters of a model


@dataclass(frozen=True, eq=False)
class Slot:
    """One tensor of a model that could be drawn: a parameter, or what parametrizations make of it.

    Attributes:
        layer, key: dotted name of the module, and the tensor's name in it.
        module: the layer.
        names, parameters: what is behind it, as in ``model.named_parameters()``.
        aliases: further names under which tied weights are reached.
        part: what it does in its layer.
        parametrized: whether the layer computes it from the parameters (weight_norm, …).
    """

    layer: str
    key: str
    module: nn.Module
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    aliases: tuple[str, ...]
    part: Part
    parametrized: bool

    @property
    def name(self) -> str:
        return f"{self.layer}.{self.key}" if self.layer else self.key

    @property
    def tensor(self) -> Tensor:
        """The parameter; of a parametrized tensor its value, computed without side effects."""
        if not self.parametrized:
            return getattr(self.module, self.key)
        chain: nn.Module = self.module.parametrizations[self.key]  # type: ignore[index]
        modes = [(part, part.training) for part in chain.modules()]
        chain.eval()  # spectral_norm would iterate its vectors
        try:
            return getattr(self.module, self.key).detach()
        finally:
            for part, training in modes:
                part.training = training

    @property
    def spectral(self) -> bool:
        """Whether spectral_norm computes it, from vectors that it improves in training mode."""
        if not self.parametrized:
            return False
        chain: nn.Module = self.module.parametrizations[self.key]  # type: ignore[index]
        return any(isinstance(part, _SpectralNorm) for part in chain.children())

    @property
    def kind(self) -> str:
        """The class of the layer, as its author named it."""
        return type(self.module).__name__.removeprefix("Parametrized")

    def layer_names(self) -> Iterator[str]:
        """The dotted names of the layers and containers around it, aliases included; "" is the
        model."""
        for name in (self.name, *self.aliases):
            while name:
                name = name.rpartition(".")[0]
                yield name

    @torch.no_grad()
    def write(self, values: Tensor) -> None:
        """Give the tensor these values; a parametrized one through its parametrization.

        The parameters keep their memory, which torch would exchange for new.
        """
        if not self.parametrized:
            self.tensor.copy_(values)
            return
        memory = [(parameter, parameter.data) for parameter in self.parameters]
        setattr(self.module, self.key, values)
        _give_zeros_a_direction(self)
        possible = bool(self.tensor.isfinite().all())
        for parameter, old in memory:
            parameter.data = old.copy_(parameter.data) if possible else old
        if not possible:
            raise ValueError(
                f"{self.name!r} is computed by a parametrization that cannot give it these "
                "values, as spectral_norm cannot make a weight 0; give it another scheme with "
                "overrides=…, or leave it out with only=…"
            )


def _give_zeros_a_direction(slot: Slot) -> None:
    """weight_norm computes g·v/‖v‖: where that is 0, g is, but ‖v‖ must not be."""
    chain = slot.module.parametrizations[slot.key]  # type: ignore[index]
    if [type(each) for each in chain] == [_WeightNorm]:
        size, direction = slot.parameters
        direction.masked_fill_((size == 0).expand_as(direction), 1.0)


def slots_of(model: nn.Module) -> list[Slot]:
    """Every tensor of the model that could be drawn, in the order of its parameters.

    Tied ones come once, under their first name: they are one parameter, or share their memory.

    >>> [slot.name for slot in slots_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))]
    ['0.weight', '0.bias']
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    names: dict[nn.Parameter, list[str]] = {}
    first_in: dict[object, nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = first_in.setdefault(_memory(parameter), parameter)
        names.setdefault(first, []).append(name)
    behind: dict[tuple[str, str], list[nn.Parameter]] = {}
    for parameter, (first, *_) in names.items():
        behind.setdefault(_owner(first), []).append(parameter)
    parts = {layer: parts_of(modules[layer]) for layer, _ in behind}
    return [
        Slot(
            layer,
            key,
            modules[layer],
            tuple(names[parameter][0] for parameter in parameters),
            tuple(parameters),
            tuple(names[parameters[0]][1:]),
            parts[layer].get(key) or Part(_other_role(modules[layer], key, parts[layer])),
            ".parametrizations." in f".{names[parameters[0]][0]}",
        )
        for (layer, key), parameters in behind.items()
    ]


def _memory(parameter: nn.Parameter) -> object:
    """Equal for parameters that are one, and for those that were tied through their ``.data``."""
    waiting = isinstance(parameter, nn.parameter.UninitializedParameter)
    if waiting or parameter.layout is not torch.strided or not parameter.numel():
        return id(parameter)
    return parameter.data_ptr(), parameter.shape, parameter.stride()


def _owner(name: str) -> tuple[str, str]:
    """The layer and the tensor's name in it: behind ``fc.parametrizations.weight.original0``
    stands the weight of ``fc``."""
    if ".parametrizations." in f".{name}":
        layer, _, rest = f".{name}".partition(".parametrizations.")
        return layer[1:], rest.partition(".")[0]
    layer, _, key = name.rpartition(".")
    return layer, key


def _has_shape(module: nn.Module) -> bool:
    """Whether it is not a lazy module that still waits for its first input."""
    uninitialized = nn.parameter.UninitializedParameter
    return not any(isinstance(each, uninitialized) for each in module._parameters.values())


def _other_role(module: nn.Module, key: str, parts: Parts) -> Role:
    """What a parameter is that its kind of layer does not have, or whose layer is of no known kind.

    Parameters of torch's other modules (norms, PReLU, …) are kept; others are their owner's.
    """
    if parts:
        replaced = key.rpartition("_")[0]  # weight_v and weight_g, or weight_orig
        return "hooked" if replaced in parts and replaced not in module._parameters else "own"
    homes = {kind.__module__ for kind in type(module).__mro__} - _NO_HOMES
    return "kept" if any(home.startswith("torch.nn.modules.") for home in homes) else "own"


_NO_HOMES = {"torch.nn.modules.module", "torch.nn.modules.container"}


def why_untouchable(slot: Slot) -> str:
    """Why the tensor cannot be drawn in place; an empty string where it can."""
    for parameter in slot.parameters:
        if not (parameter.is_floating_point() or parameter.is_complex()):
            return f"parameter {slot.name!r} is of {parameter.dtype}: only floats can be drawn"
        layout = zip(parameter.shape, parameter.stride(), strict=True)
        if any(size > 1 and step == 0 for size, step in layout):
            return (
                f"parameter {slot.name!r} is expanded: several of its elements share one place in "
                "memory; give its layer nn.Parameter(tensor.contiguous())"
            )
    if slot.part.role == "hooked":
        return (
            f"parameter {slot.name!r}: a hook computes the layer's own from it (the old "
            "torch.nn.utils.weight_norm or spectral_norm, or pruning), so that what is drawn would "
            "not be what is used; initialize first, or use torch.nn.utils.parametrizations"
        )
    return _why_not_assignable(slot) if slot.parametrized else ""


def _why_not_assignable(slot: Slot) -> str:
    """A weight computed by a parametrization can be set only where that can be inverted."""
    assert isinstance(slot.module.parametrizations, nn.ModuleDict)
    chain = slot.module.parametrizations[slot.key]
    assert isinstance(chain, parametrize.ParametrizationList)
    for parametrization in chain:
        title = type(parametrization).__name__.strip("_")
        if not hasattr(parametrization, "right_inverse"):
            return f"{slot.name!r} is computed by {title}, which cannot be inverted"
        if title == "Orthogonal":
            return (
                f"{slot.name!r} is kept orthogonal by its parametrization; "
                "initialize the layer before registering it"
            )
    return ""


def quantized_layers(model: nn.Module) -> list[str]:
    """The names of layers whose weights are packed integers and no parameters."""
    return [
        name
        for name, module in model.named_modules()
        if hasattr(module, "_packed_params") or "quantized" in type(module).__module__.split(".")
        if not list(module.parameters(recurse=False)) and hasattr(module, "weight")
    ]
