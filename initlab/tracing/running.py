"""trace(): run a model once, forward and backward, and leave it as it was."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from initlab.errors import seed_number, unknown_name
from initlab.tracing.checkpoints import accumulate
from initlab.tracing.measuring import quick
from initlab.tracing.observing import Observer, Wanted
from initlab.tracing.preserving import Preserved, is_lazy, preserved
from initlab.tracing.records import Record
from initlab.tracing.sites import Site, Trace

Probe = Literal["normal", "rademacher"]
Statistics = Literal["all", "moments"]
Selector = Callable[[Any], Tensor] | str | int


# ---------------------------------------------------------------- trace


def trace(
    model: nn.Module,
    *inputs: Any,
    model_kwargs: Mapping[str, Any] | None = None,
    target: Any = None,
    loss_fn: Callable[[Tensor, Any], Tensor] | None = None,
    probe: Probe = "normal",
    backward: bool = True,
    statistics: Statistics = "all",
    histogram: bool = False,
    geometry: bool = False,
    output: Selector | None = None,
    batch_dim: int = 0,
    seed: int = 0,
) -> Trace:
    """Run a model once, forward and backward, and measure every tensor that matters on the way.

    The model stays in train or eval mode as it is, and afterwards everything is what it was:
    parameters, buffers, ``.grad``, modes, hooks, random number generators. (A lazy module is
    materialized. Under reentrant checkpointing the gradient has to be taken with ``backward``,
    which fires the accumulation hooks of your parameters.)

    Args:
        model: any ``nn.Module``.
        inputs: its positional arguments: tensors, or containers of them. They are not written to.
        model_kwargs: its keyword arguments.
        target: with it, the gradient is that of ``loss_fn(output, target)``.
        loss_fn: by default cross-entropy for an integer target, mean squared error for a float one.
        probe: without a target, the entries of the random cotangent: standard normal, or ±1.
        backward: False observes the forward pass alone, cheaply.
        statistics: "moments" measures mean, var and second_moment only, cheaply.
        histogram: count each tensor in 64 bins: several times the price of all other statistics.
        geometry: cosine and effective rank; the price of a samples × samples eigenvalue problem
            for each site.
        output: the tensor to differentiate, as a key, an index or a function of the output; by
            default the first float tensor found in it. Of a scalar its own gradient is traced.
        batch_dim: the dimension of the inputs that holds the samples.
        seed: of the probe, and of the model's own random numbers (dropout).

    Returns:
        The sites in execution order.

    Raises:
        TypeError: the model is no ``nn.Module``, or the output holds no float tensor.
        ValueError: an argument that makes no sense; the message says which and what would.
        Exception: whatever the model raises, with a note on how far the trace had come.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> [site.name for site in trace(model, torch.ones(3, 4))]
    ['input', '0', '1', '2', 'output']
    """
    _check_arguments(model, inputs, model_kwargs, statistics, probe, target, loss_fn)
    seed = seed_number(seed)
    wanted = Wanted(backward, statistics == "moments", histogram, geometry)
    kwargs = dict(model_kwargs or {})

    def observe(state: Preserved, copies: _Inputs) -> Trace:
        observer = Observer(state, wanted, copies.batch_size(batch_dim), batch_dim)
        try:
            observer.install()
            signal = _forward(model, observer, copies, output, backward)
            scalar, num_classes = _loss(signal, target, loss_fn)
            if backward:
                _backward(observer, copies, signal, scalar, probe, seed)
            observer.finish()
            sites = tuple(_site(r, i, backward) for i, r in enumerate(observer.records))
        finally:
            observer.remove()
        return Trace(sites, None if scalar is None else float(scalar.detach()), num_classes)

    def run(copies: _Inputs) -> Trace:
        """Observe, and let go of all that was seen before the garbage collector looks again."""
        with preserved(model, seed) as state:
            return observe(state, copies)

    with torch.inference_mode(False):
        copies = _Inputs(model, inputs, kwargs, tracked=backward)
        _check_target(target, loss_fn, copies.batch_size(batch_dim))
        _materialize(model, copies, seed)
        try:
            return run(copies)
        except RuntimeError as error:
            if not (copies.leaves and _IN_PLACE.search(str(error))):
                raise
        # What the model overwrites may be needed for the inputs' gradients alone: do without them.
        return _without_input_gradients(run(_Inputs(model, inputs, kwargs, tracked=False)))


_IN_PLACE = re.compile("in-?place", re.I)
_OVERWRITES = "the model overwrites what the gradient of its input needs: not measured"


def _without_input_gradients(traced: Trace) -> Trace:
    sites = [replace(s, note=_OVERWRITES) if s.kind == "input" else s for s in traced]
    return replace(traced, sites=tuple(sites))


def _check_arguments(
    model: Any,
    inputs: tuple[Any, ...],
    model_kwargs: Any,
    statistics: str,
    probe: str,
    target: Any,
    loss_fn: Any,
) -> None:
    if not isinstance(model, nn.Module):
        hint = "; call it, as in Model()" if isinstance(model, type) else ""
        name = getattr(model, "__name__", type(model).__name__)
        raise TypeError(f"model={name} must be an nn.Module instance{hint}")
    if not inputs and not model_kwargs:
        raise ValueError("no inputs: trace(model, batch) needs the batch that the model is to see")
    for value in (*inputs, *(model_kwargs or {}).values()):
        if isinstance(value, DataLoader | Dataset | Iterator):
            raise TypeError(
                f"the input is a {type(value).__name__}: pass one batch, as in "
                "batch, target = next(iter(loader)); trace(model, batch, target=target)"
            )
    for argument, value, choices in (
        ("statistics", statistics, get_args(Statistics)),
        ("probe", probe, get_args(Probe)),
    ):
        if value not in choices:
            raise unknown_name(argument, value, choices)
    if loss_fn is not None and target is None:
        raise ValueError(
            "loss_fn without a target: pass target=…, or let output=… pick a scalar loss"
        )
    if loss_fn is not None and (isinstance(loss_fn, type) or not callable(loss_fn)):
        name = getattr(loss_fn, "__name__", repr(loss_fn))
        raise TypeError(f"loss_fn={name} must be a function, as nn.CrossEntropyLoss() makes one")
    if target is not None and loss_fn is None and not isinstance(target, Tensor):
        raise TypeError(
            f"target is a {type(target).__name__}: without a loss_fn it must be a tensor "
            "(integers for cross-entropy, floats for mean squared error)"
        )


def _check_target(target: Any, loss_fn: Any, batch_size: int) -> None:
    if loss_fn is None and isinstance(target, Tensor) and target.numel() == 0:
        raise ValueError("target is empty")
    if loss_fn is None and isinstance(target, Tensor) and target.ndim == 0:
        raise ValueError(f"target is a single number, but the inputs hold {batch_size} samples")


# ---------------------------------------------------------------- inputs


class _Inputs:
    """Copies of the inputs that the model may overwrite, float ones tracked by autograd."""

    def __init__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, tracked: bool
    ) -> None:
        self.leaves: list[Tensor] = []
        self.tensors: dict[int, tuple[str, Tensor]] = {}
        self._tracked = tracked
        self._kept: list[Tensor] = []
        names = _argument_names(model, len(args))
        several = len(args) > 1
        with torch.enable_grad():
            self.args = tuple(
                self._copy(value, name if several else "input")
                for value, name in zip(args, names, strict=True)
            )
            only = not args and len(kwargs) == 1
            self.kwargs = {
                name: self._copy(value, "input" if only else name) for name, value in kwargs.items()
            }

    def _copy(self, value: Any, name: str) -> Any:
        return _map_tensors(value, lambda tensor: self._copy_tensor(tensor, name), {})

    def _copy_tensor(self, tensor: Tensor, name: str) -> Tensor:
        if id(tensor) in self.tensors:
            return self.tensors[id(tensor)][1]
        leaf = tensor.detach()
        if leaf.is_inference():
            leaf = leaf.clone()
        tracked = self._tracked and (leaf.is_floating_point() or leaf.is_complex())
        if tracked:
            leaf = leaf.requires_grad_()
            self.leaves.append(leaf)
        copied = leaf.clone()
        self.tensors[id(tensor)] = (name, copied)
        self._kept.append(tensor)
        return copied

    def batch_size(self, batch_dim: int) -> int:
        """The number of samples in the first tensor; every tensor must have some."""
        if isinstance(batch_dim, bool) or not isinstance(batch_dim, int):
            raise TypeError(f"batch_dim={batch_dim!r} must be a whole number, such as 0")
        if not self.tensors:
            given = (*self.args, *self.kwargs.values())
            raise ValueError(
                f"no tensor among the inputs ({', '.join(type(each).__name__ for each in given)}): "
                "there is nothing to trace; torch.as_tensor makes one of an array or a list"
            )
        for name, tensor in self.tensors.values():
            if tensor.is_nested:
                raise ValueError(
                    f"{name} is a nested tensor, whose samples have shapes of their own: pad it, "
                    "as with torch.nested.to_padded_tensor(…, 0.0)"
                )
            if tensor.numel() == 0 and -tensor.ndim <= batch_dim < tensor.ndim:
                size = tensor.shape[batch_dim]
                what = f"{size} samples along batch_dim {batch_dim}" if not size else "no elements"
                raise ValueError(f"{name} has {what} (shape {tuple(tensor.shape)})")
        name, first = next(iter(self.tensors.values()))
        if first.ndim == 0:
            return 1
        if not -first.ndim <= batch_dim < first.ndim:
            raise ValueError(
                f"batch_dim={batch_dim}, but {name} has shape {tuple(first.shape)}: "
                f"give a dimension from {-first.ndim} to {first.ndim - 1}"
            )
        return first.shape[batch_dim]


def _argument_names(model: nn.Module, count: int) -> list[str]:
    """What the forward method calls its positional arguments, the first of them ``input``."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        parameters = ()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return ["input", *(named + ["input"] * count)[1:count]][:count]


def _map_tensors(value: Any, change: Callable[[Tensor], Tensor], seen: dict[int, Any]) -> Any:
    """The same structure with its tensors changed; containers are rebuilt, not written to."""
    if isinstance(value, nn.Parameter):
        return change(value.detach())
    if isinstance(value, Tensor):
        return change(value)
    if value is None or isinstance(value, str | bytes | int | float | type | nn.Module):
        return value
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, tuple):
        items = [_map_tensors(item, change, seen) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, list):
        return [_map_tensors(item, change, seen) for item in value]
    if isinstance(value, Mapping):
        try:
            rebuilt = seen[id(value)] = copy.copy(value)
            for key, item in value.items():
                rebuilt[key] = _map_tensors(item, change, seen)  # type: ignore[index]
        except TypeError:  # an immutable mapping
            return {key: _map_tensors(item, change, seen) for key, item in value.items()}
        return rebuilt
    if callable(value) or not hasattr(value, "__dict__"):
        return value
    rebuilt = seen[id(value)] = copy.copy(value)
    for key, item in vars(value).items():
        object.__setattr__(rebuilt, key, _map_tensors(item, change, seen))
    return rebuilt


def _materialize(model: nn.Module, copies: _Inputs, seed: int) -> None:
    """Give lazy modules their shapes, and leave nothing else behind."""
    lazy = [module for module in model.modules() if is_lazy(module)]
    if not lazy:
        return
    with preserved(model, seed), torch.no_grad():
        args = _map_tensors(copies.args, torch.clone, {})
        model(*args, **_map_tensors(copies.kwargs, torch.clone, {}))
        for module in lazy:
            reset = getattr(module, "reset_running_stats", None)
            if reset is not None:
                reset()


# ---------------------------------------------------------------- forward


def _forward(
    model: nn.Module, observer: Observer, copies: _Inputs, selector: Selector | None, backward: bool
) -> Tensor:
    with torch.set_grad_enabled(backward):
        for name, tensor in copies.tensors.values():
            observer.see_input(tensor, name)
        try:
            with observer:
                result = model(*copies.args, **copies.kwargs)
        except BaseException as error:
            last = observer.records[-1].name
            error.add_note(f"initlab.trace: raised in the forward pass, after site {last!r}")
            for hint in _hints(error, observer, copies):
                error.add_note(f"initlab.trace: {hint}")
            raise
        with observer.following():
            signal = _pick(result, selector)
        observer.see_output(signal)
    return signal


def _hints(error: BaseException, observer: Observer, copies: _Inputs) -> Iterator[str]:
    """What may be wrong with a batch that the model cannot take."""
    first = next(iter(copies.args), None)
    if isinstance(error, TypeError) and len(copies.args) == 1 and isinstance(first, list | tuple):
        yield (
            f"the batch is one {type(first).__name__} of {len(first)}; its parts are passed one by "
            "one, as in trace(model, x, target=y) or trace(model, *parts)"
        )
    expected = next((p.dtype for p in observer.parameters_requiring_grad()), None)
    name, given = next((name, tensor.dtype) for name, tensor in copies.tensors.values())
    speaks_of_it = isinstance(error, RuntimeError) and re.search(r"\btype\b|dtype", str(error))
    if expected is not None and given != expected and speaks_of_it:
        yield f"{name} is of {given}, the parameters are of {expected}"


def _pick(result: Any, selector: Selector | None) -> Tensor:
    """The tensor to differentiate."""
    if selector is None:
        found = next((t for t in _output_tensors(result) if t.is_floating_point()), None)
        if found is None:
            raise TypeError(
                f"the model returned {_describe(result)}, in which there is no float tensor; "
                "pick one with output=lambda result: …"
            )
        return found
    if callable(selector):
        found = selector(result)
    else:
        try:
            found = result[selector]
        except (KeyError, IndexError, TypeError) as error:
            found = getattr(result, selector, None) if isinstance(selector, str) else None
            if found is None:
                raise ValueError(
                    f"output={selector!r} is not in what the model returned: {_describe(result)}"
                ) from error
    if not isinstance(found, Tensor) or not (found.is_floating_point() or found.is_complex()):
        raise TypeError(f"output={selector!r} picks {_describe(found)}, not a float tensor")
    return found


def _output_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _output_tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _output_tensors(item)
    elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module):
        for item in vars(value).values():
            yield from _output_tensors(item)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {', '.join(map(repr, value))}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a {type(value).__name__}"


# ---------------------------------------------------------------- loss and backward


def _loss(signal: Tensor, target: Any, loss_fn: Any) -> tuple[Tensor | None, int | None]:
    """The scalar to differentiate and the number of classes; None for a probe."""
    if target is None:
        return (signal, None) if signal.numel() == 1 and signal.ndim == 0 else (None, None)
    if signal.ndim == 0 and loss_fn is None:
        raise ValueError(
            "the output is one number, a loss already: leave target out and pass what it needs to "
            "the model"
        )
    if loss_fn is not None:
        try:
            loss = loss_fn(signal, target)
        except Exception as error:
            error.add_note(
                f"initlab.trace: raised in loss_fn(output, target), of {_describe(signal)} and "
                f"{_describe(target)}"
            )
            raise
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ValueError(f"loss_fn returned {_describe(loss)}; it must return one number")
        return loss.reshape(()), None
    target = target.detach()
    if target.is_floating_point():
        if target.shape != signal.shape:
            raise ValueError(
                f"target has shape {tuple(target.shape)}, the output {tuple(signal.shape)}: "
                "mean squared error needs equal shapes (or pass loss_fn=…)"
            )
        return F.mse_loss(signal, target), None
    return _cross_entropy(signal, target.long())


def _cross_entropy(signal: Tensor, target: Tensor) -> tuple[Tensor, int]:
    shape = signal.shape
    if signal.ndim > 1 and shape[:1] + shape[2:] == target.shape:
        classes = shape[1]
        logits = signal
    elif signal.ndim > 1 and shape[:-1] == target.shape:
        classes = shape[-1]
        logits, target = signal.reshape(-1, classes), target.reshape(-1)
    else:
        raise ValueError(
            f"integer target of shape {tuple(target.shape)} for an output of shape {tuple(shape)}: "
            "cross-entropy needs samples × classes (or × positions) logits and one class index for "
            "each; pass a float target for mean squared error, or loss_fn=…"
        )
    if classes == 1:
        raise ValueError(
            "integer target, but the output has one class only; for a binary problem pass a float "
            "target with loss_fn=nn.BCEWithLogitsLoss()"
        )
    used = target[target != -100]
    if used.numel() and not 0 <= int(used.min()) <= int(used.max()) < classes:
        worst = int(used.max()) if int(used.max()) >= classes else int(used.min())
        raise ValueError(f"target holds class {worst}, but the output has {classes} classes")
    return F.cross_entropy(logits, target), classes


def _backward(
    observer: Observer,
    copies: _Inputs,
    signal: Tensor,
    scalar: Tensor | None,
    probe: Probe,
    seed: int,
) -> None:
    root = signal if scalar is None else scalar
    if root.is_complex():
        raise ValueError("the output is complex: pick a real function of it with output=…")
    if root.is_nested:
        raise ValueError("the output is a nested tensor: pick or pad a dense one with output=…")
    if not root.requires_grad:
        raise ValueError(
            "the output has no gradient: it was computed under no_grad, detached, or from frozen "
            "parameters and integer inputs only; pass backward=False to trace forward alone"
        )
    cotangent = torch.ones_like(root) if scalar is not None else _cotangent(root, probe, seed)
    parameters = observer.parameters_requiring_grad()
    leaves = [*parameters, *copies.leaves]
    observer.in_backward = True
    try:
        if observer.checkpoints.are_reached_from(root):
            gradients = _backward_reentrant(observer, root, cotangent, leaves)
        else:
            observer.remove()
            gradients = torch.autograd.grad(root, leaves, cotangent, allow_unused=True)
    except BaseException as error:
        error.add_note("initlab.trace: raised in the backward pass")
        raise
    finally:
        observer.in_backward = False
    found = {id(p): g for p, g in zip(leaves, gradients, strict=True) if g is not None}
    observer.measure_weight_gradients(found)


def _cotangent(signal: Tensor, probe: Probe, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if probe == "normal":
        drawn = torch.randn(signal.shape, generator=generator)
    else:
        drawn = torch.randint(0, 2, signal.shape, generator=generator) * 2.0 - 1.0
    return drawn.to(signal)


def _backward_reentrant(
    observer: Observer, root: Tensor, cotangent: Tensor, leaves: list[Tensor]
) -> list[Tensor | None]:
    """``autograd.grad`` cannot pass a reentrant checkpoint: accumulate in ``.grad`` instead."""
    observer.expect_recomputation()
    with observer:
        accumulate((root,), (cotangent,))
    return [leaf.grad for leaf in leaves]


# ---------------------------------------------------------------- result


_UNSET = {field.name: field.default for field in fields(Site) if field.default is not MISSING}


def _site(record: Record, index: int, backward: bool) -> Site:
    found = _UNSET | vars(record)
    axis, shape = found.pop("unit_axis"), record.shape
    found["units"] = shape[axis] if -axis <= len(shape) else None
    found["index"] = index
    found["reached"] = record.backward is not None if backward else None
    for fan in ("fan_in", "fan_out"):
        if found[fan] != found[fan]:
            found[fan] = None
    return quick(Site, found)
