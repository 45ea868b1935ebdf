"""Run someone's model and leave no trace of it: everything that was there before is put back.

What is kept, of every submodule: attributes (of a list, dict or set also what is in it),
parameters, buffers and their order, train or eval mode; of every
parameter: its values, ``requires_grad`` and the very ``.grad`` object; and of the process: the
random number generators of torch, numpy and Python, the grad mode, the default dtype, and the
deterministic-algorithms, anomaly-detection and attention fast-path switches.

Parameter values are saved only when something is about to write to them (``Preserved.before_write``
is told so by the observer), because a copy of every weight would cost memory for nothing. Writes
that torch does not announce, through ``parameter.numpy()`` say, are not undone.
"""

from __future__ import annotations

import gc
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]


class Preserved:
    """The state of a model at one moment, and how to put it back."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = list(model.named_modules())
        self._modules = [
            (module, [part.copy() if part else {} for part in _attributes(module)])
            for _, module in self.modules
            if not is_lazy(module) and not isinstance(module, torch.jit.ScriptModule)
        ]
        self._containers = [
            (value, value.copy())
            for _, module in self.modules
            for name, value in vars(module).items()
            if type(value) in _CONTAINERS and name not in _OF_EVERY_MODULE
        ]
        self._parameters = [
            (p, p.detach(), _pointer(p), p.requires_grad, p.grad)
            for p in _tensors_of(self.modules, "_parameters")
        ]
        self._buffers = [
            (b, b.detach().clone(), b.requires_grad) for b in _tensors_of(self.modules, "_buffers")
        ]
        self._owners: dict[int, Tensor] | None = None
        self._written: dict[int, tuple[Tensor, Tensor]] = {}

    def hide_gradients(self) -> None:
        """Take the user's ``.grad`` out of reach of any backward pass inside the model."""
        for parameter, *_, grad in self._parameters:
            if grad is not None:
                parameter.grad = None

    def before_write(self, tensor: Tensor) -> None:
        """Save the parameter whose memory this tensor shares, if any, before it is written to."""
        if tensor.layout is not torch.strided or not tensor.numel() or is_wrapped(tensor):
            return
        if self._owners is None:
            self._owners = {
                _storage(old): old
                for _, old, *_ in self._parameters
                if old.numel() and old.layout is torch.strided
            }
        owner = self._owners.get(_storage(tensor))
        if owner is not None and id(owner) not in self._written:
            self._written[id(owner)] = (owner, owner.clone())

    def restore(self) -> None:
        """Put all back, and keep nothing any longer."""
        with torch.no_grad():
            for module, saved in self._modules:
                present = _attributes(module)
                if not (_are_equal(present, saved) and _orders(present) == _orders(saved)):
                    for part, before in zip(present, saved, strict=True):
                        _restore_dict(part, before)
            for container, saved in self._containers:
                if not _are_equal(container, saved):
                    container.clear()
                    (container.extend if type(container) is list else container.update)(saved)
            for values, saved in self._written.values():
                values.copy_(saved)
            for parameter, values, pointer, requires_grad, grad in self._parameters:
                if _pointer(parameter) != pointer or parameter.shape != values.shape:
                    parameter.data = values
                if parameter.requires_grad != requires_grad:
                    parameter.requires_grad_(requires_grad)
                if parameter.grad is not grad:
                    parameter.grad = grad
            for buffer, saved, requires_grad in self._buffers:
                _restore_buffer(buffer, saved, requires_grad)
        for kept in (
            self.modules, self._modules, self._containers, self._parameters, self._buffers,
            self._written,
        ):  # fmt: skip
            kept.clear()


def _tensors_of(modules: list[tuple[str, nn.Module]], registry: str) -> list[Tensor]:
    """All parameters, or all buffers, each once; those of lazy modules have no values yet."""
    held = [part for _, module in modules for part in getattr(module, registry).values()]
    unique = {id(part): part for part in held if part is not None}
    return [part for part in unique.values() if not isinstance(part, UninitializedTensorMixin)]


def is_lazy(module: nn.Module) -> bool:
    """Whether a module still waits for its first input to know its shape."""
    return isinstance(module, LazyModuleMixin) and (
        module.has_uninitialized_params()  # type: ignore[misc]
    )


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a functorch transform (vmap, grad, …) is at work on this tensor."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # type: ignore[attr-defined]


def _attributes(module: nn.Module) -> list[dict[Any, Any]]:
    """What a call may change; some models hook their own children at the first one."""
    return [
        module.__dict__,
        module._parameters,
        module._buffers,
        module._modules,
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    ]


def _pointer(tensor: Tensor) -> int:
    """Where the values lie; of a sparse tensor, whose values lie in several places, which it is."""
    return tensor.data_ptr() if tensor.layout is torch.strided else id(tensor)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _orders(parts: list[dict[Any, Any]]) -> list[list[Any]]:
    """In which order a module has its parameters, buffers and children: optimizers count on it."""
    return [list(part) for part in parts[1:4]]


def _are_equal(present: Any, saved: Any) -> bool:
    """By identity first, so that it costs next to nothing where nothing has changed."""
    try:
        return present == saved
    except Exception:  # tensors and arrays that were replaced do not compare
        return False


def _restore_dict(present: dict[Any, Any], saved: dict[Any, Any]) -> None:
    for key in [key for key in present if key not in saved]:
        del present[key]
    for key, value in saved.items():
        if present.get(key, _MISSING) is not value:
            present[key] = value
    if list(present) != list(saved):  # what was taken out and put back stands last
        for key in saved:
            present[key] = present.pop(key)


_MISSING = object()
_CONTAINERS = (list, dict, set)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _restore_buffer(buffer: Tensor, saved: Tensor, requires_grad: bool) -> None:
    if buffer.shape != saved.shape or buffer.dtype != saved.dtype:
        buffer.data = saved
    elif saved.layout is not torch.strided or not torch.equal(buffer, saved):
        buffer.detach().copy_(saved)
    if buffer.requires_grad != requires_grad:
        buffer.requires_grad_(requires_grad)


_turn = threading.RLock()


@contextmanager
def preserved(model: nn.Module, seed: int) -> Iterator[Preserved]:
    """Save the state of a model and of the process, seed the generators, and restore all of it.

    One thread at a time: of two that overlap, the second would save what the first has switched,
    and leave it so.
    """
    with _turn, uncollected(), _random_state(seed), _switches(), _eager():
        state = Preserved(model)
        try:  # all that changes something lies inside, as an interrupt may come anywhere
            state.hide_gradients()
            yield state
        finally:
            state.restore()


@contextmanager
def _random_state(seed: int) -> Iterator[None]:
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    numpy = sys.modules.get("numpy")
    saved = torch.get_rng_state()
    saved_cuda = torch.cuda.get_rng_state_all() if cuda else []
    saved_python = random.getstate()
    saved_numpy = numpy.random.get_state() if numpy else None
    try:
        torch.default_generator.manual_seed(seed)
        for generator in torch.cuda.default_generators if cuda else ():
            generator.manual_seed(seed)
        random.seed(seed)
        if numpy:
            numpy.random.seed(seed % 2**32)
        yield
    finally:
        torch.set_rng_state(saved)
        if cuda:
            torch.cuda.set_rng_state_all(saved_cuda)
        random.setstate(saved_python)
        if numpy:
            numpy.random.set_state(saved_numpy)


@contextmanager
def uncollected() -> Iterator[None]:
    """Python's cyclic garbage collector pauses: many small records would make it run all the time.

    In a notebook, where it has much to go through, one run takes up to 100 ms.
    """
    collecting = gc.isenabled()
    try:
        gc.disable()
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def _switches() -> Iterator[None]:
    """Keep torch's process-wide switches; with the attention fast path off, layers are visible."""
    grad_mode = torch.is_grad_enabled()
    dtype = torch.get_default_dtype()
    deterministic = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    anomaly = (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled())
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.set_grad_enabled(grad_mode)
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        if deterministic != (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ):
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        if anomaly != (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()):
            torch.autograd.set_detect_anomaly(*anomaly)
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _eager() -> AbstractContextManager[Any]:
    """Compiled modules run as plain Python; where nothing was compiled, nothing is imported."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
