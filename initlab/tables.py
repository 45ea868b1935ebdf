"""A smooth function that is slow to compute, tabulated where it is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import overload

import numpy as np

Fill = Callable[[tuple[int, ...], list[np.ndarray]], np.ndarray]
"""Maps a cell and the nodes in it along each axis to the k functions there: (k, nodes, …)."""


class SmoothTable:
    """k functions on the cells of the integer grid, each cell a product of Chebyshev polynomials.

    A cell is filled when a point in it is first asked for, and kept.

    Args:
        fill: computes the functions at the nodes of a cell.
        orders: the number of nodes along each axis.
        tolerance: what the coefficients of highest degree may add up to; the error is about a
            tenth of it. A cell that needs more is none.

    >>> table = SmoothTable(lambda cell, nodes: np.exp(nodes[0])[None], (12,), 1e-12)
    >>> round(float(table.at(0.5)[0]), 10), round(math.exp(0.5), 10)
    (1.6487212707, 1.6487212707)
    """

    def __init__(self, fill: Fill, orders: tuple[int, ...], tolerance: float) -> None:
        self._fill, self._orders, self._tolerance = fill, orders, tolerance
        self._cells: dict[tuple[int, ...], np.ndarray | None] = {}

    def at(self, *point: float) -> np.ndarray | None:
        """The k functions at one point; None in a cell that is too rough for its polynomials."""
        cell = tuple(math.floor(x) for x in point)
        found = self._coefficients(cell)
        for x, low, order in reversed(list(zip(point, cell, self._orders, strict=True))):
            if found is None:
                return None
            found = found @ _polynomials(order, 2 * (x - low) - 1)
        return found

    def along(self, points: np.ndarray, function: int) -> np.ndarray:
        """One of the functions at many points of a single axis; nan in a cell that is too rough."""
        cells, found = np.floor(points), np.full(points.shape, math.nan)
        for cell in set(cells.ravel().tolist()):
            coefficients, inside = self._coefficients((int(cell),)), cells == cell
            if coefficients is not None:
                found[inside] = _series(coefficients[function], 2 * (points[inside] - cell) - 1)
        return found

    def among(self, functions: int, *points: np.ndarray) -> np.ndarray:
        """The ``functions`` of them at many points, of shape (points, functions); nan in cells that
        are too rough."""
        places = [np.floor(x) for x in points]
        polynomials = np.ones((len(points[0]), 1))
        for x, low, order in zip(points, places, self._orders, strict=True):
            along = np.cos(np.arange(order) * np.arccos((2 * (x - low) - 1).clip(-1, 1))[:, None])
            polynomials = (polynomials[:, :, None] * along[:, None]).reshape(len(x), -1)
        order = np.lexsort(places)
        cells = np.stack(places, axis=1)[order]
        starts = np.flatnonzero(np.any(np.diff(cells, axis=0), axis=1)) + 1
        found = np.full((len(order), functions), math.nan)
        for inside in np.split(order, starts):
            cell = tuple(int(low[inside[0]]) for low in places)
            coefficients = self._coefficients(cell)
            if coefficients is not None:
                found[inside] = polynomials[inside] @ coefficients.reshape(functions, -1).T
        return found

    def _coefficients(self, cell: tuple[int, ...]) -> np.ndarray | None:
        if cell not in self._cells:
            self._cells[cell] = self._filled(cell)
        return self._cells[cell]

    def _filled(self, cell: tuple[int, ...]) -> np.ndarray | None:
        nodes = [low + (_nodes(n) + 1) / 2 for low, n in zip(cell, self._orders, strict=True)]
        with np.errstate(divide="ignore", invalid="ignore"):
            coefficients = self._fill(cell, nodes)
            for axis, order in enumerate(self._orders, start=1):
                along = np.moveaxis(coefficients, axis, -1) @ _transform(order)
                coefficients = np.moveaxis(along, -1, axis)
        axes = range(1, coefficients.ndim)
        tails = [np.abs(coefficients.take([-2, -1], axis)).sum() for axis in axes]
        return coefficients if sum(tails) < self._tolerance else None  # nan is no less


@cache
def _nodes(order: int) -> np.ndarray:
    return np.cos(np.pi * (np.arange(order) + 0.5) / order)


@cache
def _transform(order: int) -> np.ndarray:
    """From the values at the nodes to the coefficients of the polynomials."""
    transform = 2 / order * np.cos(np.arange(order) * np.arccos(_nodes(order))[:, None])
    transform[:, 0] /= 2
    return transform


def _polynomials(order: int, x: float) -> np.ndarray:
    """T_0 … T_{order−1} at x in [−1, 1]."""
    return np.cos(np.arange(order) * math.acos(min(max(x, -1.0), 1.0)))


def _series(coefficients: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Σ c_n T_n(x), for few and for many x."""
    if x.size > 128:
        return np.polynomial.chebyshev.chebval(x, coefficients)
    return coefficients @ np.cos(np.arange(len(coefficients))[:, None] * np.arccos(x.clip(-1, 1)))


@overload
def stretched(q: float) -> float: ...
@overload
def stretched(q: np.ndarray) -> np.ndarray: ...
def stretched(q):
    """What tables over a variance run over: its octaves, but √q itself where it is so small that a
    function of √q·z is its leading power and a series in √q.

    >>> round(stretched(2.0) - stretched(1.0), 1)
    1.0
    """
    if isinstance(q, np.ndarray):
        return 2 * np.log2(1 + 64 * np.sqrt(q))
    return 2 * math.log2(1 + 64 * math.sqrt(q))


def unstretched(places: np.ndarray) -> np.ndarray:
    """The variances at these places."""
    return ((np.exp2(places / 2) - 1) / 64) ** 2
