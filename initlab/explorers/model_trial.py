"""Trying an initialization on a copy of a model: the code that is shown is the code that runs."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from initlab.diagnosis import Diagnosis, joined
from initlab.initialize import check_choices, choose, resolve
from initlab.layers import Slot, slots_of
from initlab.schemes import SCHEMES, scheme
from initlab.tracing import Trace

REMEDY = "the remedy"


@dataclass(frozen=True)
class Change:
    """A way to draw a model's weights anew.

    Attributes:
        label: what to call it.
        code: Python that expects ``model``, and ``batch`` (what the model is called with).
    """

    label: str
    code: str


def by_scheme(name: str, parameters: Mapping[str, Any], seed: int, *, batch: bool = True) -> Change:
    """``init_`` with this scheme; parameters at their defaults are left out of the code.

    >>> print(by_scheme("trunc_normal", {"std": 0.02}, seed=1).code)
    from initlab import init_
    init_(model, "trunc_normal", batch=batch, seed=1, std=0.02)
    """
    usual = scheme(name).values
    given = {key: value for key, value in parameters.items() if value != usual.get(key)}
    arguments = [f"{name!r}".replace("'", '"'), *["batch=batch"] * batch, f"seed={seed}"]
    arguments += [f"{key}={value!r}" for key, value in given.items()]
    return Change(name, f"from initlab import init_\ninit_(model, {', '.join(arguments)})")


def by_remedy(diagnosis: Diagnosis, seed: int) -> Change:
    """The remedies of all causes; what they draw comes from torch's generator, so it is seeded."""
    seeded = f"import torch\ntorch.manual_seed({seed})"
    return Change(REMEDY, joined([seeded, diagnosis.code]))


def changed(model: nn.Module, change: Change, batch: Any) -> tuple[nn.Module, list[str]]:
    """A deep copy of the model, changed, and the warnings that this gave.

    Neither the model nor torch's random generators are touched.
    """
    trial = copy.deepcopy(model)
    devices = {p.device for p in trial.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices, key=str)), warnings.catch_warnings(record=True) as w:
        warnings.simplefilter("always")
        exec(change.code, {"model": trial, "batch": batch})
    return trial, [str(each.message) for each in w]


@torch.no_grad()
def write(source: nn.Module, target: nn.Module) -> None:
    """Give ``target`` the values of a changed copy; tensors that are equal are not written to."""
    for tensors in (nn.Module.parameters, nn.Module.buffers):
        for new, old in zip(tensors(source), tensors(target), strict=True):
            if not torch.equal(new, old):
                old.copy_(new)


def schemes_for(model: nn.Module, seen: Trace) -> tuple[str, ...]:
    """The names of the schemes that can fill every layer of this model, none drawn.

    Empty where no layer is one that ``init_`` reaches by itself.
    """
    slots = slots_of(model)
    found = []
    for name in SCHEMES:
        choices = choose(model, slots, resolve(name, "fan_in", {}), "fan_in", {}, None, None)
        if all(choice.reason for choice in choices) or not _has_what_it_needs(name, slots, seen):
            continue
        try:
            check_choices(choices)
        except ValueError:
            continue
        found.append(name)
    return tuple(found)


def _has_what_it_needs(name: str, slots: Sequence[Slot], seen: Trace) -> bool:
    needs = scheme(name).needs
    if needs == "branches":
        return len(seen.select(kind="add")) > 0
    if needs == "scalars":
        return any(slot.part.role == "own" and slot.tensor.numel() == 1 for slot in slots)
    return True


def batch_of(model: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What the model is called with, as ``init_`` takes it: a tensor, a tuple or a dict.

    None where that cannot be said: next to keyword arguments every input needs a name.
    """
    if kwargs and inputs:
        named = inspect.signature(model.forward).bind_partial(*inputs)
        kinds = {named.signature.parameters[name].kind for name in named.arguments}
        if kinds != {inspect.Parameter.POSITIONAL_OR_KEYWORD}:
            return None
        return {**named.arguments, **kwargs}
    if kwargs:
        return dict(kwargs)
    alone = len(inputs) == 1 and torch.is_tensor(inputs[0])
    return inputs[0] if alone else tuple(inputs)


def check_code(batch: Any, *, target: bool, loss_fn: bool) -> str:
    """Code that diagnoses ``model`` on ``batch``, and on ``target`` and ``loss_fn`` if there are.

    >>> print(check_code((1, 2), target=True, loss_fn=False))
    from initlab import diagnose, trace
    print(diagnose(trace(model, *batch, target=target)))
    """
    call = ["model"]
    if batch is None:
        call.append("*inputs, model_kwargs=model_kwargs")
    elif isinstance(batch, dict):
        call.append("model_kwargs=batch")
    else:
        call.append("*batch" if isinstance(batch, tuple) else "batch")
    call += ["target=target"] * target + ["loss_fn=loss_fn"] * loss_fn
    return f"from initlab import diagnose, trace\nprint(diagnose(trace({', '.join(call)})))"
