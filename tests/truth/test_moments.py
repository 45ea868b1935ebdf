"""Gaussian moments and gains against tables t1 and t1b (30-digit quadrature)."""

import pytest
from reference import activation_name, entries, name

from initlab import ACTIVATIONS, gain

# The smallest quantity that a relative error is asked of; the rest are zeros by symmetry.
FLOOR = 1e-6


@pytest.mark.parametrize("entry", entries("t1"), ids=name)
def test_moments_and_gains_of_unit_gaussian_preactivations(entry):
    phi = ACTIVATIONS[activation_name(entry["id"])]
    moments = phi.moments(1.0)
    assert moments.mean == pytest.approx(float(entry["mean"]), rel=1e-10, abs=1e-10)
    assert moments.second_moment == pytest.approx(float(entry["second_moment"]), rel=1e-10)
    assert moments.derivative_second_moment == pytest.approx(
        float(entry["dphi_second_moment"]), rel=1e-10
    )
    assert gain(phi) == pytest.approx(float(entry["gain_second_moment"]), rel=1e-9)
    assert gain(phi, "backward") == pytest.approx(float(entry["gain_gradient"]), rel=1e-9)


@pytest.mark.parametrize("entry", entries("t1b"), ids=name)
def test_moments_at_other_second_moments(entry):
    moments = ACTIVATIONS[activation_name(entry["activation"])].moments(entry["q"])
    for measured, key in (
        (moments.mean, "mean"),
        (moments.second_moment, "second_moment"),
        (moments.derivative_second_moment, "dphi_second_moment"),
        (moments.slope, "dV_dq"),
    ):
        assert measured == pytest.approx(entry[key], rel=1e-9, abs=1e-9 * FLOOR), key
