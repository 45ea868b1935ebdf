"""Gaussian moments and gains against 30-digit quadrature (tables t1 and t1b)."""

import math

import pytest
from torch import nn

from initlab import activation, gain

from .reference import entry_id, table

# The table writes leaky_relu with its slope; 0.01 is torch's default and ours.
NAMES = {"leaky_relu_0.01": "leaky_relu"}


def named(name):
    return activation(NAMES.get(name, name))


def agrees(value, expected, rel):
    """Equal to rel; where the moment vanishes by symmetry (E tanh), 0 to 1e-15."""
    return value == pytest.approx(float(expected), rel=rel, abs=1e-15)


@pytest.mark.parametrize("entry", table("t1"), ids=entry_id)
def test_moments_at_unit_variance_agree_to_ten_digits(entry):
    moments = named(entry["id"]).moments()
    assert agrees(moments.mean, entry["mean"], 1e-10)
    assert agrees(moments.second_moment, entry["second_moment"], 1e-10)
    assert agrees(moments.derivative_second_moment, entry["dphi_second_moment"], 1e-10)


@pytest.mark.parametrize("entry", table("t1"), ids=entry_id)
def test_gains_agree_to_nine_digits(entry):
    phi = named(entry["id"])
    assert agrees(gain(phi), entry["gain_second_moment"], 1e-9)
    assert agrees(gain(phi, preserve="backward"), entry["gain_gradient"], 1e-9)


@pytest.mark.parametrize("entry", table("t1b"), ids=entry_id)
def test_moments_agree_to_ten_digits_at_every_tabulated_variance(entry):
    moments = named(entry["activation"]).moments(entry["q"])
    assert agrees(moments.mean, entry["mean"], 1e-10)
    assert agrees(moments.second_moment, entry["second_moment"], 1e-10)
    assert agrees(moments.derivative_second_moment, entry["dphi_second_moment"], 1e-10)
    assert agrees(moments.slope, entry["dV_dq"], 1e-9)


def test_the_closed_forms_of_gelu_and_sin_hold_to_twelve_digits():
    gelu = 1 / 3 + 1 / (2 * math.sqrt(3) * math.pi)  # E gelu² at q = 1
    assert agrees(activation("gelu").moments().second_moment, gelu, 1e-12)
    for q in (0.01, 1.0, 30.0):
        assert agrees(activation("sin").moments(q).second_moment, (1 - math.exp(-2 * q)) / 2, 1e-12)


def test_a_module_and_its_name_have_the_same_gain():
    assert gain(nn.Tanh()) == gain("tanh")
