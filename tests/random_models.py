"""Random trees of modules for the tracer to meet, each with an instrument built in.

A plan says what to build: a string is a layer, a tuple what is made of plans. All that a plan can
name maps batch × positions × features to the same shape, so that any plan follows any other. After
everything that a trace should make a site of, the model calls ``tap``, which does nothing unless
``recorded`` asks for values and gradients: it then adds a zero, whose gradient is that of the
tensor. Nothing of it is shared with the tracer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

SAMPLES, POSITIONS, WIDTH, TOKENS = 3, 4, 6, 9
Plan = Any

_taps: list[Tap] | None = None


@dataclass
class Tap:
    """What the instrument saw; ``is_alias`` where the tensor is also that of an earlier tap."""

    value: Tensor
    probe: Tensor
    is_alias: bool = False
    gradient: Tensor | None = None


def tap(h: Tensor, *, is_alias: bool = False) -> Tensor:
    if _taps is None:
        return h
    probe = torch.zeros_like(h, requires_grad=True)
    _taps.append(Tap(h.detach().clone(), probe, is_alias))
    return h + probe


def recorded(run: Callable[[], Tensor], seed: int) -> tuple[Tensor, list[Tap]]:
    """The output, and every tap, with the gradient under the cotangent of this seed."""
    global _taps
    _taps = []
    try:
        torch.manual_seed(seed)
        output = run()
        taps = _taps
    finally:
        _taps = None
    cotangent = torch.ones_like(output)
    if output.ndim:
        cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed))
    probes = [each.probe for each in taps]
    gradients = torch.autograd.grad(output, probes, cotangent, allow_unused=True) if probes else ()
    for each, gradient in zip(taps, gradients, strict=True):
        each.gradient = gradient
    return output.detach(), taps


# ---------------------------------------------------------------- what a plan can name


class Own(nn.Module):
    """Taps by itself what it computes; a plain layer of torch is tapped by whoever calls it."""


def call(part: nn.Module, x: Tensor) -> Tensor:
    if isinstance(part, Own):
        return part(x)
    if isinstance(part, nn.LSTM | nn.GRU):
        return tap(part(x)[0])
    if isinstance(part, nn.MultiheadAttention):
        return tap(part(x, x, x, need_weights=False)[0])
    version = x._version
    h = part(x)
    return tap(h, is_alias=h is x and h._version == version)


class Function(Own):
    functions: ClassVar[dict[str, Callable[[Tensor], Tensor]]] = {
        "F.relu": F.relu,
        "relu_": torch.relu_,
        "x.tanh": lambda x: x.tanh(),
        "x.sigmoid_": lambda x: x.sigmoid_(),
        "F.gelu": F.gelu,
        "F.leaky_relu": lambda x: F.leaky_relu(x, 0.3),
        "F.elu_": lambda x: F.elu(x, inplace=True),
        "clamp": lambda x: x.clamp(min=0),
    }

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return tap(self.functions[self.name](x))


class Other(Own):
    """A leaf without any listed function: views, scaling, mixing, in-place writes, randomness."""

    functions: ClassVar[dict[str, Callable[[Tensor], Tensor]]] = {
        "view": lambda x: x.flatten(1).view(x.shape),
        "scaled": lambda x: x * 0.5 - 0.1,
        "mul_": lambda x: x.mul_(0.9),
        "halves": lambda x: torch.cat(x.chunk(2, -1)[::-1], -1),
        "turned": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        "noise": lambda x: x + 0.1 * torch.randn(WIDTH),
        "written": lambda x: x.index_copy(1, torch.tensor([0]), x[:, 1:2]),
    }

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return tap(self.functions[self.name](x))


class Turned(Own):
    """A layer whose channels come first."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return call(self.layer, x.transpose(1, 2)).transpose(1, 2)


class Bare(Own):
    """A weight without a module."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.kernel = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "matmul":
            return tap(x @ self.kernel)
        if self.how == "einsum":
            return tap(torch.einsum("npi,oi->npo", x, self.kernel))
        return tap(F.linear(x, self.kernel))


class Chain(Own):
    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def inside(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = call(part, x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x)


class Residual(Chain):
    def forward(self, x: Tensor) -> Tensor:
        return tap(x + self.inside(x * 1))


class ResidualInPlace(Chain):
    def forward(self, x: Tensor) -> Tensor:
        h = self.inside(x * 1)
        h += x
        return tap(h)


class Again(Chain):
    """The same layers three times, as in a recurrence that is written out."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.inside(x)
        return x


class Checkpointed(Chain):
    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        if _taps is not None:
            return self.inside(x)
        return checkpoint(self.inside, x, use_reentrant=self.reentrant)


class CheckpointedReentrantly(Checkpointed):
    reentrant = True


class WithoutGradient(Chain):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.inside(x.clone())
        return tap(x + h)


class Unused(Chain):
    def forward(self, x: Tensor) -> Tensor:
        self.inside(x.clone())
        return x


class Frozen(Chain):
    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__(parts)
        self.requires_grad_(False)


class Mode(Chain):
    """Some of the model is in eval mode, whatever the rest is in."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__(parts)
        self.eval()


def _look(*_: Any) -> None:
    """A hook that changes nothing."""


class Hooked(Chain):
    """With hooks of the user's own on modules, parameters and tensors."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__(parts)
        for part in self.parts:
            part.register_forward_pre_hook(_look)
            part.register_forward_hook(_look)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inside(x)
        if h.requires_grad:
            h.register_hook(_look)
        return h


class Stateful(Chain):
    """Writes to its buffer, its attributes, its own parameter and its mode."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__(parts)
        self.register_buffer("count", torch.zeros(2))
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.calls, self.cache = 0, None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1  # type: ignore[operator]
        with torch.no_grad():
            self.scale.mul_(0.75)
        self.cache = h = self.inside(x) * self.scale
        self.late = torch.ones(1)
        self.training = not self.training
        return h


class Packed(Chain):
    """What comes out of the inner module is a dict with a tuple in it, and None."""

    def forward(self, x: Tensor) -> Any:
        return _Unpacked.take({"h": (self.inside(x), 3), "nothing": None})


class _Unpacked:
    @staticmethod
    def take(result: dict[str, Any]) -> Tensor:
        return result["h"][0]


class Explode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        raise ArithmeticError("midway back")


class Raises(Own):
    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "forward":
            raise LookupError("midway")
        return tap(Explode.apply(x))  # type: ignore[return-value]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
    "spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH)),
    "conv": lambda: Turned(nn.Conv1d(WIDTH, WIDTH, 3, padding=1)),
    "depthwise": lambda: Turned(nn.Conv1d(WIDTH, WIDTH, 1, groups=WIDTH)),
    "transposed": lambda: Turned(nn.ConvTranspose1d(WIDTH, WIDTH, 1)),
    "lstm": lambda: nn.LSTM(WIDTH, WIDTH, batch_first=True),
    "gru": lambda: nn.GRU(WIDTH, WIDTH, batch_first=True),
    "attention": lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True),
    "layer_norm": lambda: nn.LayerNorm(WIDTH),
    "batch_norm": lambda: Turned(nn.BatchNorm1d(WIDTH)),
    "group_norm": lambda: Turned(nn.GroupNorm(2, WIDTH)),
    "dropout": lambda: nn.Dropout(0.4),
    "identity": nn.Identity,
    "pool": lambda: nn.AvgPool2d((1, 3), stride=1, padding=(0, 1)),
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "tanh": nn.Tanh,
    "prelu": nn.PReLU,
    "elu in place": lambda: nn.ELU(inplace=True),
    **{how: (lambda how=how: Bare(how)) for how in ("matmul", "einsum", "F.linear")},
    **{name: (lambda name=name: Function(name)) for name in Function.functions},
    **{name: (lambda name=name: Other(name)) for name in Other.functions},
}
GROUPS: dict[str, Callable[[list[nn.Module]], nn.Module]] = {
    group.__name__: group
    for group in (
        Chain, Residual, ResidualInPlace, Again, Checkpointed, CheckpointedReentrantly,
        WithoutGradient, Unused, Frozen, Mode, Hooked, Stateful, Packed,
    )
}  # fmt: skip
_REPEATED = "the last layer again"
_TIED = "linear with the first weight"


class Tree(Own):
    """A model by plan, of floats or of tokens."""

    def __init__(self, plan: list[Plan], *, tokens: bool, scalar: bool) -> None:
        super().__init__()
        self.made: list[nn.Module] = []
        self.embed = nn.Embedding(TOKENS, WIDTH) if tokens else None
        self.body = Chain([self._make(part) for part in plan])
        self.scalar = scalar
        del self.made

    def _make(self, plan: Plan) -> nn.Module:
        if isinstance(plan, tuple):
            name, parts = plan
            return GROUPS[name]([self._make(part) for part in parts])
        if plan.startswith("raises in "):
            return Raises(plan.removeprefix("raises in "))
        if plan == _REPEATED and self.made:
            return self.made[-1]
        layer = LAYERS["linear" if plan in (_REPEATED, _TIED) else plan]()
        if plan == _TIED:
            linears = [m for m in self.made if type(m) is nn.Linear]
            tied = [m.weight for m in linears if isinstance(m.weight, nn.Parameter)]
            layer.weight = tied[0] if tied else layer.weight  # type: ignore[assignment]
        self.made.append(layer)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x if self.embed is None else tap(self.embed(x)))
        return h.square().mean() if self.scalar else h


def _group(parts: st.SearchStrategy[Plan]) -> st.SearchStrategy[Plan]:
    return st.tuples(st.sampled_from(list(GROUPS)), st.lists(parts, min_size=1, max_size=4))


_LAYER = st.sampled_from([*LAYERS, _REPEATED, _TIED])
PLANS = st.lists(st.recursive(_LAYER, _group, max_leaves=6), min_size=1, max_size=4)
FAILING_PLANS = st.tuples(
    PLANS, st.sampled_from(["raises in forward", "raises in backward"]), PLANS,
    st.sampled_from(list(GROUPS)),
).map(lambda drawn: [*drawn[0], (drawn[3], [drawn[1]]), *drawn[2]])  # fmt: skip


def names_in(plan: Plan) -> set[str]:
    """All that a plan names, at any depth."""
    if isinstance(plan, str):
        return {plan}
    if isinstance(plan, tuple):
        return {plan[0]} | names_in(plan[1])
    return {name for part in plan for name in names_in(part)}
