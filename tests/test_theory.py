"""Mean-field facts, against closed forms and published numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from initlab import ACTIVATIONS, theory

sigmas = st.floats(0.01, 10)
lengths = st.floats(1e-6, 1e6)


@given(q=lengths, sigma_w=sigmas, sigma_b=sigmas)
def test_the_length_map_of_relu_is_half_of_sigma_w_squared(q, sigma_w, sigma_b):
    found = theory.length_map("relu", q, sigma_w, sigma_b)
    assert found == pytest.approx(sigma_w**2 * q / 2 + sigma_b**2, rel=1e-10)
    assert theory.chi_1("relu", q, sigma_w) == pytest.approx(sigma_w**2 / 2, rel=1e-10)


@given(q=st.floats(0.01, 50), sigma_w=sigmas, sigma_b=sigmas)
def test_the_length_map_of_erf_is_that_of_williams_1997(q, sigma_w, sigma_b):
    """E erf² = (2/π)·arcsin(2q/(1 + 2q)); E erf'² = (4/π)/√(1 + 4q)."""
    second = 2 / math.pi * math.asin(2 * q / (1 + 2 * q))
    found = theory.length_map("erf", q, sigma_w, sigma_b)
    assert found == pytest.approx(sigma_w**2 * second + sigma_b**2, rel=1e-9)
    slope = 4 / math.pi / math.sqrt(1 + 4 * q)
    assert theory.chi_1("erf", q, sigma_w) == pytest.approx(sigma_w**2 * slope, rel=1e-9)


@pytest.mark.parametrize(
    ("sigma_w", "sigma_b", "q", "chi"),
    [
        (1.3, 0.3, 0.60704679, 0.93980743),  # ordered: the example of Poole et al. 2016
        (1.5, 0.1, 0.8133223269, 1.1290526987),
        (2.5, 0.1, 3.9741596644, 1.6045009855),
        (4.0, 0.1, 12.5121153964, 2.3757349894),
        (1.2, 0.05, 0.2582276681, 1.0251120483),
        (1.0, 0.1, 0.0777754925, 0.8762437713),
    ],
)
def test_the_tabulated_fixed_points_of_tanh_are_fixed(sigma_w, sigma_b, q, chi):
    assert theory.length_map("tanh", q, sigma_w, sigma_b) == pytest.approx(q, rel=1e-7)
    assert theory.chi_1("tanh", q, sigma_w) == pytest.approx(chi, rel=1e-7)


@pytest.mark.parametrize(
    ("name", "sigma_b", "sigma_w", "q"),
    [
        ("tanh", 0.05, 1.1225390048, 0.15369194),
        ("tanh", 0.5, 1.5496739125, 1.317939),
        ("erf", 0.1, 1.0555946492, 0.25320966),
        ("gelu", 0.3, 1.4504704099, 1.42487459),
        ("silu", 0.2, 1.6795316007, 0.6894525),
        ("selu", 0.3, 0.9836914693, 1.22196719),
    ],
)
def test_on_the_edge_of_chaos_chi_is_one_at_a_fixed_length(name, sigma_b, sigma_w, q):
    """Printed to 8 digits of q."""
    assert theory.chi_1(name, q, sigma_w) == pytest.approx(1, abs=1e-6)
    assert theory.length_map(name, q, sigma_w, sigma_b) == pytest.approx(q, rel=1e-6)


def test_gelu_is_doubly_critical_where_the_closed_form_says():
    q = (3 + math.sqrt(17)) / 2
    sigma_w, sigma_b = math.sqrt(1.9830582574), math.sqrt(0.1729223908)
    assert theory.length_map("gelu", q, sigma_w, sigma_b) == pytest.approx(q, rel=1e-9)
    assert theory.chi_1("gelu", q, sigma_w) == pytest.approx(1, rel=1e-9)
    assert sigma_w**2 * ACTIVATIONS["gelu"].moments(q).slope == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_chi_at_length_zero_is_its_limit(name):
    found = theory.chi_1(name, 0.0, 1.0)
    assert found == pytest.approx(theory.chi_1(name, 1e-12, 1.0), rel=1e-4, abs=1e-10)


def test_an_activation_may_be_a_module_or_a_function():
    expected = theory.length_map("tanh", 1.0, 1.0, 0.0)
    assert theory.length_map(nn.Tanh(), 1.0, 1.0, 0.0) == expected
    assert theory.length_map(lambda z: z.tanh(), 1.0, 1.0, 0.0) == pytest.approx(expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(bad):
    with pytest.raises(ValueError, match="sigma_w="):
        theory.length_map("tanh", 1.0, bad, 0.0)
    with pytest.raises(ValueError, match="sigma_b="):
        theory.length_map("tanh", 1.0, 1.0, bad)
    with pytest.raises(ValueError, match="q="):
        theory.length_map("tanh", bad, 1.0, 0.0)
    with pytest.raises(ValueError, match="sigma_w="):
        theory.chi_1("tanh", 1.0, bad)


def test_a_negative_length_or_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"q=-1.0 must be a finite variance"):
        theory.chi_1("tanh", -1.0, 1.0)
    with pytest.raises(ValueError, match="did you mean 'tanh'"):
        theory.chi_1("tahn", 1.0, 1.0)
    with pytest.raises(TypeError, match="sigma_w='1' must be a number"):
        theory.chi_1("tanh", 1.0, "1")


def test_gradients_of_infinite_mean_square_have_no_critical_spectrum():
    def root(z):
        return z.sign() * z.abs() ** 0.3

    with pytest.raises(ValueError, match="infinite gradients"):
        theory.jacobian_spectrum(root, 5, "gaussian")
    assert theory.jacobian_spectrum(root, 5, "gaussian", 1.0, 1.0).mean == math.inf


def test_what_passes_nothing_in_the_end_has_no_scale_of_angles():
    scales = theory.depth_scales(lambda z: (z > 0.7) + 0 * z, 1.4, 0.0)
    assert (scales.xi_q, scales.xi_c) == (0.0, None)


def test_a_length_beyond_floats_has_no_correlation():
    with pytest.raises(ValueError, match="infinite"):
        theory.correlation_map(lambda z: z.exp(), 0.5, 1e3, 1.0, 0.0)
