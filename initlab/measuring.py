"""The statistics of one tensor, small enough in time and memory to be taken of every tensor.

Everything is accumulated in float64, where neither the square of a float32 number nor the
difference E[x²] − mean² at mean/std = 10⁴ loses anything that matters. Small tensors of equal shape
share a block and are reduced together, because there the calls cost more than the arithmetic; large
ones are reduced in pieces of at most ``PIECE`` elements, so that no large copy is ever made.

The definitions of the quantities stand in ``initlab.tracing``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from initlab.activations import Activation

PIECE = 2**18
"""Elements reduced at once: the temporary memory is a few times this, at 8 bytes each."""

_BLOCK = 2**15
_FIRST_LOOK = 16
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
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
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

    def add(self, tensor: Tensor, batch_axis: int | None, zeros: bool, receive: Receive) -> None:
        """Measure a tensor; ``batch_axis`` None means that it has no samples (a weight)."""
        if tensor.numel() == 0:
            receive(Stats(_NAN, _NAN, _NAN, None, None, None, 0, 0), None)
            return
        rows = tensor.shape[batch_axis] if batch_axis is not None and tensor.ndim else 1
        job = _Job(receive, rows, tensor.numel() // rows, batch_axis is not None)
        if tensor.numel() >= _BLOCK:
            raw = _reduce_large(_samples_first(tensor, batch_axis), zeros, self.moments_only)
            self._deliver(raw, [job])
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
        self._deliver(_reduce(filled, zeros, self.moments_only), block.jobs)
        block.jobs = []

    def _deliver(self, raw: Tensor, jobs: list[_Job]) -> None:
        if raw.is_cuda:
            self._pending.append((raw, jobs))
            return
        for row, job in zip(raw.tolist(), jobs, strict=True):
            job.deliver(row, self.moments_only)


class _Block:
    """Room for several tensors of one shape, filled one by one."""

    __slots__ = ("jobs", "values")

    def __init__(self, like: Tensor) -> None:
        capacity = max(1, min(64, 2 * _BLOCK // like.numel()))
        self.values = torch.empty((capacity, *like.shape), dtype=like.dtype, device=like.device)
        self.jobs: list[_Job] = []

    def put(self, tensor: Tensor, job: _Job) -> bool:
        """Copy a tensor in; True when the block is full."""
        self.values[len(self.jobs)].copy_(tensor)
        self.jobs.append(job)
        return len(self.jobs) == len(self.values)


class _Job:
    """Who asked for a tensor's statistics, and what is needed to turn sums into them."""

    __slots__ = ("has_samples", "receive", "rows", "units")

    def __init__(self, receive: Receive, rows: int, units: int, has_samples: bool) -> None:
        self.receive = receive
        self.rows = rows
        self.units = units
        self.has_samples = has_samples

    def deliver(self, row: list[float], moments_only: bool) -> None:
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
    if batch_axis is None or tensor.ndim == 0:
        return tensor.reshape(1, -1)
    if tensor.is_contiguous() and batch_axis in (0, -tensor.ndim):
        return tensor.view(tensor.shape[0], -1)
    axis = batch_axis % tensor.ndim
    others = [dim for dim in range(tensor.ndim) if dim != axis]
    others.sort(key=tensor.stride, reverse=True)
    return tensor.permute(axis, *others).reshape(tensor.shape[axis], -1)


def _pieces(matrix: Tensor) -> Iterator[tuple[slice, list[tuple[slice, Tensor]]]]:
    """Split samples × elements into pieces of at most PIECE elements, rows first."""
    samples, elements = matrix.shape
    width = min(elements, PIECE)
    height = max(1, PIECE // width)
    for top in range(0, samples, height):
        rows = slice(top, min(samples, top + height))
        yield (
            rows,
            [
                (slice(left, left + width), matrix[rows, left : left + width])
                for left in range(0, elements, width)
            ],
        )


def _reduce_large(matrix: Tensor, zeros: bool, moments_only: bool) -> Tensor:
    """The sums of ``_reduce`` for one matrix (samples × elements), piece by piece."""
    if matrix.numel() <= PIECE:
        return _reduce(matrix.unsqueeze(0), zeros, moments_only)
    sums = _Sums(matrix)
    for rows, pieces in _pieces(matrix):
        for columns, piece in pieces:
            sums.add(piece, rows, columns, zeros, moments_only)
    raw = sums.total(moments_only)
    if matrix.is_cuda or math.isfinite(float(raw[0, 1])):
        return raw
    return _reduce_finite(matrix.unsqueeze(0), zeros)


class _Sums:
    """Row and column sums of a matrix that arrives in pieces."""

    def __init__(self, matrix: Tensor) -> None:
        def blank(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=matrix.device)

        self.count = matrix.shape
        self.columns, self.rows = blank(matrix.shape[1]), blank(matrix.shape[0])
        self.squares, self.zeros, self.nonfinite = blank(), blank(), blank()
        self.abs_max = blank()

    def add(
        self, piece: Tensor, rows: slice, columns: slice, zeros: bool, moments_only: bool
    ) -> None:
        precise = piece.to(torch.float64)
        if piece.is_cuda:
            finite = torch.isfinite(precise)
            self.nonfinite += (~finite).sum()
            precise = precise.masked_fill(~finite, 0.0)
        flat = precise.reshape(-1)
        self.squares += torch.dot(flat, flat)
        self.columns[columns] += precise.sum(0)
        if moments_only:
            return
        self.rows[rows] += precise.sum(1)
        self.abs_max = torch.maximum(self.abs_max, precise.abs().amax())
        if zeros:
            self.zeros += (piece == 0).sum()

    def total(self, moments_only: bool) -> Tensor:
        samples, elements = self.count
        columns = self.columns.square().mean() / samples**2
        rows = self.rows.square().mean() / elements**2
        if moments_only:
            rows = columns
        parts = (self.columns.sum(), self.squares, columns, rows, self.abs_max, self.zeros)
        return torch.stack((*parts, self.nonfinite)).unsqueeze(0)


def _reduce(block: Tensor, zeros: bool, moments_only: bool) -> Tensor:
    """The seven sums of each matrix in a block (k × samples × elements), as a k × 7 tensor.

    Sum, sum of squares, mean over elements of (mean over samples)², mean over samples of (mean over
    elements)², largest magnitude, number of zeros, number of non-finite elements.
    """
    if block.is_cuda:
        return _reduce_finite(block, zeros)
    count, samples, elements = block.shape
    precise = block.to(torch.float64)
    flat = precise.view(count, -1)
    columns = torch.bmm(precise.new_ones(1, 1, 1).expand(count, 1, samples), precise).squeeze(1)
    total = columns.sum(1)
    if count == 1:
        squares = torch.dot(flat[0], flat[0]).unsqueeze(0)
    else:
        squares = torch.linalg.vector_norm(flat, dim=1).square_()
    nothing = torch.zeros(count, dtype=torch.float64)
    if moments_only:
        raw = torch.stack([total, squares, nothing, nothing, nothing, nothing, nothing], 1)
    else:
        rows = precise.view(-1, elements).mv(precise.new_ones(elements)).view(count, samples)
        parts = [
            total,
            squares,
            torch.linalg.vector_norm(columns, dim=1).square_() / (elements * samples**2),
            torch.linalg.vector_norm(rows, dim=1).square_() / (samples * elements**2),
            block.abs().view(count, -1).amax(1).to(torch.float64),
            _count_zeros(block) if zeros else nothing,
            nothing,
        ]
        raw = torch.stack(parts, 1)
    if torch.isfinite(squares).all():
        return raw
    return _reduce_finite(block, zeros)


def _count(flags: Tensor) -> Tensor:
    """How many of each row's 0/1 flags are set; exact in float32 up to PIECE elements."""
    return flags.mv(flags.new_ones(flags.shape[1])).to(torch.float64)


def _count_zeros(block: Tensor) -> Tensor:
    flags = torch.empty(block.shape, dtype=torch.float32)
    return _count(torch.eq(block, 0, out=flags).view(len(block), -1))


def _reduce_finite(block: Tensor, zeros: bool) -> Tensor:
    """The sums of ``_reduce`` over the finite elements only: slower, and right for inf and nan."""
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
            units = z.movedim(unit_axis, -1)
            dead = _dead_units(units, phi) / units.shape[-1]
            receive(dead, _saturated_fraction(z, phi))
            return
        key = (id(phi), z.shape, z.dtype, unit_axis)
        entry = self._blocks.get(key)
        if entry is None:
            entry = self._blocks[key] = (_Block(z), phi)
        block = entry[0]
        if block.put(z, receive):  # type: ignore[arg-type]
            self._flush(block, unit_axis, phi)

    def finish(self) -> None:
        for key, (block, phi) in self._blocks.items():
            self._flush(block, key[3], phi)
        self._blocks.clear()

    def _flush(self, block: _Block, unit_axis: int, phi: Activation) -> None:
        if not block.jobs:
            return
        filled = block.values[: len(block.jobs)]
        rows = filled.movedim(unit_axis % (filled.ndim - 1) + 1, -1)
        rows = rows.reshape(len(rows), -1, rows.shape[-1])
        first = (_slope(phi, rows[:, :_FIRST_LOOK]) == 0).all(1).sum(1).tolist()
        outside = _outside(filled.view(len(rows), -1), phi)
        for matrix, suspects, saturated, receive in zip(
            rows, first, outside, block.jobs, strict=True
        ):
            dead = _dead_units(matrix, phi) if suspects else 0
            receive(dead / matrix.shape[-1], saturated)  # type: ignore[operator]
        block.jobs = []


def _keep(tensor: Tensor) -> Tensor:
    return tensor


def _slope(phi: Activation, z: Tensor) -> Tensor:
    """φ'(z), unseen by whatever saved-tensor hooks (checkpointing) the model has in force."""
    with torch.autograd.graph.saved_tensors_hooks(_keep, _keep):
        return phi.derivative(z)


def _dead_units(z: Tensor, phi: Activation) -> int:
    """How many units (last dimension) have φ' = 0 in every row.

    Looks at a few rows first and goes on with the units that were dead in all of them.
    """
    z = z.reshape(-1, z.shape[-1]) if z.ndim != 2 else z
    suspects: Tensor | None = None
    start, rows = 0, _FIRST_LOOK
    while start < len(z):
        look = z[start : start + rows]
        look = look if suspects is None else look[:, suspects]
        dead = (_slope(phi, look) == 0).all(0).nonzero().squeeze(1)
        suspects = dead if suspects is None else suspects[dead]
        if not len(suspects):
            return 0
        start += rows
        rows = max(1, min(2 * rows, PIECE // len(suspects)))
    return 0 if suspects is None else len(suspects)


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
