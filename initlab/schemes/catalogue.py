r"""The catalogue: one entry per scheme, with formula, source, when to use it, and PyTorch code.

A scheme fills one weight tensor. Which tensors it reaches, with which fans and gain, is
``initlab.initialize``'s business. A new scheme is one ``register_scheme`` call: menus, catalogue,
theory and tests pick it up by themselves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from initlab.activations import ActivationSpec
from initlab.activations import activation as resolve_activation
from initlab.errors import unknown_name
from initlab.schemes.entry import (
    ANY_TENSOR,
    MODES,
    Fans,
    Fill,
    Moment,
    Parameter,
    Scheme,
)
from initlab.schemes.structured import STRUCTURED_SCHEMES, orthogonal_
from initlab.schemes.whole_model import MODEL_SCHEMES
from initlab.theory import critical_sigma_w

# ---------------------------------------------------------------- the fills and their numbers


def _fan(fans: Fans, mode: str) -> float:
    if mode == "fan_avg":
        return (fans.fan_in + fans.fan_out) / 2
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
    orthogonal_(tensor, fans.gain, generator)


def _normal_of(std: Moment) -> Fill:
    def fill(tensor: Tensor, fans: Fans, generator: Any, **values: Any) -> None:
        nn.init.normal_(tensor, 0.0, std(fans, **values), generator=generator)

    return fill


def _uniform_of(std: Moment) -> Fill:
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


def _check_slope(*, mode: str, a: float | None) -> None:
    """A slope above 1 is a gain in disguise, but for √5, with which torch makes its default."""
    if a is not None and a > 1 and not math.isclose(a, math.sqrt(5), rel_tol=1e-3):
        raise ValueError(
            f"a={a} must be a negative slope between 0 and 1 (√5 as in torch's default layers is "
            f"accepted too); if {a} is meant as a gain, say gain={a}"
        )


def _variance_scaling_std(
    fans: Fans, *, scale: float | None, mode: str, distribution: str
) -> float:
    """Keras and JAX VarianceScaling: Var W = scale/n, of the distribution after any cut."""
    return math.sqrt((fans.gain**2 if scale is None else scale) / _fan(fans, mode))


CUT_STD = 0.879625661034240
"""The std of N(0, 1) cut to [−2, 2]: √(1 − 4·φ(2)/(Φ(2) − Φ(−2)))."""


def _fill_variance_scaling(tensor: Tensor, fans: Fans, generator: Any, **values: Any) -> None:
    std = _variance_scaling_std(fans, **values)
    if values["distribution"] == "uniform":
        bound = math.sqrt(3) * std
        nn.init.uniform_(tensor, -bound, bound, generator=generator)
    elif values["distribution"] == "normal":
        nn.init.normal_(tensor, 0.0, std, generator=generator)
    else:
        wide = std / CUT_STD
        nn.init.trunc_normal_(tensor, 0.0, wide, -2 * wide, 2 * wide, generator=generator)


def _dropout_corrected_std(fans: Fans, *, keep: float) -> float:
    """Inverted dropout divides what is kept by keep: E x² = E φ²/keep (Hendrycks & Gimpel 2016)."""
    return fans.gain * math.sqrt(keep / fans.fan_in)


def _siren_std(fans: Fans, *, omega: float, position: str) -> float:
    """Sitzmann et al. 2020, sec. 3.2: U(±1/n) first, U(±√(6/n)/ω₀) elsewhere."""
    if position == "first":
        return 1 / (math.sqrt(3) * fans.fan_in)
    return math.sqrt(2 / fans.fan_in) / omega


def _lecun_std(fans: Fans) -> float:
    """LeCun et al. 1998, eq. 16."""
    return fans.gain / math.sqrt(fans.fan_in)


def _fan_in_uniform_std(fans: Fans) -> float:
    return 1 / math.sqrt(3 * fans.fan_in)


def _orthogonal_std(fans: Fans) -> float:
    """Rows or columns of norm gain: entries of variance gain²/max(rows, columns)."""
    return fans.gain / math.sqrt(max(fans.rows, fans.fan_in))


def _critical_std(fans: Fans, *, sigma_b: float) -> float:
    """The gain is σ_w*."""
    return fans.gain / math.sqrt(fans.fan_in)


def _critical_sigma_w(activation: ActivationSpec, *, sigma_b: float) -> float:
    """σ_w*; 1 after the identity, which keeps gradients whatever the biases."""
    if resolve_activation(activation).name == "identity":
        return 1.0
    return critical_sigma_w(activation, sigma_b)


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


def _variance_scaling_call(
    weight: str, gain: float, *, scale: float | None, mode: str, distribution: str
) -> str:
    fan_in, fan_out = f"{weight}[0].numel()", f"{weight}[:, 0].numel()"
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": f"(({fan_in} + {fan_out}) / 2)"}[mode]
    std = f"{gain!r} / {fan} ** 0.5" if scale is None else f"({scale!r} / {fan}) ** 0.5"
    if distribution != "truncated_normal":
        return _spelt_out(distribution, weight, std)
    return (
        f"std = {std} / {CUT_STD!r}  # the std before the cut\n"
        f"nn.init.trunc_normal_({weight}, std=std, a=-2 * std, b=2 * std)"
    )


def _siren_call(weight: str, gain: float, *, omega: float, position: str) -> str:
    bound = f"1 / {weight}[0].numel()"
    if position == "hidden":
        bound = f"(6 / {weight}[0].numel()) ** 0.5 / {omega!r}"
    return f"bound = {bound}\nnn.init.uniform_({weight}, -bound, bound)"


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
        raise unknown_name("scheme", name, _registry, like=_as_here(name))
    return _registry[name].with_values(**params)


def _as_here(name: Any) -> str:
    """The name that a scheme of Keras, JAX or torch would have here."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(name)).lower()  # GlorotNormal, as Keras does
    first, _, rest = words.strip("_").partition("_")
    family = {"he": "kaiming", "glorot": "xavier", "eye": "identity"}.get(first, first)
    return f"{family}_{rest}" if rest else family


def register_scheme(name: str, **fields: Any) -> Scheme:
    """Add a scheme to ``SCHEMES``; ``fields`` are those of ``Scheme``.

    Raises:
        ValueError: the name is empty or taken.
    """
    if not name or name in _registry:
        raise ValueError(f"scheme name {name!r} is empty or already registered")
    _registry[name] = Scheme(name=name, **fields)
    return _registry[name]


def applicable(shape: Sequence[int]) -> list[str]:
    """The names of the schemes that can fill a weight of this shape.

    >>> "dirac" in applicable((8, 4, 3, 3)), "dirac" in applicable((8, 4))
    (True, False)
    """
    return [name for name, entry in _registry.items() if not entry.why_not(shape)]


_LAWS = (
    ("uniform", _uniform_of, r"U(\pm\sqrt{3}\,\sigma),\ \sigma"),
    ("normal", _normal_of, r"N(0, \sigma^2),\ \sigma"),
)
_MODE = Parameter("fan_in", None, None, "which fan keeps its variance", MODES[:2])
_SLOPE = Parameter(None, 0.0, 1.0, "negative slope of leaky_relu; None: the activation's gain")

for _name, _title, _value in (("zeros", "Zeros", 0.0), ("ones", "Ones", 1.0)):
    register_scheme(
        _name,
        title=_title,
        family="constant",
        dims=ANY_TENSOR,
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
    dims=ANY_TENSOR,
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
    dims=ANY_TENSOR,
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
    dims=ANY_TENSOR,
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
        "std": Parameter(1.0, 0.0, 2.0, "standard deviation σ", least=0),
    },
)

register_scheme(
    "trunc_normal",
    title="Truncated normal",
    family="fixed scale",
    dims=ANY_TENSOR,
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
        "std": Parameter(1.0, 0.0, 2.0, "standard deviation σ before the cut", least=0),
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

for _kind, _fill, _law in _LAWS:
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

for _kind, _fill, _law in _LAWS:
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
        check=_check_slope,
        parameters={"mode": _MODE, "a": _SLOPE},
    )

for _kind, _fill, _law in _LAWS:
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
    default=True,
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

register_scheme(
    "variance_scaling",
    title="Variance scaling (Keras, JAX)",
    family="variance preserving",
    formula=r"\mathrm{Var}\,W_{ij} = s/n,\ n = n_\mathrm{in},\ n_\mathrm{out}\ "
    r"\text{or their mean}",
    source="keras.initializers.VarianceScaling, jax.nn.initializers.variance_scaling",
    suits="Porting a model from Keras or JAX, where every scheme is a case of this one.",
    fill=_fill_variance_scaling,
    std=_variance_scaling_std,
    call=_variance_scaling_call,
    gain="activation",
    parameters={
        "scale": Parameter(
            None, 0.01, 4.0, "s, the variance times n; None: the activation's gain²", least=1e-12
        ),
        "mode": Parameter("fan_in", None, None, "which fan is n", MODES),
        "distribution": Parameter(
            "truncated_normal", None, None,
            "law; truncated_normal is cut at two of its standard deviations and widened to match",
            ("truncated_normal", "normal", "uniform"),
        ),
    },
)  # fmt: skip

register_scheme(
    "dropout_corrected",
    title="Dropout-corrected",
    family="variance preserving",
    formula=r"W_{ij} \sim N(0, \sigma^2),\ \sigma = g\sqrt{p_\mathrm{keep}/n_\mathrm{in}}",
    source="Hendrycks & Gimpel 2016, 'Adjusting for Dropout Variance' (the forward part)",
    suits="Layers that read a dropped-out signal: inverted dropout raises E x² by 1/keep.",
    fill=_normal_of(_dropout_corrected_std),
    std=_dropout_corrected_std,
    call=lambda weight, gain, keep: _spelt_out(
        "normal", weight, f"{gain!r} * ({keep!r} / {weight}[0].numel()) ** 0.5"
    ),
    gain="activation",
    parameters={
        "keep": Parameter(
            0.5, 0.05, 1.0, "probability that a unit is kept, 1 − p of nn.Dropout(p)",
            least=1e-6, most=1,
        )
    },
)  # fmt: skip

register_scheme(
    "critical",
    title="Edge of chaos",
    family="variance preserving",
    formula=r"W_{ij} \sim N(0, \sigma_w^{*2}/n_\mathrm{in}),\ b_i \sim N(0, \sigma_b^2),\ "
    r"\sigma_w^{*2}\,\mathrm{E}\,\varphi'^2(\sqrt{q^*}z) = 1",
    source="Poole et al. 2016; Schoenholz et al. 2017, eq. 5",
    suits="Deep networks without normalization: gradients neither vanish nor explode.",
    fill=_normal_of(_critical_std),
    std=_critical_std,
    call=lambda weight, gain, sigma_b: _spelt_out(
        "normal", weight, f"{gain!r} / {weight}[0].numel() ** 0.5"
    ),
    gain=_critical_sigma_w,
    bias="normal",
    bias_parameter="sigma_b",
    parameters={"sigma_b": Parameter(0.0, 0.0, 1.0, "standard deviation of the biases", least=0)},
)

register_scheme(
    "siren",
    title="SIREN",
    family="variance preserving",
    formula=r"W_{ij} \sim U(\pm\sqrt{6/n_\mathrm{in}}/\omega_0);\ "
    r"\text{first layer}\ U(\pm 1/n_\mathrm{in})",
    source="Sitzmann et al. 2020, sec. 3.2",
    suits="Networks of sin(ω₀(Wx + b)); for a plain sin(Wx + b) take omega=1.",
    fill=_uniform_of(_siren_std),
    std=_siren_std,
    call=_siren_call,
    uses_gain=False,
    bias="pytorch_default",
    parameters={
        "omega": Parameter(30.0, 1.0, 60.0, "ω₀, the frequency inside the sine", least=1e-6),
        "position": Parameter("hidden", None, None, "where the layer stands", ("hidden", "first")),
    },
)

for _entry in (*STRUCTURED_SCHEMES, *MODEL_SCHEMES):
    _registry[_entry.name] = _entry
