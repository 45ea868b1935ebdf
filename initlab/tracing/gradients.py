"""Ask for the gradient of a tensor that was seen, also where it is a view that is written to.

After ``h[:, :4].relu_()`` the gradient goes to h, and no longer passes the view.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from initlab.tracing.records import Record

Receive = Callable[[Tensor | None], None]


class Gradients:
    """Which gradients were asked for by way of a view, and which of them will never come."""

    def __init__(self) -> None:
        self.lost: list[Record] = []
        self._views: dict[int, list[tuple[weakref.ref[Tensor], Record]]] = {}

    def ask(
        self, record: Record, tensor: Tensor, receive: Receive, *, is_written: bool, hidden: bool
    ) -> None:
        """Have ``receive`` called when the backward pass gets to a tensor.

        Where torch hands out a view of what nobody else can see (``hidden``: a linear map of a
        sequence), it is the whole of it that is asked, in case the view is written to.
        """
        whole = tensor._base
        assert whole is not None
        if is_written:
            self.lose(tensor)
        if is_written or hidden:
            whole.register_hook(partial(_receive_part, receive, _Part.of(tensor, whole)))
        else:
            self._views.setdefault(id(whole), []).append((weakref.ref(whole), record))
            tensor.register_hook(receive)

    def lose(self, tensor: Tensor) -> None:
        """A view is written to: from now on no gradient passes the earlier views of its base."""
        whole = tensor._base if self._views else None
        if whole is not None:
            for held, record in self._views.pop(id(whole), ()):
                if held() is whole:
                    self.lost.append(record)


class _Part(NamedTuple):
    """Where the elements of a view lie in its base."""

    strides: tuple[int, ...]
    shape: tuple[int, ...]
    view_strides: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, view: Tensor, base: Tensor) -> _Part:
        offset = int(view.storage_offset()) - int(base.storage_offset())
        return cls(base.stride(), tuple(view.shape), view.stride(), offset)

    def is_all_of(self, gradient: Tensor) -> bool:
        """Whether the view is the base in another shape, with its elements in the same order."""
        return (
            gradient.is_contiguous()
            and self.strides == gradient.stride()
            and math.prod(self.shape) == gradient.numel()
            and self.view_strides == _contiguous_strides(self.shape)
        )


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[at + 1 :]) for at in range(len(shape)))


def _receive_part(receive: Callable[[Tensor], None], part: _Part, gradient: Tensor | None) -> None:
    """Pass on that part of the gradient of a base which is the gradient of a view of it."""
    if gradient is None or gradient.layout is not torch.strided:
        return
    if part.is_all_of(gradient):
        receive(gradient.view(part.shape))
        return
    laid_out = torch.empty_strided(
        gradient.shape, part.strides, dtype=gradient.dtype, device=gradient.device
    ).copy_(gradient)
    receive(laid_out.as_strided(part.shape, part.view_strides, part.offset))
