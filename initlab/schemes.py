r"""The catalogue: one entry per scheme, with formula, source, when to use it, and PyTorch code.

A scheme fills one weight tensor. Which tensors it reaches, with which fans and gain, is
``initialize.py``'s business. A new scheme is one ``register_scheme`` call: menus, catalogue,
theory and tests pick it up by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from initlab.activations import Activation, ElementwiseFunction
from initlab.activations import gain as activation_gain
from initlab.errors import finite_number, unknown_name

Mode = Literal["fan_in", "fan_out"]
MODES: tuple[Mode, ...] = ("fan_in", "fan_out")


@dataclass(frozen=True)
class Fans:
    """What a scheme may know of the weight: fans, gain and the rows of its matrix view."""

    fan_in: float
    fan_out: float
    gain: float
    rows: int


@dataclass(frozen=True)
class Parameter:
    """One parameter of a scheme: its default, the range a slider offers, and its meaning."""

    default: Any
    low: float | None
    high: float | None
    meaning: str
    choices: tuple[str, ...] = ()


Fill = Callable[..., None]
Figure = Callable[..., float]


def _no_mean(fans: Fans, **_: Any) -> float:
    return 0.0


def _any_values(**values: Any) -> None:
    """Accept every combination of parameter values."""


@dataclass(frozen=True)
class Scheme:
    r"""How to fill a weight tensor, and everything that is to be said of it.

    Attributes:
        name: the registry's key; as in ``torch.nn.init`` where torch has it.
        title: for menus and headings.
        family: "constant", "fixed scale", "variance preserving" or "orthogonal".
        formula: LaTeX of the distribution.
        source: paper, year, equation.
        suits: one sentence on when to use it.
        ensemble: what theory needs to know: "iid", "orthogonal" or "constant" entries.
        gain: the gain used where none is given: a number, or "activation" for the activation's.
        bias: the bias it prescribes, "zeros" or "pytorch_default".
        parameters: name → Parameter.
        values: the chosen values of the parameters.
        check: raises ValueError for values that do not go together.
    """

    name: str
    title: str
    family: str
    formula: str
    source: str
    suits: str
    fill: Fill = field(repr=False)
    std: Figure = field(repr=False)
    call: Callable[..., str] = field(repr=False)
    mean: Figure = field(default=_no_mean, repr=False)
    ensemble: Literal["iid", "orthogonal", "constant"] = "iid"
    gain: float | Literal["activation"] = 1.0
    uses_gain: bool = True
    bias: Literal["zeros", "pytorch_default"] = "zeros"
    parameters: Mapping[str, Parameter] = field(default_factory=dict, repr=False)
    values: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[..., None] = field(default=_any_values, repr=False)

    def __call__(
        self,
        tensor: Tensor,
        *,
        gain: float | None = None,
        fan_in: float | None = None,
        fan_out: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Fill ``tensor`` in place and return it.

        Args:
            tensor: a weight of at least 2 dimensions, (fan_out, fan_in, *kernel).
            gain: the scheme's own if not given (√2 where it would be the activation's).
            fan_in, fan_out: from the tensor's shape if not given.
            generator: torch's global one if not given.

        Raises:
            TypeError: not a tensor. ValueError: fewer than 2 dimensions, empty, or not float.
        """
        fans = self._fans(tensor, gain, fan_in, fan_out)
        with torch.no_grad():
            self.fill(tensor, fans, generator, **self.values)
        return tensor

    def weight_std(
        self, fan_in: float, fan_out: float, gain: float | None = None, *, rows: int | None = None
    ) -> float:
        """The standard deviation of the weights.

        ``rows`` is the first dimension of the weight, needed by orthogonal alone: fan_out if not
        given, which is right for Linear layers.
        """
        return self.std(self._numbers(fan_in, fan_out, gain, rows), **self.values)

    def weight_mean(self, fan_in: float, fan_out: float, gain: float | None = None) -> float:
        """The mean of the weights: 0 for all schemes but constants and shifted distributions."""
        return self.mean(self._numbers(fan_in, fan_out, gain, None), **self.values)

    def code(self, layer: str = "layer", *, gain: float | None = None) -> str:
        """The PyTorch lines that initialize a Linear or Conv ``layer`` (its expression) the same.

        >>> print(scheme("xavier_normal").code("fc"))
        nn.init.xavier_normal_(fc.weight)
        nn.init.zeros_(fc.bias)
        """
        weight = self.weight_code(f"{layer}.weight", self._gain(gain))
        return f"{weight}\n{bias_code(layer, self.bias)}"

    def weight_code(self, weight: str, gain: float) -> str:
        """The PyTorch lines that fill ``weight`` (an expression) with this gain."""
        return self.call(weight, gain, **self.values)

    def gain_with(self, activation: str | nn.Module | ElementwiseFunction | Activation) -> float:
        """The gain it uses with this activation: its own, or for kaiming the activation's.

        With ``mode="fan_out"`` that is the gain which preserves gradients.
        """
        if self.gain != "activation":
            return self.gain
        mode = self.values.get("mode", "fan_in")
        return activation_gain(activation, "backward" if mode == "fan_out" else "forward")

    def with_values(self, **values: Any) -> Scheme:
        """The same scheme with other parameter values.

        Raises:
            TypeError: not a parameter of this scheme. ValueError: a value out of its range.
        """
        for name in values:
            if name not in self.parameters:
                known = ", ".join(self.parameters) or "none"
                raise TypeError(f"scheme {self.name!r} has no parameter {name!r}; it has: {known}")
        plain = {name: self._required(name, value) for name, value in values.items()}
        chosen: dict[str, Any] = {**self.values, **plain}
        self.check(**chosen)
        return replace(self, values=MappingProxyType(chosen))

    def _required(self, name: str, value: Any) -> Any:
        """The value as a plain float or str, or raise."""
        parameter = self.parameters[name]
        if parameter.choices:
            if value not in parameter.choices:
                raise unknown_name(f"{self.name} {name}", value, parameter.choices)
            return value
        if value is None and parameter.default is None:
            return None
        number = finite_number(f"{self.name} {name}", value)
        if name == "std" and number < 0:
            raise ValueError(f"{self.name} std={value} must be at least 0")
        return number

    def _gain(self, gain: float | None) -> float:
        if gain is not None:
            return finite_number("gain", gain, positive=True)
        return math.sqrt(2) if self.gain == "activation" else self.gain

    def _numbers(self, fan_in: float, fan_out: float, gain: float | None, rows: int | None) -> Fans:
        finite_number("fan_in", fan_in, positive=True)
        finite_number("fan_out", fan_out, positive=True)
        return Fans(fan_in, fan_out, self._gain(gain), rows or int(fan_out))

    def _fans(
        self, tensor: Tensor, gain: float | None, fan_in: float | None, fan_out: float | None
    ) -> Fans:
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"scheme {self.name!r} fills a tensor, not a {type(tensor).__name__}; "
                "for a whole model use initlab.init_(model, scheme)"
            )
        if tensor.dim() < 2:
            raise ValueError(
                f"scheme {self.name!r} needs a weight of at least 2 dimensions, got shape "
                f"{tuple(tensor.shape)}: a bias has no fan_in; init_(…, bias=…) sets biases"
            )
        if not tensor.is_floating_point() or tensor.numel() == 0:
            raise ValueError(
                f"scheme {self.name!r} needs a non-empty float tensor, got {tensor.dtype} "
                f"of shape {tuple(tensor.shape)}"
            )
        receptive = tensor[0, 0].numel()
        return self._numbers(
            fan_in or tensor.shape[1] * receptive,
            fan_out or tensor.shape[0] * receptive,
            gain,
            tensor.shape[0],
        )


def bias_code(layer: str, kind: str | float, std: float | None = None) -> str:
    """The PyTorch lines that set the bias of a ``layer`` (an expression): zeros, pytorch_default,
    normal of this std, or a number."""
    if kind == "pytorch_default":
        bound = f"bound = 1 / {layer}.weight[0].numel() ** 0.5"
        return f"{bound}\nnn.init.uniform_({layer}.bias, -bound, bound)"
    if kind == "zeros":
        return f"nn.init.zeros_({layer}.bias)"
    if kind == "normal":
        return f"nn.init.normal_({layer}.bias, std={std!r})"
    return f"nn.init.constant_({layer}.bias, {kind!r})"


# ---------------------------------------------------------------- the fills and their numbers


def _fan(fans: Fans, mode: str) -> float:
    return fans.fan_in if mode == "fan_in" else fans.fan_out


def _fill_constant(tensor: Tensor, fans: Fans, generator: Any, *, value: float) -> None:
    nn.init.constant_(tensor, value)


def _fill_uniform(tensor: Tensor, fans: Fans, generator: Any, *, low: float, high: float) -> None:
    nn.init.uniform_(tensor, low, high, generator=generator)


def _fill_normal(tensor: Tensor, fans: Fans, generator: Any, *, mean: float, std: float) -> None:
    nn.init.normal_(tensor, mean, std, generator=generator)


def _fill_trunc_normal(
    tensor: Tensor, fans: Fans, generator: Any, *, mean: float, std: float, a: float, b: float
) -> None:
    if std == 0:
        tensor.fill_(min(max(mean, a), b))
    else:
        cut = _reachable_cut(mean=mean, std=std, a=a, b=b)
        nn.init.trunc_normal_(tensor, **cut, generator=generator)


def _fill_orthogonal(tensor: Tensor, fans: Fans, generator: Any) -> None:
    nn.init.orthogonal_(tensor, fans.gain, generator=generator)


def _normal_of(std: Figure) -> Fill:
    def fill(tensor: Tensor, fans: Fans, generator: Any, **values: Any) -> None:
        nn.init.normal_(tensor, 0.0, std(fans, **values), generator=generator)

    return fill


def _uniform_of(std: Figure) -> Fill:
    def fill(tensor: Tensor, fans: Fans, generator: Any, **values: Any) -> None:
        bound = math.sqrt(3) * std(fans, **values)
        nn.init.uniform_(tensor, -bound, bound, generator=generator)

    return fill


def _xavier_std(fans: Fans) -> float:
    """Glorot & Bengio 2010, eq. 12 and 16."""
    return fans.gain * math.sqrt(2 / (fans.fan_in + fans.fan_out))


def _kaiming_std(fans: Fans, *, mode: str = "fan_in", a: float | None = None) -> float:
    """He et al. 2015, eq. 10 (fan_in), 14 (fan_out), 15 (slope a)."""
    gain = fans.gain if a is None else math.sqrt(2 / (1 + a**2))
    return gain / math.sqrt(_fan(fans, mode))


def _lecun_std(fans: Fans) -> float:
    """LeCun et al. 1998, eq. 16."""
    return fans.gain / math.sqrt(fans.fan_in)


def _fan_in_uniform_std(fans: Fans) -> float:
    return 1 / math.sqrt(3 * fans.fan_in)


def _orthogonal_std(fans: Fans) -> float:
    """Rows or columns of norm gain: entries of variance gain²/max(rows, columns)."""
    return fans.gain / math.sqrt(max(fans.rows, fans.fan_in))


def _check_uniform(*, low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"uniform: low={low} must be below high={high}")


def _check_trunc_normal(*, mean: float, std: float, a: float, b: float) -> None:
    """Refuse a cut that leaves so little that torch, which draws by rejection, would not return."""
    if not a < b:
        raise ValueError(f"trunc_normal: a={a} must be below b={b}")
    beyond = max(a - mean, mean - b, 0.0)
    if beyond > 2 * std > 0:
        raise ValueError(
            f"trunc_normal: mean={mean} lies {beyond / std:.3g} std outside of a={a} to b={b}, "
            "which cuts nearly everything off; move the cut, or take std of at least "
            f"{beyond / 2:.3g}"
        )


def _reachable_cut(*, mean: float, std: float, a: float, b: float) -> dict[str, float]:
    """The same distribution, cut where nothing is lost and torch's rejection still finds draws.

    Where [a, b] keeps less than a third, torch proposes from U(a, b): hopeless if b − a ≫ std.
    """
    root = math.sqrt(2) * (std or 1.0)
    kept = (math.erf((b - mean) / root) - math.erf((a - mean) / root)) / 2
    if kept < 1 / 3:
        mode = min(max(mean, a), b)
        a, b = max(a, mode - 9 * std), min(b, mode + 9 * std)
    return {"mean": mean, "std": std, "a": a, "b": b}


def _trunc_normal_moments(mean: float, std: float, a: float, b: float) -> tuple[float, float]:
    """Mean and std of N(mean, std²) cut to [a, b] (a, b absolute, as in torch)."""
    if std == 0:
        return min(max(mean, a), b), 0.0
    from scipy.stats import truncnorm

    low, high = (a - mean) / std, (b - mean) / std
    first, variance = truncnorm.stats(low, high, loc=mean, scale=std, moments="mv")
    return float(first), math.sqrt(float(variance))


def _call(function: str, *, gain: bool = False) -> Callable[..., str]:
    """The torch.nn.init call of that name, with the scheme's parameters as keywords."""

    def call(weight: str, used_gain: float, **values: Any) -> str:
        keywords = [f"{name}={value!r}" for name, value in values.items() if value is not None]
        if gain and used_gain != 1:
            keywords.append(f"gain={used_gain!r}")
        return f"nn.init.{function}({', '.join([weight, *keywords])})"

    return call


def _kaiming_call(kind: str) -> Callable[..., str]:
    """torch's own call where its gain can be said in it, else the distribution spelt out."""

    def call(weight: str, gain: float, *, mode: str, a: float | None) -> str:
        if a is not None:
            return f"nn.init.kaiming_{kind}_({weight}, a={a!r}, mode={mode!r})"
        if math.isclose(gain, math.sqrt(2)):
            return f"nn.init.kaiming_{kind}_({weight}, mode={mode!r}, nonlinearity='relu')"
        fan = f"{weight}[0].numel()" if mode == "fan_in" else f"{weight}[:, 0].numel()"
        return _spelt_out(kind, weight, f"{gain!r} / {fan} ** 0.5")

    return call


def _lecun_call(kind: str) -> Callable[..., str]:
    return lambda weight, gain: _spelt_out(kind, weight, f"{gain!r} / {weight}[0].numel() ** 0.5")


def _spelt_out(kind: str, weight: str, std: str) -> str:
    if kind == "normal":
        return f"nn.init.normal_({weight}, std={std})"
    return f"bound = 3 ** 0.5 * {std}\nnn.init.uniform_({weight}, -bound, bound)"


def _default_call(weight: str, gain: float) -> str:
    return f"nn.init.kaiming_uniform_({weight}, a=5 ** 0.5)"


# ---------------------------------------------------------------- the registry

_registry: dict[str, Scheme] = {}

SCHEMES: Mapping[str, Scheme] = MappingProxyType(_registry)
"""Every scheme by name, in the order in which menus show them."""


def scheme(name: str | Scheme, **params: Any) -> Scheme:
    """The scheme of that name, with other values of its parameters if given.

    Raises:
        ValueError: unknown name, or a parameter value out of range.
        TypeError: a parameter that the scheme does not have.

    >>> scheme("normal", std=0.01).weight_std(100, 100)
    0.01
    """
    if isinstance(name, Scheme):
        return name.with_values(**params)
    if not isinstance(name, str) or name not in _registry:
        raise unknown_name("scheme", name, _registry)
    return _registry[name].with_values(**params)


def register_scheme(name: str, **fields: Any) -> Scheme:
    """Add a scheme to ``SCHEMES``; ``fields`` are those of ``Scheme``.

    Raises:
        ValueError: the name is empty or taken.
    """
    if not name or name in _registry:
        raise ValueError(f"scheme name {name!r} is empty or already registered")
    parameters = fields.get("parameters", {})
    defaults = {key: parameter.default for key, parameter in parameters.items()}
    _registry[name] = Scheme(name=name, values=MappingProxyType(defaults), **fields)
    return _registry[name]


_MODE = Parameter("fan_in", None, None, "which fan keeps its variance", MODES)
_SLOPE = Parameter(None, 0.0, 1.0, "negative slope of leaky_relu; None: the activation's gain")

for _name, _title, _value in (("zeros", "Zeros", 0.0), ("ones", "Ones", 1.0)):
    register_scheme(
        _name,
        title=_title,
        family="constant",
        formula=rf"W_{{ij}} = {_value:g}",
        source="Goodfellow et al. 2016, Deep Learning, sec. 8.4 (on breaking symmetry)",
        suits="Nothing but a demonstration: all units of a layer stay equal for ever.",
        fill=lambda tensor, fans, generator, value=_value: _fill_constant(
            tensor, fans, generator, value=value
        ),
        std=lambda fans: 0.0,
        mean=lambda fans, value=_value: value,
        call=_call(f"{_name}_"),
        ensemble="constant",
        uses_gain=False,
    )

register_scheme(
    "constant",
    title="Constant",
    family="constant",
    formula=r"W_{ij} = c",
    source="Goodfellow et al. 2016, Deep Learning, sec. 8.4 (on breaking symmetry)",
    suits="Nothing but a demonstration: all units of a layer stay equal for ever.",
    fill=lambda tensor, fans, generator, val: _fill_constant(tensor, fans, generator, value=val),
    std=lambda fans, val: 0.0,
    mean=lambda fans, val: val,
    call=_call("constant_"),
    ensemble="constant",
    uses_gain=False,
    parameters={"val": Parameter(0.1, -1.0, 1.0, "the value of every weight")},
)

register_scheme(
    "uniform",
    title="Uniform",
    family="fixed scale",
    formula=r"W_{ij} \sim U(\mathrm{low}, \mathrm{high})",
    source="the textbook's first try; no paper",
    suits="Seeing what a scale that ignores fan_in does; torch's default range [0, 1] has mean ½.",
    fill=_fill_uniform,
    std=lambda fans, low, high: (high - low) / math.sqrt(12),
    mean=lambda fans, low, high: (low + high) / 2,
    call=lambda weight, gain, low, high: f"nn.init.uniform_({weight}, a={low!r}, b={high!r})",
    uses_gain=False,
    check=_check_uniform,
    parameters={
        "low": Parameter(0.0, -1.0, 1.0, "lower end"),
        "high": Parameter(1.0, -1.0, 1.0, "upper end"),
    },
)

register_scheme(
    "normal",
    title="Normal",
    family="fixed scale",
    formula=r"W_{ij} \sim N(\mu, \sigma^2)",
    source="Krizhevsky et al. 2012, sec. 5 (σ = 0.01)",
    suits="Seeing what a scale that ignores fan_in does to a deep network.",
    fill=_fill_normal,
    std=lambda fans, mean, std: std,
    mean=lambda fans, mean, std: mean,
    call=_call("normal_"),
    uses_gain=False,
    parameters={
        "mean": Parameter(0.0, -1.0, 1.0, "mean μ"),
        "std": Parameter(1.0, 0.0, 2.0, "standard deviation σ"),
    },
)

register_scheme(
    "trunc_normal",
    title="Truncated normal",
    family="fixed scale",
    formula=r"W_{ij} \sim N(\mu, \sigma^2)\ \text{cut to}\ [a, b]",
    source="torch.nn.init.trunc_normal_ (a and b are absolute, not multiples of σ)",
    suits="Transformers (std 0.02), where a and b as published cut nothing off.",
    fill=_fill_trunc_normal,
    std=lambda fans, **values: _trunc_normal_moments(**values)[1],
    mean=lambda fans, **values: _trunc_normal_moments(**values)[0],
    call=lambda weight, gain, **values: _call("trunc_normal_")(
        weight, gain, **_reachable_cut(**values)
    ),
    uses_gain=False,
    check=_check_trunc_normal,
    parameters={
        "mean": Parameter(0.0, -1.0, 1.0, "mean μ before the cut"),
        "std": Parameter(1.0, 0.0, 2.0, "standard deviation σ before the cut"),
        "a": Parameter(-2.0, -5.0, 5.0, "lower cut, absolute"),
        "b": Parameter(2.0, -5.0, 5.0, "upper cut, absolute"),
    },
)

register_scheme(
    "fan_in_uniform",
    title="Uniform ±1/√fan_in",
    family="variance preserving",
    formula=r"W_{ij} \sim U(\pm 1/\sqrt{n_\mathrm{in}})",
    source="LeCun et al. 1998, 'Efficient BackProp', as commonly misread; Var·fan_in = 1/3",
    suits="Seeing why 1/√n as a range is √3 too small as a standard deviation.",
    fill=_uniform_of(_fan_in_uniform_std),
    std=_fan_in_uniform_std,
    call=lambda weight, gain: _spelt_out("uniform", weight, f"(3 * {weight}[0].numel()) ** -0.5"),
    uses_gain=False,
)

for _kind, _fill in (("uniform", _uniform_of), ("normal", _normal_of)):
    _law = {
        "uniform": r"U(\pm\sqrt{3}\,\sigma),\ \sigma",
        "normal": r"N(0, \sigma^2),\ \sigma",
    }[_kind]
    register_scheme(
        f"xavier_{_kind}",
        title=f"Xavier {_kind}",
        family="variance preserving",
        formula=rf"W_{{ij}} \sim {_law} = g\sqrt{{2/(n_\mathrm{{in}} + n_\mathrm{{out}})}}",
        source="Glorot & Bengio 2010, eq. 16",
        suits="Symmetric activations near the identity at 0 (tanh, softsign), moderate depth.",
        fill=_fill(_xavier_std),
        std=_xavier_std,
        call=_call(f"xavier_{_kind}_", gain=True),
    )

for _kind, _fill in (("uniform", _uniform_of), ("normal", _normal_of)):
    _law = {
        "uniform": r"U(\pm\sqrt{3}\,\sigma),\ \sigma",
        "normal": r"N(0, \sigma^2),\ \sigma",
    }[_kind]
    register_scheme(
        f"kaiming_{_kind}",
        title=f"Kaiming (He) {_kind}",
        family="variance preserving",
        formula=rf"W_{{ij}} \sim {_law} = g/\sqrt{{n_\mathrm{{in}}}},\ "
        r"g = \sqrt{2/(1 + a^2)}\ \text{for slope}\ a",
        source="He et al. 2015, eq. 10, 14 and 15",
        suits="ReLU and its relatives, at any depth that the width supports.",
        fill=_fill(_kaiming_std),
        std=_kaiming_std,
        call=_kaiming_call(_kind),
        gain="activation",
        parameters={"mode": _MODE, "a": _SLOPE},
    )

for _kind, _fill in (("uniform", _uniform_of), ("normal", _normal_of)):
    _law = {
        "uniform": r"U(\pm\sqrt{3}\,\sigma),\ \sigma",
        "normal": r"N(0, \sigma^2),\ \sigma",
    }[_kind]
    register_scheme(
        f"lecun_{_kind}",
        title=f"LeCun {_kind}",
        family="variance preserving",
        formula=rf"W_{{ij}} \sim {_law} = g/\sqrt{{n_\mathrm{{in}}}}",
        source="LeCun et al. 1998, eq. 16; Klambauer et al. 2017 for selu",
        suits="SELU networks, which are built for it; linear layers.",
        fill=_fill(_lecun_std),
        std=_lecun_std,
        call=_lecun_call(_kind),
    )

register_scheme(
    "pytorch_default",
    title="PyTorch's default",
    family="variance preserving",
    formula=r"W_{ij}, b_i \sim U(\pm 1/\sqrt{n_\mathrm{in}})",
    source="torch.nn.Linear.reset_parameters: kaiming_uniform_ with a = √5",
    suits="Shallow or normalized networks; in deep plain ones the signal dies (Var·fan_in = 1/3).",
    fill=_uniform_of(_fan_in_uniform_std),
    std=_fan_in_uniform_std,
    call=_default_call,
    uses_gain=False,
    bias="pytorch_default",
)

register_scheme(
    "orthogonal",
    title="Orthogonal",
    family="orthogonal",
    formula=r"W = g\,Q,\ Q^\top Q = I\ \text{or}\ Q Q^\top = I",
    source="Saxe et al. 2014",
    suits="Deep tanh or linear networks; recurrent weights.",
    fill=_fill_orthogonal,
    std=_orthogonal_std,
    call=_call("orthogonal_", gain=True),
    ensemble="orthogonal",
)
