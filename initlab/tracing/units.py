"""Dead and saturated units: what an activation makes of its pre-activations.

A unit is dead where φ' = 0 for every sample; an element is saturated where it lies in the declared
tails of φ. The definitions stand in ``initlab.tracing``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from initlab.activations import Activation
from initlab.tracing.measuring import LARGE, PIECE, Block, within_reach

ReceiveUnits = Callable[[float, float | None], None]
"""What becomes of a result: the fraction of dead units, and the saturated fraction."""


class UnitMeter:
    """Finds, for pre-activations z, the dead units and the fraction of elements in the tails."""

    def __init__(self) -> None:
        self._blocks: dict[tuple, tuple[Block, Activation]] = {}

    def add(self, z: Tensor, unit_axis: int, phi: Activation, receive: ReceiveUnits) -> None:
        """Measure z, or copy it, before this returns; its units lie along ``unit_axis``."""
        if z.numel() == 0 or z.ndim == 0:
            return
        z = within_reach(z)
        if z.numel() >= LARGE or z.is_cuda:
            _measure_units(z.unsqueeze(0), unit_axis, phi, [receive])
            return
        key = (id(phi), z.shape, z.dtype, unit_axis)
        entry = self._blocks.get(key)
        if entry is None:
            entry = self._blocks[key] = (Block(z), phi)
        if entry[0].put(z, receive):
            self._flush(entry[0], unit_axis, phi)

    def finish(self) -> None:
        for key, (block, phi) in self._blocks.items():
            self._flush(block, key[3], phi)
        self._blocks.clear()

    def _flush(self, block: Block, unit_axis: int, phi: Activation) -> None:
        if block.jobs:
            _measure_units(block.values[: len(block.jobs)], unit_axis, phi, block.jobs)
            block.jobs = []


def _measure_units(z: Tensor, unit_axis: int, phi: Activation, receivers: list[Any]) -> None:
    """Deliver what a UnitMeter finds in each tensor of a block (first dimension)."""
    axis = unit_axis % (z.ndim - 1) + 1
    units = z.shape[axis]
    dead = _dead_units(z, axis, phi)
    outside = [None] * len(z) if phi.tails is None else _outside(z, *phi.tails)
    for count, fraction, receive in zip(dead, outside, receivers, strict=True):
        receive(count / units, fraction)


def _dead_units(z: Tensor, axis: int, phi: Activation) -> list[int]:
    """For each tensor of a block, how many units (along ``axis``) have φ' = 0 throughout.

    Where the largest z of a unit falls mostly decides it; the units left over are looked at fully.
    """
    between = [dim for dim in range(1, z.ndim) if dim != axis]
    peaks = z.amax(between) if between else z
    low, high, flat_below = _alive_range(phi, z.dtype)
    if flat_below and not z.is_cuda and peaks.max().item() < high:
        return _count_true((peaks <= low).numpy())
    dead = (peaks <= low) if flat_below else torch.zeros_like(peaks, dtype=torch.bool)
    unsure = ~((peaks > low) & (peaks < high) | dead)
    found = dead.sum(1).tolist()
    if not bool(unsure.any()):
        return found
    for index, doubtful in enumerate(unsure):
        chosen = doubtful.nonzero().squeeze(1)
        if len(chosen):
            rows = z[index].movedim(axis - 1, -1).reshape(-1, z.shape[axis])
            found[index] += _dead_among(rows, chosen, phi)
    return found


def _dead_among(rows: Tensor, units: Tensor, phi: Activation) -> int:
    steepest = torch.zeros(len(units), dtype=rows.dtype, device=rows.device)
    for piece in rows.split(max(1, PIECE // len(units))):
        slope = _slope(phi, piece.index_select(1, units)).abs()
        steepest = torch.maximum(steepest, slope.amax(0))
    return len(units) - int((steepest != 0).sum())


def _alive_range(phi: Activation, dtype: torch.dtype) -> tuple[float, float, bool]:
    """An interval on which φ' ≠ 0, and whether φ' = 0 everywhere below it.

    relu: (0, 128, True). The interval is empty where φ' vanishes in places (a dead zone, a minimum
    at 0), so that nothing is concluded from it.
    """
    key = (phi.function, phi.name, dtype)
    if key not in _alive_ranges:
        if len(_alive_ranges) > 256:
            _alive_ranges.clear()
        _alive_ranges[key] = _find_alive_range(phi, dtype)
    return _alive_ranges[key]


_alive_ranges: dict[tuple, tuple[float, float, bool]] = {}
_REACH = 128.0
_NOWHERE = (math.inf, -math.inf, False)


def _find_alive_range(phi: Activation, dtype: torch.dtype) -> tuple[float, float, bool]:
    grid = torch.linspace(-_REACH, _REACH, 16_385).to(dtype)
    steep = (_slope(phi, grid) != 0).nonzero().squeeze(1)
    if not len(steep) or len(steep) != int(steep[-1] - steep[0]) + 1:
        return _NOWHERE
    first, last = int(steep[0]), int(steep[-1])
    low, high = -_REACH, _REACH
    if first > 0:
        low = _edge(phi, grid[first - 1], grid[first])
    if last < len(grid) - 1:
        high = _edge(phi, grid[last + 1], grid[last])
    return low, high, first > 0


def _edge(phi: Activation, flat: Tensor, steep: Tensor) -> float:
    """The last number with φ' = 0 on the way from a flat point to a steep one, by bisection."""
    while True:
        middle = (flat + steep) / 2
        if float(middle) in (float(flat), float(steep)):
            return float(flat)
        if float(_slope(phi, middle.reshape(1))) == 0:
            flat = middle
        else:
            steep = middle


def _keep(tensor: Tensor) -> Tensor:
    return tensor


def _slope(phi: Activation, z: Tensor) -> Tensor:
    """φ'(z), unseen by whatever saved-tensor hooks (checkpointing) the model has in force."""
    with torch.autograd.graph.saved_tensors_hooks(_keep, _keep):
        return phi.derivative(z)


def _outside(z: Tensor, low: float, high: float) -> list[float]:
    """For each tensor of a block, the fraction that lies below ``low`` or above ``high``."""
    if z.is_cuda:
        counts = ((z < low) | (z > high)).flatten(1).sum(1).tolist()
    else:
        values = (z.float() if z.dtype == torch.bfloat16 else z).numpy()
        counts = [0] * len(z)
        if low > -math.inf:
            counts = _count_true(values < low)
        if high < math.inf:
            counts = [a + b for a, b in zip(counts, _count_true(values > high), strict=True)]
    return [count / z[0].numel() for count in counts]


def _count_true(flags: np.ndarray) -> list[int]:
    """How many are set in each entry of the first dimension; without axes numpy is far quicker."""
    return [int(np.count_nonzero(entry)) for entry in flags]
