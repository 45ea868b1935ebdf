"""SmoothTable: a smooth function, tabulated where it is asked for."""

import math

import numpy as np
import pytest

from initlab.tables import SmoothTable


def waves(filled: list | None = None, steep: float = 1.0) -> SmoothTable:
    """sin and cos of x + 2y; notes which cells it fills."""

    def fill(cell, nodes):
        if filled is not None:
            filled.append(cell)
        phase = steep * (nodes[0][:, None] + 2 * nodes[1])
        return np.stack([np.sin(phase), np.cos(phase)])

    return SmoothTable(fill, orders=(10, 14), tolerance=1e-7)


@pytest.mark.parametrize(("x", "y"), [(0.3, 0.7), (-2.0, 5.999), (12.5, -3.25)])
def test_a_table_agrees_with_its_functions_to_its_tolerance(x, y):
    expected = [math.sin(x + 2 * y), math.cos(x + 2 * y)]
    assert waves().at(x, y) == pytest.approx(expected, abs=1e-7)


def test_many_points_at_once_are_as_each_alone():
    x, y = np.random.default_rng(0).uniform(-3, 3, (2, 50))
    alone = [waves().at(*each) for each in zip(x.tolist(), y.tolist(), strict=True)]
    assert waves().among(2, x, y) == pytest.approx(np.array(alone), abs=1e-12)
    assert np.isnan(waves(steep=60.0).among(2, x, y)).all()


def test_a_cell_is_filled_once_and_only_where_asked():
    filled: list = []
    table = waves(filled)
    for x in (0.1, 0.2, 1.1):
        table.at(x, -0.5)
    assert filled == [(0, -1), (1, -1)]


def test_in_a_cell_that_is_too_rough_there_is_no_value():
    assert waves(steep=40.0).at(0.5, 0.5) is None


@pytest.mark.parametrize("count", [5, 500])
def test_many_points_of_one_axis_are_those_of_each(count):
    table = SmoothTable(lambda cell, nodes: np.exp(nodes[0])[None], (14,), 1e-11)
    points = np.linspace(-2, 2, count)
    assert table.along(points, 0) == pytest.approx(np.exp(points), rel=1e-12)


def test_many_points_in_a_rough_cell_are_nan():
    table = SmoothTable(lambda cell, nodes: np.abs(nodes[0] - 0.4)[None], (8,), 1e-6)
    found = table.along(np.array([0.5, 1.5]), 0)
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(1.1)
