"""Schemes that look at the whole model: its residual branches, its depth, or a batch of data.

Each draws every tensor by its ``base`` scheme and then adjusts what was drawn, through the
``DrawnModel`` that ``init_`` hands it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from initlab.layers import WEIGHTS, Branch, Slot
from initlab.schemes.entry import Fans, Parameter, Scheme


@dataclass(frozen=True)
class DrawnModel:
    """A model whose tensors have been drawn, as a whole-model scheme sees and adjusts it.

    Attributes:
        model: the module.
        slots: every tensor that could be drawn, in order of execution where that is known.
        drawn: the names of those that the scheme has drawn; all others are left alone.
        branches: the residual branches, each the names of its layers in order.
        scalars: the parameters of one element that the model holds itself.
        forward: runs the batch through the model, leaving modes, buffers and generators alone.
        factors: what the drawn values were multiplied by, or what replaced them, by tensor name.
        constants: the same for tensors that were filled with one value.
        notes: what else is to be said of a tensor.
        lr_multipliers: optimizer → parameter → factor of the learning rate.
    """

    model: nn.Module
    slots: Sequence[Slot]
    drawn: Collection[str]
    branches: Sequence[Branch]
    scalars: Sequence[Slot]
    forward: Callable[[], None]
    factors: dict[str, float] = field(default_factory=dict)
    constants: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    lr_multipliers: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def weights(self) -> list[Slot]:
        """Those that the scheme has drawn."""
        return [s for s in self.slots if s.part.role in WEIGHTS and s.name in self.drawn]

    @property
    def layers(self) -> list[str]:
        """The names of all layers with weights, drawn or not."""
        return list(dict.fromkeys(s.layer for s in self.slots if s.part.role in WEIGHTS))

    def layer(self, name: str) -> list[Slot]:
        """The drawn weights of the layer of that name."""
        return [slot for slot in self.weights if slot.layer == name]

    @torch.no_grad()
    def scale(self, slot: Slot, factor: float) -> None:
        """Multiply a drawn tensor."""
        slot.write(slot.tensor * factor)
        self.factors[slot.name] = self.factors.get(slot.name, 1.0) * factor

    def multiply_lr(self, slot: Slot, **factors: float) -> None:
        """Note by how much each optimizer's learning rate is to be multiplied for a tensor."""
        for optimizer, factor in factors.items():
            noted = self.lr_multipliers.setdefault(optimizer, {})
            noted |= dict.fromkeys(slot.names, factor)

    def fill(self, slot: Slot, value: float) -> None:
        """Fill a tensor with one value."""
        slot.write(torch.full_like(slot.tensor, value))
        self.constants[slot.name] = value


# ---------------------------------------------------------------- what is adjusted


def _lsuv(model: DrawnModel, *, tolerance: float, iterations: float) -> None:
    """Mishkin & Matas 2016, algorithm 1: layer by layer, W ← W/√Var(output) until that is near 1.

    One pass does it: each layer is normalized before its output goes on.
    """

    def normalize(slot: Slot) -> Callable[..., Tensor | None]:
        def hook(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Tensor | None:
            if slot.name in seen or not isinstance(output, Tensor):
                return None
            seen.add(slot.name)
            for _ in range(int(iterations)):
                variance = float(output.double().var(correction=0))
                if abs(variance - 1) < tolerance:
                    break
                if not 0 < variance < math.inf:
                    raise ValueError(
                        f"lsuv: the output of layer {slot.layer!r} has variance {variance:g}, "
                        "which no factor brings to 1; is the batch constant, or the layer dead?"
                    )
                model.scale(slot, variance**-0.5)
                output = layer.forward(*args, **kwargs)
            return output

        return hook

    seen: set[str] = set()
    handles = [
        slot.module.register_forward_hook(normalize(slot), with_kwargs=True)
        for slot in model.weights
    ]
    try:
        model.forward()
    finally:
        for handle in handles:
            handle.remove()
    for slot in model.weights:
        if slot.name not in seen:
            model.notes[slot.name] = "as drawn: its layer was not called for one tensor"


def _fixup(model: DrawnModel) -> None:
    """Zhang et al. 2019, sec. 3, rules 1 and 2: L branches of m layers each.

    The last layer of every branch and the classifier are 0; the others in a branch are scaled by
    L^(−1/(2m − 2)).
    """
    for branch in model.branches:
        *inner, last = branch
        for name in inner:
            for slot in model.layer(name):
                model.scale(slot, len(model.branches) ** (-1 / (2 * len(branch) - 2)))
        for slot in model.layer(last):
            model.fill(slot, 0.0)
    last, inside = model.layers[-1], {name for branch in model.branches for name in branch}
    if last not in inside and not _on_shortcut(last, inside):
        for slot in model.layer(last):
            model.fill(slot, 0.0)


def _on_shortcut(layer: str, inside: Collection[str]) -> bool:
    """Whether its name stands closer to one branch than all branches to each other."""
    together = _shared(*inside)
    return any(_shared(layer, name) > together for name in inside)


def _shared(*names: str) -> int:
    """How many modules the dotted names begin with in common."""
    parts = zip(*(name.split(".") for name in names), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda each: len(set(each)) == 1, parts))


def _gate(model: DrawnModel, *, value: float = 0.0) -> None:
    """x + α·F(x) with α = value for every block."""
    for slot in model.scalars:
        model.fill(slot, value)


def _gpt2(model: DrawnModel, *, std: float) -> None:
    """Radford et al. 2019, sec. 2.3: residual projections scaled by 1/√N, N residual branches."""
    for branch in model.branches:
        for slot in model.layer(branch[-1]):
            model.scale(slot, len(model.branches) ** -0.5)


def _mup(model: DrawnModel, *, base_width: float) -> None:
    """Yang & Hu et al. 2021, table 3: variances 1/fan_in, of the output layer 1/fan_in².

    At ``base_width`` everything is as without µP: m = width/base_width is what counts.
    """
    first, last = _ends(model)
    for slot in (each for each in model.slots if each.part.role not in ("own", "hooked")):
        width_in, width_out = (width / base_width for width in _widths(slot))
        if slot.part.role not in WEIGHTS or slot.layer == first or _is_depthwise(slot.module):
            bounded = slot.layer == last or slot.tensor.numel() == 1
            model.multiply_lr(slot, adam=1.0, sgd=1.0 if bounded else width_out)
        else:
            sgd = 1 / width_in if slot.layer == last else 1.0
            model.multiply_lr(slot, adam=1 / width_in, sgd=sgd)
            if slot.layer == last and slot.name in model.drawn:
                model.scale(slot, width_in**-0.5)


def _ends(model: DrawnModel) -> tuple[str | None, str | None]:
    """The layers that read the input and give the output; None where an embedding does."""
    embeddings = [slot for slot in model.slots if slot.part.role == "embedding"]
    if not model.layers:
        return None, None
    leading = next(slot for slot in model.slots if slot.part.role in (*WEIGHTS, "embedding"))
    owners = [alias.rpartition(".")[0] for slot in embeddings for alias in slot.aliases]
    tied = any(isinstance(model.model.get_submodule(owner), nn.Linear) for owner in owners)
    last = None if tied else model.layers[-1]
    first = None if leading in embeddings or leading.layer == last else leading.layer
    return first, last


def _widths(slot: Slot) -> tuple[float, float]:
    """How many units or channels it reads and gives."""
    part, own = slot.part, float(slot.tensor.shape[-1] if slot.tensor.dim() else 1)
    fans = own if part.fan_in is None else part.fan_in, part.fan_out or own
    if isinstance(slot.module, nn.modules.conv._ConvNd):
        return slot.module.in_channels, slot.module.out_channels
    return fans


def _is_depthwise(module: nn.Module) -> bool:
    """Its sums do not grow with the width."""
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.in_channels > 1


# ---------------------------------------------------------------- the PyTorch lines

_LAYERS = "(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)"


def _draw_code(model: str, line: str, layers: str = _LAYERS, attention: bool = False) -> str:
    return (
        f"for layer in {model}.modules():\n"
        f"{_attention_code(line) if attention else ''}"
        f"    if isinstance(layer, {layers}):\n"
        f"        {line}\n"
        f"        if getattr(layer, 'bias', None) is not None:\n"
        f"            nn.init.zeros_(layer.bias)\n"
    )


def _attention_code(line: str) -> str:
    """The same for attention's input projections, which are no layers."""
    return (
        "    if isinstance(layer, nn.MultiheadAttention):\n"
        f"        {line.replace('layer.weight', 'layer.in_proj_weight')}\n"
        "        nn.init.zeros_(layer.in_proj_bias)\n"
    )


_HE = "nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')"


def _lsuv_code(model: str, gain: float, *, tolerance: float, iterations: float) -> str:
    return _draw_code(model, "nn.init.orthogonal_(layer.weight)") + (
        "\n\ndef normalize(layer, inputs, output):\n"
        f"    for _ in range({int(iterations)}):\n"
        f"        if abs(output.var(correction=0) - 1) < {tolerance!r}:\n"
        "            break\n"
        "        layer.weight.div_(output.std(correction=0))\n"
        "        output = layer.forward(*inputs)\n"
        "    return output\n\n\n"
        f"layers = [layer for layer in {model}.modules() if isinstance(layer, {_LAYERS})]\n"
        "hooks = [layer.register_forward_hook(normalize) for layer in layers]\n"
        "with torch.no_grad():\n"
        f"    {model}(batch)\n"
        "for hook in hooks:\n"
        "    hook.remove()"
    )


def _fixup_code(model: str, gain: float) -> str:
    return _draw_code(model, _HE) + (
        "for branch in branches:  # lists of the layers of each residual branch, in order\n"
        "    *inner, last = branch\n"
        "    for layer in inner:\n"
        "        with torch.no_grad():\n"
        "            layer.weight.mul_(len(branches) ** (-1 / (2 * len(branch) - 2)))\n"
        "    nn.init.zeros_(last.weight)\n"
        "nn.init.zeros_(classifier.weight)"
    )


def _gate_code(model: str, gain: float, *, value: float = 0.0) -> str:
    return _draw_code(model, _HE, attention=True) + (
        "for scalar in scalars:  # the learnable α of each block: x + α·F(x)\n"
        f"    nn.init.constant_(scalar, {value!r})"
    )


def _gpt2_code(model: str, gain: float, *, std: float) -> str:
    line = f"nn.init.normal_(layer.weight, std={std!r})"
    return _draw_code(model, line, "(nn.Linear, nn.Embedding)", attention=True) + (
        "with torch.no_grad():\n"
        "    for branch in branches:  # lists of the layers of each residual branch, in order\n"
        "        branch[-1].weight.div_(len(branches) ** 0.5)"
    )


def _mup_code(model: str, gain: float, *, base_width: float) -> str:
    return _draw_code(model, _HE) + (
        "with torch.no_grad():  # the output layer: variance 2·base_width/fan_in²\n"
        f"    head.weight.mul_(({base_width!r} / head.in_features) ** 0.5)\n"
        "# Adam's learning rate: times base_width/fan_in for all weights but the first layer's"
    )


# ---------------------------------------------------------------- the entries


def _drawn_by_init_(*_: Any, **__: Any) -> None:
    raise AssertionError("init_ draws by the base scheme")


def _unknown_std(fans: Fans, **_: Any) -> float:
    """The std depends on the model: init_'s report tells it."""
    return math.nan


def _entry(name: str, **fields: Any) -> Scheme:
    return Scheme(
        name=name, family="whole model", fill=_drawn_by_init_, std=_unknown_std,
        ensemble="structured", **fields,
    )  # fmt: skip


_ALPHA: Mapping[str, Parameter] = {
    "value": Parameter(0.0, 0.0, 1.0, "α at the start; 1/√(number of blocks) works too")
}

MODEL_SCHEMES: tuple[Scheme, ...] = (
    _entry(
        "lsuv",
        title="LSUV (layer-sequential unit variance)",
        formula=r"W_l \leftarrow W_l/\sqrt{\mathrm{Var}\,h_l},\ W_l\ \text{orthogonal at first}",
        source="Mishkin & Matas 2016, algorithm 1",
        suits="Any architecture for which there is no formula, given one batch of its data.",
        call=_lsuv_code,
        base="orthogonal",
        adjust=_lsuv,
        needs="batch",
        parameters={
            "tolerance": Parameter(
                0.1, 0.01, 0.5, "how far from 1 a variance may stay", least=1e-4, most=1
            ),
            "iterations": Parameter(10.0, 1, 20, "the most corrections of one layer", least=1),
        },
    ),
    _entry(
        "fixup",
        title="Fixup",
        formula=r"W_{\mathrm{last}} = 0,\ W_{\mathrm{inner}} = L^{-1/(2m-2)}\,W_{\mathrm{He}}",
        source="Zhang, Dauphin & Ma 2019, sec. 3",
        suits="Residual networks without normalization (with scalar biases and multipliers).",
        call=_fixup_code,
        base="kaiming_normal",
        adjust=_fixup,
        needs="branches",
    ),
    _entry(
        "skipinit",
        title="SkipInit",
        formula=r"x + \alpha\,F(x),\ \alpha = 0,\ W\ \text{as He's}",
        source="De & Smith 2020, 'Batch Normalization Biases Residual Blocks …'",
        suits="Residual networks with one learnable scalar at the end of every branch.",
        call=_gate_code,
        base="kaiming_normal",
        adjust=_gate,
        needs="scalars",
        parameters=_ALPHA,
    ),
    _entry(
        "rezero",
        title="ReZero",
        formula=r"x + \alpha\,F(x),\ \alpha = 0,\ W\ \text{as He's}",
        source="Bachlechner et al. 2021, 'ReZero is All You Need'",
        suits="Residual networks and Transformers that were built with x + α·F(x).",
        call=_gate_code,
        base="kaiming_normal",
        adjust=_gate,
        needs="scalars",
    ),
    _entry(
        "gpt2",
        title="GPT-2",
        formula=r"W_{ij} \sim N(0, \sigma^2),\ \sigma = 0.02;\ "
        r"\text{residual projections}\ W \sim N(0, \sigma^2/N)",
        source="Radford et al. 2019, sec. 2.3 (N = 2·layers residual branches)",
        suits="Transformers with pre-normalization, embeddings included.",
        call=_gpt2_code,
        base="normal",
        adjust=_gpt2,
        needs="branches",
        embeddings=True,
        uses_gain=False,
        parameters={
            "std": Parameter(0.02, 0.0, 0.1, "σ of all that is no residual projection", least=0)
        },
    ),
    _entry(
        "mup",
        title="µP (maximal update)",
        formula=r"W_{ij} \sim N(0, g^2/n_\mathrm{in}),\ "
        r"W^{\mathrm{out}}_{ij} \sim N(0, g^2 n_0/n_\mathrm{in}^2)",
        source="Yang, Hu et al. 2021 (Tensor Programs V), table 3",
        suits="Tuning on a narrow model what a wide one shall use; report.lr_multipliers goes with "
        "it. A Transformer also divides attention's logits by d, and tied output logits by m.",
        call=_mup_code,
        base="kaiming_normal",
        adjust=_mup,
        parameters={
            "base_width": Parameter(
                64.0, 16, 1024, "n₀, the width at which the learning rate was tuned", least=1
            )
        },
    ),
)
