"""Which scheme reaches which tensor of a model, or why none does.

By default the layers get one scheme and all else keeps what it has; ``only`` and ``overrides`` aim
at layers, containers, kinds of layers and parameters by name.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from initlab.errors import unknown_name
from initlab.layers import BIASES, WEIGHTS, Law, Slot, why_untouchable
from initlab.schemes import DTYPES, Mode, Scheme, scheme

SchemeSpec = str | Scheme | Callable[[Tensor], object]
Resolved = Scheme | Callable[[Tensor], object]
Aim = str | type[nn.Module]
"""A name pattern, or a type of layer."""

LAYER_ROLES = (*WEIGHTS, *BIASES)


def resolve(spec: SchemeSpec, mode: Mode, params: Mapping[str, Any]) -> Resolved:
    """The scheme of that name with these parameters, or the user's callable as it is."""
    if not isinstance(spec, str | Scheme):
        if not callable(spec) or isinstance(spec, type | nn.Module):
            raise TypeError(f"scheme={spec!r} must be a name, a Scheme or a callable(tensor)")
        if params:
            raise TypeError(f"a callable scheme takes no parameters, got {', '.join(params)}")
        name = getattr(spec, "__name__", "")
        if getattr(spec, "__module__", "") == "torch.nn.init" and hasattr(nn.init, f"{name}_"):
            raise ValueError(f"nn.init.{name} is deprecated; pass nn.init.{name}_ or {name!r}")
        return spec
    found = scheme(spec, **params)
    asked = isinstance(spec, str) or mode != "fan_in"  # the default, which overrules no Scheme
    if asked and "mode" in found.parameters and "mode" not in params:
        found = found.with_values(mode=mode)
    return found


@dataclass(frozen=True)
class Choice:
    """What is to happen to one tensor: a scheme, or the reason why nothing does.

    Attributes:
        slot: the tensor.
        spec: what draws it.
        label: what the report calls that.
        direct: whether the tensor itself was named, and not its layer: a bias is then filled by
            the scheme, not by what the scheme prescribes for biases.
        reason: why it is left alone; empty where it is drawn.
    """

    slot: Slot
    spec: Resolved
    label: str
    direct: bool = False
    reason: str = ""

    @property
    def is_weight(self) -> bool:
        """Whether the scheme fills it, and not what the scheme prescribes for biases."""
        named_bias = self.slot.part.role in BIASES or self.slot.key == "bias"
        return self.direct or not named_bias

    @property
    def scheme(self) -> Scheme | None:
        """The scheme that draws it, if it is one: of ``pytorch_default`` the one that torch uses
        in this layer."""
        if not isinstance(self.spec, Scheme):
            return None
        return from_law(self.slot, "weight") if self.spec.default else self.spec


def from_law(slot: Slot, what: str) -> Scheme:
    """What torch fills this tensor with by default, as a scheme."""
    law: Law | None = slot.part.default
    if law is None:
        raise ValueError(
            f"parameter {slot.name!r}: torch has no default for a {what} that {slot.kind} holds"
        )
    return scheme(law[0], **law[1])


def choose(
    model: nn.Module,
    slots: Sequence[Slot],
    chosen_scheme: Resolved,
    mode: Mode,
    overrides: Mapping[Aim, SchemeSpec],
    only: Aim | Sequence[Aim] | None,
    recurrent: SchemeSpec | None,
) -> list[Choice]:
    """What happens to each tensor of the model."""
    modules = dict(model.named_modules(remove_duplicate=False))
    chosen = {slot.name: _by_default(slot, chosen_scheme) for slot in slots}
    if only is not None:
        kept: dict[str, Choice] = {}
        for pattern in [only] if isinstance(only, str | type) else only:
            for slot, direct in _aimed(pattern, slots, modules, "only"):
                kept[slot.name] = _choice(slot, chosen_scheme, direct)
        chosen = {
            name: kept.get(name) or replace(choice, reason=choice.reason or "not selected by only")
            for name, choice in chosen.items()
        }
    if recurrent is not None:
        spec = _tensor_scheme(recurrent, mode, "recurrent")
        from_step_to_step = [slot for slot in slots if slot.part.role == "recurrent"]
        if not from_step_to_step:
            raise ValueError(f"recurrent={recurrent!r}: the model has no recurrent layer")
        for slot in from_step_to_step:
            if not chosen[slot.name].reason:
                chosen[slot.name] = _choice(slot, spec, False)
    if not isinstance(overrides, Mapping):
        raise TypeError(
            f"overrides={overrides!r} must be a dict: name pattern or type of layer → scheme"
        )
    for key, given in overrides.items():
        spec = _tensor_scheme(given, mode, "overrides")
        for slot, direct in _aimed(key, slots, modules, "overrides"):
            chosen[slot.name] = _choice(slot, spec, direct)
    return [_unless_frozen(choice) for choice in chosen.values()]


def _tensor_scheme(spec: SchemeSpec, mode: Mode, argument: str) -> Resolved:
    found = resolve(spec, mode, {})
    if isinstance(found, Scheme) and found.whole_model:
        raise ValueError(
            f"{argument}: scheme {found.name!r} looks at the whole model and cannot be given to a "
            "part of it"
        )
    return found


def _by_default(slot: Slot, spec: Resolved) -> Choice:
    """Layers get the scheme; the rest keeps what it has."""
    role = slot.part.role
    embeds = role == "embedding" and isinstance(spec, Scheme) and spec.embeddings
    if role in (*LAYER_ROLES, "hooked") or embeds:
        return _choice(slot, spec, False)
    reason = f"{slot.kind} keeps its own initialization"
    if role == "own":
        reason = f"not initialized: {slot.kind} holds it itself; name it in overrides"
    if isinstance(slot.module, torch.jit.ScriptModule):
        reason = "not initialized: torch.jit has compiled its layer; initialize before that"
    return _choice(slot, spec, False, reason)


def _choice(slot: Slot, spec: Resolved, direct: bool, reason: str = "") -> Choice:
    """Whole-model schemes draw by their base, under their own name."""
    label = spec.name if isinstance(spec, Scheme) else name_of(spec)
    if isinstance(spec, Scheme) and spec.whole_model:
        base = scheme(spec.base)
        shared = {name: value for name, value in spec.values.items() if name in base.parameters}
        spec = base.with_values(**shared)
    return Choice(slot, spec, label, direct, reason)


def name_of(function: Callable[..., object]) -> str:
    """What to call a user's callable."""
    return getattr(function, "__name__", type(function).__name__)


def _unless_frozen(choice: Choice) -> Choice:
    if choice.reason:
        return choice
    if not all(parameter.requires_grad for parameter in choice.slot.parameters):
        return replace(choice, reason="frozen (requires_grad is False)")
    if not choice.slot.tensor.numel():
        return replace(choice, reason="empty")
    return choice


def _aimed(
    key: Aim,
    slots: Sequence[Slot],
    modules: Mapping[str, nn.Module],
    argument: str,
) -> list[tuple[Slot, bool]]:
    """The tensors that a pattern or type fits, and whether they were named themselves.

    Where it fits layers, norms and other tensors alike, the layers are meant.
    """
    if not isinstance(key, str | type):
        raise TypeError(f"{argument}: {key!r} must be a name pattern or a type of layer")
    found = []
    for slot in slots:
        if isinstance(key, type):
            if any(isinstance(modules[name], key) for name in slot.layer_names()):
                found.append((slot, False))
        elif any(fnmatch.fnmatchcase(name, key) for name in slot.layer_names()):
            found.append((slot, False))
        elif any(fnmatch.fnmatchcase(n, key) for n in (slot.name, *slot.names, *slot.aliases)):
            found.append((slot, True))
    if not found:
        if isinstance(key, type):
            kinds = dict.fromkeys(slot.kind for slot in slots)
            raise unknown_name(f"{argument} type", key.__name__, kinds)
        names = {slot.layer: None for slot in slots} | {slot.name: None for slot in slots}
        near = difflib.get_close_matches(key, names, n=12, cutoff=0.3) or list(names)[:12]
        raise unknown_name(f"{argument} pattern", key, near)
    layers = [
        (slot, direct)
        for slot, direct in found
        if slot.part.role in LAYER_ROLES or _fits_alias_only(slot, key)
    ]
    return layers or found


def _fits_alias_only(slot: Slot, key: Aim) -> bool:
    """Whether it names the other layer that a tied weight is in, as a head and no embedding."""
    if isinstance(key, type) or fnmatch.fnmatchcase(slot.layer, key):
        return False
    return any(fnmatch.fnmatchcase(alias.rpartition(".")[0], key) for alias in slot.aliases)


def parts_to_fill(choice: Choice, tensor: Tensor) -> list[Tensor]:
    """The tensors that the scheme fills one by one.

    Independent entries need no more than their common fans; a structure needs each map apart.
    """
    independent = choice.scheme is None or choice.scheme.ensemble in ("iid", "constant")
    return [tensor] if independent else choice.slot.part.split(tensor)


def check_choices(choices: Sequence[Choice]) -> None:
    """Refuse what cannot be drawn before anything is."""
    for choice in choices:
        if choice.reason:
            continue
        if reason := why_untouchable(choice.slot):
            raise ValueError(reason)
        if choice.is_weight and (chosen := choice.scheme):
            if (dtype := choice.slot.tensor.dtype) not in DTYPES:
                raise ValueError(
                    f"parameter {choice.slot.name!r} is of {dtype}, which no scheme can draw; give "
                    "it a callable(tensor) of yours with overrides=…, or leave it out with only=…"
                )
            for part in parts_to_fill(choice, choice.slot.tensor):
                if reason := chosen.why_not(part.shape):
                    raise ValueError(
                        f"parameter {choice.slot.name!r}: {reason}. Leave it out with only=…, or "
                        "give it another scheme with overrides=…"
                    )
