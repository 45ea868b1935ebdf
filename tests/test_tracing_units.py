"""Dead units and saturated elements, against φ and φ' themselves."""

import pytest
import torch

from initlab.activations import ACTIVATIONS, activation
from initlab.tracing.units import UnitMeter


def units_of(z, name, axis=-1):
    results = []
    meter = UnitMeter()
    meter.add(z, axis, activation(name), lambda dead, outside: results.append((dead, outside)))
    meter.finish()
    return results[0]


@pytest.mark.parametrize("shape", [(16, 20), (64, 300), (4, 6, 30), (8, 40, 50)])
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_dead_units_are_those_without_slope_anywhere(shape, name):
    z = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 8
    z[..., 0], z[..., 1], z[..., 2] = -200.0, 200.0, 0.0
    z[..., 3] = torch.where(z[..., 3] > 0, 200.0, -200.0)
    z[..., 4] = -9.5
    slope = ACTIVATIONS[name].derivative(z)
    expected = (slope.reshape(-1, shape[-1]) == 0).all(0).double().mean()
    assert units_of(z, name)[0] == pytest.approx(float(expected))


def test_a_channel_is_one_unit():
    z = torch.randn(4, 10, 8, 8)
    z[:, :3] = -z[:, :3].abs()
    assert units_of(z, "relu", 1)[0] == pytest.approx(0.3)


def test_saturation_follows_the_declared_tails():
    for shape in [(8, 10), (100, 200)]:
        z = torch.randn(shape) * 3
        low, high = ACTIVATIONS["tanh"].tails
        expected = float(((z < low) | (z > high)).double().mean())
        assert units_of(z, "tanh")[1] == pytest.approx(expected)
        assert units_of(z, "relu")[1] is None
