import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from initlab import ACTIVATIONS, activation, gain, register_activation
from initlab.activations import Elementwise

Z = torch.linspace(-8, 8, 4001, dtype=torch.float64)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_module_computes_the_function(name):
    phi = ACTIVATIONS[name]
    module = phi.module().double()
    torch.testing.assert_close(module(Z), phi.function(Z))
    assert activation(module).name == name


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_moments_agree_with_monte_carlo(name):
    """Within 5 standard errors of 4·10⁵ samples."""
    phi = ACTIVATIONS[name]
    z = torch.randn(400_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = z * math.sqrt(1.7)
    moments = phi.moments(1.7)
    for sample, expected in (
        (phi(x), moments.mean),
        (phi(x).square(), moments.second_moment),
        (phi.derivative(x).square(), moments.derivative_second_moment),
        (phi(x) * phi.derivative(x) * z / math.sqrt(1.7), moments.slope),
    ):
        standard_error = float(sample.std()) / math.sqrt(len(sample))
        assert abs(float(sample.mean()) - expected) <= 5 * standard_error + 1e-12


@given(
    kink=st.floats(-2, 2),
    left=st.floats(-1, 1),
    right=st.floats(0.1, 2),
    wave=st.floats(0, 3),
)
@settings(max_examples=25, deadline=None)
def test_gain_of_any_callable_agrees_with_monte_carlo(kink, left, right, wave):
    def function(z):
        return torch.where(z < kink, left * z, right * z + 0.3) + torch.sin(wave * z)

    z = torch.randn(200_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    square = function(z).square()
    standard_error = float(square.std()) / math.sqrt(len(square))
    assert abs(gain(function) ** -2 - float(square.mean())) <= 5 * standard_error


@pytest.mark.parametrize("q", [0.0, 1e-300, 1e-20, 1e20, 1e200])
def test_moments_hold_at_extreme_second_moments(q):
    assert ACTIVATIONS["relu"].moments(q).derivative_second_moment == pytest.approx(0.5)
    assert ACTIVATIONS["relu"].moments(q).second_moment == pytest.approx(
        q / 2, rel=1e-9, abs=1e-299
    )
    bounded = ACTIVATIONS["tanh"].moments(q)
    assert bounded.second_moment == pytest.approx(q if q < 1 else 1.0, rel=1e-9, abs=1e-299)
    assert bounded.slope == pytest.approx(1.0 if q < 1 else 0.0, abs=1e-8)


@pytest.mark.parametrize("name", ["sigmoid", "softplus", "logsigmoid"])
def test_the_slope_at_zero_is_that_of_the_taylor_series(name):
    phi = ACTIVATIONS[name]
    zero = torch.zeros(1, dtype=torch.float64)
    step = torch.full((1,), 1e-4, dtype=torch.float64)
    curvature = float((phi(step) - 2 * phi(zero) + phi(-step)) / step**2)
    expected = float(phi.derivative(zero)) ** 2 + float(phi(zero)) * curvature
    assert phi.moments(1e-30).slope == pytest.approx(expected, abs=1e-5)


def test_gain_agrees_with_torch_where_torch_is_exact():
    for name in ("relu", "leaky_relu"):
        assert gain(name) == pytest.approx(nn.init.calculate_gain(name), rel=1e-12)
    assert gain(nn.LeakyReLU(0.2)) == pytest.approx(nn.init.calculate_gain("leaky_relu", 0.2))
    assert gain("selu") == pytest.approx(1.0, rel=1e-6)


def test_tails_are_where_the_slope_drops_below_five_percent():
    low, high = ACTIVATIONS["tanh"].tails
    assert -low == high == pytest.approx(math.atanh(math.sqrt(0.95)), abs=1e-9)
    assert ACTIVATIONS["hardtanh"].tails == (-1.0, 1.0)
    assert ACTIVATIONS["relu6"].tails == (-math.inf, 6.0)
    assert ACTIVATIONS["elu"].tails == pytest.approx((math.log(0.05), math.inf))
    for name in ("relu", "gelu", "identity", "sin"):
        assert ACTIVATIONS[name].tails is None
    assert activation(lambda z: torch.atan(z)).tails[1] == pytest.approx(math.sqrt(19), abs=1e-6)


@pytest.mark.parametrize(
    "module", [nn.Softmax(dim=-1), nn.GLU(), nn.Dropout(), nn.LayerNorm(6), nn.Linear(6, 6)]
)
def test_what_is_no_elementwise_function_is_refused(module):
    with pytest.raises(TypeError, match="not an elementwise function"):
        activation(module)


def test_a_misspelt_name_gets_the_nearest():
    with pytest.raises(ValueError, match="unknown activation 'rleu'; did you mean 'relu'"):
        activation("rleu")
    with pytest.raises(ValueError, match="unknown preserve"):
        gain("relu", "sideways")
    with pytest.raises(TypeError, match="activation=3"):
        activation(3)
    with pytest.raises(ValueError, match="q=-1"):
        ACTIVATIONS["relu"].moments(-1)
    with pytest.raises(ValueError, match="passes no forward signal"):
        gain(lambda z: z * 0)


def test_functions_and_classes_resolve_to_the_registry():
    assert activation(torch.tanh) is activation(nn.Tanh) is ACTIVATIONS["tanh"]
    assert activation(nn.functional.gelu) is ACTIVATIONS["gelu"]
    assert activation(nn.GELU(approximate="tanh")) is ACTIVATIONS["gelu_tanh"]


def test_a_registered_activation_is_known_everywhere(monkeypatch):
    from initlab import activations

    monkeypatch.setattr(activations, "_registry", dict(activations._registry))
    phi = register_activation("cube", lambda z: z**3)
    assert activation("cube") is phi
    assert isinstance(phi.module(), Elementwise)
    assert phi.moments().second_moment == pytest.approx(15)
    with pytest.raises(ValueError, match="already registered"):
        register_activation("relu", torch.relu)


def test_prelu_of_several_slopes_uses_their_root_mean_square():
    module = nn.PReLU(2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.3, 0.4]))
    expected = (1 + np.mean([0.09, 0.16])) / 2
    assert activation(module).moments().second_moment == pytest.approx(expected)
