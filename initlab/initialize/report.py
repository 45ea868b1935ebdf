"""What init_() did: one row per parameter, touched or not; what was meant and what came out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from initlab.errors import unknown_name

if TYPE_CHECKING:
    import pandas

SUSPICIOUS = 5
"""A standard deviation is flagged where it is further from the intended one, in standard errors."""


@dataclass(frozen=True)
class InitRow:
    """What happened to one parameter.

    Attributes:
        name, layer, shape: of the parameter; ``layer`` is the class of its module.
        fan_in, fan_out: the true ones; where torch's own differ, ``note`` says so.
        scheme: what it was drawn by; None where it was left alone, and ``note`` says why.
        intended_std: the scheme's; None where it is not known, as of a callable of yours.
        actual_std: of the values that it holds now.
        standard_errors: how far the actual one is from the intended, in standard errors.
        note: whatever else is to be said.
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
    standard_errors: float | None = None

    @property
    def suspicious(self) -> bool:
        """Whether the actual std differs from the intended one by more than 5 standard errors."""
        return self.standard_errors is not None and abs(self.standard_errors) > SUSPICIOUS


@dataclass(frozen=True)
class InitReport(Sequence[InitRow]):
    """One row per parameter of the model, touched or not.

    ``lr_multipliers`` holds, for schemes that prescribe them (mup), the factors of the learning
    rate: optimizer ("adam", "sgd") → parameter → factor. What a parameter does that a module of
    yours holds itself is not known, and it is not listed.
    """

    rows: tuple[InitRow, ...]
    lr_multipliers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

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

    @property
    def suspicious(self) -> tuple[InitRow, ...]:
        """The rows whose std is not what was meant."""
        return tuple(row for row in self.rows if row.suspicious)

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
        lines += [f"  {_line(row)}" for row in self.rows]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        return frame.to_html(na_rep="", float_format=lambda value: f"{value:.4g}", border=0)


def _line(row: InitRow) -> str:
    std = "" if row.intended_std is None else f", std {row.intended_std:.4g}"
    if row.suspicious:
        std += f" but is {row.actual_std:.4g}, {abs(row.standard_errors or 0):.0f} s.e. away"
    note = f" ({row.note})" if row.note else ""
    return f"{row.name} {row.shape}: {row.scheme or 'left alone'}{std}{note}"


# ---------------------------------------------------------------- measuring what came out

_BLOCK = 2**16


def measured_std(tensor: Tensor) -> float | None:
    """The population standard deviation, to a relative 5e-5; None of empty and non-float tensors.

    Drawing a million normals takes some 4 ms and this 0.2, so that a report costs next to nothing.
    """
    if tensor.numel() == 0 or not tensor.is_floating_point() or tensor.is_meta:
        return None
    flat = tensor.detach().reshape(-1)
    if flat.dtype == torch.float32:
        square = _second_moment(flat)
        mean = _mean(flat, square)
        if square - mean**2 >= 1e-3 * mean**2:  # else the difference is mostly rounding
            return math.sqrt(square - mean**2)
    return float(flat.double().std(correction=0))


def _second_moment(flat: Tensor) -> float:
    """Norms of blocks in float32, added up in float64."""
    if flat.numel() <= _BLOCK:
        return torch.dot(flat, flat).item() / flat.numel()
    norms = [torch.linalg.vector_norm(part, dim=1).double() for part in _blocks(flat)]
    return float(torch.cat(norms).square().sum()) / flat.numel()


def _mean(flat: Tensor, square: float) -> float:
    """Of a large tensor, 0 where four blocks or more show none: that is within 5 standard errors of
    a quarter of a million values, and changes a variance by less than 1e-4."""
    if flat.numel() <= _BLOCK:
        return flat.sum().item() / flat.numel()
    whole = _blocks(flat)[0]
    seen = whole[:: max(1, len(whole) // 4)]
    if len(seen) < len(whole):
        sample = float(seen.sum(dim=1).double().mean()) / _BLOCK
        if sample**2 < 25 * square / seen.numel():
            return 0.0
    sums = [part.sum(dim=1).double() for part in _blocks(flat)]
    return float(torch.cat(sums).sum()) / flat.numel()


def _blocks(flat: Tensor) -> list[Tensor]:
    """The values as rows of one length, and what is left over as one shorter row."""
    cut = flat.numel() // _BLOCK * _BLOCK
    rest = flat[None, cut:]
    return [flat[:cut].view(-1, _BLOCK), *([rest] if rest.numel() else [])]


def standard_errors(tensor: Tensor, intended: float | None, actual: float | None) -> float | None:
    """(actual − intended)/s.e. of the std of N independent draws: σ·√((κ − 1)/4N), κ the kurtosis.

    κ is a normal's 3, or the values' own where that is larger and matters; rounding counts as 1e-4.
    """
    if intended is None or actual is None:
        return None
    if intended == actual:
        return 0.0
    error = max(intended, actual) * max(1e-4, (2 * tensor.numel()) ** -0.5)
    if abs(actual - intended) > SUSPICIOUS * error and math.isfinite(error):
        error *= math.sqrt((_kurtosis(tensor) - 1) / 2)
    return (actual - intended) / error


def _kurtosis(tensor: Tensor) -> float:
    """E(x − μ)⁴/σ⁴ of at most some 65,536 of the values, at least a normal's 3."""
    sample = tensor.detach().reshape(-1)[:: max(1, tensor.numel() // _BLOCK)].double()
    centred = sample - sample.mean()
    square = float(centred.square().mean())
    return max(3.0, float(centred.square().square().mean()) / square**2) if square else 3.0
