"""Experiment: everything that defines one measurement, as plain values.

Widgets, share strings and generated scripts all read and write the fields of this one class.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from initlab import prediction, scripts
from initlab.activations import ACTIVATIONS
from initlab.data import CLASSES, DATA, DIGITS, Batch, batch
from initlab.errors import finite_number, positive_int, seed_number, unknown_name
from initlab.initialize import BIASES, InitReport, init_
from initlab.networks import ARCHITECTURES, NORMS, PADDINGS, Blank
from initlab.schemes import SCHEMES, Scheme, scheme
from initlab.tracing import Trace, trace

LOSSES = ("probe", "cross_entropy")
MEMORY_LIMIT = 2 * 2**30
"""Bytes that one run may need by estimate: what a Binder machine has."""
WORK_LIMIT = 5e12
"""Floating-point operations that one run may need by estimate: about a minute on two cores."""

_SHARE_PREFIX = "initlab1."
_SHARE_LIMIT = 100_000


@dataclass(frozen=True)
class Experiment:
    """A network, its initialization, its input and the seed: in one run, one measurement.

    Args:
        architecture: a name of ``ARCHITECTURES``.
        depth: number L of affine layers, each followed by the activation.
        width: units (mlp) or channels (cnn) of each layer.
        widths: units of each layer, where they differ; decides depth.
        activation: a name of ``ACTIVATIONS``.
        scheme: a name of ``SCHEMES``.
        scheme_params: parameters of the scheme, such as ``{"std": 0.01}``.
        gain: overrules the scheme's own gain.
        bias, bias_std: as in ``init_``; a number, a name, or None for what the scheme prescribes.
        norm: what stands between an affine layer and its activation: "none", "batch", "layer".
        dropout: probability with which each activation that another layer reads is set to 0.
        padding: of the cnn's convolutions, "zeros" or "circular".
        data: "noise" (``width`` features, or ``width`` channels of 8×8) or "digits" (64 features,
            or one 8×8 channel).
        batch_size: samples.
        loss: "probe" (a random cotangent enters at φ(h_L)) or "cross_entropy" (on the digits'
            labels; adds a linear head).
        seed: of everything that is drawn.

    Raises:
        ValueError, TypeError: at construction; the sentence names argument, value and remedy.

    >>> Experiment(depth=3, width=16, data="noise").run()["act3"].shape
    (256, 16)
    """

    architecture: str = "mlp"
    depth: int = 20
    width: int = 128
    widths: tuple[int, ...] | None = None
    activation: str = "relu"
    scheme: str = "kaiming_normal"
    scheme_params: Mapping[str, Any] | None = None
    gain: float | None = None
    bias: str | float | None = None
    bias_std: float | None = None
    norm: str = "none"
    dropout: float = 0.0
    padding: str = "zeros"
    data: str = "digits"
    batch_size: int = 256
    loss: str = "probe"
    seed: int = 0

    def __post_init__(self) -> None:
        for argument, accepted in (
            ("architecture", ARCHITECTURES),
            ("activation", ACTIVATIONS),
            ("norm", NORMS),
            ("padding", PADDINGS),
            ("data", DATA),
            ("loss", LOSSES),
        ):
            value = getattr(self, argument)
            if not isinstance(value, str) or value not in accepted:
                raise unknown_name(argument, value, accepted)
        self._set("widths", self._checked_widths())
        if self.widths is not None:
            self._set("depth", len(self.widths))
            self._set("width", self.widths[0])
        for argument in ("depth", "width", "batch_size"):
            self._set(argument, positive_int(argument, getattr(self, argument)))
        self._check_scheme()
        self._check_bias()
        self._check_dropout()
        self._check_data()
        self._check_size()

    def _set(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_json, (self.to_json(),)

    # ------------------------------------------------------------ checks

    def _checked_widths(self) -> tuple[int, ...] | None:
        if self.widths is None:
            return None
        if isinstance(self.widths, str) or not isinstance(self.widths, Sequence) or not self.widths:
            raise ValueError(
                f"widths={self.widths!r} must be a sequence of at least one whole number, or None"
            )
        return tuple(positive_int(f"widths[{i}]", width) for i, width in enumerate(self.widths))

    def _check_scheme(self) -> None:
        params = self.scheme_params or {}
        if not isinstance(params, Mapping):
            raise TypeError(f"scheme_params={params!r} must be a mapping such as {{'std': 0.01}}")
        chosen, plain = scheme(self.scheme, **params), scheme(self.scheme).values
        differing = {name: value for name, value in chosen.values.items() if value != plain[name]}
        self._set("scheme_params", MappingProxyType(differing))
        if reason := self._why_not(chosen):
            raise ValueError(reason)
        if callable(chosen.gain) and self.gain is None:
            chosen.gain_with(self.activation)  # which raises where the activation has none
        if self.gain is not None:
            self._set("gain", finite_number("gain", self.gain, positive=True))

    def _check_bias(self) -> None:
        if isinstance(self.bias, str):
            if self.bias not in BIASES:
                raise unknown_name("bias", self.bias, BIASES)
        elif self.bias is not None:
            self._set("bias", finite_number("bias", self.bias))
        if (self.bias == "normal") != (self.bias_std is not None):
            raise ValueError(
                f"bias={self.bias!r} with bias_std={self.bias_std!r}: "
                "bias='normal' and bias_std go together"
            )
        if self.bias_std is not None:
            self._set("bias_std", finite_number("bias_std", self.bias_std))
            if self.bias_std < 0:
                raise ValueError(f"bias_std={self.bias_std} must be at least 0")

    def _check_dropout(self) -> None:
        self._set("dropout", finite_number("dropout", self.dropout))
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"dropout={self.dropout} must be a probability of at least 0 and below 1"
            )

    def _why_not(self, chosen: Scheme) -> str:
        """Why the scheme cannot fill every weight of this network; empty where it can."""
        return next(filter(None, map(chosen.why_not, self._weight_shapes())), "")

    def _weight_shapes(self) -> Iterator[tuple[int, ...]]:
        """The different shapes of its weights, without repeats, since depth may be absurd."""
        widths = self.widths or (self.width,) * min(self.depth, 2)
        kernel = (3, 3) if self.architecture == "cnn" else ()
        for fan_in, fan_out in pairwise((self.input_size, *widths)):
            yield (fan_out, fan_in, *kernel)
        if self.has_head:
            yield (CLASSES, widths[-1])

    def _check_data(self) -> None:
        self._set("seed", seed_number(self.seed, least=0, below=2**31))
        if self.loss == "cross_entropy" and self.data != "digits":
            raise ValueError(
                f"loss='cross_entropy' needs labels, which data={self.data!r} has not; "
                "use data='digits', or loss='probe'"
            )
        if self.data == "digits" and self.batch_size > DIGITS:
            raise ValueError(
                f"batch_size={self.batch_size} must be at most {DIGITS:,}, the number of digits"
            )
        if self.norm == "batch" and self.batch_size < 2:
            raise ValueError(
                "batch_size=1 leaves norm='batch' nothing to normalize; use at least 2"
            )

    def _check_size(self) -> None:
        memory, work = self.estimate()
        asked = (
            f"depth={self.depth:,} with width={self.width:,} "
            f"and batch_size={self.batch_size:,} needs about"
        )
        remedy = "take a smaller depth, width or batch_size"
        if memory > MEMORY_LIMIT:
            raise ValueError(
                f"{asked} {memory / 2**30:,.1f} GiB of memory, above the limit of "
                f"{MEMORY_LIMIT / 2**30:.0f} GiB; {remedy}"
            )
        if work > WORK_LIMIT:
            raise ValueError(
                f"{asked} {work:.0e} operations, above the limit of {WORK_LIMIT:.0e}; {remedy}"
            )

    def estimate(self) -> tuple[float, float]:
        """Bytes and floating-point operations that ``run`` needs, roughly."""
        if self.widths is None:  # in closed form, since depth may be absurd
            first = self.input_size * self.width
            pairs = first + (self.depth - 1) * self.width**2
            units = self.input_size + self.depth * self.width
        else:
            sizes = (self.input_size, *self.widths)
            pairs = sum(a * b for a, b in pairwise(sizes))
            units = sum(sizes)
        taps, positions = (9, 64) if self.architecture == "cnn" else (1, 1)
        weights = pairs * taps
        activations = units * positions * self.batch_size
        overhead = 20_000 * self.depth  # Python's objects for a layer and its sites
        memory = 4 * (2 * weights + 2 * activations) + overhead
        return memory, 6.0 * weights * positions * self.batch_size

    # ------------------------------------------------------------ what follows from the fields

    @property
    def input_size(self) -> int:
        """Features (mlp) or channels (cnn) of the input."""
        if self.data == "noise":
            return self.width
        return 1 if self.architecture == "cnn" else 64

    @property
    def schemes(self) -> tuple[str, ...]:
        """The names of the schemes that can fill every weight of this network."""
        return tuple(
            name
            for name, entry in SCHEMES.items()
            if name == self.scheme or not self._why_not(entry)
        )

    @property
    def has_head(self) -> bool:
        return self.loss == "cross_entropy"

    @property
    def layer_widths(self) -> tuple[int, ...]:
        return self.widths or (self.width,) * self.depth

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes from the input through every affine layer, the head included."""
        return (self.input_size, *self.layer_widths, *((CLASSES,) if self.has_head else ()))

    # Three streams from one seed, so that inputs, weights and cotangent are independent.

    @property
    def data_seed(self) -> int:
        return 3 * self.seed

    @property
    def weight_seed(self) -> int:
        return 3 * self.seed + 1

    @property
    def probe_seed(self) -> int:
        return 3 * self.seed + 2

    # ------------------------------------------------------------ doing it

    def build(self) -> nn.Module:
        """The network, initialized."""
        return self.build_with_report()[0]

    def build_with_report(self) -> tuple[nn.Module, InitReport]:
        """The network, initialized, and what ``init_`` reports of it."""
        with Blank():
            options = {"padding_mode": self.padding} if self.architecture == "cnn" else {}
            model = ARCHITECTURES[self.architecture](
                self.input_size,
                self.layer_widths,
                self.activation,
                norm=self.norm,
                dropout=self.dropout,
                head=CLASSES if self.has_head else None,
                **options,
            )
        report = init_(
            model,
            self.scheme,
            activation=self.activation,
            gain=self.gain,
            bias=self.bias,
            bias_std=self.bias_std,
            seed=torch.Generator().manual_seed(self.weight_seed),  # as in the script of code()
            **(self.scheme_params or {}),
        )
        return model, report

    def inputs(self) -> Batch:
        """The batch that the network is given."""
        return batch(
            self.data,
            self.batch_size,
            images=self.architecture == "cnn",
            features=self.input_size,
            seed=self.data_seed,
        )

    def run(self, *, weight_grad: bool = True, **options: Any) -> Trace:
        """Measure: build, initialize, and trace one batch.

        Args:
            weight_grad: False leaves out the gradients of the weights, a third of the arithmetic.
            **options: those of ``trace``.
        """
        given = self.inputs()
        target = given.labels if self.has_head else None
        model = self.build().requires_grad_(weight_grad)
        return trace(model, given.inputs, target=target, seed=self.probe_seed, **options)

    def predict(self) -> prediction.Prediction:
        """What theory says of the same sites."""
        return prediction.predict(self)

    # ------------------------------------------------------------ as plain data

    def replace(self, **changes: Any) -> Experiment:
        """A copy with other fields; a new depth or width drops an explicit list of widths.

        Raises:
            ValueError: a field that does not exist, or a value that is not accepted.
        """
        _check_fields(changes)
        if changes.keys() & {"depth", "width"}:
            changes.setdefault("widths", None)
        if "scheme" in changes and changes["scheme"] != self.scheme:
            changes.setdefault("scheme_params", None)
        if changes.get("bias", "normal") != "normal":
            changes.setdefault("bias_std", None)
        return dataclasses.replace(self, **changes)

    def changed(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as JSON-ready values."""
        values = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "scheme_params":
                value = dict(value) or None
            if value != field.default:
                values[field.name] = list(value) if isinstance(value, tuple) else value
        if self.widths is not None:
            values.pop("depth", None)
            values.pop("width", None)
        return values

    def to_json(self) -> str:
        """The fields that differ from their defaults, as JSON."""
        return json.dumps(self.changed(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Experiment:
        """The experiment that ``to_json`` wrote.

        Raises:
            ValueError: not JSON, not an object, or fields that are not accepted.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not an experiment in JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"an experiment in JSON is an object, not {type(fields).__name__}")
        _check_fields(fields)
        try:
            return cls(**fields)
        except TypeError as error:  # from outside, a value of a wrong type is a wrong value
            raise ValueError(str(error)) from error

    def share(self) -> str:
        """A short string that restores this experiment with ``Experiment.from_share``."""
        packed = zlib.compress(self.to_json().encode(), level=9)
        return _SHARE_PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")

    @classmethod
    def from_share(cls, text: str) -> Experiment:
        """The experiment of a ``share`` string.

        Raises:
            ValueError: cut short, altered, or asking for something that is refused.
            TypeError: not a string.
        """
        if not isinstance(text, str):
            raise TypeError(f"a share string is a str, not a {type(text).__name__}")
        body = text.strip()
        if not body.startswith(_SHARE_PREFIX):
            raise ValueError(f"not a share string: it must start with {_SHARE_PREFIX!r}")
        body = body.removeprefix(_SHARE_PREFIX)
        try:
            packed = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
            unpacker = zlib.decompressobj()
            plain = unpacker.decompress(packed, _SHARE_LIMIT).decode()
        except (ValueError, zlib.error) as error:
            raise ValueError("the share string is damaged; copy it again, whole") from error
        if not unpacker.eof:
            raise ValueError("the share string is cut short; copy it again, whole")
        return cls.from_json(plain)

    def code(self) -> str:
        """A script in plain PyTorch that builds, initializes and measures the same network.

        It needs torch alone (and scikit-learn where the data are digits) and prints, for every
        affine layer, E h² and the second moment of its gradient, as ``run`` measures them.
        """
        return scripts.script(self)


def _check_fields(names: Iterable[str]) -> None:
    known = [field.name for field in dataclasses.fields(Experiment)]
    for name in names:
        if name not in known:
            raise unknown_name("field", name, known)
