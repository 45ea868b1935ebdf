"""init_(): which scheme reaches which parameter of which layer, and the report of it."""

from __future__ import annotations

import fnmatch
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor, nn

from initlab.activations import ElementwiseFunction
from initlab.activations import activation as resolve_activation
from initlab.errors import finite_number, unknown_name
from initlab.schemes import MODES, Mode, Scheme, scheme

if TYPE_CHECKING:
    import pandas

SchemeSpec = str | Scheme | Callable[[Tensor], object]
BiasSpec = str | float | Callable[[Tensor], object] | None
Resolved = Scheme | Callable[[Tensor], object]
BIASES = ("zeros", "pytorch_default", "normal")

_AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PASSED_OVER = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.dropout._DropoutNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.Flatten,
    nn.Unflatten,
)


@dataclass(frozen=True)
class InitRow:
    """What happened to one parameter.

    ``fan_in`` and ``fan_out`` are the true ones; where torch's own differ, ``note`` says so.
    ``intended_std`` is the scheme's, ``actual_std`` that of the drawn values; ``scheme`` is None
    where the parameter was left alone, and ``note`` says why.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    fan_in: float | None
    fan_out: float | None
    scheme: str | None
    intended_std: float | None
    actual_std: float | None
    note: str = ""


@dataclass(frozen=True)
class InitReport(Sequence[InitRow]):
    """One row per parameter of the model, touched or not."""

    rows: tuple[InitRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, key: int | str) -> InitRow: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[InitRow, ...]: ...
    def __getitem__(self, key):
        if isinstance(key, str):
            found = [row for row in self.rows if row.name == key]
            if not found:
                raise KeyError(str(unknown_name("parameter", key, [row.name for row in self.rows])))
            return found[0]
        return self.rows[key]

    def to_frame(self) -> pandas.DataFrame:
        """The rows as a table indexed by parameter name."""
        import pandas

        columns = [field.name for field in fields(InitRow)]
        return pandas.DataFrame([astuple(row) for row in self.rows], columns=columns).set_index(
            "name"
        )

    def __repr__(self) -> str:
        touched = sum(row.scheme is not None for row in self.rows)
        lines = [f"InitReport: {touched} of {len(self.rows)} parameters initialized"]
        for row in self.rows:
            done = row.scheme or "left alone"
            std = "" if row.intended_std is None else f", std {row.intended_std:.4g}"
            note = f" ({row.note})" if row.note else ""
            lines.append(f"  {row.name} {row.shape}: {done}{std}{note}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        return frame.to_html(na_rep="", float_format=lambda value: f"{value:.4g}", border=0)


@dataclass(frozen=True)
class _Request:
    """The arguments of one init_ call, checked."""

    scheme: Resolved
    activation: str | nn.Module | ElementwiseFunction | None
    gain: float | None
    mode: Mode
    bias: BiasSpec
    bias_std: float | None


def init_(
    model: nn.Module,
    scheme: SchemeSpec,
    *,
    activation: str | nn.Module | ElementwiseFunction | None = None,
    gain: float | None = None,
    mode: Mode = "fan_in",
    bias: BiasSpec = None,
    bias_std: float | None = None,
    overrides: Mapping[str | type[nn.Module], SchemeSpec] | None = None,
    only: str | Sequence[str] | None = None,
    seed: int | None = None,
    **params: float | str | None,
) -> InitReport:
    """Initialize a model in place: Linear and Conv1-3d layers, by one scheme.

    Args:
        model: any module; norms, embeddings and other layers keep what they have.
        scheme: a name of ``SCHEMES``, a Scheme, or any ``callable(tensor)``.
        activation: the activation of every layer, whose gain kaiming uses. None infers it layer
            by layer inside ``nn.Sequential``: for fan_in the activation whose output the layer
            reads, for fan_out the one that follows; identity, with a warning, where none is found.
        gain: overrules the scheme's and the activation's gain.
        mode: which fan kaiming keeps, "fan_in" or "fan_out".
        bias: None for what the scheme prescribes; "zeros", "pytorch_default" (U(±1/√fan_in)),
            "normal" (with ``bias_std``), a number, or a ``callable(tensor)``.
        bias_std: standard deviation of normal biases.
        overrides: other schemes by dotted-name pattern or layer type; the last match wins.
        only: name patterns of the layers to touch; all if None.
        seed: of a private generator; None draws from torch's global one.
        **params: parameters of the scheme, such as ``std=0.01`` or ``a=0.2``.

    Returns:
        The report, one row per parameter.

    Raises:
        TypeError: not a module, or an argument of a wrong type.
        ValueError: an unknown name, a number out of range, a pattern that matches nothing, or a
            model without parameters.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> init_(net, "kaiming_normal", activation="relu", seed=0)["2.weight"].intended_std
    0.816496580927726
    """
    if not isinstance(model, nn.Module):
        hint = "; a scheme fills a tensor: scheme(name)(tensor)" if torch.is_tensor(model) else ""
        raise TypeError(f"model must be an nn.Module, not a {type(model).__name__}{hint}")
    if not any(True for _ in model.parameters()):
        raise ValueError(f"model={type(model).__name__}() has no parameters to initialize")
    if activation is not None:
        resolve_activation(activation)
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise TypeError(f"seed={seed!r} must be a whole number or None")
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    _check_bias(bias, bias_std)
    if gain is not None:
        finite_number("gain", gain, positive=True)
    request = _Request(_resolve(scheme, mode, params), activation, gain, mode, bias, bias_std)
    chosen = _choose(model, request, overrides or {}, only, mode)
    generators = _Generators(seed)
    rows: list[InitRow] = []
    done: set[int] = set()
    for name, module in model.named_modules():
        rows += _init_module(model, name, module, chosen, request, generators, done)
    return InitReport(tuple(rows))


def _resolve(spec: SchemeSpec, mode: Mode, params: Mapping[str, object]) -> Resolved:
    if not isinstance(spec, str | Scheme):
        if not callable(spec):
            raise TypeError(f"scheme={spec!r} must be a name, a Scheme or a callable(tensor)")
        if params:
            raise TypeError(f"a callable scheme takes no parameters, got {', '.join(params)}")
        return spec
    found = scheme(spec, **params)
    if "mode" in found.parameters and "mode" not in params and isinstance(spec, str):
        found = found.with_values(mode=mode)
    return found


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


def _choose(
    model: nn.Module,
    request: _Request,
    overrides: Mapping[str | type[nn.Module], SchemeSpec],
    only: str | Sequence[str] | None,
    mode: Mode,
) -> dict[str, Resolved]:
    """Which scheme each affine layer gets, by module name; layers left out get none."""
    names = {name: module for name, module in model.named_modules() if isinstance(module, _AFFINE)}
    patterns = [only] if isinstance(only, str) else only
    chosen = {name: request.scheme for name in names}
    if patterns is not None:
        kept = {name for pattern in patterns for name in _matching(pattern, names, "only")}
        chosen = {name: spec for name, spec in chosen.items() if name in kept}
    for key, spec in overrides.items():
        for name in _matching(key, names, "overrides"):
            chosen[name] = _resolve(spec, mode, {})
    return chosen


def _matching(
    key: str | type[nn.Module], names: Mapping[str, nn.Module], argument: str
) -> list[str]:
    if isinstance(key, type):
        found = [name for name, module in names.items() if isinstance(module, key)]
    else:
        found = [name for name in names if fnmatch.fnmatchcase(name, key)]
    if not found:
        label = key.__name__ if isinstance(key, type) else key
        raise unknown_name(f"{argument} pattern", label, names)
    return found


class _Generators:
    """One generator per device, all from one seed; None (torch's global ones) without a seed."""

    def __init__(self, seed: int | None) -> None:
        self.seed = seed
        self.made: dict[torch.device, torch.Generator] = {}

    def on(self, device: torch.device) -> torch.Generator | None:
        if self.seed is None:
            return None
        if device not in self.made:
            self.made[device] = torch.Generator(device).manual_seed(self.seed)
        return self.made[device]


def _init_module(
    model: nn.Module,
    name: str,
    module: nn.Module,
    chosen: Mapping[str, Resolved],
    request: _Request,
    generators: _Generators,
    done: set[int],
) -> Iterator[InitRow]:
    for key, parameter in module.named_parameters(recurse=False):
        path = f"{name}.{key}" if name else key
        if id(parameter) in done:
            continue
        done.add(id(parameter))
        reason = _reason_to_skip(name, module, parameter, chosen)
        if reason:
            yield InitRow(
                path, type(module).__name__, tuple(parameter.shape), None, None, None, None,
                _std(parameter), reason,
            )  # fmt: skip
        elif key == "weight":
            yield _init_weight(
                model, name, path, module, parameter, chosen[name], request, generators
            )
        else:
            yield _init_bias(path, module, parameter, chosen[name], request, generators)


def _reason_to_skip(
    name: str, module: nn.Module, parameter: Tensor, chosen: Mapping[str, Resolved]
) -> str:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise ValueError(f"layer {name!r} is lazy and has no shape yet; run one batch first")
    if not isinstance(module, _AFFINE):
        return f"{type(module).__name__} keeps its own initialization"
    if name not in chosen:
        return "not selected by only"
    if not parameter.requires_grad:
        return "frozen (requires_grad is False)"
    return ""


def _init_weight(
    model: nn.Module,
    name: str,
    path: str,
    module: nn.Module,
    weight: Tensor,
    spec: Resolved,
    request: _Request,
    generators: _Generators,
) -> InitRow:
    fan_in, fan_out = _true_fans(module)
    note = ""
    torch_fans = nn.init._calculate_fan_in_and_fan_out(weight)
    if torch_fans != (fan_in, fan_out):
        note = f"torch's fans are {torch_fans[0]} and {torch_fans[1]}"
    if isinstance(spec, Scheme):
        gain = _layer_gain(model, name, spec, request)
        spec(
            weight,
            gain=gain,
            fan_in=fan_in,
            fan_out=fan_out,
            generator=generators.on(weight.device),
        )
        intended = spec.weight_std(fan_in, fan_out, gain, rows=weight.shape[0])
        label = spec.name
    else:
        with torch.no_grad():
            spec(weight)
        intended, label = None, getattr(spec, "__name__", type(spec).__name__)
    return InitRow(
        path, type(module).__name__, tuple(weight.shape), fan_in, fan_out, label, intended,
        _std(weight), note,
    )  # fmt: skip


def _true_fans(module: nn.Module) -> tuple[float, float]:
    """Terms that one output sums up, and outputs that one input enters, on average over inputs."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    receptive = weight[0, 0].numel()
    entered = getattr(module, "groups", 1) * math.prod(getattr(module, "stride", ()))
    return weight.shape[1] * receptive, weight.shape[0] * receptive / entered


def _layer_gain(model: nn.Module, name: str, spec: Scheme, request: _Request) -> float | None:
    if request.gain is not None:
        return request.gain
    if spec.gain != "activation" or spec.values.get("a") is not None:
        return None
    reads = spec.values.get("mode", request.mode) == "fan_in"
    phi = request.activation or _neighbour_activation(model, name, before=reads)
    if phi is None:
        warnings.warn(
            f"no activation found for layer {name!r}; its gain is that of identity, 1. "
            "Pass activation=… to choose it",
            stacklevel=5,
        )
        phi = "identity"
    return spec.gain_with(phi)


def _neighbour_activation(model: nn.Module, name: str, *, before: bool) -> nn.Module | None:
    """The activation before or after a layer of nested ``nn.Sequential``s; identity at the ends."""
    chain: list[tuple[str, nn.Module]] = []
    if not _flatten_sequential(model, "", chain):
        return None
    position = [path for path, _ in chain].index(name)
    rest = chain[:position][::-1] if before else chain[position + 1 :]
    for _, module in rest:
        if isinstance(module, _PASSED_OVER):
            continue
        if isinstance(module, _AFFINE):
            return nn.Identity()
        try:
            resolve_activation(module)
        except TypeError:
            return None
        return module
    return nn.Identity()


def _flatten_sequential(module: nn.Module, path: str, chain: list[tuple[str, nn.Module]]) -> bool:
    """Collect the layers in order; False where some container is not a Sequential."""
    if isinstance(module, nn.Sequential):
        return all(
            _flatten_sequential(child, f"{path}.{key}" if path else key, chain)
            for key, child in module.named_children()
        )
    chain.append((path, module))
    return not list(module.children())


def _init_bias(
    path: str,
    module: nn.Module,
    bias: Tensor,
    spec: Resolved,
    request: _Request,
    generators: _Generators,
) -> InitRow:
    fan_in, fan_out = _true_fans(module)
    asked = request.bias
    if asked is None:
        asked = spec.bias if isinstance(spec, Scheme) else "zeros"
    generator = generators.on(bias.device)
    with torch.no_grad():
        label, intended = _fill_bias(bias, asked, request.bias_std, fan_in, generator)
    return InitRow(
        path, type(module).__name__, tuple(bias.shape), fan_in, fan_out, label, intended, _std(bias)
    )


def _fill_bias(
    bias: Tensor,
    asked: BiasSpec,
    bias_std: float | None,
    fan_in: float,
    generator: torch.Generator | None,
) -> tuple[str, float | None]:
    """Fill the bias; return what to call it and its intended std."""
    if asked == "zeros":
        nn.init.zeros_(bias)
        return "zeros", 0.0
    if asked == "pytorch_default":
        bound = 1 / math.sqrt(fan_in)
        nn.init.uniform_(bias, -bound, bound, generator=generator)
        return "pytorch_default", bound / math.sqrt(3)
    if asked == "normal":
        std = float(bias_std or 0.0)
        nn.init.normal_(bias, 0.0, std, generator=generator)
        return "normal", std
    if asked is not None and not isinstance(asked, str | int | float):
        asked(bias)
        return getattr(asked, "__name__", type(asked).__name__), None
    value = finite_number("bias", asked)
    nn.init.constant_(bias, value)
    return f"constant {value:g}", 0.0


def _std(tensor: Tensor) -> float | None:
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return None
    return float(tensor.detach().double().std(correction=0))
