"""What a scheme is: one entry of the catalogue, its parameters, and what it may know of a weight.

The entries themselves are in ``catalogue.py`` and ``structured.py`` (one tensor at a time) and in
``whole_model.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from initlab.activations import ActivationSpec
from initlab.activations import gain as activation_gain
from initlab.errors import finite_number, unknown_name

Mode = Literal["fan_in", "fan_out", "fan_avg"]
MODES: tuple[Mode, ...] = get_args(Mode)
Ensemble = Literal["iid", "orthogonal", "constant", "structured"]


@dataclass(frozen=True)
class Fans:
    """What a scheme may know of the weight: fans, gain and the rows of its matrix view.

    ``rows`` counts outputs (channels), ``columns`` inputs (channels), ``taps`` the positions of the
    kernel: 1 for a matrix.
    """

    fan_in: float
    fan_out: float
    gain: float
    rows: int

    @property
    def taps(self) -> float:
        return self.fan_out / self.rows

    @property
    def columns(self) -> float:
        return self.fan_in / self.taps


@dataclass(frozen=True)
class Parameter:
    """One parameter of a scheme: its default, the range a slider offers, and its meaning.

    ``least`` and ``most`` are the values that are accepted at all; None where there is no end.
    """

    default: Any
    low: float | None
    high: float | None
    meaning: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What torch can draw: no complex numbers, and none of eight bits."""

ANY_TENSOR, WEIGHT, MATRIX, KERNEL = (0, 99), (2, 99), (2, 2), (3, 5)
_WEIGHTS = {
    ANY_TENSOR: "a tensor",
    WEIGHT: "a weight of at least 2 dimensions",
    MATRIX: "a matrix, as of a Linear layer (2 dimensions)",
    KERNEL: "a convolution's kernel (3 to 5 dimensions)",
}
_NO_BIAS = ": a bias has no fan_in; init_(…, bias=…) sets biases"

Fill = Callable[..., None]
Moment = Callable[..., float]
"""A mean or a standard deviation of the weights."""


def _no_mean(fans: Fans, **_: Any) -> float:
    return 0.0


def _any_values(**values: Any) -> None:
    """Accept every combination of parameter values."""


def _any_shape(shape: Sequence[int], **values: Any) -> str:
    """Accept every shape of the right number of dimensions."""
    return ""


@dataclass(frozen=True)
class Scheme:
    r"""How to fill a weight tensor, and everything that is to be said of it.

    Attributes:
        name: the registry's key; as in ``torch.nn.init`` where torch has it.
        title: for menus and headings.
        family: "constant", "fixed scale", "variance preserving", "orthogonal", "structured" or
            "whole model".
        formula: LaTeX of the distribution.
        source: paper, year, equation.
        suits: one sentence on when to use it.
        fill: fills a tensor, given its ``Fans``, a generator and the parameters' values.
        std, mean: of the weights, from ``Fans`` and the parameters' values.
        call: the PyTorch lines, from the weight's expression, the gain and the values.
        ensemble: what theory needs to know: "iid", "orthogonal" or "constant" entries, or
            "structured" where none of these holds.
        gain: the gain used where none is given: a number, "activation" for the activation's, or a
            function of the activation and the parameters' values.
        uses_gain: whether a gain changes anything.
        bias: the bias it prescribes: "zeros", "pytorch_default" or "normal".
        bias_parameter: of normal biases, the parameter that holds their standard deviation.
        dims: the least and the most dimensions of a tensor that it can fill.
        shape_refusal: why it cannot fill a tensor of this shape; empty where it can.
        parameters: name → Parameter.
        values: the chosen values of the parameters; their defaults if not given.
        check: raises ValueError for values that do not go together.
        base: of a whole-model scheme, the scheme that draws each tensor first; else empty.
        adjust: of a whole-model scheme, what is done to the drawn model.
        needs: what ``adjust`` cannot do without: "batch", "branches", "scalars" or nothing.
        embeddings: whether it reaches embeddings unasked.
        default: whether it stands for whatever torch does by default in the layer at hand.
    """

    name: str
    title: str
    family: str
    formula: str
    source: str
    suits: str
    fill: Fill = field(repr=False)
    std: Moment = field(repr=False)
    call: Callable[..., str] = field(repr=False)
    mean: Moment = field(default=_no_mean, repr=False)
    ensemble: Ensemble = "iid"
    gain: float | Literal["activation"] | Callable[..., float] = 1.0
    uses_gain: bool = True
    bias: Literal["zeros", "pytorch_default", "normal"] = "zeros"
    bias_parameter: str = ""
    dims: tuple[int, int] = WEIGHT
    shape_refusal: Callable[..., str] = field(default=_any_shape, repr=False)
    parameters: Mapping[str, Parameter] = field(default_factory=dict, repr=False)
    values: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[..., None] = field(default=_any_values, repr=False)
    base: str = ""
    adjust: Callable[..., None] | None = field(default=None, repr=False)
    needs: Literal["", "batch", "branches", "scalars"] = ""
    embeddings: bool = False
    default: bool = False

    def __post_init__(self) -> None:
        if not self.values:
            defaults = {name: each.default for name, each in self.parameters.items()}
            object.__setattr__(self, "values", MappingProxyType(defaults))

    def __call__(
        self,
        tensor: Tensor,
        *,
        gain: float | None = None,
        fan_in: float | None = None,
        fan_out: float | None = None,
        generator: torch.Generator | None = None,
        **values: Any,
    ) -> Tensor:
        """Fill ``tensor`` in place and return it.

        Args:
            tensor: a weight, (fan_out, fan_in, *kernel), of as many dimensions as ``dims`` says.
            gain: the scheme's own if not given (√2 where it would be the activation's).
            fan_in, fan_out: from the tensor's shape if not given.
            generator: torch's global one if not given.
            **values: other values of the scheme's parameters.

        Raises:
            TypeError: not a tensor, or no parameter of this scheme. ValueError: too few or too many
                dimensions, a shape that the scheme cannot fill, empty, not float, a gain beside
                parameters that set another, or a whole-model scheme.
        """
        if values:
            own = self.with_values(**values)
            return own(tensor, gain=gain, fan_in=fan_in, fan_out=fan_out, generator=generator)
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"scheme {self.name!r} fills a tensor, not a {type(tensor).__name__}; "
                "for a whole model use initlab.init_(model, scheme)"
            )
        reason = self.why_not(tensor.shape)
        if reason:
            raise ValueError(reason)
        if tensor.dtype not in DTYPES or tensor.numel() == 0:
            raise ValueError(
                f"scheme {self.name!r} needs a non-empty float tensor, got {tensor.dtype} "
                f"of shape {tuple(tensor.shape)}"
            )
        self.check_gain(gain)
        fans = self._fans(tensor.shape, gain, fan_in, fan_out)
        with torch.no_grad():
            self.fill(tensor, fans, generator, **self.values)
        return tensor

    @property
    def whole_model(self) -> bool:
        """Whether it needs the model around the tensor, and so works through ``init_`` only."""
        return self.adjust is not None

    def why_not(self, shape: Sequence[int]) -> str:
        """Why it cannot fill a weight of this shape; an empty string where it can.

        >>> from initlab import scheme
        >>> scheme("dirac").why_not((8, 4, 3, 3))
        ''
        >>> print(scheme("dirac").why_not((8, 4)))
        scheme 'dirac' needs a convolution's kernel (3 to 5 dimensions), got shape (8, 4)
        """
        if self.whole_model:
            return (
                f"scheme {self.name!r} looks at the whole model, not at one tensor: "
                f"use initlab.init_(model, {self.name!r})"
            )
        least, most = self.dims
        if not least <= len(shape) <= most:
            return (
                f"scheme {self.name!r} needs {_WEIGHTS[self.dims]}, got shape {tuple(shape)}"
                f"{_NO_BIAS if len(shape) < 2 else ''}"
            )
        return self.shape_refusal(shape, **self.values)

    def weight_std(
        self, fan_in: float, fan_out: float, gain: float | None = None, *, rows: int | None = None
    ) -> float:
        """The standard deviation of the weights; nan of a whole-model scheme, whose report says it.

        ``rows`` is the first dimension of the weight, which orthogonal and structured schemes need:
        fan_out if not given, which is right for Linear layers.
        """
        return self.std(self._numbers(fan_in, fan_out, gain, rows), **self.values)

    def weight_mean(
        self, fan_in: float, fan_out: float, gain: float | None = None, *, rows: int | None = None
    ) -> float:
        """The mean of the weights: 0 but for constants, identities and shifted distributions."""
        return self.mean(self._numbers(fan_in, fan_out, gain, rows), **self.values)

    def std_of(
        self,
        shape: Sequence[int],
        *,
        gain: float | None = None,
        fan_in: float | None = None,
        fan_out: float | None = None,
    ) -> float:
        """The standard deviation of a weight of this shape, with its fans if not given."""
        return self.std(self._fans(shape, gain, fan_in, fan_out), **self.values)

    def mean_of(self, shape: Sequence[int], *, gain: float | None = None) -> float:
        """The mean of a weight of this shape."""
        return self.mean(self._fans(shape, gain, None, None), **self.values)

    @property
    def bias_std(self) -> float | None:
        """The standard deviation of the normal biases that it prescribes, if it does."""
        return self.values[self.bias_parameter] if self.bias_parameter else None

    def code(self, layer: str = "layer", *, gain: float | None = None) -> str:
        """The PyTorch lines that initialize ``layer`` (its expression) the same.

        Of a whole-model scheme ``layer`` is the model's expression.

        Raises:
            TypeError: a layer and not its expression.

        >>> from initlab import scheme
        >>> print(scheme("xavier_normal").code("fc"))
        nn.init.xavier_normal_(fc.weight)
        nn.init.zeros_(fc.bias)
        """
        if not isinstance(layer, str):
            raise TypeError(
                f"layer={layer!r} must be an expression such as 'net.fc1', which the lines then use"
            )
        if self.whole_model:
            return self.call(layer, self._gain(gain), **self.values)
        weight = self.weight_code(f"{layer}.weight", self._gain(gain))
        return f"{weight}\n{bias_code(layer, self.bias, self.bias_std)}"

    def weight_code(self, weight: str, gain: float) -> str:
        """The PyTorch lines that fill ``weight`` (an expression) with this gain."""
        return self.call(weight, gain, **self.values)

    def gain_with(self, activation: ActivationSpec) -> float:
        """The gain it uses with this activation: what its parameters set, or its own, or for
        kaiming the activation's.

        With ``mode="fan_out"`` that is the gain which preserves gradients.

        Raises:
            ValueError: critical, where the activation has no critical point.
        """
        if self.set_gain is not None:
            return self.set_gain
        if callable(self.gain):
            return self.gain(activation, **self.values)
        if self.gain != "activation":
            return self.gain
        mode = self.values.get("mode", "fan_in")
        return activation_gain(activation, "backward" if mode == "fan_out" else "forward")

    @property
    def follows_activation(self) -> bool:
        """Whether its gain depends on the activation, given its parameters' values."""
        return not isinstance(self.gain, int | float) and self.set_gain is None

    @property
    def set_gain(self) -> float | None:
        """The gain that its parameters set, kaiming's a and variance_scaling's scale, if they
        do."""
        for name, gain_of in _GAIN_OF.items():
            value = self.values.get(name)
            if value is not None and self.gain == "activation":  # trunc_normal's a is a cut
                return gain_of(value)
        return None

    def check_gain(self, gain: float | None) -> None:
        """Refuse a gain beside parameters that set another.

        Raises:
            ValueError: two gains.
        """
        own = self.set_gain
        if gain is not None and own is not None and not math.isclose(gain, own):
            raise ValueError(
                f"gain={gain} and the scheme's own a or scale, which sets the gain {own:.4g}: "
                "give one of them"
            )

    def with_values(self, **values: Any) -> Scheme:
        """The same scheme with other parameter values.

        Raises:
            TypeError: not a parameter of this scheme. ValueError: a value out of its range.
        """
        for name in values:
            if name not in self.parameters:
                known = ", ".join(self.parameters) or "none"
                raise TypeError(
                    f"scheme {self.name!r} has no parameter {name!r}; it has: {known}"
                    f"{_often_meant(name)}"
                )
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
        if parameter.least is not None and number < parameter.least:
            raise ValueError(
                f"{self.name} {name}={value} must be at least {parameter.least:g}: "
                f"{parameter.meaning}"
            )
        if parameter.most is not None and number > parameter.most:
            raise ValueError(
                f"{self.name} {name}={value} must be at most {parameter.most:g}: "
                f"{parameter.meaning}"
            )
        return number

    def _gain(self, gain: float | None) -> float:
        if gain is not None:
            return finite_number("gain", gain, positive=True)
        return self.gain if isinstance(self.gain, int | float) else math.sqrt(2)

    def _numbers(self, fan_in: float, fan_out: float, gain: float | None, rows: int | None) -> Fans:
        finite_number("fan_in", fan_in, positive=True)
        finite_number("fan_out", fan_out, positive=True)
        return Fans(fan_in, fan_out, self._gain(gain), rows or int(fan_out))

    def _fans(
        self, shape: Sequence[int], gain: float | None, fan_in: float | None, fan_out: float | None
    ) -> Fans:
        rows, columns, *kernel = (*shape, 1, 1)[: max(len(shape), 2)]
        taps = math.prod(kernel)
        return self._numbers(fan_in or columns * taps, fan_out or rows * taps, gain, rows)


_GAIN_OF: Mapping[str, Callable[[float], float]] = {
    "a": lambda slope: math.sqrt(2 / (1 + slope**2)),
    "scale": math.sqrt,
}


def _often_meant(parameter: str) -> str:
    """A hint for torch's own names of what is said otherwise here."""
    return {
        "nonlinearity": "; say activation=… to init_, which knows the gain of every activation",
        "gain": "; gain is an argument of its own, of init_ and of the scheme's call",
        "negative_slope": "; kaiming calls the negative slope a",
    }.get(parameter, "")


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
