"""The statistics of one tensor, small enough in time and memory to be taken of every tensor.

Sums are accumulated in float64, where neither the square of a float32 number nor the difference
E[x²] − mean² at mean/std = 10⁴ loses anything that matters; in float32 where a look at the result
shows that nothing was lost. Small tensors of equal shape share a block and are reduced
together, because there the calls cost more than the arithmetic; large ones are reduced in pieces of
at most ``PIECE`` elements, so that no large copy is ever made.

The definitions of the quantities stand in ``initlab.tracing``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

PIECE = 2**18
"""Elements reduced at once, that the cache holds from one sum to the next: 1 MB of float32."""

_DOT = 2**16
"""Elements in one float32 sum of squares: a longer one is off by more than 1e-6."""

LARGE = 2**15
"""From how many elements on a tensor is measured by itself: then the calls cost little."""

_MEDIUM = 2**13
"""The same where two sums are all that is wanted of it."""

_LEAST, _MOST, _SHARE = 1e-24, 1e24, 0.003
"""Where float32 sums are trusted: second moments within its range, and variances that are not too
small a share of them."""

_BLOCK = 2**17
_MOST_SAMPLES = 1024
_BINS = 64
_NAN = math.nan


@dataclass(frozen=True)
class Stats:
    """Statistics of one tensor; plain Python numbers.

    Variances are population variances (divided by N). A field that was not asked for, or that has
    no meaning for this tensor (the across-… ones of a weight), is None. ``nonfinite`` elements make
    a statistic what arithmetic makes of them: inf, or nan.
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


Made = TypeVar("Made")


def quick(kind: type[Made], fields: dict[str, Any]) -> Made:
    """A frozen dataclass from all its fields; its own constructor takes three times as long."""
    made = object.__new__(kind)
    made.__dict__.update(fields)
    return made


Receive = Callable[[Stats, float | None], None]
"""What becomes of a result: the statistics, and the fraction of elements that are exactly 0."""


_PLAIN = {torch.float32, torch.float64, torch.float16, torch.bfloat16}


def why_opaque(tensor: Tensor) -> str | None:
    """Why a tensor cannot be measured, in words; None where it can be."""
    usual = type(tensor) in (Tensor, nn.Parameter) and tensor.dtype in _PLAIN
    transformed = torch._C._functorch.maybe_current_level() is not None  # type: ignore[attr-defined]
    strided = tensor.layout is torch.strided and not tensor.is_nested
    if usual and not transformed and strided and not tensor.is_meta:
        return None
    if tensor.is_nested:
        return "nested tensor: not measured"
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


def of_one_sample(stats: Stats) -> Stats:
    """What they are where the whole tensor is one sample: nothing varies from sample to sample."""
    nothing = 0.0 * stats.second_moment
    spread = stats.var if stats.numel > 1 else nothing
    return replace(stats, across_samples_var=nothing, across_units_var=spread)


class Meter:
    """Collects tensors, reduces them, and hands every result to the callback given with it.

    A tensor is copied or reduced before ``add`` returns, so it may be overwritten afterwards. On a
    CUDA device nothing waits for a result before ``finish``.
    """

    def __init__(self, *, moments_only: bool = False) -> None:
        self._moments_only = moments_only
        self._blocks: dict[tuple, Block] = {}
        self._hard: set[tuple] = set()
        self._jobs: list[_Job] = []
        self._sums: list[Sequence[float]] = []
        self._pending: list[tuple[Tensor, list[_Job]]] = []
        self._moments: list[tuple[Receive, int, float, float]] = []
        self._space = _Space()
        self._of_weights = _Wish(False, not moments_only, False)
        self._of_gradients = _Wish(not moments_only, not moments_only, False)
        self._of_signals = _Wish(not moments_only, not moments_only, not moments_only)

    def add(self, tensor: Tensor, batch_axis: int | None, zeros: bool, receive: Receive) -> None:
        """Measure a tensor; ``batch_axis`` None means that it has no samples (a weight)."""
        numel = tensor.numel()
        short = self._moments_only and numel >= _MEDIUM
        if short and self._add_moments(tensor, numel, receive):
            return
        if numel == 0:
            receive(Stats(_NAN, _NAN, _NAN, None, None, None, 0, 0), None)
            return
        tensor = within_reach(tensor)
        wish = self._of_signals if zeros else self._of_gradients
        if batch_axis is None:
            wish = wish._replace(across=False) if zeros else self._of_weights
        if numel >= LARGE:
            self._measure_one(_samples_first(tensor, batch_axis), wish, receive)
            return
        samples = tensor.shape[batch_axis] if batch_axis is not None and tensor.ndim else 1
        key = (tensor.shape, tensor.dtype, tensor.device, batch_axis, wish)
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = Block(tensor)
        if block.put(tensor, _Job(receive, samples, numel // samples, wish)):
            self._flush(block, batch_axis, wish)

    def _add_moments(self, tensor: Tensor, numel: int, receive: Receive) -> bool:
        """The shortest way to two sums, taken where no other is asked for; False where it is none.

        It is what ``_measure_one`` does with the same tensor, less all that it asks on the way.
        """
        if tensor.dtype is not torch.float32 or not (tensor.is_cpu and tensor.is_contiguous()):
            return False
        flat, total, squares = tensor.view(-1), 0.0, 0.0
        for piece in (flat,) if numel <= PIECE else flat.split(PIECE):
            squares += _sum_of_squares(piece)
            total += piece.sum().item()
        second = squares / numel
        if not (_LEAST < second < _MOST and second - (total / numel) ** 2 >= _SHARE * second):
            return False
        self._moments.append((receive, numel, total, squares))
        return True

    def finish(self) -> None:
        """Reduce what is still waiting and deliver every result."""
        for key, block in self._blocks.items():
            self._flush(block, key[3], key[4])
        self._blocks.clear()
        if self._pending:
            self._sums += torch.cat([raw.cpu() for raw, _ in self._pending]).tolist()
            self._jobs += [job for _, jobs in self._pending for job in jobs]
            self._pending.clear()
        if self._jobs:
            _deliver(self._jobs, np.array(self._sums), self._moments_only)
        for receive, numel, total, squares in self._moments:
            receive(_of_two_sums(numel, total, squares), None)
        self._jobs, self._sums, self._moments = [], [], []

    def _flush(self, block: Block, batch_axis: int | None, wish: _Wish) -> None:
        if not block.jobs:
            return
        jobs, block.jobs = block.jobs, []
        filled = block.values[: len(jobs)]
        if batch_axis is None or filled.ndim == 1:
            filled = filled.reshape(len(jobs), 1, -1)
        else:
            axis = batch_axis % (filled.ndim - 1) + 1
            filled = filled.movedim(axis, 1).reshape(len(jobs), filled.shape[axis], -1)
        if filled.is_cuda:
            self._pending.append((_sum_on_device(filled), jobs))
            return
        again = list(range(len(jobs)))
        sums: list[Sequence[float]] = [()] * len(jobs)
        if filled.dtype == torch.float32 and not block.is_hard:
            sums[:] = _sum_block(filled, torch.float32, wish, self._space)
            shape = filled.shape[1:]
            again = [at for at in again if not _is_well_conditioned(sums[at], shape, wish)]
            block.is_hard = 2 * len(again) > len(jobs)
        if again:
            rest = filled if len(again) == len(jobs) else filled[again]
            precise = _sum_block(rest, torch.float64, wish, self._space)
            for at, row in zip(again, precise, strict=True):
                sums[at] = row if math.isfinite(row[1]) else _with_nonfinite(row, filled[at])
        self._sums += sums
        self._jobs += jobs

    def _measure_one(self, matrix: Tensor, wish: _Wish, receive: Receive) -> None:
        shape = matrix.shape
        job = _Job(receive, shape[0], shape[1], wish)
        if matrix.is_cuda:
            self._pending.append((_sum_on_device(matrix.unsqueeze(0)), [job]))
            return
        self._jobs.append(job)
        if matrix.dtype == torch.float32 and (shape, wish) not in self._hard:
            sums = _sum_matrix(matrix, torch.float32, wish, self._space)
            if _is_well_conditioned(sums, shape, wish):
                self._sums.append(sums)
                return
            self._hard.add((shape, wish))
        sums = _sum_matrix(matrix, torch.float64, wish, self._space)
        if not math.isfinite(sums[1]):
            sums = _with_nonfinite(sums, matrix)
        elif _is_well_conditioned(sums, shape, wish):
            self._hard.discard((shape, wish))
        self._sums.append(sums)


class _Wish(NamedTuple):
    """Which sums are wanted: the across-… ones, the extremes, the number of zeros."""

    across: bool
    extremes: bool
    zeros: bool


class _Job(NamedTuple):
    """Who asked for a tensor's statistics, and what is needed to turn sums into them."""

    receive: Receive
    samples: int
    elements: int
    wish: _Wish


class Block:
    """Room for several tensors of one shape, filled one by one."""

    __slots__ = ("capacity", "is_hard", "jobs", "slots", "values")

    def __init__(self, like: Tensor) -> None:
        self.capacity = max(1, min(64, _BLOCK // like.numel()))
        shape = (self.capacity, *like.shape)
        self.values = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.slots = self.values.unbind(0)
        self.jobs: list[Any] = []
        self.is_hard = False

    def put(self, tensor: Tensor, job: Any) -> bool:
        """Copy a tensor in; True when the block is full."""
        self.slots[len(self.jobs)].copy_(tensor)
        self.jobs.append(job)
        return len(self.jobs) == self.capacity


def within_reach(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy of it where its device may know no float64 (Apple's)."""
    return tensor if tensor.is_cpu or tensor.is_cuda else tensor.cpu()


def _deliver(jobs: list[_Job], sums: np.ndarray, moments_only: bool) -> None:
    """Turn seven sums of each tensor into its statistics, of all tensors at once."""
    total, squares, of_columns, of_rows, abs_max, zeros, nonfinite = sums.T
    samples = np.array([job.samples for job in jobs])
    elements = np.array([job.elements for job in jobs])
    numel = samples * elements
    with np.errstate(over="ignore", invalid="ignore"):  # inf − inf is nan, as it should be
        mean, second = total / numel, squares / numel
        var = np.maximum(second - mean * mean, 0.0)
        of_one = 0.0 * second  # what does not vary has no variance
        across_samples = np.where(samples > 1, np.maximum(second - of_columns, 0.0), of_one)
        across_units = np.where(elements > 1, np.maximum(second - of_rows, 0.0), of_one)
    fractions = zeros / numel
    columns = [mean, var, second, across_samples, across_units, abs_max, fractions]
    columns += [nonfinite.astype(int), numel]
    table = zip(*(values.tolist() for values in columns), strict=True)
    for job, row in zip(jobs, table, strict=True):
        across = job.wish.across
        fields = {
            "mean": row[0],
            "var": row[1],
            "second_moment": row[2],
            "across_samples_var": row[3] if across else None,
            "across_units_var": row[4] if across else None,
            "abs_max": None if moments_only else row[5],
            "nonfinite": row[7],
            "numel": row[8],
        }
        job.receive(quick(Stats, fields), row[6] if job.wish.zeros else None)


def _of_two_sums(numel: int, total: float, squares: float) -> Stats:
    """The statistics of finite elements, where their sum and that of their squares are known."""
    mean, second = total / numel, squares / numel
    fields = {
        "mean": mean,
        "var": second - mean * mean,
        "second_moment": second,
        "across_samples_var": None,
        "across_units_var": None,
        "abs_max": None,
        "nonfinite": 0,
        "numel": numel,
    }
    return quick(Stats, fields)


def _samples_first(tensor: Tensor, batch_axis: int | None) -> Tensor:
    """The tensor as samples × elements, without a copy where its memory layout allows.

    The order of the elements within a sample does not matter, so it follows the strides: a
    channels-last image needs no copy either. What has no samples is one sample.
    """
    if batch_axis is None:
        return tensor.reshape(1, -1)
    if tensor.ndim < 2:
        return tensor.reshape(-1, 1)
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
        self._flags = np.empty(_BLOCK, dtype=bool)

    def take(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """An uninitialized tensor, valid until the next call with this dtype."""
        numel = shape.numel()
        flat = self._flat.get(dtype)
        if flat is None or flat.numel() < numel:
            flat = self._flat[dtype] = torch.empty(max(numel, _BLOCK), dtype=dtype)
        return flat[:numel].view(shape)

    def count_zeros(self, values: Tensor) -> int:
        """How many elements of a flat tensor are exactly 0."""
        if values.numel() > len(self._flags):
            self._flags = np.empty(values.numel(), dtype=bool)
        is_zero = np.equal(values.numpy(), 0, out=self._flags[: values.numel()])
        return int(np.count_nonzero(is_zero))


_ones_of: dict[torch.dtype, Tensor] = {}


def _ones(count: int, dtype: torch.dtype) -> Tensor:
    ones = _ones_of.get(dtype)
    if ones is None or ones.numel() < count:
        ones = _ones_of[dtype] = torch.ones(max(count, _BLOCK), dtype=dtype)
    return ones[:count]


def _is_well_conditioned(sums: Sequence[float], shape: torch.Size, wish: _Wish) -> bool:
    """Whether float32 was good enough: right to about 1e-6 of the second moment.

    It is not where a variance is small beside the second moment, or where squares leave its range.
    """
    total, squares, columns, rows, abs_max, *_ = sums
    samples, elements = shape
    numel = samples * elements
    if wish.extremes and abs_max == squares == 0:
        return True
    second = squares / numel
    if not _LEAST < second < _MOST:
        return False
    least = _SHARE * second
    if second - (total / numel) ** 2 < least:
        return False
    if not wish.across or samples == 1:
        return True
    return second - columns > least and (elements == 1 or second - rows > least)


def _sum_matrix(
    matrix: Tensor, dtype: torch.dtype, wish: _Wish, space: _Space
) -> tuple[float, ...]:
    """Seven sums over one matrix of samples × elements, in pieces that the cache can hold.

    Sum, sum of squares, mean over elements of (mean over samples)², mean over samples of (mean over
    elements)², largest magnitude, number of zeros, number of non-finite elements. The last is left
    to ``_with_nonfinite``, which is called where the sum of squares is not finite.
    """
    samples, elements = matrix.shape
    total = squares = of_columns = of_rows = abs_max = zeros = 0.0
    columns: Tensor | None = None
    for piece in _pieces(matrix, wish):
        if piece.dtype != dtype or not piece.is_contiguous():
            piece = space.take(piece.shape, dtype).copy_(piece)
        flat = piece.view(-1)
        squares += _sum_of_squares(flat)
        if not wish.across:
            total += flat.sum().item()
        else:
            rows = piece.sum(1)
            of_rows += torch.dot(rows, rows).item()
            if columns is None:
                columns = piece.sum(0)
            else:
                columns.addmv_(piece.t(), _ones(len(piece), dtype))
        if wish.extremes:
            low, high = torch.aminmax(flat)
            low, high = low.item(), high.item()
            abs_max = max(abs_max, high, -low)
            if wish.zeros and low <= 0 <= high:
                zeros += space.count_zeros(flat)
    if columns is not None:
        total = columns.sum().item()
        of_columns = torch.dot(columns, columns).item() / (elements * samples**2)
        of_rows /= samples * elements**2
    return total, squares, of_columns, of_rows, abs_max, zeros, 0.0


def _sum_of_squares(flat: Tensor) -> float:
    if flat.numel() <= _DOT:
        return flat.dot(flat).item()
    return sum([part.dot(part).item() for part in flat.split(_DOT)])


def _pieces(matrix: Tensor, wish: _Wish) -> Sequence[Tensor]:
    samples, elements = matrix.shape
    if samples * elements <= PIECE:
        return (matrix,)
    if not wish.across and matrix.is_contiguous():
        return matrix.view(-1).split(PIECE)
    return matrix.split(max(1, PIECE // elements))


def _sum_block(block: Tensor, dtype: torch.dtype, wish: _Wish, space: _Space) -> list[list[float]]:
    """The sums of ``_sum_matrix`` for many small matrices at once (k × samples × elements)."""
    count, samples, elements = block.shape
    if block.dtype != dtype or not block.is_contiguous():
        block = space.take(block.shape, dtype).copy_(block)
    flat = block.view(count, -1)
    sums = np.zeros((count, 7))
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is summed again
        sums[:, 1] = _sums_of_squares(flat)
        if wish.across:
            columns, rows = block.sum(1).numpy(), block.sum(2).numpy()
            sums[:, 0] = columns.sum(1)
            sums[:, 2] = np.einsum("ij,ij->i", columns, columns) / (elements * samples**2)
            sums[:, 3] = np.einsum("ij,ij->i", rows, rows) / (samples * elements**2)
        else:
            sums[:, 0] = flat.sum(1).numpy()
        if wish.extremes:
            low, high = flat.amin(1).numpy(), flat.amax(1).numpy()
            sums[:, 4] = np.maximum(high, -low)
            if wish.zeros and low.min() <= 0 <= high.max():
                sums[:, 5] = [space.count_zeros(row) for row in flat]
    return sums.tolist()


def _sums_of_squares(flat: Tensor) -> np.ndarray:
    """Of each row: of short stretches in its own precision, whose results add up in float64.

    One long float32 sum of squares that take few values (pixels) is off by 1e-5.
    """
    stretch = math.gcd(flat.shape[1], 256)
    if stretch < 32:
        return flat.square().sum(1).numpy()
    norms = torch.linalg.vector_norm(flat.view(len(flat), -1, stretch), dim=2)
    return np.square(norms.numpy(), dtype=np.float64).sum(1)


def _with_nonfinite(sums: Sequence[float], matrix: Tensor) -> Sequence[float]:
    """The same sums with what only a tensor that has infinities or nans makes necessary."""
    abs_max = matrix.abs().max().item()  # nan where there is one
    zeros, nonfinite = int((matrix == 0).sum()), int((~torch.isfinite(matrix)).sum())
    return (*sums[:4], abs_max, zeros, nonfinite)


def _sum_on_device(block: Tensor) -> Tensor:
    """The sums of ``_sum_matrix`` for k × samples × elements, as k × 7, without waiting for any."""
    precise = block.to(torch.float64)
    columns, rows = precise.mean(1), precise.mean(2)
    parts = [
        rows.sum(1) * block.shape[2],
        precise.square().sum((1, 2)),
        columns.square().mean(1),
        rows.square().mean(1),
        precise.abs().amax((1, 2)),
        (block == 0).sum((1, 2)),
        (~torch.isfinite(block)).sum((1, 2)),
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
