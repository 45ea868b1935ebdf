import math

import pytest
import torch
from torch import nn

from initlab import SCHEMES, register_scheme, scheme

SHAPES = [(300, 200), (200, 300), (64, 32, 3, 3)]


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_drawn_weights_have_the_stated_mean_and_std(name, shape):
    """Standard errors: of the mean std/√N, of the std at most std·√(2/N)/√2·1.1."""
    chosen = SCHEMES[name]
    weight = chosen(torch.empty(shape), generator=generator()).double()
    taps = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * taps, shape[0] * taps
    std = chosen.weight_std(fan_in, fan_out, rows=shape[0])
    mean = chosen.weight_mean(fan_in, fan_out)
    count = weight.numel()
    assert abs(float(weight.mean()) - mean) <= 5 * std / math.sqrt(count) + 1e-7
    assert abs(float(weight.std(correction=0)) - std) <= 5 * 0.8 * std / math.sqrt(count) + 1e-7


@pytest.mark.parametrize(
    ("name", "params", "theirs"),
    [
        ("xavier_uniform", {}, nn.init.xavier_uniform_),
        ("xavier_normal", {}, nn.init.xavier_normal_),
        ("kaiming_uniform", {}, nn.init.kaiming_uniform_),
        ("kaiming_normal", {}, nn.init.kaiming_normal_),
        (
            "kaiming_normal",
            {"mode": "fan_out", "a": 0.2},
            lambda w, generator: nn.init.kaiming_normal_(
                w, a=0.2, mode="fan_out", generator=generator
            ),
        ),
        ("normal", {"std": 0.02}, lambda w, generator: w.normal_(0, 0.02, generator=generator)),
        ("uniform", {}, nn.init.uniform_),
        ("trunc_normal", {}, nn.init.trunc_normal_),
        ("orthogonal", {}, nn.init.orthogonal_),
        (
            "pytorch_default",
            {},
            lambda w, generator: nn.init.kaiming_uniform_(w, a=5**0.5, generator=generator),
        ),
    ],
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_seed_for_seed_it_equals_torch(name, params, theirs, shape):
    ours = scheme(name, **params)(torch.empty(shape), generator=generator())
    with torch.no_grad():
        expected = theirs(torch.empty(shape), generator=generator())
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("gain", [None, 1.3])
@pytest.mark.parametrize("make", [lambda: nn.Linear(30, 20), lambda: nn.Conv2d(3, 8, 3)])
def test_the_code_draws_the_same_numbers(name, gain, make):
    ours, theirs = make(), make()
    torch.manual_seed(3)
    SCHEMES[name](ours.weight, gain=gain)
    torch.manual_seed(3)
    exec(SCHEMES[name].code("layer", gain=gain), {"nn": nn, "layer": theirs})
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-8)
    if SCHEMES[name].bias == "zeros":
        assert not theirs.bias.any()
    else:
        assert float(theirs.bias.detach().abs().max()) <= 1 / math.sqrt(ours.weight[0].numel())


def test_orthogonal_rows_are_orthonormal():
    weight = scheme("orthogonal")(torch.empty(20, 50), gain=2.0, generator=generator())
    torch.testing.assert_close(weight @ weight.T, 4 * torch.eye(20), atol=1e-5, rtol=0)


def test_truncated_normal_stays_within_its_cuts():
    weight = scheme("trunc_normal", a=-0.5, b=1.0)(torch.empty(200, 200), generator=generator())
    assert -0.5 <= float(weight.min()) < float(weight.max()) <= 1.0


def test_bad_calls_say_what_is_wrong():
    with pytest.raises(ValueError, match="did you mean 'kaiming_normal'"):
        scheme("kaimin_normal")
    with pytest.raises(TypeError, match="no parameter 'sigma'"):
        scheme("normal", sigma=1)
    with pytest.raises(ValueError, match="std=-1"):
        scheme("normal", std=-1)
    with pytest.raises(ValueError, match="must be below"):
        scheme("uniform", low=1.0, high=0.0)
    with pytest.raises(ValueError, match="did you mean 'fan_in'"):
        scheme("kaiming_normal", mode="fanin")
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        scheme("xavier_normal")(torch.empty(3))
    with pytest.raises(TypeError, match="init_"):
        scheme("xavier_normal")(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="float tensor"):
        scheme("xavier_normal")(torch.empty(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="gain=nan"):
        scheme("xavier_normal")(torch.empty(2, 2), gain=math.nan)
    with pytest.raises(ValueError, match="already registered"):
        register_scheme("zeros")


def test_every_scheme_says_where_it_comes_from():
    for chosen in SCHEMES.values():
        assert chosen.formula
        assert chosen.source
        assert chosen.suits.endswith(".")
        assert chosen.title
