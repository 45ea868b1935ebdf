"""The networks to explore: mlp, cnn; and the names of their sites.

Every network is an ``nn.Sequential`` whose layers are named alike: the l-th affine layer is
``linear{l}`` or ``conv{l}``, followed by ``norm{l}`` where there is a norm, by ``act{l}``, and by
``drop{l}`` where there is dropout and another affine layer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal, get_args

from torch import nn
from torch.overrides import TorchFunctionMode

from initlab.activations import ActivationSpec, activation
from initlab.errors import finite_number, positive_int, unknown_name

Norm = Literal["none", "batch", "layer"]
NORMS: tuple[Norm, ...] = get_args(Norm)
PADDINGS = ("zeros", "circular")


def mlp(
    in_features: int,
    widths: Sequence[int],
    activation_: ActivationSpec = "relu",
    *,
    norm: Norm = "none",
    dropout: float = 0.0,
    head: int | None = None,
) -> nn.Sequential:
    """Affine layers of the given widths, each followed by the activation; a linear head if asked.

    Maps (batch, in_features) to (batch, widths[-1]), or to (batch, head).

    Args:
        in_features: input features.
        widths: units of each affine layer; any profile.
        activation_: see ``initlab.activation``.
        norm: what stands between each affine layer and its activation.
        dropout: probability with which each activation that another layer reads is set to 0.
        head: outputs of a final linear layer, which has no activation; None for no head.

    >>> [name for name, _ in mlp(3, [4, 5]).named_children()]
    ['linear1', 'act1', 'linear2', 'act2']
    """
    phi = activation(activation_)
    sizes = [positive_int("in_features", in_features), *_each_positive("widths", widths)]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        _add_dropout(layers, index, dropout)
        layers[f"linear{index}"] = nn.Linear(fan_in, fan_out)
        _add_norm(layers, index, norm, fan_out, {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm})
        layers[f"act{index}"] = phi.module()
    if head is not None:
        _add_dropout(layers, len(sizes), dropout)
        layers["head"] = nn.Linear(sizes[-1], positive_int("head", head))
    return nn.Sequential(layers)


def cnn(
    in_channels: int,
    widths: Sequence[int],
    activation_: ActivationSpec = "relu",
    *,
    norm: Norm = "none",
    dropout: float = 0.0,
    padding_mode: str = "zeros",
    head: int | None = None,
) -> nn.Sequential:
    """Stride-free 3×3 convolutions, each followed by the activation; a pooled linear head if asked.

    Maps (batch, in_channels, height, width) to (batch, widths[-1], height, width), or, through
    global average pooling and a linear layer, to (batch, head).

    Args:
        in_channels: input channels.
        widths: channels of each convolution; any profile.
        activation_: see ``initlab.activation``.
        norm: what stands between each convolution and its activation ("layer" is GroupNorm(1)).
        dropout: probability with which each activation that another layer reads is set to 0.
        padding_mode: "zeros" (loses signal at the border) or "circular" (loses none).
        head: outputs of the final linear layer; None for neither pooling nor head.

    >>> [name for name, _ in cnn(1, [4], head=10).named_children()]
    ['conv1', 'act1', 'pool', 'flatten', 'head']
    """
    phi = activation(activation_)
    if padding_mode not in PADDINGS:
        raise unknown_name("padding_mode", padding_mode, PADDINGS)
    sizes = [positive_int("in_channels", in_channels), *_each_positive("widths", widths)]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        _add_dropout(layers, index, dropout)
        layers[f"conv{index}"] = nn.Conv2d(fan_in, fan_out, 3, padding=1, padding_mode=padding_mode)
        _add_norm(layers, index, norm, fan_out, {"batch": nn.BatchNorm2d, "layer": _group_norm})
        layers[f"act{index}"] = phi.module()
    if head is not None:
        _add_dropout(layers, len(sizes), dropout)
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["head"] = nn.Linear(sizes[-1], positive_int("head", head))
    return nn.Sequential(layers)


ARCHITECTURES: Mapping[str, Callable[..., nn.Sequential]] = MappingProxyType(
    {"mlp": mlp, "cnn": cnn}
)
"""Every architecture by name, in the order in which menus show them."""


class Blank(TorchFunctionMode):
    """Layers made under it hold zeros where torch would draw: for those that ``init_`` fills next.

    What torch sets to constants, such as a norm's scale, is set as always. It takes half the time
    and no random number.

    >>> with Blank():
    ...     bool(nn.Linear(2, 3).weight.any())
    False
    """

    _DRAWS = (nn.init.kaiming_uniform_, nn.init.uniform_)  # those of Linear and of convolutions

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._DRAWS:
            return nn.init.zeros_(args[0] if args else kwargs["tensor"])
        return func(*args, **kwargs)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, channels)


def _add_norm(
    layers: OrderedDict[str, nn.Module],
    index: int,
    norm: str,
    width: int,
    kinds: Mapping[str, Callable[[int], nn.Module]],
) -> None:
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    if norm != "none":
        layers[f"norm{index}"] = kinds[norm](width)


def _add_dropout(layers: OrderedDict[str, nn.Module], before: int, dropout: float) -> None:
    """Between the last activation and the affine layer number ``before``."""
    if not 0 <= finite_number("dropout", dropout) < 1:
        raise ValueError(f"dropout={dropout} must be a probability of at least 0 and below 1")
    if dropout and before > 1:
        layers[f"drop{before - 1}"] = nn.Dropout(dropout)


def _each_positive(argument: str, values: Sequence[int]) -> list[int]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{argument}={values!r} must be a sequence of whole numbers, one a layer")
    if not values:
        raise ValueError(f"{argument} is empty; a network needs at least one layer")
    return [positive_int(f"{argument}[{i}]", value) for i, value in enumerate(values)]
