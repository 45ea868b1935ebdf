"""init_(): which scheme reaches which parameter of which layer, and the report of it."""

from __future__ import annotations

import difflib
import fnmatch
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from initlab.activations import ElementwiseFunction
from initlab.activations import activation as resolve_activation
from initlab.errors import finite_number, unknown_name
from initlab.init_report import InitReport, InitRow, measured_std, standard_errors
from initlab.layers import BIASES as BIAS_ROLES
from initlab.layers import WEIGHTS, Law, Slot, quantized_layers, slots_of, why_untouchable
from initlab.model_schemes import DrawnModel
from initlab.preserving import preserved
from initlab.schemes import MODES, Mode, Scheme, scheme
from initlab.surroundings import Branch, Surroundings, in_sequential, in_trace
from initlab.tracing import Trace, trace

__all__ = ["BIASES", "InitReport", "InitRow", "init_"]

SchemeSpec = str | Scheme | Callable[[Tensor], object]
BiasSpec = str | float | Callable[[Tensor], object] | None
Resolved = Scheme | Callable[[Tensor], object]
ActivationSpec = str | nn.Module | ElementwiseFunction
BIASES = ("zeros", "pytorch_default", "normal")

_STREAM = 0x9E3779B9
"""Seeds below 2³¹ become seeds above it, so that weights never repeat the numbers of an input that
was drawn with an equal seed."""


def init_(
    model: nn.Module,
    scheme: SchemeSpec,
    *,
    activation: ActivationSpec | None = None,
    gain: float | None = None,
    mode: Mode = "fan_in",
    bias: BiasSpec = None,
    bias_std: float | None = None,
    recurrent: SchemeSpec | None = None,
    forget_bias: float | None = None,
    overrides: Mapping[str | type[nn.Module], SchemeSpec] | None = None,
    only: str | Sequence[str] | None = None,
    batch: Any = None,
    branches: str | Sequence[str] | None = None,
    seed: int | torch.Generator | None = None,
    **params: float | str | None,
) -> InitReport:
    """Initialize a model in place by one scheme, and report on every parameter.

    Reached are the layers of ``initlab.layers.LAYERS``: linear, bilinear, (transposed)
    convolutions, recurrent layers gate by gate, attention's projections one by one. Norms and
    embeddings keep what they have, and so do parameters that a module of yours holds itself,
    unless ``overrides`` or ``only`` aims at them. Tied weights are drawn once.

    Args:
        model: any module; nothing but the parameters that the report names as drawn is touched.
        scheme: a name of ``SCHEMES``, a Scheme, or any ``callable(tensor)`` that fills in place.
        activation: the activation of every layer, whose gain kaiming uses. None infers it layer by
            layer, from a trace of ``batch`` or inside ``nn.Sequential``: for fan_in the activation
            whose output the layer reads, for fan_out the one that follows; identity, with a
            warning, where none is found.
        gain: overrules the scheme's and the activation's gain.
        mode: which fan kaiming keeps, "fan_in" or "fan_out"; variance_scaling knows "fan_avg" too.
        bias: None for what the scheme prescribes; "zeros", "pytorch_default" (what torch gives
            this layer), "normal" (with ``bias_std``), a number, or a ``callable(tensor)``. Of the
            two biases of a recurrent layer, which are added, the second then is 0.
        bias_std: standard deviation of normal biases.
        recurrent: another scheme for the weights from step to step, such as "orthogonal".
        forget_bias: the bias of every LSTM's forget gate, such as 1.0 (Jozefowicz et al. 2015).
        overrides: other schemes by name pattern or by layer type; the last match wins. A pattern
            fits the dotted names of layers, of what contains them, and of parameters; one that
            fits layers and other parameters alike reaches the layers only.
        only: name patterns of what to touch; all if None.
        batch: what the model is called with: a tensor, a tuple of arguments, or a dict of keyword
            arguments.
        branches: for whole-model schemes, name patterns of the last layer of each residual branch
            (for rezero and skipinit, of the scalars); found with ``batch`` if None.
        seed: of a private generator, or that generator; None draws from torch's global one. Equal
            seeds of ``init_`` and of ``noise`` or ``torch.manual_seed`` give unrelated numbers.
        **params: parameters of the scheme, such as ``std=0.01`` or ``a=0.2``.

    Returns:
        The report, one row per parameter in the model's order.

    Raises:
        TypeError: not a module, or an argument of a wrong type.
        ValueError: an unknown name, a number out of range, a pattern that matches nothing, a
            layer that the scheme cannot fill or that cannot be written to (lazy, on the meta
            device, quantized), or a whole-model scheme that lacks what it needs.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> init_(net, "kaiming_normal", activation="relu", seed=0)["2.weight"].intended_std
    0.816496580927726
    """
    _check_model(model)
    if activation is not None:
        resolve_activation(activation)
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    _check_bias(bias, bias_std)
    if gain is not None:
        finite_number("gain", gain, positive=True)
    request = _Request(_resolve(scheme, mode, params), activation, gain, mode, bias, bias_std)
    generators = _Generators(seed)
    run = None if batch is None else _Batch(model, batch)
    around = _look_around(model, request, run)
    slots = slots_of(model)
    _check_lazy(slots)
    choices = _choose(model, slots, request, overrides or {}, only, recurrent)
    forget = _forget_gates(slots, choices, forget_bias)
    whole = _WholeModel.of(request.scheme, slots, around, branches, run)
    gains, unknown = _gains(choices, request, around)
    _check_choices(choices)
    for layer in unknown:
        warnings.warn(
            f"no activation found for layer {layer!r}; its gain is that of identity, 1. "
            "Pass activation=… or batch=… to choose it",
            stacklevel=2,
        )
    drawn = {
        choice.slot.name: _draw(choice, request, gains.get(choice.slot.name), generators)
        for choice in choices
        if not choice.reason
    }
    for slot in forget:
        drawn[slot.name] = _set_forget_gate(slot, float(forget_bias or 0.0))
    multipliers = whole.adjust(choices, drawn) if whole else {}
    rows = {name: row for choice in choices for name, row in _rows(choice, drawn)}
    order = [name for name, _ in model.named_parameters()]
    return InitReport(tuple(rows[name] for name in order), multipliers)


# ---------------------------------------------------------------- the arguments


@dataclass(frozen=True)
class _Request:
    """The arguments of one init_ call that every layer shares, checked."""

    scheme: Resolved
    activation: ActivationSpec | None
    gain: float | None
    mode: Mode
    bias: BiasSpec
    bias_std: float | None


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        hint = "; a scheme fills a tensor: scheme(name)(tensor)" if torch.is_tensor(model) else ""
        if isinstance(model, type):
            hint = "; create it first, as in Model()"
        raise TypeError(f"model must be an nn.Module, not a {type(model).__name__}{hint}")
    if packed := quantized_layers(model):
        raise ValueError(
            f"layer {packed[0]!r} is quantized: its weights are packed integers, which cannot be "
            "drawn; initialize the float model before quantizing it"
        )
    if not any(True for _ in model.parameters()):
        raise ValueError(f"model={type(model).__name__}() has no parameters to initialize")
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(
                f"parameter {name!r} is on the meta device and has no memory to fill; "
                "model.to_empty(device=…) gives it some"
            )


def _check_lazy(slots: Sequence[Slot]) -> None:
    for slot in slots:
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in slot.parameters):
            raise ValueError(
                f"layer {(slot.layer or slot.kind)!r} is lazy and has no shape yet; run one batch "
                "through the model first, or pass batch=…"
            )


def _check_bias(bias: BiasSpec, bias_std: float | None) -> None:
    if isinstance(bias, str) and bias not in BIASES:
        raise unknown_name("bias", bias, BIASES)
    if bias == "normal":
        if bias_std is None:
            raise ValueError("bias='normal' needs bias_std, the standard deviation of the biases")
        if finite_number("bias_std", bias_std) < 0:
            raise ValueError(f"bias_std={bias_std} must be at least 0")
    elif bias_std is not None:
        raise ValueError(f"bias_std={bias_std} is used with bias='normal' only, got bias={bias!r}")
    if bias is not None and not isinstance(bias, str) and not callable(bias):
        finite_number("bias", bias)


def _resolve(spec: SchemeSpec, mode: Mode, params: Mapping[str, Any]) -> Resolved:
    if not isinstance(spec, str | Scheme):
        if not callable(spec):
            raise TypeError(f"scheme={spec!r} must be a name, a Scheme or a callable(tensor)")
        if params:
            raise TypeError(f"a callable scheme takes no parameters, got {', '.join(params)}")
        name = getattr(spec, "__name__", "")
        if getattr(spec, "__module__", "") == "torch.nn.init" and hasattr(nn.init, f"{name}_"):
            raise ValueError(f"nn.init.{name} is deprecated; pass nn.init.{name}_ or {name!r}")
        return spec
    found = scheme(spec, **params)
    if "mode" in found.parameters and "mode" not in params and isinstance(spec, str):
        found = found.with_values(mode=mode)
    return found


class _Generators:
    """One generator per device, all from one seed; None (torch's global ones) without a seed."""

    def __init__(self, seed: int | torch.Generator | None) -> None:
        given = isinstance(seed, torch.Generator)
        if seed is not None and not given and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"seed={seed!r} must be a whole number, a torch.Generator or None")
        self.seed = seed
        self.made: dict[torch.device, torch.Generator] = {}

    def on(self, device: torch.device) -> torch.Generator | None:
        if self.seed is None or isinstance(self.seed, torch.Generator):
            return self.seed
        if device not in self.made:
            self.made[device] = torch.Generator(device).manual_seed(self.seed ^ _STREAM)
        return self.made[device]


class _Batch:
    """What the model is called with, and the calls."""

    def __init__(self, model: nn.Module, batch: Any) -> None:
        self._model = model
        self._kwargs = dict(batch) if isinstance(batch, Mapping) else {}
        self._args = () if self._kwargs else batch if isinstance(batch, tuple) else (batch,)

    def trace(self) -> Trace:
        return trace(
            self._model,
            *self._args,
            model_kwargs=self._kwargs,
            backward=False,
            statistics="moments",
        )

    def forward(self) -> None:
        """One pass; parameters are what hooks write to them, all else is what it was."""
        with preserved(self._model, seed=0), torch.no_grad():
            self._model(*self._args, **self._kwargs)


def _look_around(model: nn.Module, request: _Request, batch: _Batch | None) -> Surroundings:
    """What a batch shows, or else the order of modules, where a gain may depend on it."""
    if batch is not None:
        return in_trace(model, batch.trace())
    given = request.activation is not None or request.gain is not None
    return Surroundings() if given else in_sequential(model)


# ---------------------------------------------------------------- which scheme reaches what


@dataclass(frozen=True)
class _Choice:
    """What is to happen to one tensor: a scheme, or the reason why nothing does.

    ``direct`` says that the tensor itself was named, and not its layer: a bias is then filled by
    the scheme, not by what the scheme prescribes for biases.
    """

    slot: Slot
    spec: Resolved
    label: str
    direct: bool = False
    reason: str = ""

    @property
    def is_weight(self) -> bool:
        named_bias = self.slot.part.role in BIAS_ROLES or self.slot.key == "bias"
        return self.direct or not named_bias

    @property
    def scheme(self) -> Scheme | None:
        """The scheme that draws it, if it is one: of ``pytorch_default`` the one that torch uses
        in this layer."""
        if not isinstance(self.spec, Scheme):
            return None
        return _from_law(self.slot, "weight") if self.spec.default else self.spec


def _from_law(slot: Slot, what: str) -> Scheme:
    law: Law | None = slot.part.default
    if law is None:
        raise ValueError(
            f"parameter {slot.name!r}: torch has no default for a {what} that {slot.kind} holds"
        )
    return scheme(law[0], **law[1])


def _choose(
    model: nn.Module,
    slots: Sequence[Slot],
    request: _Request,
    overrides: Mapping[str | type[nn.Module], SchemeSpec],
    only: str | Sequence[str] | None,
    recurrent: SchemeSpec | None,
) -> list[_Choice]:
    """What happens to each tensor of the model."""
    modules = dict(model.named_modules(remove_duplicate=False))
    chosen = {slot.name: _by_default(slot, request.scheme) for slot in slots}
    if only is not None:
        kept: dict[str, _Choice] = {}
        for pattern in [only] if isinstance(only, str) else only:
            for slot, direct in _aimed(pattern, slots, modules, "only"):
                kept[slot.name] = _choice(slot, request.scheme, direct)
        chosen = {
            name: kept.get(name) or replace(choice, reason=choice.reason or "not selected by only")
            for name, choice in chosen.items()
        }
    if recurrent is not None:
        spec = _tensor_scheme(recurrent, request.mode, "recurrent")
        for slot in slots:
            if slot.part.role == "recurrent" and not chosen[slot.name].reason:
                chosen[slot.name] = _choice(slot, spec, False)
    for key, given in overrides.items():
        spec = _tensor_scheme(given, request.mode, "overrides")
        for slot, direct in _aimed(key, slots, modules, "overrides"):
            chosen[slot.name] = _choice(slot, spec, direct)
    return [_unless_frozen(choice) for choice in chosen.values()]


def _tensor_scheme(spec: SchemeSpec, mode: Mode, argument: str) -> Resolved:
    found = _resolve(spec, mode, {})
    if isinstance(found, Scheme) and found.whole_model:
        raise ValueError(
            f"{argument}: scheme {found.name!r} looks at the whole model and cannot be given to a "
            "part of it"
        )
    return found


def _by_default(slot: Slot, spec: Resolved) -> _Choice:
    """Layers get the scheme; the rest keeps what it has."""
    role = slot.part.role
    embeds = role == "embedding" and isinstance(spec, Scheme) and spec.embeddings
    if role in (*WEIGHTS, *BIAS_ROLES, "hooked") or embeds:
        return _choice(slot, spec, False)
    reason = f"{slot.kind} keeps its own initialization"
    if role == "own":
        reason = f"not initialized: {slot.kind} holds it itself; name it in overrides"
    return _choice(slot, spec, False, reason)


def _choice(slot: Slot, spec: Resolved, direct: bool, reason: str = "") -> _Choice:
    """Whole-model schemes draw by their base, under their own name."""
    label = spec.name if isinstance(spec, Scheme) else _name_of(spec)
    if isinstance(spec, Scheme) and spec.whole_model:
        base = scheme(spec.base)
        shared = {name: value for name, value in spec.values.items() if name in base.parameters}
        spec = base.with_values(**shared)
    return _Choice(slot, spec, label, direct, reason)


def _name_of(function: Callable[..., object]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _unless_frozen(choice: _Choice) -> _Choice:
    if choice.reason:
        return choice
    if not all(parameter.requires_grad for parameter in choice.slot.parameters):
        return replace(choice, reason="frozen (requires_grad is False)")
    if not choice.slot.tensor.numel():
        return replace(choice, reason="empty")
    return choice


def _aimed(
    key: str | type[nn.Module],
    slots: Sequence[Slot],
    modules: Mapping[str, nn.Module],
    argument: str,
) -> list[tuple[Slot, bool]]:
    """The tensors that a pattern or type fits, and whether they were named themselves.

    Where it fits layers, norms and other tensors alike, the layers are meant.
    """
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
        label = key.__name__ if isinstance(key, type) else key
        names = {slot.layer: None for slot in slots} | {slot.name: None for slot in slots}
        near = difflib.get_close_matches(str(label), names, n=12, cutoff=0.3) or list(names)[:12]
        raise unknown_name(f"{argument} pattern", label, near)
    layers = [each for each in found if each[0].part.role in (*WEIGHTS, *BIAS_ROLES)]
    return layers or found


def _check_choices(choices: Sequence[_Choice]) -> None:
    """Refuse what cannot be drawn before anything is."""
    for choice in choices:
        if choice.reason:
            continue
        if reason := why_untouchable(choice.slot):
            raise ValueError(reason)
        if choice.is_weight and (chosen := choice.scheme):
            for part in _parts(choice, choice.slot.tensor):
                if reason := chosen.why_not(part.shape):
                    raise ValueError(
                        f"parameter {choice.slot.name!r}: {reason}. Leave it out with only=…, or "
                        "give it another scheme with overrides=…"
                    )


# ---------------------------------------------------------------- gain


def _gains(
    choices: Sequence[_Choice], request: _Request, around: Surroundings
) -> tuple[dict[str, float | None], list[str]]:
    """The gain of each weight (None: the scheme's own), and the layers where none was found."""
    gains: dict[str, float | None] = {}
    unknown: list[str] = []
    for choice in choices:
        chosen = None if choice.reason or not choice.is_weight else choice.scheme
        if chosen is None or request.gain is not None or not chosen.follows_activation:
            gains[choice.slot.name] = request.gain
            continue
        phi = request.activation or _neighbour(choice.slot, chosen, request.mode, around)
        if phi is None and choice.slot.layer not in unknown:
            unknown.append(choice.slot.layer)
        gains[choice.slot.name] = chosen.gain_with(phi or "identity")
    return gains, unknown


def _neighbour(slot: Slot, chosen: Scheme, mode: Mode, around: Surroundings) -> Any:
    """The activation that decides the gain of a weight; None where it is not known."""
    if slot.part.role == "recurrent":  # it reads the layer's own last state
        return getattr(slot.module, "nonlinearity", "identity")
    if slot.part.role not in WEIGHTS:
        return "identity"
    reads = chosen.values.get("mode", mode) != "fan_out"
    return (around.before if reads else around.after).get(slot.layer)


# ---------------------------------------------------------------- drawing


@dataclass(frozen=True)
class _Drawn:
    """What was drawn into one tensor."""

    scheme: str
    intended_std: float | None
    note: str = ""


def _draw(
    choice: _Choice, request: _Request, gain: float | None, generators: _Generators
) -> _Drawn:
    slot = choice.slot
    target = torch.empty_like(slot.tensor) if slot.parametrized else slot.tensor
    generator = generators.on(target.device)
    with torch.no_grad():
        if not choice.is_weight:
            drawn = _draw_bias(choice, request, target, generator)
        elif (chosen := choice.scheme) is not None:
            drawn = _Drawn(choice.label, _fill(choice, chosen, target, gain, generator))
        else:
            drawn = _Drawn(choice.label, _call(choice.spec, target))
        if slot.parametrized:
            slot.write(target)
        if slot.part.role == "embedding" and (row := slot.module.padding_idx) is not None:
            slot.tensor[row] = 0  # type: ignore[index]
    return drawn


def _parts(choice: _Choice, tensor: Tensor) -> list[Tensor]:
    """The tensors that the scheme fills one by one.

    Independent entries need no more than their common fans; a structure needs each map apart.
    """
    independent = choice.scheme is None or choice.scheme.ensemble in ("iid", "constant")
    return [tensor] if independent else choice.slot.part.split(tensor)


def _fill(
    choice: _Choice,
    chosen: Scheme,
    target: Tensor,
    gain: float | None,
    generator: torch.Generator | None,
) -> float | None:
    """Fill a tensor, or each map in it, and return the std that it is meant to have."""
    parts = _parts(choice, target)
    if chosen.ensemble in ("iid", "constant"):
        fans = {"fan_in": choice.slot.part.fan_in, "fan_out": choice.slot.part.fan_out}
        chosen(target, gain=gain, generator=generator, **fans)
        return chosen.std_of(target.shape, gain=gain, **fans)
    mean = square = 0.0
    for part in parts:
        contiguous = torch.empty_like(part, memory_format=torch.contiguous_format)
        part.copy_(chosen(contiguous, gain=gain, generator=generator))
        share = part.numel() / target.numel()
        part_mean = chosen.mean_of(part.shape, gain=gain)
        mean += share * part_mean
        square += share * (chosen.std_of(part.shape, gain=gain) ** 2 + part_mean**2)
    return math.sqrt(max(square - mean**2, 0.0))


def _call(function: Any, target: Tensor) -> None:
    """Let a callable of the user's fill the tensor in place."""
    result = function(target)
    if isinstance(result, Tensor) and result.data_ptr() != target.data_ptr():
        raise TypeError(
            f"{_name_of(function)} returned a new tensor; it must fill the one that it is given "
            "in place, as nn.init's functions do"
        )


def _draw_bias(
    choice: _Choice, request: _Request, bias: Tensor, generator: torch.Generator | None
) -> _Drawn:
    """Fill a bias with what was asked for, or with what the scheme of its layer prescribes."""
    asked, std = request.bias, request.bias_std
    if asked is None:
        own = choice.spec if isinstance(choice.spec, Scheme) else scheme("zeros")
        asked, std = own.bias, own.bias_std
    if asked == "pytorch_default":
        chosen = _from_law(choice.slot, "bias")
        chosen(bias, generator=generator)
        return _Drawn("pytorch_default", chosen.std_of(bias.shape))
    second = choice.slot.part.role == "second bias"
    if asked == "zeros" or second:
        nn.init.zeros_(bias)
        return _Drawn("zeros", 0.0, "" if asked == "zeros" else "added to the first bias")
    if asked == "normal":
        nn.init.normal_(bias, 0.0, float(std or 0.0), generator=generator)
        return _Drawn("normal", float(std or 0.0))
    if callable(asked):
        return _Drawn(_name_of(asked), _call(asked, bias))
    value = finite_number("bias", asked)
    nn.init.constant_(bias, value)
    return _Drawn(f"constant {value:g}", 0.0)


def _forget_gates(
    slots: Sequence[Slot], choices: Sequence[_Choice], forget_bias: float | None
) -> list[Slot]:
    """The biases that hold a forget gate and are to be drawn; none where none is asked for."""
    if forget_bias is None:
        return []
    finite_number("forget_bias", forget_bias)
    gates = [c.slot for c in choices if c.slot.part.gates == 4 and c.slot.part.role == "bias"]
    if not gates:
        raise ValueError(f"forget_bias={forget_bias}: the model has no LSTM with biases")
    return [c.slot for c in choices if c.slot in gates and not c.reason]


@torch.no_grad()
def _set_forget_gate(slot: Slot, value: float) -> _Drawn:
    """The second of the four gates i, f, g, o."""
    slot.tensor.chunk(4)[1].fill_(value)
    return _Drawn("zeros", None, f"forget gate {value:g}")


# ---------------------------------------------------------------- whole models


@dataclass(frozen=True)
class _WholeModel:
    """A whole-model scheme with what it needs."""

    scheme: Scheme
    branches: tuple[Branch, ...]
    scalars: tuple[Slot, ...]
    order: tuple[str, ...]
    batch: _Batch | None

    @classmethod
    def of(
        cls,
        chosen: Resolved,
        slots: Sequence[Slot],
        around: Surroundings,
        patterns: str | Sequence[str] | None,
        batch: _Batch | None,
    ) -> _WholeModel | None:
        """None for a scheme of single tensors; raises where something is missing."""
        needs = chosen.needs if isinstance(chosen, Scheme) else ""
        if patterns is not None and needs not in ("branches", "scalars"):
            raise ValueError("branches is used by schemes for residual networks only")
        if not isinstance(chosen, Scheme) or not chosen.whole_model:
            return None
        named = None if patterns is None else [patterns] if isinstance(patterns, str) else patterns
        branches = scalars = ()
        if needs == "batch" and batch is None:
            raise ValueError(f"scheme {chosen.name!r} measures the layers' outputs: pass batch=…")
        if needs == "branches":
            branches = _branches(chosen.name, slots, around, named, batch)
        if needs == "scalars":
            scalars = _scalars(chosen.name, slots, named)
        return cls(chosen, branches, scalars, around.order, batch)

    def adjust(
        self, choices: Sequence[_Choice], drawn: dict[str, _Drawn]
    ) -> Mapping[str, Mapping[str, float]]:
        """Adjust what was drawn by this scheme, and note it in ``drawn``."""
        assert self.scheme.adjust is not None
        at = {layer: index for index, layer in enumerate(self.order)}
        mine = [c.slot for c in choices if c.slot.name in drawn and c.label == self.scheme.name]
        mine.sort(key=lambda slot: at.get(slot.layer, len(at)))
        forward = self.batch.forward if self.batch else lambda: None
        model = DrawnModel(mine, self.branches, self.scalars, forward)
        self.scheme.adjust(model, **self.scheme.values)
        for name, factor in model.factors.items():
            was = drawn[name]
            std = None if was.intended_std is None else was.intended_std * factor
            drawn[name] = replace(was, intended_std=std, note=f"scaled by {factor:.4g}")
        for name, value in model.constants.items():
            drawn[name] = _Drawn(self.scheme.name, 0.0, f"constant {value:g}")
        return model.lr_multipliers


def _branches(
    name: str,
    slots: Sequence[Slot],
    around: Surroundings,
    patterns: Sequence[str] | None,
    batch: _Batch | None,
) -> tuple[Branch, ...]:
    """The residual branches: those that a trace saw, or those whose last layers are named."""
    if patterns is None and batch is None:
        raise ValueError(
            f"scheme {name!r} needs to know the residual branches: pass branches=… with name "
            "patterns of the last layer of each, or batch=… to find them"
        )
    if patterns is None:
        if not around.branches:
            raise ValueError(f"scheme {name!r}: no residual sum was seen while the batch ran")
        return around.branches
    layers = list(dict.fromkeys(slot.layer for slot in slots if slot.part.role in WEIGHTS))
    lasts: dict[str, None] = {}
    for pattern in patterns:
        found = [layer for layer in layers if fnmatch.fnmatchcase(layer, pattern)]
        if not found:
            raise unknown_name("branches pattern", pattern, layers)
        lasts |= dict.fromkeys(found)
    traced = {branch[-1]: branch for branch in around.branches}
    return tuple(traced.get(last) or _siblings(last, layers, lasts) for last in lasts)


def _siblings(last: str, layers: Sequence[str], lasts: Mapping[str, None]) -> Branch:
    """The layers beside the last one, in the same module and before it, back to another branch."""
    parent = last.rpartition(".")[0]
    branch: list[str] = []
    for layer in layers[: layers.index(last)][::-1]:
        if layer.rpartition(".")[0] != parent or layer in lasts:
            break
        branch.insert(0, layer)
    return (*branch, last)


def _scalars(name: str, slots: Sequence[Slot], patterns: Sequence[str] | None) -> tuple[Slot, ...]:
    """The learnable scalars α of x + α·F(x)."""
    scalars = [s for s in slots if s.part.role == "own" and s.tensor.numel() == 1]
    if not scalars:
        raise ValueError(
            f"scheme {name!r} sets the scalar α of each residual branch x + α·F(x), and this model "
            "holds none: give every block an nn.Parameter of one element"
        )
    if patterns is not None:
        known = [slot.name for slot in scalars]
        for pattern in patterns:
            if not fnmatch.filter(known, pattern):
                raise unknown_name("branches pattern", pattern, known)
        scalars = [s for s in scalars if any(fnmatch.fnmatchcase(s.name, p) for p in patterns)]
    return tuple(scalars)


# ---------------------------------------------------------------- the report


def _rows(choice: _Choice, drawn: Mapping[str, _Drawn]) -> Iterator[tuple[str, InitRow]]:
    """One row for each parameter behind a tensor."""
    slot, done = choice.slot, drawn.get(choice.slot.name)
    for name, parameter in zip(slot.names, slot.parameters, strict=True):
        intended = None if done is None else done.intended_std
        notes = [choice.reason if done is None else done.note, *_remarks(slot, done)]
        if slot.parametrized and done is not None:
            effective = measured_std(slot.tensor)
            notes.append(f"{slot.key} is computed from it; its std is {effective:.4g}")
            intended = None
        actual = measured_std(parameter)
        yield (
            name,
            InitRow(
                name,
                slot.kind,
                tuple(parameter.shape),
                slot.part.fan_in,
                slot.part.fan_out,
                None if done is None else done.scheme,
                intended,
                actual,
                "; ".join(filter(None, notes)),
                standard_errors(parameter, intended, actual),
            ),
        )


def _remarks(slot: Slot, done: _Drawn | None) -> Iterator[str]:
    if slot.aliases:
        yield f"tied to {', '.join(slot.aliases)}"
    if done is None or slot.part.role not in WEIGHTS or slot.tensor.dim() < 2:
        return
    torchs = nn.init._calculate_fan_in_and_fan_out(slot.tensor)
    if torchs != (slot.part.fan_in, slot.part.fan_out):
        yield f"torch's fans are {torchs[0]} and {torchs[1]}"
