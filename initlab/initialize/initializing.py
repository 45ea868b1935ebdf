"""init_(): draw what a scheme reaches, in place, and report on every parameter."""

from __future__ import annotations

import fnmatch
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from initlab.activations import ActivationSpec
from initlab.activations import activation as resolve_activation
from initlab.errors import finite_number, seed_number, unknown_name
from initlab.initialize.reach import (
    Aim,
    Choice,
    Resolved,
    SchemeSpec,
    check_choices,
    choose,
    from_law,
    name_of,
    parts_to_fill,
    resolve,
)
from initlab.initialize.report import InitReport, InitRow, measured_std, standard_errors
from initlab.layers import (
    WEIGHTS,
    Branch,
    Slot,
    Surroundings,
    branches_ending,
    in_sequential,
    in_trace,
    quantized_layers,
    slots_of,
)
from initlab.schemes import MODES, DrawnModel, Mode, Scheme, scheme
from initlab.tracing import Trace, preserved, trace

BiasSpec = str | float | Callable[[Tensor], object] | None
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
    overrides: Mapping[Aim, SchemeSpec] | None = None,
    only: Aim | Sequence[Aim] | None = None,
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
        only: name patterns or layer types of what to touch; all if None.
        batch: what the model is called with: a tensor, a tuple of arguments, or a dict of keyword
            arguments.
        branches: for whole-model schemes, name patterns of the last layer of each residual branch
            (for rezero and skipinit, of the scalars); found with ``batch`` if None (scalars,
            where all that blocks of the model hold have one name).
        seed: of a private generator, or that generator; None draws from torch's global one. A
            callable of yours draws from it too. Equal seeds of ``init_`` and of ``noise`` or
            ``torch.manual_seed`` give unrelated numbers.
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
    request = _Request(resolve(scheme, mode, params), activation, gain, mode, bias, bias_std)
    if isinstance(request.scheme, Scheme):
        request.scheme.check_gain(gain)
    generators = _Generators(seed)
    run = None if batch is None else _Batch(model, batch)
    around = _look_around(model, request, run)
    slots = slots_of(model)
    _check_lazy(slots)
    choices = choose(model, slots, request.scheme, mode, overrides or {}, only, recurrent)
    forget = _forget_gates(choices, forget_bias)
    whole = _WholeModel.of(model, request.scheme, slots, around, branches, run)
    gains, unknown = _gains(choices, request, around)
    check_choices(choices)
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
        drawn[slot.name] = _set_forget_gate(slot, float(forget_bias or 0.0), drawn[slot.name])
    multipliers = whole.adjust(choices, drawn) if whole else {}
    rows = {name: row for choice in choices for name, row in _rows(choice, drawn)}
    for slot in slots:  # other parameters in the same memory
        for alias in slot.aliases:
            note = f"the same memory as {slot.names[0]}"
            rows.setdefault(alias, replace(rows[slot.names[0]], name=alias, note=note))
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
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ValueError(f"model={type(model).__name__}() has no parameters to initialize")
    for name, parameter in parameters.items():
        if parameter.is_meta:
            raise ValueError(
                f"parameter {name!r} is on the meta device and has no memory to fill; "
                "model.to_empty(device=…) gives it some"
            )
        is_lazy = isinstance(parameter, nn.parameter.UninitializedParameter)
        if not is_lazy and parameter.is_inference():
            raise ValueError(
                f"parameter {name!r} was made under torch.inference_mode() and cannot be written "
                "to: build the model outside of it"
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


class _Generators:
    """One generator per device, all from one seed; None (torch's global ones) without a seed."""

    def __init__(self, seed: int | torch.Generator | None) -> None:
        given = isinstance(seed, torch.Generator)
        if seed is not None and not given:
            seed = seed_number(seed, others=", a torch.Generator or None")
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


# ---------------------------------------------------------------- gain


def _gains(
    choices: Sequence[Choice], request: _Request, around: Surroundings
) -> tuple[dict[str, float | None], list[str]]:
    """The gain of each weight (None: the scheme's own), and the layers where none was found."""
    gains: dict[str, float | None] = {}
    unknown: list[str] = []
    for choice in choices:
        chosen = None if choice.reason or not choice.is_weight else choice.scheme
        if chosen is None or request.gain is not None or not chosen.follows_activation:
            sets_its_own = chosen is not None and chosen.set_gain is not None
            gains[choice.slot.name] = None if sets_its_own else request.gain
            continue
        phi = request.activation or _neighbour(choice.slot, chosen, request.mode, around)
        if phi is None and choice.slot.layer not in unknown:
            unknown.append(choice.slot.layer)
        gains[choice.slot.name] = chosen.gain_with(phi or "identity")
    return gains, unknown


def _neighbour(slot: Slot, chosen: Scheme, mode: Mode, around: Surroundings) -> Any:
    """The activation that decides the gain of a weight; None where it is not known."""
    if slot.part.inner:  # it reads its own layer's state
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


def _draw(choice: Choice, request: _Request, gain: float | None, generators: _Generators) -> _Drawn:
    slot = choice.slot
    target = slot.tensor.clone() if slot.parametrized else slot.tensor
    generator = generators.on(target.device)
    with torch.no_grad():
        if not choice.is_weight:
            drawn = _draw_bias(choice, request, target, generator)
        elif (chosen := choice.scheme) is not None:
            drawn = _Drawn(choice.label, _fill(choice, chosen, target, gain, generator))
        else:
            drawn = _Drawn(choice.label, _call(choice.spec, target, generator))
        if slot.part.role == "embedding" and (row := slot.module.padding_idx) is not None:
            target[row] = 0  # type: ignore[index]
        if slot.parametrized:
            slot.write(target)
    return drawn


def _fill(
    choice: Choice,
    chosen: Scheme,
    target: Tensor,
    gain: float | None,
    generator: torch.Generator | None,
) -> float | None:
    """Fill a tensor, or each map in it, and return the std that it is meant to have."""
    parts = parts_to_fill(choice, target)
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


def _call(function: Any, target: Tensor, generator: torch.Generator | None) -> None:
    """Let a callable of the user's fill the tensor in place."""
    memory = target.data_ptr()
    with _as_global(generator):
        result = function(target)
    if target.data_ptr() != memory:
        raise TypeError(
            f"{name_of(function)} put a new tensor in place of the one that it is given; it must "
            "fill that, which optimizers and tied layers hold too"
        )
    if isinstance(result, Tensor) and result.data_ptr() != memory:
        raise TypeError(
            f"{name_of(function)} returned a new tensor; it must fill the one that it is given "
            "in place, as nn.init's functions do"
        )


@contextmanager
def _as_global(generator: torch.Generator | None) -> Iterator[None]:
    """Let torch's global generator draw as this one would, and give it its own state back."""
    if generator is None or generator.device.type not in ("cpu", "cuda"):
        yield
        return
    default = torch.default_generator
    if generator.device.type == "cuda":
        default = torch.cuda.default_generators[generator.device.index or 0]
    state = default.get_state()
    default.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(default.get_state())
        default.set_state(state)


def _draw_bias(
    choice: Choice, request: _Request, bias: Tensor, generator: torch.Generator | None
) -> _Drawn:
    """Fill a bias with what was asked for, or with what the scheme of its layer prescribes."""
    asked, std = request.bias, request.bias_std
    if asked is None:
        own = choice.spec if isinstance(choice.spec, Scheme) else scheme("zeros")
        asked, std = own.bias, own.bias_std
    if asked == "pytorch_default":
        chosen = from_law(choice.slot, "bias")
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
        return _Drawn(name_of(asked), _call(asked, bias, generator))
    value = finite_number("bias", asked)
    nn.init.constant_(bias, value)
    return _Drawn(f"constant {value:g}", 0.0)


def _forget_gates(choices: Sequence[Choice], forget_bias: float | None) -> list[Slot]:
    """The biases that hold a forget gate and are to be drawn; none where none is asked for."""
    if forget_bias is None:
        return []
    finite_number("forget_bias", forget_bias)
    gates = [c for c in choices if c.slot.part.gates == 4 and c.slot.part.role == "bias"]
    if not gates:
        raise ValueError(f"forget_bias={forget_bias}: the model has no LSTM with biases")
    return [choice.slot for choice in gates if not choice.reason]


@torch.no_grad()
def _set_forget_gate(slot: Slot, value: float, drawn: _Drawn) -> _Drawn:
    """Fill the second of the four gates i, f, g, o of a bias that has been drawn."""
    values = slot.tensor.clone()
    values.chunk(4)[1].fill_(value)
    slot.write(values)
    return replace(drawn, intended_std=None, note=f"forget gate {value:g}")


# ---------------------------------------------------------------- whole models


@dataclass(frozen=True)
class _WholeModel:
    """A whole-model scheme with what it needs."""

    model: nn.Module
    slots: Sequence[Slot]
    scheme: Scheme
    branches: Sequence[Branch]
    scalars: Sequence[Slot]
    order: tuple[str, ...]
    batch: _Batch | None

    @classmethod
    def of(
        cls,
        model: nn.Module,
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
        named = [patterns] if isinstance(patterns, str) else patterns
        branches = scalars = ()
        if needs == "batch" and batch is None:
            raise ValueError(f"scheme {chosen.name!r} measures the layers' outputs: pass batch=…")
        if needs == "branches":
            branches = _branches(chosen.name, slots, named, around.branches, batch is not None)
        if needs == "scalars":
            scalars = _scalars(chosen.name, slots, named)
        return cls(model, slots, chosen, branches, scalars, around.order, batch)

    def adjust(
        self, choices: Sequence[Choice], drawn: dict[str, _Drawn]
    ) -> Mapping[str, Mapping[str, float]]:
        """Adjust what was drawn by this scheme, and note it in ``drawn``."""
        assert self.scheme.adjust is not None
        at = {layer: index for index, layer in enumerate(self.order)}
        mine = {
            c.slot.name for c in choices if c.slot.name in drawn and c.label == self.scheme.name
        }
        slots = sorted(self.slots, key=lambda slot: at.get(slot.layer, len(at)))
        forward = self.batch.forward if self.batch else lambda: None
        model = DrawnModel(self.model, slots, mine, self.branches, self.scalars, forward)
        self.scheme.adjust(model, **self.scheme.values)
        for name, factor in model.factors.items():
            was = drawn[name]
            std = None if was.intended_std is None else was.intended_std * factor
            drawn[name] = replace(was, intended_std=std, note=f"scaled by {factor:.4g}")
        for name, note in model.notes.items():
            drawn[name] = replace(drawn[name], note=note)
        for name, value in model.constants.items():
            drawn[name] = _Drawn(self.scheme.name, 0.0, f"constant {value:g}")
        return model.lr_multipliers


def _branches(
    name: str,
    slots: Sequence[Slot],
    patterns: Sequence[str] | None,
    traced: Sequence[Branch],
    was_traced: bool,
) -> Sequence[Branch]:
    """The residual branches: those whose last layers are named, or those that a trace saw."""
    if patterns is not None:
        layers = list(dict.fromkeys(slot.layer for slot in slots if slot.part.role in WEIGHTS))
        return branches_ending(patterns, layers, traced)
    if not was_traced:
        raise ValueError(
            f"scheme {name!r} needs to know the residual branches: pass branches=… with name "
            "patterns of the last layer of each, or batch=… to find them"
        )
    if not traced:
        raise ValueError(f"scheme {name!r}: no residual sum was seen while the batch ran")
    return traced


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
    elif len(alike := {_role_name(slot.name) for slot in scalars}) > 1 or not scalars[0].layer:
        raise ValueError(
            f"scheme {name!r} sets the scalar α of each residual branch x + α·F(x), and which of "
            f"this model's scalars are that is not clear: {', '.join(sorted(alike))}. Name them, "
            f"as in branches={'*.alpha' if scalars[0].layer else scalars[0].name!r}"
        )
    return tuple(scalars)


def _role_name(name: str) -> str:
    """What parameters of equal role in repeated blocks have in common: the last part of the name
    that is no number."""
    return next((part for part in reversed(name.split(".")) if not part.isdigit()), name)


# ---------------------------------------------------------------- the report


def _rows(choice: Choice, drawn: Mapping[str, _Drawn]) -> Iterator[tuple[str, InitRow]]:
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
    if done is not None and slot.spectral:
        yield "spectral_norm still knows the old weight: run a few batches in training mode"
    if done is None or slot.part.role not in WEIGHTS or slot.tensor.dim() < 2:
        return
    torchs = nn.init._calculate_fan_in_and_fan_out(slot.tensor)
    if torchs != (slot.part.fan_in, slot.part.fan_out):
        yield f"torch's fans are {torchs[0]} and {torchs[1]}"
