"""What a trace is: plain immutable data, with names, a table and an exact JSON form.

The quantities are defined in ``initlab.tracing``, which measures them.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

from initlab.activations import Activation, known_activation
from initlab.errors import unknown_name
from initlab.tracing.measuring import Histogram, Stats
from initlab.tracing.operations import KINDS, Kind

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class Site:
    """One observed tensor and what was measured of it; ``initlab.tracing`` defines each number.

    Attributes:
        index: position in the trace.
        name: unique and readable: ``conv1``, ``conv1.relu``, ``fc[2]`` for a second call.
        module: dotted path of the module at work; of a layer, the module that owns the weight.
        op: the operation by its canonical name, or the class of an ``other`` module.
        arguments: of an activation that takes some: the slope of a leaky relu.
        kind: input, affine, activation, norm, add, recurrent, attention, other or output.
        depth: how many affine sites lie at or before it in execution order.
        shape: of the tensor.
        units: how many units it has: features, or channels.
        reads: the names of the sites from which its operands come.
        forward, backward: statistics of the tensor and of its gradient.
        reached: whether the gradient reached it; None where none was asked for.
        parameter: dotted name of the parameter that is its weight, or from which that is computed.
        weight, weight_grad, weight_shape, fan_in, fan_out: of its weight, if any.
        zero_fraction, saturated_fraction, dead_fraction: see ``initlab.tracing``.
        histogram, cosine, effective_rank: where asked for.
        note: why something could not be measured.
    """

    index: int
    name: str
    module: str
    op: str
    kind: Kind
    depth: int
    shape: tuple[int, ...]
    reads: tuple[str, ...]
    forward: Stats
    backward: Stats | None = None
    reached: bool | None = None
    parameter: str | None = None
    weight: Stats | None = None
    weight_grad: Stats | None = None
    weight_shape: tuple[int, ...] | None = None
    fan_in: float | None = None
    fan_out: float | None = None
    zero_fraction: float | None = None
    saturated_fraction: float | None = None
    dead_fraction: float | None = None
    histogram: Histogram | None = None
    cosine: float | None = None
    effective_rank: float | None = None
    note: str | None = None
    arguments: tuple[float, ...] = ()
    units: int | None = None

    @property
    def activation(self) -> Activation | None:
        """The activation that was called, as it was called; None where it is none, or unknown."""
        return known_activation(self.op, self.arguments) if self.kind == "activation" else None

    def __repr__(self) -> str:
        return f"Site({self.index}, {self.name!r}, {self.kind}, shape={self.shape})"


@dataclass(frozen=True, repr=False)
class Trace(Sequence[Site]):
    """The sites of one observed pass, in execution order.

    Attributes:
        sites: all of them.
        loss: the loss whose gradient was traced (of a scalar output, its value); None for a probe.
        num_classes: of the default cross-entropy; None otherwise.
    """

    sites: tuple[Site, ...]
    loss: float | None = None
    num_classes: int | None = None

    def __len__(self) -> int:
        return len(self.sites)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __contains__(self, item: object) -> bool:
        return item in self._by_name if isinstance(item, str) else item in self.sites

    @overload
    def __getitem__(self, key: int | str) -> Site: ...
    @overload
    def __getitem__(self, key: slice) -> Trace: ...
    def __getitem__(self, key: int | str | slice) -> Site | Trace:
        if isinstance(key, slice):
            return dataclasses.replace(self, sites=self.sites[key])
        if not isinstance(key, str):
            return self.sites[key]
        if key not in self._by_name:
            raise KeyError(str(unknown_name("site", key, self._by_name)))
        return self._by_name[key]

    @cached_property
    def _by_name(self) -> dict[str, Site]:
        return {site.name: site for site in self.sites}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    def select(self, **fields: Any) -> Trace:
        """The sites whose fields have the given values: ``trace.select(kind="activation")``.

        Raises:
            ValueError: no field, or no kind, of that name.
        """
        known = [field.name for field in dataclasses.fields(Site)]
        for field in fields:
            if field not in known:
                raise unknown_name("field", field, known)
        if "kind" in fields and fields["kind"] not in KINDS:
            raise unknown_name("kind", fields["kind"], KINDS)
        chosen = (
            site
            for site in self.sites
            if all(getattr(site, field) == value for field, value in fields.items())
        )
        return dataclasses.replace(self, sites=tuple(chosen))

    def to_frame(self) -> pandas.DataFrame:
        """One row a site, indexed by name; statistics as ``forward_var``, ``weight_grad_mean``."""
        import pandas

        rows = [_flat(site) for site in self.sites]
        columns = [column for column in _flat_columns() if column != "name"]
        index = pandas.Index([row.pop("name") for row in rows], name="name")
        return pandas.DataFrame(rows, index=index, columns=columns)

    def to_json(self) -> str:
        """All of it as strict JSON; nan and infinities are written as strings."""
        return json.dumps(_encode(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """The trace that ``to_json`` wrote, exactly."""
        data = json.loads(text)
        sites = tuple(_decode_site(site) for site in data["sites"])
        return cls(sites, _decode_number(data["loss"]), data["num_classes"])

    def __repr__(self) -> str:
        affine = sum(site.kind == "affine" for site in self.sites)
        return f"Trace({len(self)} sites, {affine} affine)"

    def _repr_html_(self) -> str:
        return _to_html(self)


# ---------------------------------------------------------------- plain data and back

_STATS = ("forward", "backward", "weight", "weight_grad")


def _flat_columns() -> list[str]:
    columns = []
    for field in dataclasses.fields(Site):
        if field.name in _STATS:
            columns += [f"{field.name}_{stat.name}" for stat in dataclasses.fields(Stats)]
        elif field.name != "histogram":
            columns.append(field.name)
    return columns


def _flat(site: Site) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for field in dataclasses.fields(Site):
        value = getattr(site, field.name)
        if isinstance(value, Stats):
            row |= {f"{field.name}_{name}": number for name, number in vars(value).items()}
        elif field.name not in (*_STATS, "histogram"):
            row[field.name] = value
    return row


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {
            field.name: _encode(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    return value


def _decode_number(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value


def _decode_site(data: dict[str, Any]) -> Site:
    fields = dict(data)
    for name in _STATS:
        if fields[name] is not None:
            fields[name] = Stats(**{k: _decode_number(v) for k, v in fields[name].items()})
    if fields["histogram"] is not None:
        edges, counts = fields["histogram"]["edges"], fields["histogram"]["counts"]
        fields["histogram"] = Histogram(tuple(edges), tuple(counts))
    for name in ("shape", "weight_shape", "reads", "arguments"):
        fields[name] = None if fields.get(name) is None else tuple(fields[name])
    for name in ("cosine", "effective_rank"):
        fields[name] = _decode_number(fields[name])
    return Site(**fields)


def _to_html(trace: Trace) -> str:
    titles = ("", "site", "kind", "shape", "E[h²]", "E[(∂L/∂h)²]", "zero", "dead", "")
    head = "".join(f"<th>{title}</th>" for title in titles)
    shown = trace.sites if len(trace) <= 60 else (*trace.sites[:30], None, *trace.sites[-29:])
    rows = "".join(f"<tr>{''.join(_cells(site))}</tr>" for site in shown)
    loss = "" if trace.loss is None else f", loss {trace.loss:.4g}"
    caption = f"{len(trace)} sites{loss}"
    return f"<table><caption>{caption}</caption><tr>{head}</tr>{rows}</table>"


def _cells(site: Site | None) -> Iterator[str]:
    if site is None:
        yield '<td colspan="9">…</td>'
        return
    shape = "×".join(str(size) for size in site.shape)
    gradient = "not reached" if site.reached is False else ""
    if site.backward is not None:
        gradient = f"{site.backward.second_moment:.3g}"
    remark = site.note or ""
    if site.forward.nonfinite:
        remark = f"{site.forward.nonfinite:,} not finite. {remark}"
    for text in (
        str(site.index),
        site.name,
        site.kind,
        shape,
        f"{site.forward.second_moment:.3g}",
        gradient,
        "" if site.zero_fraction is None else f"{site.zero_fraction:.0%}",
        "" if site.dead_fraction is None else f"{site.dead_fraction:.0%}",
        remark,
    ):
        yield f"<td>{html.escape(text)}</td>"
