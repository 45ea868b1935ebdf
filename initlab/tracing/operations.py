"""Which torch functions a trace looks at: one table from the function to what it is.

A row says what kind of site the function makes, what to call it, and, where it has weights, how to
find them and their true fans. A function that is not in the table passes unseen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initlab.activations import ACTIVATIONS, FAMILIES, Activation, activation

Kind = Literal[
    "input", "affine", "activation", "norm", "add", "recurrent", "attention", "other", "output"
]
KINDS: tuple[Kind, ...] = get_args(Kind)

Call = tuple[tuple[Any, ...], dict[str, Any]]
Fans = Callable[[Tensor, Call], tuple[float, float]]


@dataclass(frozen=True)
class Operation:
    """One torch function as a trace sees it.

    Attributes:
        kind: of the site it makes.
        name: its canonical name, whichever spelling was called.
        weight: position and keyword of the weight argument; None where it has none or several.
        fans: (fan_in, fan_out) from the weight and the call.
        unit_axis: the dimension of its output in which the units lie, from the last one (-1) or
            from the first (1); None: where those of its argument lie.
    """

    kind: Kind
    name: str
    weight: tuple[int, str] | None = None
    fans: Fans | None = None
    unit_axis: int | None = None


def argument(call: Call, position: int, name: str, default: Any = None) -> Any:
    """The argument of a call, by position or by keyword."""
    args, kwargs = call
    return args[position] if len(args) > position else kwargs.get(name, default)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors among arguments, inside lists, tuples and dicts too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


# ---------------------------------------------------------------- true fans


def _product(value: Any, dimensions: int) -> int:
    return value**dimensions if isinstance(value, int) else math.prod(value)


def _linear_fans(weight: Tensor, call: Call) -> tuple[float, float]:
    return weight.shape[-1], weight.shape[0] if weight.ndim > 1 else 1


def _conv_fans(weight: Tensor, call: Call) -> tuple[float, float]:
    """Each output reads (C_in/groups)·k² inputs; each input feeds C_out·k²/(groups·s²) outputs."""
    field = math.prod(weight.shape[2:])
    stride = _product(argument(call, 3, "stride", 1), weight.ndim - 2)
    groups = argument(call, 6, "groups", 1)
    return weight.shape[1] * field, weight.shape[0] * field / (groups * stride)


def _conv_transpose_fans(weight: Tensor, call: Call) -> tuple[float, float]:
    """The weight is C_in × C_out/groups × k²; with stride s an output reads k²/s² positions."""
    field = math.prod(weight.shape[2:])
    stride = _product(argument(call, 3, "stride", 1), weight.ndim - 2)
    groups = argument(call, 6, "groups", 1)
    return weight.shape[0] * field / (groups * stride), weight.shape[1] * field


def _embedding_fans(weight: Tensor, call: Call) -> tuple[float, float]:
    """A look-up adds nothing up: every output is one weight."""
    return 1, weight.shape[1]


def _bilinear_fans(weight: Tensor, call: Call) -> tuple[float, float]:
    return weight.shape[1] * weight.shape[2], weight.shape[0]


def _attention_fans(weight: Tensor, call: Call) -> tuple[float, float]:
    """Query, key and value projections are stacked: three matrices, not one."""
    stacked = 3 if weight.shape[0] == 3 * weight.shape[1] else 1
    return weight.shape[1], weight.shape[0] // stacked


def _gate_fans(weight: Tensor, call: Call) -> tuple[float, float]:
    """Gates are stacked: each is a hidden × hidden matrix of its own."""
    return weight.shape[1], weight.shape[1]


def _matmul_fans(weight: Tensor, call: Call) -> tuple[float, float]:
    """``x @ W`` sums over the rows of W, ``W @ x`` over its columns."""
    args, kwargs = call
    operands = tensors_in((args, {key: kwargs[key] for key in kwargs if key in _RIGHT_OPERANDS}))
    rows, columns = (weight.shape[-2], weight.shape[-1]) if weight.ndim > 1 else (len(weight), 1)
    last = [operand for operand in operands if operand.is_floating_point()][-1]
    return (rows, columns) if last is weight else (columns, rows)


_RIGHT_OPERANDS = ("other", "mat2", "mat_b", "vec", "batch2")


def _tensordot_fans(weight: Tensor, call: Call) -> tuple[float, float]:
    """The contracted dimensions of the weight make fan_in, its others fan_out."""
    dims = argument(call, 2, "dims", 2)
    is_right = argument(call, 1, "b") is weight
    if isinstance(dims, int):
        summed = range(dims) if is_right else range(weight.ndim - dims, weight.ndim)
    elif isinstance(dims, list | tuple):
        summed = dims[int(is_right)]
    else:
        return math.nan, math.nan
    fan_in = math.prod(weight.shape[dim] for dim in summed)
    return fan_in, weight.numel() / fan_in


def _einsum_fans(weight: Tensor, call: Call) -> tuple[float, float]:
    """Summed-over letters of the weight make fan_in; those only the output shares, fan_out."""
    equation = call[0][0]
    operands = list(tensors_in(call[0][1:]))
    if not isinstance(equation, str):
        return math.nan, math.nan
    left, _, right = equation.replace(" ", "").partition("->")
    letters = left.split(",")
    at = next(index for index, operand in enumerate(operands) if operand is weight)
    if "." in letters[at]:
        return math.nan, math.nan
    others = "".join(letters[:at] + letters[at + 1 :])
    if not right:
        right = "".join(c for c in left if left.count(c) == 1 and c.isalpha())
    sizes = dict(zip(letters[at], weight.shape, strict=True))
    fan_in = math.prod(size for letter, size in sizes.items() if letter not in right)
    fan_out = math.prod(
        size for letter, size in sizes.items() if letter in right and letter not in others
    )
    return fan_in, fan_out


# ---------------------------------------------------------------- the table


def _spelled(*owners_and_names: tuple[Any, str]) -> list[Any]:
    found = (getattr(owner, name, None) for owner, name in owners_and_names)
    return [function for function in found if function is not None]


def _everywhere(*names: str) -> list[Any]:
    """A function in all its spellings: F.relu, torch.relu, torch.relu_, x.relu(), x.relu_()."""
    places = (torch, F, Tensor, torch._C._nn, torch.special)  # type: ignore[attr-defined]
    return _spelled(
        *((place, name + tail) for name in names for place in places for tail in ("", "_"))
    )


_ACTIVATION_SPELLINGS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in ACTIVATIONS if name not in ("identity", "gelu_tanh")},
    "sigmoid": ("sigmoid", "expit"),
    "logsigmoid": ("logsigmoid", "log_sigmoid"),
    "threshold": ("threshold", "_threshold"),
    "softshrink": ("softshrink",),
    "hardshrink": ("hardshrink",),
    "rrelu": ("rrelu",),
}


def _operations() -> Iterator[tuple[Iterable[Any], Operation]]:
    yield _everywhere("linear"), Operation("affine", "linear", (1, "weight"), _linear_fans, -1)
    for n in (1, 2, 3):  # the batch dimension may be missing, the spatial ones are there
        for name, fans in (
            (f"conv{n}d", _conv_fans),
            (f"conv_transpose{n}d", _conv_transpose_fans),
        ):
            yield _everywhere(name), Operation("affine", name, (1, "weight"), fans, -1 - n)
    embedding = Operation("affine", "embedding", (1, "weight"), _embedding_fans, -1)
    yield [F.embedding], embedding
    yield [torch.embedding], Operation("affine", "embedding", (0, "weight"), _embedding_fans, -1)
    bag = Operation("affine", "embedding_bag", (1, "weight"), _embedding_fans, -1)
    yield [F.embedding_bag], bag
    bilinear = Operation("affine", "bilinear", (2, "weight"), _bilinear_fans, -1)
    yield _everywhere("bilinear"), bilinear
    products = _everywhere("matmul", "mm", "bmm", "mv", "addmm", "addmv", "addbmm", "baddbmm")
    products += _spelled((Tensor, "__matmul__"), (Tensor, "__rmatmul__"))
    products += _spelled((torch, "_grouped_mm"), (F, "grouped_mm"))  # experts side by side
    yield products, Operation("affine", "matmul", None, _matmul_fans)
    yield [torch.einsum], Operation("affine", "einsum", None, _einsum_fans)
    yield [torch.tensordot], Operation("affine", "tensordot", None, _tensordot_fans)
    yield [torch.inner, Tensor.inner], Operation("affine", "inner", None, _linear_fans)
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        yield _everywhere(name), Operation("recurrent", name, None, _gate_fans, -1)
        cell = Operation("recurrent", f"{name}_cell", None, _gate_fans, -1)
        yield _everywhere(f"{name}_cell"), cell
    attention = Operation("attention", "multi_head_attention", None, _attention_fans, -1)
    yield [F.multi_head_attention_forward], attention
    yield [F.scaled_dot_product_attention], Operation("attention", "attention", None, None, -1)
    for name, axis in (
        ("batch_norm", 1),
        ("group_norm", 1),
        ("instance_norm", 1),
        ("local_response_norm", 1),
        ("layer_norm", None),
        ("rms_norm", None),
    ):
        yield _everywhere(name), Operation("norm", name, None, None, axis)
    for name in ("softmax", "log_softmax"):  # no elementwise function: no activation
        yield _everywhere(name), Operation("other", name)
    yield _everywhere("add"), Operation("add", "add")
    yield (
        _spelled((Tensor, "__add__"), (Tensor, "__radd__"), (Tensor, "__iadd__")),
        Operation("add", "add"),
    )
    for name, spellings in _ACTIVATION_SPELLINGS.items():
        yield _everywhere(*spellings), Operation("activation", name)
    yield _everywhere("clamp", "clamp_min"), Operation("activation", "clamp")


OPERATIONS: dict[Any, Operation] = {
    function: operation for functions, operation in _operations() for function in functions
}


# ---------------------------------------------------------------- which activation a call is

_WITH_PARAMETERS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    **{name: (family.module, family.fields) for name, family in FAMILIES.items()},
    "rrelu": (nn.RReLU, ("lower", "upper")),
    "gelu": (nn.GELU, ("approximate",)),
}


def activation_of(operation: Operation, call: Call) -> tuple[str, Activation | None] | None:
    """The name of the activation that a call computes and what is known of it.

    None where the call is no activation after all: a clamp other than at 0.
    """
    name = operation.name
    if name == "clamp":
        low, high = argument(call, 1, "min"), argument(call, 2, "max")
        at_zero = not isinstance(low, Tensor) and low == 0 and high is None
        return ("relu", ACTIVATIONS["relu"]) if at_zero else None
    if name in _WITH_PARAMETERS:
        fields = _WITH_PARAMETERS[name][1]
        given = [argument(call, at + 1, field) for at, field in enumerate(fields)]
        pairs = zip(fields, given, strict=True)
        phi = _with_parameters(name, tuple((f, v) for f, v in pairs if v is not None))
        return ("rrelu" if name == "rrelu" else phi.name), phi
    if name == "prelu":
        weight = argument(call, 1, "weight").detach()
        module = nn.PReLU(weight.numel(), device=weight.device, dtype=weight.dtype)
        module.weight.data = weight
        return name, activation(module)
    return name, ACTIVATIONS.get(name)


@lru_cache(maxsize=256)
def _with_parameters(name: str, fields: tuple[tuple[str, Any], ...]) -> Activation:
    return activation(_WITH_PARAMETERS[name][0](**dict(fields)))
