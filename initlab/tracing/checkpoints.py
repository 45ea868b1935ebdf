"""Reentrant activation checkpoints: which sites ran in them, and which when they ran again.

Such a checkpoint runs its section without gradients, and again, with them, inside the backward
pass. The sites of the first run get the gradients that those of the second one received.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor


class Recorded(Protocol):
    """What has to be known of a site."""

    op: str
    shape: tuple[int, ...]
    backward: Any
    note: str | None


R = TypeVar("R", bound=Recorded)


class Checkpoints(Generic[R]):
    """The sites seen in every section, in its first run and in the one inside the backward pass."""

    def __init__(self) -> None:
        self._first: dict[int, list[R]] = {}
        self._again: dict[int, list[R]] | None = None

    def add(self, site: R) -> None:
        """Note a site that was computed without gradients."""
        for section in _sections_running():
            self._first.setdefault(section, []).append(site)

    def are_reached_from(self, root: Tensor) -> bool:
        """Whether a backward pass from here runs a section again, with sites in it or without."""
        if "torch.utils.checkpoint" not in sys.modules:
            return False
        waiting, seen = [root.grad_fn], set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            if _is_checkpoint(node):
                return True
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
        return False

    def expect_backward(self) -> None:
        """From now on sections run for the second time."""
        self._again = {}

    def is_running_again(self) -> bool:
        return self._again is not None and _is_checkpoint(torch._C._current_autograd_node())

    def sites_again(self) -> list[R]:
        """Where the sites of the section that runs again belong."""
        assert self._again is not None
        return self._again.setdefault(torch._C._current_autograd_node()._sequence_nr(), [])

    def match(self) -> None:
        """Hand the gradients of the second runs to the sites of the first ones.

        A checkpoint inside another one first runs again when the outer one does: its sites come
        from the pass before last, so the sections that ran last are matched first.
        """
        for section, again in reversed((self._again or {}).items()):
            first = self._first.get(section, [])
            if [(site.op, site.shape) for site in again] != [(r.op, r.shape) for r in first]:
                for site in first:
                    site.note = "its checkpoint ran differently the second time: gradient unknown"
                continue
            for site, twin in zip(first, again, strict=True):
                site.backward, site.note = twin.backward, twin.note


def _is_checkpoint(node: torch.autograd.graph.Node | None) -> bool:
    return node is not None and node.name() == "CheckpointFunctionBackward"


def _sections_running() -> list[int]:
    """The reentrant checkpoints that are running a section without gradients, innermost first.

    Each is known by the sequence number of its node, which it keeps in the backward pass.
    """
    checkpointing = sys.modules.get("torch.utils.checkpoint")
    if checkpointing is None:
        return []
    code = checkpointing.CheckpointFunction.forward.__code__
    running, frame = [], sys._getframe(1)
    while frame is not None:
        if frame.f_code is code:
            running.append(frame.f_locals["ctx"]._sequence_nr())
        frame = frame.f_back
    return running


def accumulate(tensors: Iterable[Tensor], gradients: Iterable[Tensor]) -> None:
    """``torch.autograd.backward``, which as a torch function would run unobserved."""
    torch.autograd.graph._engine_run_backward(
        tuple(tensors), tuple(gradients), False, False, (),
        allow_unreachable=True, accumulate_grad=True,
    )  # fmt: skip
