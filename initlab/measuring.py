"""The statistics of one tensor, small enough in time and memory to be taken of every tensor.

Sums are accumulated in float64, where neither the square of a float32 number nor the difference
E[x²] − mean² at mean/std = 10⁴ loses anything that matters; in float32 only where a look at the
result shows that nothing was lost. Small tensors of equal shape share a block and are reduced
together, because there the calls cost more than the arithmetic; large ones are reduced in pieces of
at most ``PIECE`` elements, so that no large copy is ever made.

The definitions of the quantities stand in ``initlab.tracing``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from initlab.activations import Activation

PIECE = 2**18
"""Elements reduced at once: the temporary memory is a few times this, at 8 bytes each."""

_BLOCK = 2**15
_MOST_SAMPLES = 1024
_BINS = 64
_NAN = math.nan


@dataclass(frozen=True)
class Stats:
    """Statistics of one tensor over its finite elements; plain Python numbers.

    Variances are population variances (divided by N). A field that was not asked for, or that has
    no meaning for this tensor (the across-… ones of a weight), is None.
    """

    mean: float
    var: float
    second_moment: float
    across_samples_var: float | None
    across_units_var: float | None
    abs_max: float | None
    nonfinite: int
    numel: int

    @property
    def std(self) -> float:
        return math.sqrt(self.var)

    @property
    def rms(self) -> float:
        return math.sqrt(self.second_moment)


@dataclass(frozen=True)
class Histogram:
    """Counts of the finite elements in 64 equal bins from their minimum to their maximum."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


Receive = Callable[[Stats, float | None], None]
"""What becomes of a result: the statistics, and the fraction of elements that are exactly 0."""


def why_opaque(tensor: Tensor) -> str | None:
    """Why a tensor cannot be measured, in words; None where it can be."""
    if tensor.layout is not torch.strided:
        return f"{str(tensor.layout).removeprefix('torch.')} tensor: not measured"
    if tensor.is_complex():
        return "complex tensor: not measured"
    if tensor.is_quantized:
        return "quantized tensor: not measured"
    if tensor.is_meta:
        return "meta tensor: it has no values"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # type: ignore[attr-defined]
        return "inside a functorch transform: not measured"
    return None


def unmeasured(tensor: Tensor) -> Stats:
    """What is reported of a tensor that cannot be measured: its size, and nan."""
    return Stats(_NAN, _NAN, _NAN, None, None, None, 0, tensor.numel())


class Meter:
    """Collects tensors, reduces them, and hands every result to the callback given with it.

    A tensor is copied or reduced before ``add`` returns, so it may be overwritten afterwards. On a
    CUDA device nothing waits for a result before ``finish``.
    """

    def __init__(self, *, moments_only: bool = False) -> None:
        self.moments_only = moments_only
        self._blocks: dict[tuple, _Block] = {}
        self._pending: list[tuple[Tensor, list[_Job]]] = []
        self._space = _Space()

    def add(self, tensor: Tensor, batch_axis: int | None, zeros: bool, receive: Receive) -> None:
        """Measure a tensor; ``batch_axis`` None means that it has no samples (a weight)."""
        if tensor.numel() == 0:
            receive(Stats(_NAN, _NAN, _NAN, None, None, None, 0, 0), None)
            return
        rows = tensor.shape[batch_axis] if batch_axis is not None and tensor.ndim else 1
        job = _Job(receive, rows, tensor.numel() // rows, batch_axis is not None)
        if tensor.numel() >= _BLOCK:
            matrix = _samples_first(tensor, batch_axis)
            if tensor.is_cuda:
                self._deliver(_reduce_finite(matrix.unsqueeze(0), zeros), [job])
            else:
                across = job.has_samples and not self.moments_only
                sums = _reduce_matrix(matrix, across, zeros, self.moments_only, self._space)
                job.deliver(sums, self.moments_only)
            return
        key = (tensor.shape, tensor.dtype, tensor.device, batch_axis, zeros)
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = _Block(tensor)
        if block.put(tensor, job):
            self._flush(block, batch_axis, zeros)

    def finish(self) -> None:
        """Reduce what is still waiting and deliver every result."""
        for key, block in self._blocks.items():
            self._flush(block, key[3], key[4])
        self._blocks.clear()
        if self._pending:
            numbers = torch.cat([raw.cpu() for raw, _ in self._pending]).tolist()
            jobs = [job for _, jobs in self._pending for job in jobs]
            for row, job in zip(numbers, jobs, strict=True):
                job.deliver(row, self.moments_only)
        self._pending.clear()

    def _flush(self, block: _Block, batch_axis: int | None, zeros: bool) -> None:
        if not block.jobs:
            return
        filled = block.values[: len(block.jobs)]
        axis = None if batch_axis is None else batch_axis % max(1, filled.ndim - 1) + 1
        count = len(block.jobs)
        if axis is None or filled.ndim == 1:
            filled = filled.reshape(count, 1, -1)
        else:
            filled = filled.movedim(axis, 1).reshape(count, filled.shape[axis], -1)
        self._deliver(_reduce_block(filled, zeros, self.moments_only, self._space), block.jobs)
        block.jobs = []

    def _deliver(self, raw: Tensor, jobs: list[_Job]) -> None:
        if raw.is_cuda:
            self._pending.append((raw, jobs))
            return
        for row, job in zip(raw.tolist(), jobs, strict=True):
            job.deliver(row, self.moments_only)


class _Block:
    """Room for several tensors of one shape, filled one by one."""

    __slots__ = ("capacity", "jobs", "slots", "values")

    def __init__(self, like: Tensor) -> None:
        self.capacity = max(1, min(64, 2 * _BLOCK // like.numel()))
        shape = (self.capacity, *like.shape)
        self.values = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.slots = self.values.unbind(0)
        self.jobs: list[Any] = []

    def put(self, tensor: Tensor, job: Any) -> bool:
        """Copy a tensor in; True when the block is full."""
        self.slots[len(self.jobs)].copy_(tensor)
        self.jobs.append(job)
        return len(self.jobs) == self.capacity


class _Job:
    """Who asked for a tensor's statistics, and what is needed to turn sums into them."""

    __slots__ = ("has_samples", "receive", "rows", "units")

    def __init__(self, receive: Receive, rows: int, units: int, has_samples: bool) -> None:
        self.receive = receive
        self.rows = rows
        self.units = units
        self.has_samples = has_samples

    def deliver(self, row: Sequence[float], moments_only: bool) -> None:
        total, squares, columns, rows, abs_max, zeros, nonfinite = row
        numel = self.rows * self.units
        finite = numel - int(nonfinite)
        if finite == 0:
            across = _NAN if self.has_samples and not moments_only else None
            largest = None if moments_only else _NAN
            lost = Stats(_NAN, _NAN, _NAN, across, across, largest, numel, numel)
            self.receive(lost, None if moments_only else zeros / numel)
            return
        mean, second = total / finite, squares / finite
        var = max(0.0, second - mean * mean)
        if moments_only:
            stats = Stats(mean, var, second, None, None, None, int(nonfinite), numel)
            self.receive(stats, None)
            return
        samples = max(0.0, second - columns) if self.has_samples else None
        units = max(0.0, second - rows) if self.has_samples else None
        stats = Stats(mean, var, second, samples, units, abs_max, int(nonfinite), numel)
        self.receive(stats, zeros / numel)


def _samples_first(tensor: Tensor, batch_axis: int | None) -> Tensor:
    """The tensor as samples × elements, without a copy where its memory layout allows.

    The order of the elements within a sample does not matter, so it follows the strides: a
    channels-last image needs no copy either.
    """
    if tensor.ndim < 2:
        return tensor.reshape(1 if batch_axis is None else -1, 1 if batch_axis == 0 else -1)
    if batch_axis is None:
        return tensor.reshape(tensor.shape[0], -1)
    if tensor.is_contiguous() and batch_axis in (0, -tensor.ndim):
        return tensor.view(tensor.shape[0], -1)
    axis = batch_axis % tensor.ndim
    others = [dim for dim in range(tensor.ndim) if dim != axis]
    others.sort(key=tensor.stride, reverse=True)
    return tensor.permute(axis, *others).reshape(tensor.shape[axis], -1)


class _Space:
    """Scratch memory, allocated once: fresh memory would cost more than the arithmetic on it."""

    def __init__(self) -> None:
        self._flat: dict[torch.dtype, Tensor] = {}

    def take(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """An uninitialized tensor, valid until the next call with this dtype."""
        numel = shape.numel()
        flat = self._flat.get(dtype)
        if flat is None or flat.numel() < numel:
            flat = self._flat[dtype] = torch.empty(max(numel, _BLOCK), dtype=dtype)
        return flat[:numel].view(shape)


_ones_of: dict[torch.dtype, Tensor] = {}


def _ones(count: int, dtype: torch.dtype) -> Tensor:
    ones = _ones_of.get(dtype)
    if ones is None or ones.numel() < count:
        ones = _ones_of[dtype] = torch.ones(max(count, _BLOCK), dtype=dtype)
    return ones[:count]


def _reduce_matrix(
    matrix: Tensor, across: bool, zeros: bool, moments_only: bool, space: _Space
) -> tuple[float, ...]:
    """The sums of ``_reduce_finite`` for one matrix (samples × elements) on the CPU.

    float32 is summed in its own precision first, which is cheaper and right to about 1e-5 of the
    second moment; where that is not good enough, because a variance is small beside the second
    moment or its squares leave the range of float32, once more in float64.
    """
    if matrix.dtype == torch.float32:
        sums = _sum_pieces(matrix, torch.float32, across, zeros, moments_only, space)
        if _is_well_conditioned(sums, *matrix.shape, across):
            return sums
    sums = _sum_pieces(matrix, torch.float64, across, zeros, moments_only, space)
    if math.isfinite(sums[1]):
        return sums
    return tuple(_reduce_finite(matrix.unsqueeze(0), zeros)[0].tolist())


def _is_well_conditioned(
    sums: tuple[float, ...], samples: int, elements: int, across: bool
) -> bool:
    total, squares, columns, rows, *_ = sums
    numel = samples * elements
    second = squares / numel
    if not 1e-24 < second < 1e24:
        return False
    least = 0.01 * second
    if second - (total / numel) ** 2 < least:
        return False
    if not across:
        return True
    return (samples == 1 or second - columns > least) and (
        elements == 1 or samples == 1 or second - rows > least
    )


def _sum_pieces(
    matrix: Tensor,
    dtype: torch.dtype,
    across: bool,
    zeros: bool,
    moments_only: bool,
    space: _Space,
) -> tuple[float, ...]:
    """Sum a matrix in pieces of at most PIECE elements, each in the precision given."""
    samples, elements = matrix.shape
    width = min(elements, PIECE)
    height = max(1, PIECE // width)
    if samples <= height and elements <= width:
        squares, columns, rows, abs_max, count = _sum_piece(
            matrix, dtype, across, zeros, moments_only, space
        )
        return _joined(matrix, squares, columns, rows, abs_max, count)
    columns = torch.zeros(elements, dtype=torch.float64)
    rows = torch.zeros(samples, dtype=torch.float64) if across else None
    squares = abs_max = count = 0.0
    for top in range(0, samples, height):
        for left in range(0, elements, width):
            piece = matrix[top : top + height, left : left + width]
            part = _sum_piece(piece, dtype, across, zeros, moments_only, space)
            squares += part[0]
            columns[left : left + width] += part[1]
            if rows is not None:
                rows[top : top + height] += part[2]
            abs_max = max(abs_max, part[3])
            count += part[4]
    return _joined(matrix, squares, columns, rows, abs_max, count)


def _sum_piece(
    matrix: Tensor,
    dtype: torch.dtype,
    across: bool,
    zeros: bool,
    moments_only: bool,
    space: _Space,
) -> tuple[float, Tensor, Tensor | None, float, float]:
    """Sum of squares, column sums, row sums, largest magnitude, number of zeros."""
    piece = matrix
    if matrix.dtype != dtype or not matrix.is_contiguous():
        piece = space.take(matrix.shape, dtype).copy_(matrix)
    flat = piece.view(-1)
    squares = torch.dot(flat, flat).item()
    columns = piece.t().mv(_ones(piece.shape[0], dtype))
    if moments_only:
        return squares, columns, None, 0.0, 0.0
    rows = piece.mv(_ones(piece.shape[1], dtype)) if across else None
    low, high = flat.amin(0).item(), flat.amax(0).item()
    count = 0.0
    if zeros and low <= 0 <= high:
        flags = torch.eq(piece, 0, out=space.take(piece.shape, torch.float32)).view(-1)
        count = torch.dot(flags, _ones(flags.numel(), torch.float32)).item()
    return squares, columns, rows, max(high, -low), count


def _joined(
    matrix: Tensor,
    squares: float,
    columns: Tensor,
    rows: Tensor | None,
    abs_max: float,
    count: float,
) -> tuple[float, ...]:
    samples, elements = matrix.shape
    total = columns.sum().item()
    if rows is None:
        return total, squares, 0.0, 0.0, abs_max, count, 0.0
    of_columns = torch.dot(columns, columns).item() / (elements * samples**2)
    of_rows = torch.dot(rows, rows).item() / (samples * elements**2)
    return total, squares, of_columns, of_rows, abs_max, count, 0.0


def _reduce_block(block: Tensor, zeros: bool, moments_only: bool, space: _Space) -> Tensor:
    """The sums of ``_reduce_finite`` for many small matrices at once (k × samples × elements)."""
    if block.is_cuda:
        return _reduce_finite(block, zeros)
    count, samples, elements = block.shape
    precise = space.take(block.shape, torch.float64).copy_(block)
    flat = precise.view(count, -1)
    raw = torch.zeros(count, 7, dtype=torch.float64)
    ones = _ones(samples, torch.float64)
    columns = torch.bmm(ones.expand(count, 1, samples), precise).squeeze(1)
    raw[:, 0] = columns.sum(1)
    raw[:, 1] = torch.linalg.vector_norm(flat, dim=1).square_()
    if not moments_only:
        rows = precise.view(-1, elements).mv(_ones(elements, torch.float64)).view(count, samples)
        raw[:, 2] = columns.square_().sum(1).div_(elements * samples**2)
        raw[:, 3] = rows.square_().sum(1).div_(samples * elements**2)
        if zeros:
            raw[:, 5] = _count(torch.eq(flat, 0, out=space.take(flat.shape, torch.float32)))
        raw[:, 4] = flat.abs_().amax(1)
    if math.isfinite(raw[:, 1].sum().item()):
        return raw
    return _reduce_finite(block, zeros)


def _count(flags: Tensor) -> Tensor:
    """How many of each row's 0/1 flags are set; exact in float32 up to 2²⁴ of them."""
    return flags.mv(_ones(flags.shape[1], flags.dtype).to(flags.device)).to(torch.float64)


def _reduce_finite(block: Tensor, zeros: bool) -> Tensor:
    """Seven sums over the finite elements of each matrix of k × samples × elements, as k × 7.

    Sum, sum of squares, mean over elements of (mean over samples)², mean over samples of (mean over
    elements)², largest magnitude, number of zeros, number of non-finite elements. The other
    reductions give the same numbers, faster, where all elements are finite.
    """
    count = len(block)
    finite = torch.isfinite(block)
    precise = block.to(torch.float64).masked_fill(~finite, 0.0)
    squared = precise.square()

    def mean_square_of_means(dim: int) -> Tensor:
        weight = finite.sum(dim).to(torch.float64)
        # E[x²] − this must be the mean of the variances, each over its own finite elements.
        inside = squared.sum(dim) / weight - (precise.sum(dim) / weight).square()
        return squared.sum((1, 2)) / finite.sum((1, 2)) - inside.nanmean(1)

    parts = [
        precise.sum((1, 2)),
        squared.sum((1, 2)),
        mean_square_of_means(1),
        mean_square_of_means(2),
        precise.abs().view(count, -1).amax(1),
        (block == 0).sum((1, 2)) if zeros else torch.zeros(count, device=block.device),
        (~finite).sum((1, 2)),
    ]
    return torch.stack([part.to(torch.float64) for part in parts], 1)


def histogram(tensor: Tensor) -> Histogram | None:
    """Count the finite elements in 64 equal bins; None where there are none."""
    values = tensor.detach().reshape(-1)
    values = values[torch.isfinite(values)]
    if not values.numel():
        return None
    values = values if values.dtype == torch.float64 else values.float()
    low, high = (float(value) for value in values.aminmax())
    if low == high:
        low, high = low - 0.5, high + 0.5
    if high - low == math.inf or not high > low:
        return None
    counts = torch.histc(values, _BINS, low, high)
    edges = torch.linspace(low, high, _BINS + 1, dtype=torch.float64)
    return Histogram(tuple(edges.tolist()), tuple(int(count) for count in counts.tolist()))


def geometry(tensor: Tensor, batch_axis: int) -> tuple[float, float]:
    """Mean cosine between samples, and effective rank, of the first 1,024 samples.

    The cosine is uncentred, over distinct pairs of samples that are not all zero. The effective
    rank is exp of the entropy of the singular values divided by their sum (Roy & Vetterli 2007).
    """
    matrix = _samples_first(tensor.detach(), batch_axis)[:_MOST_SAMPLES].to(torch.float64)
    if not bool(torch.isfinite(matrix).all()):
        return _NAN, _NAN
    norms = torch.linalg.vector_norm(matrix, dim=1)
    alive = matrix[norms > 0] / norms[norms > 0, None]
    pairs = len(alive) * (len(alive) - 1)
    cosine = (float(alive.sum(0).square().sum()) - len(alive)) / pairs if pairs else _NAN
    peak = float(norms.max())
    if peak == 0:
        return cosine, 0.0
    matrix = matrix / peak
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = singular / singular.sum()
    return cosine, float(torch.special.entr(share).sum().exp())


# ---------------------------------------------------------------- pre-activations


class UnitMeter:
    """Collects pre-activations and finds the dead units and the saturated fraction of each."""

    def __init__(self) -> None:
        self._blocks: dict[tuple, tuple[_Block, Activation]] = {}

    def add(
        self,
        z: Tensor,
        unit_axis: int,
        phi: Activation,
        receive: Callable[[float, float | None], None],
    ) -> None:
        """Measure ``z``, copying it where it cannot be measured at once."""
        if z.numel() == 0 or z.ndim == 0:
            return
        if z.numel() >= _BLOCK or z.is_cuda:
            dead = _dead_units(z, unit_axis, phi) / z.shape[unit_axis]
            receive(dead, _saturated_fraction(z, phi))
            return
        key = (id(phi), z.shape, z.dtype, unit_axis)
        entry = self._blocks.get(key)
        if entry is None:
            entry = self._blocks[key] = (_Block(z), phi)
        block = entry[0]
        if block.put(z, receive):
            self._flush(block, unit_axis, phi)

    def finish(self) -> None:
        for key, (block, phi) in self._blocks.items():
            self._flush(block, key[3], phi)
        self._blocks.clear()

    def _flush(self, block: _Block, unit_axis: int, phi: Activation) -> None:
        if not block.jobs:
            return
        filled = block.values[: len(block.jobs)]
        units = filled.shape[1:][unit_axis]
        rows = filled.movedim(unit_axis % (filled.ndim - 1) + 1, -1)
        peaks = rows.reshape(len(rows), -1, units).amax(1)
        suspects = (_slope(phi, peaks) == 0).sum(1).tolist()
        outside = _outside(filled.view(len(rows), -1), phi)
        for z, some, saturated, receive in zip(filled, suspects, outside, block.jobs, strict=True):
            dead = _dead_units(z, unit_axis, phi) if some else 0
            receive(dead / units, saturated)
        block.jobs = []


def _keep(tensor: Tensor) -> Tensor:
    return tensor


def _slope(phi: Activation, z: Tensor) -> Tensor:
    """φ'(z), unseen by whatever saved-tensor hooks (checkpointing) the model has in force."""
    with torch.autograd.graph.saved_tensors_hooks(_keep, _keep):
        return phi.derivative(z)


def _dead_units(z: Tensor, axis: int, phi: Activation) -> int:
    """How many units (entries of ``axis``) have φ' = 0 at every other index.

    A unit is alive if φ' ≠ 0 where its z is largest; only the others are looked at closely.
    """
    suspects = _suspects(z, axis, phi)
    if not len(suspects):
        return 0
    axis %= z.ndim
    others = [dim for dim in range(z.ndim) if dim != axis]
    if not others:
        return len(suspects)
    steepest = torch.zeros(len(suspects), dtype=z.dtype, device=z.device)
    for piece in z.split(max(1, PIECE * len(z) // z.numel()), dim=0) if axis else (z,):
        slope = _slope(phi, piece.index_select(axis, suspects))
        steepest = torch.maximum(steepest, slope.abs_().amax(others))
    return len(suspects) - int((steepest != 0).sum())


def _suspects(z: Tensor, axis: int, phi: Activation) -> Tensor:
    axis = axis % z.ndim
    others = [dim for dim in range(z.ndim) if dim != axis]
    peaks = z.amax(others) if others else z
    return (_slope(phi, peaks) == 0).nonzero().squeeze(1)


def _outside(matrix: Tensor, phi: Activation) -> list[float | None]:
    """The fraction of each row that lies in the tails of φ; None where it has none."""
    if phi.tails is None:
        return [None] * len(matrix)
    low, high = phi.tails
    flags = torch.empty(matrix.shape, dtype=torch.float32, device=matrix.device)
    count = torch.zeros(len(matrix), dtype=torch.float64, device=matrix.device)
    if low > -math.inf:
        count += _count(torch.lt(matrix, low, out=flags))
    if high < math.inf:
        count += _count(torch.gt(matrix, high, out=flags))
    return (count / matrix.shape[1]).tolist()


def _saturated_fraction(z: Tensor, phi: Activation) -> float | None:
    if phi.tails is None:
        return None
    flat = z.reshape(1, -1)
    counts = [
        outside * piece.shape[1]
        for piece in flat.split(PIECE, dim=1)
        for outside in _outside(piece, phi)
        if outside is not None
    ]
    return sum(counts) / z.numel()
