"""Watch one forward pass, and the gradients of what was seen in it.

A TorchFunctionMode sees every torch function, whether a module calls it or not; hooks on the
modules only say which module is at work.
"""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Any, NamedTuple

import torch
import torch.nn.modules.module as module_hooks
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from initlab.activations import ACTIVATIONS, Activation, Elementwise
from initlab.tracing.checkpoints import Checkpoints, accumulate
from initlab.tracing.gradients import Gradients
from initlab.tracing.measuring import (
    Meter,
    Stats,
    geometry,
    histogram,
    of_one_sample,
    unmeasured,
    why_opaque,
)
from initlab.tracing.operations import (
    OPERATIONS,
    Call,
    Kind,
    Operation,
    activation_of,
    argument,
    tensors_in,
)
from initlab.tracing.origins import Origin, Origins, is_computed, main_source, unit_axis
from initlab.tracing.preserving import Preserved
from initlab.tracing.records import Record
from initlab.tracing.units import UnitMeter

RESERVED = ("input", "output")
_OWN_WEIGHT = re.compile(r"^(weight|[qkv]_proj_weight|in_proj_weight)")
_LOOKS_ELEMENTWISE = re.compile(r"(relu|elu|gelu|silu|swish|mish|snake|activation)\d?$", re.I)
_LOOKS_NORM = re.compile(r"norm", re.I)
_WRITES = ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__")


class _Frame:
    """One module that is being called."""

    __slots__ = ("before", "is_leaf", "module", "path", "role", "z")

    def __init__(self, path: str, module: nn.Module | None, role: str, before: int) -> None:
        self.path = path
        self.module = module
        self.role = role
        self.before = before
        self.is_leaf = True
        self.z: Tensor | None = None


class _Measured(NamedTuple):
    """A gradient and the sites that it reached as it is: an addition hands its own on."""

    tensor: weakref.ref[Tensor]
    version: float
    records: list[Record]

    def is_in(self, gradient: Tensor) -> bool:
        """Whether it lies, as it was, where this one does: it may be a view of it."""
        tensor = self.tensor()
        return (
            tensor is not None and tensor.is_set_to(gradient) and _version(tensor) == self.version
        )


@dataclass(frozen=True)
class Wanted:
    """What is to be measured at each site."""

    backward: bool = True
    moments_only: bool = False
    histogram: bool = False
    geometry: bool = False


class Observer(TorchFunctionMode):
    """Records the sites of one forward pass of a model, and their gradients."""

    def __init__(self, state: Preserved, wanted: Wanted, batch_size: int, batch_dim: int) -> None:
        super().__init__()
        self.records: list[Record] = []
        self.leaves: dict[int, Tensor] = {}
        self.in_backward = False
        self.checkpoints: Checkpoints[Record] = Checkpoints()
        self._state = state
        self._wanted = wanted
        self._batch_size = batch_size
        self._batch_dim = batch_dim
        self._meter = Meter(moments_only=wanted.moments_only)
        self._unit_meter = UnitMeter()
        self._input_ndim = 0
        self._is_one_sample = False
        self._depth = 0
        self._muted = 0
        self._names: dict[str, int] = {}
        self._origins = Origins()
        self._gradients = Gradients()
        self._last_gradient: _Measured | None = None
        self._writes: dict[Any, bool] = {}
        self._frames = [_Frame("", None, "plain", 0)]
        self._handles: list[Any] = []
        self._users: dict[int, list[Record]] = {}
        self._known: dict[int, tuple[nn.Module, str, str]] = {}
        self._thread = get_ident()
        self._owners: dict[int, list[tuple[str, str]]] = {}

    # ------------------------------------------------------------ modules

    def install(self) -> None:
        """Note every module and parameter by name, and be told when a module is called.

        The hooks are torch's global ones, removed again below: nothing is put on a module.

        Raises:
            ValueError: a parameter that can have no gradient, where gradients are wanted.
        """
        for name, module in self._state.modules:
            path = name
            if "_orig_mod" in name:
                path = name.replace("_orig_mod.", "").removesuffix("_orig_mod").rstrip(".")
            self._known[id(module)] = (module, path, _role(path, module))
            for leaf, parameter in module._parameters.items():
                if parameter is not None:
                    if self._wanted.backward and parameter.is_inference():
                        raise ValueError(
                            f"parameter {f'{path}.{leaf}'.removeprefix('.')!r} was made under "
                            "torch.inference_mode(), so that nothing has a gradient: build the "
                            "model outside of it, or pass backward=False"
                        )
                    self._owners.setdefault(id(parameter), []).append((path, leaf))
                    self._origins.remember_parameter(parameter)
        self._handles = [
            module_hooks.register_module_forward_pre_hook(self._enter),
            module_hooks.register_module_forward_hook(self._leave, always_call=True),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        known = self._known.get(id(module))
        if known is None or get_ident() != self._thread:
            return
        frames = self._frames
        frames[-1].is_leaf = False
        frame = _Frame(known[1], module, known[2], len(self._sites()))
        frames.append(frame)
        if frame.role == "plain":
            return
        self._muted += 1
        if frame.role == "activation" and self._muted == 1 and args and isinstance(args[0], Tensor):
            frame.z = args[0].detach().clone() if _may_overwrite(module) else args[0]

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if id(module) not in self._known or get_ident() != self._thread:
            return
        frame = self._frames.pop()
        while frame.module is not module and len(self._frames) > 1:
            self._muted -= frame.role != "plain"
            frame = self._frames.pop()
        self._muted -= frame.role != "plain"
        if self._muted or frame.role == "hidden" or output is None:
            return
        named = frame.path or isinstance(module, torch.jit.ScriptModule)
        if frame.role == "plain" and not (
            frame.is_leaf and named and len(self._sites()) == frame.before
        ):
            return
        with torch._C.DisableTorchFunction():
            self._module_site(frame, module, args, output)

    def _module_site(
        self, frame: _Frame, module: nn.Module, args: tuple[Any, ...], output: Any
    ) -> None:
        """The site of a module that is one: an activation, attention, or a leaf without sites."""
        tensor = next(tensors_in(output), None)
        if tensor is None or not _is_signal(tensor):
            return
        if self._origins.seen(tensor) is None:  # the module hid how its output came about
            self._origins.follow((args, {}), output)
        if frame.role == "attention":
            weight = next((p for p in module.parameters(recurse=False) if p.ndim > 1), None)
            operation = Operation("attention", "multi_head_attention")
            record = self._add(tensor, operation, frame.path, (args, {}), module=frame.path)
            self._describe_attention(record, weight)
        elif frame.role == "activation":
            self._opaque_activation(frame, module, args, tensor)
        else:
            if is_computed(self._origins.of(tensor)):
                title = getattr(module, "original_name", type(module).__name__)
                kind: Kind = "norm" if _LOOKS_NORM.search(title) else "other"
                operation = Operation(kind, title)
                record = self._add(tensor, operation, frame.path, (args, {}), module=frame.path)
                if isinstance(module, torch.jit.ScriptModule) and record.note is None:
                    record.note = SCRIPTED

    def _opaque_activation(
        self, frame: _Frame, module: nn.Module, args: tuple[Any, ...], tensor: Tensor
    ) -> None:
        if isinstance(module, Elementwise):
            phi: Activation | None = module.activation
        else:
            phi = _recognize(frame.z, tensor)
        title = phi.name if phi else type(module).__name__
        operation = Operation("activation", title)
        record = self._add(tensor, operation, frame.path, (args, {}), module=frame.path)
        if phi is not None and frame.z is not None:
            record.arguments = phi.arguments
            self._measure_units(frame.z, phi, record)

    def _describe_attention(self, record: Record, weight: Tensor | None) -> None:
        if weight is None:
            return
        stacked = 3 if weight.shape[0] == 3 * weight.shape[1] else 1
        self._describe_weight(record, weight, weight)
        record.fan_in, record.fan_out = _whole(weight.shape[1]), _whole(weight.shape[0] // stacked)

    # ------------------------------------------------------------ functions

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        call: Call = (args, kwargs or {})
        operation = None if self._muted else OPERATIONS.get(func)
        if operation is None:
            if func is torch.autograd.backward and self.checkpoints.is_running_again():
                return self._run_backward_observed(call)
            self._announce_write(func, call)
            call = _as_if_untracked(func, call)
            result = func(*call[0], **call[1])
            self._origins.follow(call, result, func)
            return result
        if self.in_backward and not self.checkpoints.is_running_again():
            return func(*args, **call[1])
        return getattr(self, f"_see_{operation.kind}")(operation, func, call)

    def _announce_write(self, func: Any, call: Call) -> None:
        writes = self._writes.get(func)
        if writes is None:
            name = getattr(func, "__name__", "")
            writes = (name.endswith("_") and not name.endswith("__")) or name in _WRITES
            self._writes[func] = writes
        if writes or "out" in call[1]:
            for tensor in tensors_in(call):
                self._state.before_write(tensor)
                self._gradients.lose(tensor)

    def _see_activation(self, operation: Operation, func: Any, call: Call) -> Any:
        z = next(tensors_in(call), None)
        origin = None if z is None else self._origins.of(z)
        named = activation_of(operation, call) if is_computed(origin) else None
        if z is None or named is None or not z.is_floating_point():
            self._announce_write(func, call)
            result = func(*call[0], **call[1])
            self._origins.follow(call, result)
            return result
        assert origin is not None
        name, phi = named
        record = self._new_record("activation", name, self._frames[-1].path)
        record.unit_axis = origin.unit_axis
        if phi is not None:
            record.arguments = phi.arguments
            self._measure_units(z, phi, record)
        result = func(*call[0], **call[1])
        if not isinstance(result, Tensor):
            return result
        path = self._lent_name() or self._read_name(origin, name)
        sources = self._origins.sources(call)
        self._complete(record, result, path, sources, is_written=result is z)
        return result

    def _see_affine(self, operation: Operation, func: Any, call: Call) -> Any:
        weight, parameter = self._weight(operation, call)
        if weight is None:
            self._announce_write(func, call)
            result = func(*call[0], **call[1])
            self._origins.follow(call, result)
            return result
        if call[1].get("max_norm") is not None:
            self._state.before_write(weight)
        fans = operation.fans(weight, call) if operation.fans else None
        result = func(*call[0], **call[1])
        tensor = result if isinstance(result, Tensor) else next(tensors_in(result), None)
        if tensor is None:
            return result
        self._depth += 1
        name, module = self._weight_name(operation, parameter)
        record = self._add(tensor, operation, name, call, module=module)
        self._describe_weight(record, weight, parameter)
        if fans is not None:
            record.fan_in, record.fan_out = (_whole(fan) for fan in fans)
        return result

    def _see_recurrent(self, operation: Operation, func: Any, call: Call) -> Any:
        matrices = [
            weight
            for weight in tensors_in(call)
            if weight.ndim > 1
            and (origin := self._origins.of(weight)) is not None
            and origin.parameter is not None
        ]
        weight = matrices[min(1, len(matrices) - 1)] if matrices else None
        return self._see_all_results(operation, func, call, weight)

    def _see_attention(self, operation: Operation, func: Any, call: Call) -> Any:
        weight = None
        if operation.fans:
            weight = argument(call, 5, "in_proj_weight")
            weight = call[1].get("q_proj_weight") if weight is None else weight
        return self._see_all_results(operation, func, call, weight)

    def _see_all_results(
        self, operation: Operation, func: Any, call: Call, weight: Tensor | None
    ) -> Any:
        """One site for a function, of which its further results (states) are a part."""
        result = func(*call[0], **call[1])
        tensor = next(tensors_in(result), None)
        if tensor is None:
            return result
        origin = None if weight is None else self._origins.of(weight)
        parameter = origin.parameter if origin else None
        name, module = self._weight_name(operation, parameter)
        record = self._add(tensor, operation, name, call, module=module)
        self._origins.follow(call, result, record=record)
        if weight is not None:
            self._describe_weight(record, weight, parameter)
            if operation.fans:
                record.fan_in, record.fan_out = (_whole(f) for f in operation.fans(weight, call))
        return result

    def _see_norm(self, operation: Operation, func: Any, call: Call) -> Any:
        result, origin = self._computed(func, call)
        if origin is not None:
            scale = call[1].get("weight")
            held = None if scale is None else self._origins.of(scale)
            name, module = self._weight_name(operation, held.parameter if held else None)
            self._add(result, operation, name, call, module=module)
        return result

    def _see_other(self, operation: Operation, func: Any, call: Call) -> Any:
        result, origin = self._computed(func, call)
        if origin is not None:
            path = self._lent_name() or self._read_name(origin, operation.name)
            self._add(result, operation, path, call, module=self._frames[-1].path)
        return result

    def _computed(self, func: Any, call: Call) -> tuple[Any, Origin | None]:
        """The result of a function, and where it comes from if it is a signal; else no site is
        made of it."""
        result = func(*call[0], **call[1])
        origin = main_source(self._origins.sources(call))
        if is_computed(origin) and _is_signal(result):
            return result, origin
        self._origins.follow(call, result)
        return result, None

    def _read_name(self, origin: Origin | None, name: str) -> str:
        """The name of a site without a module of its own: after what it reads."""
        reads = origin.record.name if origin and origin.record else self._frames[-1].path
        return f"{reads}.{name}" if reads else name

    def _see_add(self, operation: Operation, func: Any, call: Call) -> Any:
        is_residual = self._is_residual(call[0])
        if not is_residual:
            self._announce_write(func, call)
        result = func(*call[0], **call[1])
        if is_residual and _is_signal(result):
            path = self._frames[-1].path
            name = f"{path}.add" if path else "add"
            self._add(result, operation, name, call, module=path)
        else:
            self._origins.follow(call, result)
        return result

    def _is_residual(self, args: tuple[Any, ...]) -> bool:
        """Whether two tensors of equal shape that both depend on the input are added."""
        if len(args) < 2 or not (isinstance(args[0], Tensor) and isinstance(args[1], Tensor)):
            return False
        if args[0].shape != args[1].shape:
            return False
        left, right = self._origins.of(args[0]), self._origins.of(args[1])
        return left is not None and right is not None and left.dependent and right.dependent

    @contextmanager
    def following(self) -> Iterator[None]:
        """Remember where tensors come from, and make no sites of what is done to them."""
        self._muted += 1
        try:
            with self:
                yield
        finally:
            self._muted -= 1

    # ------------------------------------------------------------ sites

    def see_input(self, tensor: Tensor, name: str) -> None:
        """The site of one input tensor."""
        record = self._new_record("input", "input", "")
        if tensor.ndim > 3:  # images
            record.unit_axis = 1 - tensor.ndim
        if not self.records:
            self._input_ndim = tensor.ndim
        self._complete(record, tensor, name, [], dependent=True)

    def see_output(self, tensor: Tensor) -> None:
        """The site of the model's output."""
        origin = self._origins.of(tensor)
        record = self._new_record("output", "output", "")
        if origin is not None:
            record.unit_axis = origin.unit_axis
        self._complete(record, tensor, "output", [] if origin is None else [origin])

    def _sites(self) -> list[Record]:
        """Where new records go: to the trace, or to the section being recomputed."""
        return self.checkpoints.sites_again() if self.in_backward else self.records

    def _new_record(self, kind: Kind, op: str, module: str) -> Record:
        return Record(kind, op, module, self._depth)

    def _add(
        self, tensor: Tensor, operation: Operation, name: str, call: Call, *, module: str
    ) -> Record:
        record = self._new_record(operation.kind, operation.name, module)
        sources = self._origins.sources(call)
        axis = operation.unit_axis
        if axis is None:
            origin = main_source(sources)
            axis = unit_axis(origin, tensor) if origin is not None else -1
        elif axis > 0:
            axis -= tensor.ndim
        elif operation.kind == "affine" and -axis == tensor.ndim == self._input_ndim:
            self._is_one_sample = True
        record.unit_axis = axis
        is_written = bool(call[0]) and call[0][0] is tensor
        self._complete(record, tensor, name or operation.name, sources, is_written=is_written)
        return record

    def _complete(
        self,
        record: Record,
        tensor: Tensor,
        name: str,
        sources: list[Origin],
        *,
        dependent: bool = False,
        is_written: bool = False,
    ) -> None:
        """Name a record, measure its tensor, and ask for its gradient."""
        reads: dict[str, None] = {}
        for source in sources:
            dependent = dependent or source.dependent
            if source.record is not None:
                reads[source.record.name] = None
            for each in source.beside:
                reads[each.name] = None
        record.reads = tuple(reads)
        record.name = self._unique(name, record)
        record.shape = _shape(tensor)
        self._sites().append(record)
        self._origins.remember(tensor, record, dependent)
        record.note = why_opaque(tensor)
        if record.note is not None:
            record.forward = unmeasured(tensor)
            return
        axis = self._batch_axis(tensor)
        if not self.in_backward:
            zeros = not self._wanted.moments_only
            self._meter.add(tensor.detach(), axis, zeros, record.receive_forward)
            if self._wanted.histogram or self._wanted.geometry:
                self._measure_options(tensor, axis, record)
        if not self._wanted.backward:
            return
        tracking = torch.is_grad_enabled()
        # A view that is made without gradients says that it requires them, and gets none.
        if tensor.requires_grad and (tracking or tensor.grad_fn is not None):
            self._ask_for_gradient(record, tensor, axis, is_written)
        elif not tracking:
            record.note = HIDDEN
        if not tracking:
            self.checkpoints.add(record)

    def _ask_for_gradient(
        self, record: Record, tensor: Tensor, axis: int | None, is_written: bool
    ) -> None:
        receive = partial(self._receive_gradient, record, axis)
        whole = tensor._base
        if whole is None or not whole.requires_grad:
            tensor.register_hook(receive)
            return
        hidden = self._origins.seen(whole) is None
        self._gradients.ask(record, tensor, receive, is_written=is_written, hidden=hidden)

    def _measure_options(self, tensor: Tensor, axis: int | None, record: Record) -> None:
        if self._wanted.histogram:
            record.histogram = histogram(tensor)
        if self._wanted.geometry and axis is not None:
            record.cosine, record.effective_rank = geometry(tensor, axis)

    def _measure_units(self, z: Tensor, phi: Activation, record: Record) -> None:
        if self._wanted.moments_only or self.in_backward or why_opaque(z) is not None:
            return
        self._unit_meter.add(z.detach(), record.unit_axis, phi, record.receive_units)

    def _receive_gradient(self, record: Record, axis: int | None, gradient: Tensor | None) -> None:
        # What reaches nothing may be None; outside our pass, the model differentiates on its own.
        if gradient is None or not self.in_backward:
            return
        if gradient.layout is not torch.strided:
            record.backward, record.note = unmeasured(gradient), why_opaque(gradient)
            return
        last = self._last_gradient
        if last is not None and last.is_in(gradient):
            record.backward = last.records[0].backward
            last.records.append(record)
            return
        last = _Measured(weakref.ref(gradient), _version(gradient), [record])
        self._last_gradient = last
        self._meter.add(gradient.detach(), axis, False, _to_all(last.records, "backward"))

    def _batch_axis(self, tensor: Tensor) -> int | None:
        """The dimension that holds the samples: batch_dim, or the first where it was folded in."""
        shape = tensor.shape
        if self._batch_dim == 0 and shape and shape[0] == self._batch_size:
            return 0
        for axis in (self._batch_dim, 0):
            if -tensor.ndim <= axis < tensor.ndim:
                size = tensor.shape[axis]
                if size and size % self._batch_size == 0:
                    return axis
        return None

    def _unique(self, name: str, record: Record) -> str:
        if name in RESERVED and record.kind not in RESERVED:
            name = f"{name}.{record.op}"
        if self.in_backward:
            return name
        count = self._names.get(name, 0) + 1
        self._names[name] = count
        if count == 1:
            return name
        numbered = f"{name}[{count}]"
        if numbered in self._names:  # a module is really called so
            return self._unique(name, record)
        self._names[numbered] = 1
        return numbered

    def _lent_name(self) -> str | None:
        """A leaf without a matrix of weights (ReLU, PReLU) lends its name to its first site."""
        frame = self._frames[-1]
        module = frame.module
        if module is None or not frame.path or module._modules:
            return None
        if any(p is not None and p.ndim > 1 for p in module._parameters.values()):
            return None
        return frame.path if len(self._sites()) == frame.before else None

    # ------------------------------------------------------------ weights

    def _weight(self, operation: Operation, call: Call) -> tuple[Tensor | None, Tensor | None]:
        """The weight of a call and the parameter it is or comes from; None where it is no layer."""
        if operation.weight is not None:
            position, keyword = operation.weight
            args, kwargs = call
            weight = args[position] if len(args) > position else kwargs.get(keyword)
            if not isinstance(weight, Tensor):
                return None, None
            origin = self._origins.of(weight)
            if origin is None and weight.requires_grad and weight.is_leaf:
                self.leaves[id(weight)] = weight
            return weight, origin.parameter if origin else None
        weight = parameter = None
        reads_input = False
        for operand in tensors_in(call):
            origin = self._origins.of(operand)
            if origin is not None and origin.dependent:
                reads_input = True
            elif origin is not None and origin.parameter is not None and operand.ndim > 1:
                weight, parameter = operand, origin.parameter
        return (weight, parameter) if reads_input else (None, None)

    def _weight_name(self, operation: Operation, parameter: Tensor | None) -> tuple[str, str]:
        """The name of a site with weights, and the module that owns them."""
        frame = self._frames[-1]
        owned = self._owners.get(id(parameter), []) if parameter is not None else []
        if not owned:
            if frame.module is None or not frame.path:
                return operation.name, frame.path
            in_torch = type(frame.module).__module__.startswith("torch.nn")
            plain = in_torch or not frame.module._modules
            return (frame.path if plain else f"{frame.path}.{operation.name}"), frame.path
        path, leaf = owned[0]
        if len(owned) > 1:
            path, leaf = next((own for own in owned if own[0] == frame.path), owned[0])
        if "parametrizations" in path and ".parametrizations." in f".{path}.":
            path, _, leaf = f".{path}".partition(".parametrizations.")
            path = path.removeprefix(".")
        if _OWN_WEIGHT.match(leaf):
            return path or operation.name, path
        return (f"{path}.{leaf}" if path else leaf), path

    def _describe_weight(self, record: Record, weight: Tensor, parameter: Tensor | None) -> None:
        """Statistics of the weight as it is used: of a parameter once, for all its sites."""
        record.weight_shape = tuple(weight.shape)
        if parameter is not None and self._owners.get(id(parameter)):
            path, leaf = self._owners[id(parameter)][0]
            record.parameter = f"{path}.{leaf}" if path else leaf
        if self.in_backward or why_opaque(weight) is not None:
            return
        if parameter is not None and _same_numbers(weight, parameter):
            users = self._users.setdefault(id(parameter), [])
            users.append(record)
            if len(users) == 1:  # a large weight is reduced at once, for those that wait by then
                self._meter.add(parameter.detach(), None, False, _to_all(users, "weight"))
            record.weight = users[0].weight
            return
        self._meter.add(weight.detach(), None, False, record.receive_weight)
        if self._wanted.backward and weight.requires_grad:
            weight.register_hook(partial(self._receive_weight_gradient, record))

    def _receive_weight_gradient(self, record: Record, gradient: Tensor | None) -> None:
        if gradient is not None and self.in_backward and why_opaque(gradient) is None:
            self._meter.add(gradient.detach(), None, False, record.receive_weight_grad)

    def parameters_requiring_grad(self) -> list[Tensor]:
        found = [p for p in self._origins.parameters if p.requires_grad]
        return found + list(self.leaves.values())

    def measure_weight_gradients(self, gradients: dict[int, Tensor]) -> None:
        """Statistics of the gradient of every parameter that a site used, once each."""
        for key, users in self._users.items():
            gradient = gradients.get(key)
            if gradient is None:
                continue
            if gradient.layout is not torch.strided:
                gradient = gradient.to_dense()
            self._meter.add(gradient.detach(), None, False, _to_all(users, "weight_grad"))

    # ------------------------------------------------------------ the backward pass

    def expect_recomputation(self) -> None:
        """Watch reentrant checkpoints run their sections again inside the backward pass."""
        self.checkpoints.expect_backward()
        self._frames = [_Frame("", None, "plain", 0)]

    def _run_backward_observed(self, call: Call) -> None:
        """The backward pass of a section that ran again, in which others may run again."""
        with self:
            accumulate(argument(call, 0, "tensors"), argument(call, 1, "grad_tensors"))

    def finish(self) -> None:
        """Compute what is still waiting, and forget the tensors: an input's hook stays with us."""
        self._origins = Origins()
        self._meter.finish()
        self._unit_meter.finish()
        self.checkpoints.match()
        for record in self._gradients.lost:
            record.backward, record.note = None, OVERWRITTEN
        if self._is_one_sample:
            self._take_for_one_sample()

    def _take_for_one_sample(self) -> None:
        """Report what a batch of one would give: a layer took the input for a sample by itself."""
        first = self.records[0]
        first.note, first.unit_axis = first.note or ONE_SAMPLE, -self._input_ndim
        for record in self.records:
            for field in ("forward", "backward"):
                stats: Stats | None = getattr(record, field)
                if stats is not None and stats.abs_max is not None:
                    setattr(record, field, of_one_sample(stats))
            if self._wanted.geometry and record.forward and record.forward.abs_max is not None:
                record.cosine, record.effective_rank = math.nan, float(record.forward.abs_max > 0)


ONE_SAMPLE = "one sample without a batch dimension: nothing varies across samples"
OVERWRITTEN = "a view of what is written to in place: its gradient is not measured"
HIDDEN = "computed without gradients: not reached"
SCRIPTED = "compiled by TorchScript: its output is measured, not what happens inside"


def _version(tensor: Tensor) -> float:
    """How often it was written to; made in inference mode it does not tell."""
    return math.nan if tensor.is_inference() else tensor._version


def _role(path: str, module: nn.Module) -> str:
    if "parametrizations" in path and ".parametrizations." in f".{path}.":
        return "hidden"
    if isinstance(module, nn.MultiheadAttention):
        return "attention"
    if isinstance(module, Elementwise):
        return "activation"
    custom = not type(module).__module__.startswith("torch.nn")
    bare = not module._modules and not module._parameters and not module._buffers
    if custom and bare and _LOOKS_ELEMENTWISE.search(type(module).__name__):
        return "activation"
    return "plain"


def _recognize(z: Tensor | None, output: Tensor) -> Activation | None:
    """Which known activation a module computed, judged by some of its values."""
    if z is None or z.shape != output.shape or not z.is_floating_point():
        return None
    if why_opaque(z) is not None:
        return None
    some = z.detach().reshape(-1)[:1024]
    found = output.detach().reshape(-1)[:1024]
    with torch.no_grad():
        for phi in ACTIVATIONS.values():
            if phi.name != "identity" and torch.allclose(phi(some), found, rtol=1e-4, atol=1e-6):
                return phi
    return None


_ONLY_UNTRACKED = {
    Tensor.numpy,
    Tensor.__array__,
    Tensor.__deepcopy__,
    Tensor.requires_grad.__set__,  # type: ignore[attr-defined]
}


def _as_if_untracked(func: Any, call: Call) -> Call:
    """The same call, where only our tracking of the inputs would make torch refuse it.

    A batch as the user has it has a ``numpy()``, can be copied deeply, and can be told to require
    gradients (wav2vec2 tells its own so); as the result of a function it could not.
    """
    args, kwargs = call
    if func not in _ONLY_UNTRACKED or args[0].is_leaf:
        return call
    return (args[0].detach(), *args[1:]), kwargs


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """Of a nested tensor, whose parts have shapes of their own, how many there are."""
    return (tensor.size(0),) if tensor.is_nested else tuple(tensor.shape)


def _may_overwrite(module: nn.Module) -> bool:
    return bool(getattr(module, "inplace", False))


def _is_signal(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _same_numbers(weight: Tensor, parameter: Tensor) -> bool:
    """Whether a weight is a parameter, whole, perhaps reshaped or transposed."""
    if weight is parameter:
        return True
    return weight._base is parameter and weight.numel() == parameter.numel()


def _whole(fan: float) -> float | int:
    return int(fan) if fan == fan and fan == int(fan) else fan


def _to_all(records: list[Record], field: str) -> Callable[[Stats, float | None], None]:
    def receive(stats: Stats, zeros: float | None) -> None:
        for record in records:
            setattr(record, field, stats)

    return receive
