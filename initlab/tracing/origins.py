"""Where every tensor of a forward pass comes from.

Each tensor that passes is remembered by the site it was last seen at, whether it depends on the
input, which parameter it is or was computed from, and in which of its dimensions its units lie.
Nothing keeps a tensor alive.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from initlab.tracing.operations import Call, tensors_in
from initlab.tracing.preserving import is_wrapped
from initlab.tracing.records import Record


class Origin(NamedTuple):
    """Where a tensor comes from, and in which of its dimensions, from the last, its units lie.

    ``beside`` are further sites that it was computed from: of a product, those of the other factor.
    """

    tensor: weakref.ref[Tensor]
    record: Record | None
    dependent: bool
    parameter: Tensor | None
    unit_axis: int = -1
    beside: tuple[Record, ...] = ()

    @property
    def records(self) -> tuple[Record, ...]:
        """All sites that it was computed from."""
        return self.beside if self.record is None else (self.record, *self.beside)


_OUT_OF_SIGHT = Origin(weakref.ref(torch.empty(0)), None, True, None)


_TAKE_A_FORM = {Tensor.type_as, Tensor.to, Tensor.expand_as, Tensor.view_as, Tensor.reshape_as}
"""Methods to whose result a second tensor gives its type or shape, and no number."""


class Origins:
    """The origins of the tensors that are still there."""

    def __init__(self) -> None:
        self._of: dict[int, Origin] = {}
        self._parameters: dict[int, Tensor] = {}

    def remember_parameter(self, parameter: Tensor) -> None:
        """A parameter of the model, whose origin no function that returns it changes."""
        key = id(parameter)
        self._parameters[key] = parameter
        self._of[key] = Origin(weakref.ref(parameter), None, False, parameter)

    def remember(self, tensor: Tensor, record: Record, dependent: bool) -> None:
        """The tensor of a site."""
        self._of[id(tensor)] = Origin(
            weakref.ref(tensor), record, dependent, None, record.unit_axis
        )

    @property
    def parameters(self) -> Iterable[Tensor]:
        return self._parameters.values()

    def seen(self, tensor: Tensor) -> Origin | None:
        """Where a tensor comes from, if a function that was seen made it."""
        origin = self._of.get(id(tensor))
        if origin is not None and origin.tensor() is tensor:
            return origin
        return None

    def of(self, tensor: Tensor) -> Origin | None:
        """Where a tensor comes from; what code out of sight (TorchScript, an extension) computed
        with gradients is taken to depend on the input."""
        origin = self._of.get(id(tensor))
        if origin is not None and origin.tensor() is tensor:
            return origin
        return _OUT_OF_SIGHT if tensor.grad_fn is not None else None

    def sources(self, call: Call) -> list[Origin]:
        """The origins of all tensor arguments that have one."""
        args, kwargs = call
        origins = self._of
        found = []
        for value in (*args, *kwargs.values()) if kwargs else args:
            if isinstance(value, Tensor):
                origin = origins.get(id(value))
                if origin is not None and origin.tensor() is value:
                    found.append(origin)
                elif value.grad_fn is not None:
                    found.append(_OUT_OF_SIGHT)
            elif isinstance(value, list | tuple | dict):
                found += [o for t in tensors_in(value) if (o := self.of(t)) is not None]
        return found

    def follow(
        self, call: Call, result: Any, func: Any = None, record: Record | None = None
    ) -> None:
        """Give the result of a function the origin of its arguments."""
        if isinstance(result, Tensor):
            results = (result,)
        elif isinstance(result, list | tuple) and not isinstance(result, torch.Size):
            results = tuple(tensors_in(result))
        elif result is None and func is Tensor.__setitem__:
            results = (call[0][0],)
        else:
            return
        sources = self.sources(call) if results else []
        if func in _TAKE_A_FORM:
            sources = sources[:1]
        origin = main_source(sources)
        if origin is None:
            return
        beside = origin.beside
        if record is not None:
            beside = ()
        elif len(sources) > 1:
            found = {id(each): each for source in sources for each in source.records}
            found.pop(id(origin.record), None)
            beside = tuple(found.values())
        for tensor in results:
            key = id(tensor)
            if self._parameters.get(key) is not tensor:
                axis = unit_axis(origin, tensor) if record is None else record.unit_axis
                self._of[key] = Origin(
                    weakref.ref(tensor),
                    record or origin.record,
                    origin.dependent,
                    origin.parameter,
                    axis,
                    beside,
                )


def main_source(sources: list[Origin]) -> Origin | None:
    """The origin of a result: that of the first argument that was computed from the input, else
    that of an input, else that of the first that comes from a parameter."""
    best = sources[0] if sources else None
    for origin in sources:
        if origin.dependent:
            if origin.record is not None and origin.record.kind != "input":
                return origin
            if best is None or not best.dependent:
                best = origin
    return best


def is_computed(origin: Origin | None) -> bool:
    """Whether a tensor was computed from the input or from another site, and is no more a parameter
    in another shape: a hypernetwork reads embeddings of its own."""
    return origin is not None and (origin.dependent or origin.record is not None)


def unit_axis(origin: Origin, result: Tensor) -> int:
    """In which dimension, from the last, the units of a tensor lie after a function has changed it.

    Seen through a view they keep their stride, whatever is transposed or flattened; all else
    leaves them in their place, counted from the last dimension if they lie there.
    """
    source, axis = origin.tensor(), origin.unit_axis
    if source is None or source is result or not source.ndim or not result.ndim:
        return axis if source is result else -1
    if source.layout is not torch.strided or result.layout is not torch.strided:
        return -1
    if is_wrapped(source) or is_wrapped(result):
        return -1
    if result._is_view():
        strides, stride = result.stride(), source.stride(axis)
        if result.ndim == source.ndim and strides[axis] == stride:
            return axis
        dimensions = list(zip(result.shape, strides, strict=True))
        units = source.shape[axis], stride
        return dimensions.index(units) - result.ndim if units in dimensions else -1
    if axis == -1 or result.ndim == source.ndim:
        return axis
    front = source.ndim + axis
    kept = front < result.ndim and result.shape[front] == source.shape[axis]
    return front - result.ndim if kept else -1
