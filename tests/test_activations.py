"""The activations: what they compute, what they refuse, and their Gaussian moments."""

import inspect
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from torch import nn

from initlab import ACTIVATIONS, activation, gain, register_activation
from initlab.activations import SATURATED_SLOPE
from initlab.expectations import gaussian_expectation

TORCH_MODULES = {
    "identity": nn.Identity, "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "prelu": nn.PReLU,
    "elu": nn.ELU, "selu": nn.SELU, "celu": nn.CELU, "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"), "silu": nn.SiLU, "mish": nn.Mish,
    "softplus": nn.Softplus, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "hardtanh": nn.Hardtanh,
    "hardswish": nn.Hardswish, "hardsigmoid": nn.Hardsigmoid, "relu6": nn.ReLU6,
    "softsign": nn.Softsign, "tanhshrink": nn.Tanhshrink, "logsigmoid": nn.LogSigmoid,
}  # fmt: skip
WITHOUT_MODULE = {
    "sin": torch.sin,
    "erf": torch.erf,
    "relu_squared": lambda z: torch.relu(z) ** 2,
}
Z = torch.linspace(-8, 8, 401, dtype=torch.float64)
every_activation = pytest.mark.parametrize("name", ACTIVATIONS)


def test_every_activation_of_the_contract_is_there():
    assert set(ACTIVATIONS) >= {*TORCH_MODULES, *WITHOUT_MODULE}


@pytest.mark.parametrize("name", TORCH_MODULES)
def test_an_activation_computes_what_torchs_module_computes(name):
    reference = TORCH_MODULES[name]().double()
    # Near 0 torch's tanhshrink cancels.
    assert torch.allclose(activation(name)(Z), reference(Z), rtol=1e-11, atol=1e-16)
    assert type(activation(name).module()) is type(reference)
    assert torch.equal(activation(name).module().double()(Z), reference(Z))


@pytest.mark.parametrize("name", WITHOUT_MODULE)
def test_an_activation_without_torch_module_computes_its_formula(name):
    assert torch.allclose(activation(name)(Z), WITHOUT_MODULE[name](Z), rtol=1e-15)
    assert torch.equal(activation(name).module()(Z), activation(name)(Z))


@every_activation
def test_the_derivative_is_the_difference_quotient_away_from_kinks(name):
    phi, step = activation(name), 1e-5
    smooth = Z[[all(abs(float(z) - kink) > 0.01 for kink in (0.0, *phi.kinks)) for z in Z]]
    quotient = (phi(smooth + step) - phi(smooth - step)) / (2 * step)
    assert torch.allclose(phi.derivative(smooth), quotient, rtol=1e-6, atol=1e-8)


@every_activation
def test_the_derivative_jumps_or_bends_at_declared_kinks_only(name):
    phi, step = activation(name), 1e-3
    grid = torch.arange(-8, 8, step, dtype=torch.float64) + step / 2
    jump = (phi.derivative(grid)[1:] - phi.derivative(grid)[:-1]).abs()
    for place in grid[:-1][jump > 0.1]:
        assert any(abs(float(place) - kink) <= 2 * step for kink in phi.kinks)


@every_activation
def test_an_activation_is_found_by_its_own_module(name):
    assert activation(activation(name).module()).name == name
    assert activation(activation(name)) is activation(name)


def test_parameters_of_a_module_are_honoured():
    assert activation(nn.LeakyReLU(0.3))(torch.tensor(-1.0)) == pytest.approx(-0.3)
    assert activation(nn.Hardtanh(-2, 2)).tails == (-2, 2)
    assert activation(nn.ELU(2.0))(torch.tensor(-50.0)) == pytest.approx(-2)
    assert activation(nn.GELU("tanh")).name == "gelu_tanh"
    assert gain(nn.LeakyReLU(0.3)) == pytest.approx(math.sqrt(2 / (1 + 0.3**2)), rel=1e-12)
    assert gain(nn.PReLU(init=0.5)) == pytest.approx(math.sqrt(2 / (1 + 0.5**2)), rel=1e-7)


def test_prelu_with_a_slope_per_channel_has_the_mean_squares_gain():
    module = nn.PReLU(2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.0, 0.8]))
    assert gain(module) == pytest.approx(math.sqrt(2 / (1 + 0.8**2 / 2)), rel=1e-6)


@pytest.mark.parametrize("function", [torch.relu, F.relu, torch.tanh, F.tanh, F.gelu, torch.sin])
def test_torchs_own_functions_are_recognized(function):
    assert activation(function) is ACTIVATIONS[function.__name__]


def test_a_module_class_means_its_default_instance():
    assert activation(nn.Tanh) is activation("tanh")


# ---------------------------------------------------------------- tails


@every_activation
def test_tails_begin_where_the_slope_falls_below_the_threshold_for_good(name):
    phi = activation(name)
    if phi.tails is None:
        return
    for edge, sign in zip(phi.tails, (-1, 1), strict=True):
        if math.isinf(edge):
            assert edge == sign * math.inf
            continue
        beyond = edge + sign * torch.linspace(1e-6, 30, 3001, dtype=torch.float64)
        before = torch.tensor(edge - sign * 1e-6, dtype=torch.float64)
        assert (phi.derivative(beyond).abs() < SATURATED_SLOPE).all()
        assert phi.derivative(before).abs() >= SATURATED_SLOPE


def test_tanh_saturates_on_both_sides_relu6_above_and_relu_nowhere():
    # sech²(z) = 0.05 at z = artanh √0.95
    assert activation("tanh").tails == pytest.approx((-2.178272, 2.178272), abs=1e-6)
    assert activation("relu6").tails == (-math.inf, 6.0)
    assert activation("elu").tails == pytest.approx((math.log(0.05), math.inf))
    for name in ("relu", "leaky_relu", "gelu", "identity", "sin", "softplus"):
        assert activation(name).tails is None


def test_a_bounded_callable_is_seen_to_saturate():
    assert activation(lambda z: torch.atan(z)).tails is not None
    assert activation(lambda z: z * torch.sigmoid(z)).tails is None
    assert activation(lambda z: torch.zeros_like(z)).tails is None


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "spec",
    [nn.Softmax(-1), nn.LogSoftmax(-1), nn.GLU(), nn.Dropout(), nn.Linear(6, 6), nn.LayerNorm(6)],
    ids=lambda spec: type(spec).__name__,
)
def test_what_is_not_elementwise_is_refused_by_its_name(spec):
    with pytest.raises(TypeError, match=f"{type(spec).__name__}.*not an elementwise function"):
        activation(spec)


@pytest.mark.parametrize("spec", [torch.sum, torch.argmax, lambda z: 3.0, lambda z: z > 0])
def test_a_callable_of_another_shape_or_type_is_refused(spec):
    with pytest.raises(TypeError, match="not an elementwise function"):
        activation(spec)


@pytest.mark.parametrize("spec", [3, None, ["relu"], 1.5])
def test_something_that_cannot_be_called_is_refused(spec):
    with pytest.raises(
        TypeError, match=r"must be a name, an nn\.Module or an elementwise function"
    ):
        activation(spec)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("rellu", "relu"), ("ReLU", "relu"), ("gelu-tanh", "gelu_tanh"), ("sigmiod", "sigmoid")],
)
def test_a_misspelt_name_is_answered_with_the_nearest(wrong, meant):
    with pytest.raises(ValueError, match=f"unknown activation '{wrong}'; did you mean '{meant}'"):
        activation(wrong)


def test_a_name_like_no_other_is_answered_with_all_names():
    with pytest.raises(ValueError, match=r"unknown activation 'xyzzy'. Accepted: identity, relu,"):
        activation("xyzzy")


@pytest.mark.parametrize("q", [-1.0, math.nan, math.inf])
def test_moments_of_an_impossible_variance_are_refused(q):
    with pytest.raises(ValueError, match=r"q=.* must be a finite"):
        activation("tanh").moments(q)
    with pytest.raises(TypeError, match="q='a' must be a number"):
        activation("tanh").moments("a")
    with pytest.raises(TypeError, match="decorrelation=None must be a number"):
        activation("tanh").pair_moments(1.0, None)


def test_a_constant_zero_activation_has_no_gain():
    with pytest.raises(ValueError, match="passes no forward signal"):
        gain(torch.zeros_like)
    with pytest.raises(ValueError, match="passes no backward signal"):
        gain(torch.sign, preserve="backward")


def test_an_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="unknown preserve 'foward'; did you mean 'forward'"):
        gain("relu", preserve="foward")


# ---------------------------------------------------------------- Gaussian moments


@every_activation
@pytest.mark.parametrize("q", [1e-6, 0.3, 1.0, 7.0, 400.0])
def test_moments_agree_with_monte_carlo(name, q):
    """100,000 stratified draws, far more even than random ones: 5 standard errors are ample.

    What happens less often than once in 100,000 draws is missed: 1e-6 of the moment at most.
    """
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    x = math.sqrt(q) * math.sqrt(2) * torch.erfinv(2 * uniform - 1)
    phi, moments = activation(name), activation(name).moments(q)
    for drawn, expected in (
        (phi(x), moments.mean),
        (phi(x) ** 2, moments.second_moment),
        (phi.derivative(x) ** 2, moments.derivative_second_moment),
    ):
        error = drawn.std() / math.sqrt(100_000)
        assert abs(drawn.mean() - expected) <= 5 * error + 1e-6 * abs(expected)


@every_activation
def test_the_slope_is_the_derivative_of_the_second_moment(name):
    phi, q = activation(name), 1.3
    difference = (phi.moments(q + 1e-4).second_moment - phi.moments(q - 1e-4).second_moment) / 2e-4
    assert phi.moments(q).slope == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "prelu", "identity"])
@given(exponent=st.floats(-200, 140))
def test_homogeneous_activations_scale_exactly_at_huge_and_tiny_variance(name, exponent):
    q = 10.0**exponent
    moments, unit = activation(name).moments(q), activation(name).moments(1.0)
    assert moments.second_moment == pytest.approx(q * unit.second_moment, rel=1e-10)
    assert moments.derivative_second_moment == pytest.approx(
        unit.derivative_second_moment, rel=1e-10
    )


@given(exponent=st.floats(4, 12))
def test_tanh_at_huge_variance_is_a_sign(exponent):
    """1 − E tanh² = E sech² → 2/√(2πq), and E φ'² = E sech⁴ → (4/3)/√(2πq) as q → ∞."""
    q = 10.0**exponent
    moments = activation("tanh").moments(q)
    density = 1 / math.sqrt(2 * math.pi * q)
    assert 1 - moments.second_moment == pytest.approx(2 * density, rel=1e-3)
    assert moments.derivative_second_moment == pytest.approx(4 / 3 * density, rel=1e-3)


@given(exponent=st.floats(-280, -8))
def test_tanh_at_tiny_variance_is_the_identity(exponent):
    q = 10.0**exponent
    moments = activation("tanh").moments(q)
    assert moments.second_moment == pytest.approx(q, rel=1e-7)
    assert moments.derivative_second_moment == pytest.approx(1, rel=1e-7)
    assert moments.slope == pytest.approx(1, rel=1e-6)


def test_at_variance_zero_the_moments_are_their_limits():
    assert activation("relu").moments(0.0).derivative_second_moment == pytest.approx(0.5)
    assert activation("sigmoid").moments(0.0).second_moment == pytest.approx(0.25)
    assert activation("tanh").moments(0.0).second_moment == pytest.approx(0, abs=1e-299)


@every_activation
@settings(deadline=None)
@given(exponent=st.floats(-30, 12))
def test_moments_are_finite_and_consistent_at_any_scale(name, exponent):
    moments = activation(name).moments(10.0**exponent)
    assert all(map(math.isfinite, vars(moments).values()))
    assert moments.second_moment >= 0
    assert moments.derivative_second_moment >= 0
    assert moments.variance >= -1e-12 * moments.second_moment


@pytest.mark.parametrize(
    "name", [name for name, phi in ACTIVATIONS.items() if 0.0 not in phi.kinks]
)
def test_the_slope_at_zero_is_that_of_the_taylor_series(name):
    """d E φ²/dq at q → 0 is φ'(0)² + φ(0)·φ''(0); the curvature by differences, to 1e-5."""
    phi = activation(name)
    low, zero, high = torch.tensor([-1e-4, 0.0, 1e-4], dtype=torch.float64)
    curvature = (phi(high) - 2 * phi(zero) + phi(low)) / 1e-8
    expected = float(phi.derivative(zero) ** 2 + phi(zero) * curvature)
    assert phi.moments(1e-30).slope == pytest.approx(expected, abs=1e-5)


# Random activations: the quadrature must find their features by itself.


@st.composite
def smooth_functions(draw):
    """a·sin(b z + c) + d·tanh(e (z − f)) + g·z."""
    a, c, d, f, g = (draw(st.floats(-2, 2)) for _ in range(5))
    b, e = draw(st.floats(0.2, 6)), draw(st.floats(0.2, 40))
    return lambda z: a * torch.sin(b * z + c) + d * torch.tanh(e * (z - f)) + g * z


@st.composite
def kinked_functions(draw):
    """Piecewise linear with up to 4 kinks, or with a jump, at undeclared places."""
    places = draw(st.lists(st.floats(-2.5, 2.5), min_size=1, max_size=4))
    slopes = [draw(st.floats(-2, 2)) for _ in places]
    jump, tilt = draw(st.floats(-1, 1)), draw(st.floats(-1, 1))

    def function(z):
        bends = sum(
            s * torch.relu(z - place) for s, place in zip(slopes, places, strict=True)
        )  # fmt: skip
        return tilt * z + bends + jump * (z > places[0])

    return function


def gains_agree_with_monte_carlo(function, seed):
    """The gains of a callable against 100,000 normal draws: E φ² within 5 standard errors."""
    draws = torch.randn(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    phi = activation(function)
    for values, preserve in ((phi(draws), "forward"), (phi.derivative(draws), "backward")):
        squares = values**2
        assume(squares.mean() > 1e-6)
        error = squares.std() / math.sqrt(len(draws))
        expected = 1 / gain(function, preserve=preserve) ** 2
        assert abs(squares.mean() - expected) <= 5 * error + 1e-12


@settings(max_examples=40, deadline=None)
@given(function=smooth_functions(), seed=st.integers(0, 2**31))
def test_the_gain_of_a_random_smooth_callable_agrees_with_monte_carlo(function, seed):
    gains_agree_with_monte_carlo(function, seed)


@settings(max_examples=40, deadline=None)
@given(function=kinked_functions(), seed=st.integers(0, 2**31))
def test_the_gain_of_a_random_kinked_callable_agrees_with_monte_carlo(function, seed):
    gains_agree_with_monte_carlo(function, seed)


@given(place=st.floats(-3, 3))
def test_an_undeclared_kink_costs_no_precision(place):
    """E relu(z − k)² = (1 + k²)·Φ(−k) − k·φ(k), exactly."""
    density = math.exp(-(place**2) / 2) / math.sqrt(2 * math.pi)
    exact = (1 + place**2) * math.erfc(place / math.sqrt(2)) / 2 - place * density
    found = activation(lambda z: torch.relu(z - place)).moments().second_moment
    assert found == pytest.approx(exact, rel=1e-9)


def test_a_gaussian_expectation_integrates_polynomials_exactly():
    found = gaussian_expectation(lambda x: np.stack([x**0, x**2, x**4]), 2.0)
    assert found == pytest.approx([1, 2, 12], rel=1e-13)


# ---------------------------------------------------------------- gain and registry


@pytest.mark.parametrize("name", ["relu", "leaky_relu"])
def test_for_relus_the_gain_is_that_of_torch(name):
    slope = 0.01 if name == "leaky_relu" else None
    assert gain(name) == pytest.approx(torch.nn.init.calculate_gain(name, slope), rel=1e-12)


def test_the_gain_of_tanh_is_not_five_thirds():
    assert gain("tanh") == pytest.approx(1.592537, abs=1e-6)


def test_the_table_in_the_docstring_of_gain_is_right():
    rows = [line.split() for line in inspect.getdoc(gain).splitlines()]
    rows = [row for row in rows if len(row) >= 3 and row[0] in ACTIVATIONS]
    assert len(rows) == 8
    for name, forward, of_torch, *_ in rows:
        assert gain(name) == pytest.approx(float(forward), abs=1e-6)
        torchs_name = "linear" if name == "identity" else name
        if of_torch == "error":
            with pytest.raises(ValueError, match=r"[Uu]nsupported"):
                torch.nn.init.calculate_gain(torchs_name)
        else:
            expected = torch.nn.init.calculate_gain(torchs_name)
            assert float(of_torch) == pytest.approx(expected, abs=1e-6)


def test_a_registered_activation_is_known_by_name_and_module():
    """In a process of its own: the registry has no way back."""
    code = (
        "import torch; from initlab import *\n"
        "entry = register_activation('cube', lambda z: z**3)\n"
        "assert activation('cube') is entry is ACTIVATIONS['cube']\n"
        "assert activation(entry.module()) is entry\n"
        "assert abs(entry.moments().second_moment - 15) < 1e-9\n"
        "assert Experiment(activation='cube', depth=2, data='noise').run().loss is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["relu", ""])
def test_a_taken_or_empty_name_cannot_be_registered(name):
    with pytest.raises(ValueError, match="empty or already registered"):
        register_activation(name, torch.sin)


def test_a_side_that_does_not_exist_cannot_saturate():
    with pytest.raises(ValueError, match=r"unknown saturates 'up'\. Accepted: none, low, high"):
        register_activation("ramp", torch.tanh, saturates="up")  # type: ignore[arg-type]
    assert "ramp" not in ACTIVATIONS


def test_a_function_that_is_not_elementwise_cannot_be_registered():
    with pytest.raises(TypeError, match="not an elementwise function"):
        register_activation("total", torch.sum)
    assert "total" not in ACTIVATIONS


@pytest.mark.parametrize("q", [1e-16, 1e-8, 1e-4])
def test_short_signals_of_tanhshrink_are_those_of_its_series(q):
    """z³/3: E φ² = 15q³/9, E φ'² = 3q², and the slope is d(15q³/9)/dq; next terms are O(q)."""
    moments = activation("tanhshrink").moments(q)
    assert moments.second_moment == pytest.approx(15 / 9 * q**3, rel=8 * q + 1e-13)
    assert moments.derivative_second_moment == pytest.approx(3 * q**2, rel=8 * q + 1e-13)
    assert moments.slope == pytest.approx(5 * q**2, rel=8 * q + 1e-13)


def test_the_slope_of_a_short_squared_signal_is_twice_its_share():
    assert activation("relu_squared").moments(1e-12).slope == pytest.approx(3e-12, rel=1e-10)


@pytest.mark.parametrize("q", [0.2, 1.0, 5.0])
def test_the_slope_of_the_length_map_counts_the_jumps_of_an_activation(q):
    """A step at t: E φ² = P(√q z > t), so its slope is t·n(t/√q)/(2 q^1.5)."""
    t = 0.35
    found = activation(lambda z: (z > t).to(z.dtype)).moments(q).slope
    density = math.exp(-(t**2) / (2 * q)) / math.sqrt(2 * math.pi)
    assert found == pytest.approx(t * density / (2 * q**1.5), rel=1e-9)


@pytest.mark.parametrize("q", [0.1, 1.0, 1.9])
def test_moments_are_right_up_to_where_they_cease_to_be_finite(q):
    """φ = exp(z²/8): E φ² = 1/√(1 − q/2) below q = 2, and infinite from there on."""
    phi = activation(lambda z: torch.exp(z**2 / 8))
    assert phi.moments(q).second_moment == pytest.approx((1 - q / 2) ** -0.5, rel=1e-9)
    assert phi.moments(2.0).second_moment == math.inf
    assert phi.moments(3.0).second_moment == math.inf


def test_a_slope_whose_square_has_no_mean_is_infinite():
    assert activation(lambda z: z.abs().sqrt()).moments(1.0).derivative_second_moment == math.inf


def of_a_wave(k: float):
    """sin kz: E φ(u)φ(v) = e^(−k²q) sinh(k²qc), and E φ'φ' = k² e^(−k²q) cosh(k²qc)."""
    return (
        lambda z: torch.sin(k * z),
        lambda q, c: (math.exp(-k * k * q * (1 - c)) - math.exp(-k * k * q * (1 + c))) / 2,
        lambda q, c: k * k * (math.exp(-k * k * q * (1 - c)) + math.exp(-k * k * q * (1 + c))) / 2,
    )


@pytest.mark.parametrize("c", [-0.7, 0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize(("k", "q"), [(1, 1), (1, 100), (5, 1), (20, 1), (20, 0.04), (30, 4)])
def test_pair_moments_of_a_wave_of_any_length_have_their_closed_form(k, q, c):
    function, product, slopes = of_a_wave(k)
    phi, second = activation(function), 0.5 - 0.5 * math.exp(-2 * k * k * q)
    pair = phi.pair_moments(q, 1 - c)
    assert pair.product == pytest.approx(product(q, c), abs=1e-8)
    assert pair.gap == pytest.approx(second - product(q, c), rel=1e-7)
    assert phi.slope_product(q, 1 - c) == pytest.approx(slopes(q, c), abs=1e-7 * k * k)


@pytest.mark.parametrize("c", [-0.7, 0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("steep", [1, 8, 50])
def test_pair_moments_of_a_steep_step_have_their_closed_form(steep, c):
    """erf(sz): E φ(u)φ(v) = (2/π)·arcsin(2s²qc/(1 + 2s²q)) (Williams 1997)."""
    own = 2 * steep**2 / (1 + 2 * steep**2)
    phi = activation(lambda z: torch.erf(steep * z))
    assert phi.pair_moments(1.0, 1 - c).product == pytest.approx(
        2 / math.pi * math.asin(own * c), abs=1e-8
    )


def test_of_many_kinks_those_near_zero_are_found():
    """⌊z⌋ has 80 within reach; with c = 1/2 and q = 1, E ⌊u⌋⌊v⌋ = 3/4 to 6 digits."""
    phi = activation(torch.floor)
    assert {-2.0, -1.0, 0.0, 1.0, 2.0} <= set(phi.kinks)
    generator = torch.Generator().manual_seed(3)
    u, own = torch.randn(2, 1_000_000, generator=generator, dtype=torch.float64)
    products = u.floor() * (0.5 * u + 0.75**0.5 * own).floor()
    assert abs(phi.pair_moments(1.0, 0.5).product - products.mean()) < 5 * products.std() / 1000


@pytest.mark.parametrize("q", [0.01, 1.0, 30.0, 1e6])
def test_the_slope_of_a_staircase_counts_its_jumps_without_a_derivative(q):
    """E φ² = Σ v²·P(v) over the steps v, and its difference quotient; 80 and more jumps weigh."""
    phi, step = activation(lambda z: torch.round(4 * z) / 4), 1e-4 * q

    def second(q: float) -> float:
        edges = (np.arange(-52 * math.sqrt(q) - 3, 52 * math.sqrt(q) + 3).round() + 0.5) / 4
        steps = (edges[1:] + edges[:-1]) / 2
        return float(np.diff(ndtr(edges / math.sqrt(q))) @ steps**2)

    moments = phi.moments(q)
    assert moments.second_moment == pytest.approx(second(q), rel=1e-10 if q < 100 else 1e-6)
    slope = (second(q + step) - second(q - step)) / (2 * step)
    assert moments.slope == pytest.approx(slope, rel=1e-5)


def test_a_wave_shorter_than_any_panel_keeps_its_mean_square():
    phi = activation(lambda z: torch.sin(20 * z))
    assert phi.moments(1e8).second_moment == pytest.approx(0.5, rel=1e-9)


def test_the_derivative_of_hardsigmoid_has_the_digits_of_a_double():
    share = math.erf(3 / math.sqrt(2))  # of |z| < 3
    slope = ACTIVATIONS["hardsigmoid"].moments(1.0).derivative_second_moment
    assert slope == pytest.approx(share / 36, rel=1e-12)


@pytest.mark.parametrize("power", [0.6, 0.75, 1.2])
def test_a_singular_slope_whose_square_has_a_mean_has_that(power):
    """E |z|^p = 2^(p/2)·Γ((p + 1)/2)/√π."""
    exponent = 2 * power - 2
    mean = 2 ** (exponent / 2) * math.gamma((exponent + 1) / 2) / math.sqrt(math.pi)
    phi = activation(lambda z: z.sign() * z.abs() ** power)
    assert phi.moments(1.0).derivative_second_moment == pytest.approx(power**2 * mean, rel=1e-9)


def test_pairs_of_a_function_with_thirty_kinks_have_their_closed_form_and_few_nodes():
    """Σ a_i·sign(z − k_i) at correlation 0 has the product (Σ a_i·(1 − 2Φ(k_i)))²; near 1 its gap
    is that of independent crossings, ∝ √(1 − c)."""
    kinks = np.linspace(-3, 3, 30)
    evaluated = []

    def steps(z: torch.Tensor) -> torch.Tensor:
        evaluated.append(z.numel())
        return sum(torch.sign(z - kink) for kink in kinks) / 30 + 0 * z

    phi = activation(steps)
    assert phi.kinks == pytest.approx(kinks, abs=1e-9)
    mean = float((1 - 2 * ndtr(kinks)).mean())
    evaluated.clear()
    assert phi.pair_moments(1.0, 1.0).product == pytest.approx(mean**2, abs=1e-10)
    gaps = [phi.pair_moments(1.0, apart).gap for apart in (1e-8, 1e-10)]
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=1e-3)
    assert max(evaluated) < 2_000_000


@pytest.mark.parametrize("apart", [0.6, 1.4])
def test_the_gap_of_a_short_signal_with_an_offset_does_not_cancel(apart):
    """sigmoid at q = 1e-6 is 1/2 + z/4 to a relative 1e-6."""
    gap = ACTIVATIONS["sigmoid"].pair_moments(1e-6, apart).gap
    assert gap == pytest.approx(apart * 1e-6 / 16, rel=1e-5)


def test_pairs_of_an_exponential_reach_as_far_as_they_weigh():
    phi = activation(torch.exp)
    assert phi.pair_moments(9.0, 0.5).product == pytest.approx(math.exp(13.5), rel=1e-8)


def test_pairs_that_cannot_be_resolved_are_refused_in_words():
    phi = activation(lambda z: torch.sin(300 * z))
    with pytest.raises(ValueError, match="varies or grows too fast"):
        phi.pair_moments(100.0, 0.5)


def test_two_equal_signals_have_no_gap_however_steep_the_slope():
    assert activation(lambda z: z.abs().sqrt()).pair_moments(1.0, 0.0).gap == 0


def test_a_step_far_steeper_than_the_panels_is_seen_by_pairs():
    """erf(sz) with s = 1000, Williams 1997."""
    own = 2e6 / (1 + 2e6)
    pair = activation(lambda z: torch.erf(1000 * z)).pair_moments(1.0, 1e-8)
    gap = 2 / math.pi * (math.asin(own) - math.asin(own * (1 - 1e-8)))
    assert pair.gap == pytest.approx(gap, rel=1e-6)


@pytest.mark.parametrize("spec", [np.tanh, lambda z: z.mul_(2), lambda z: torch.tanh(z.float())])
def test_what_autograd_or_float64_cannot_follow_is_refused_in_words(spec):
    with pytest.raises(TypeError, match="not an elementwise function"):
        gain(spec)
