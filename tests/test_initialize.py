"""init_(): which parameters it reaches, with which gain, fans and bias, and what it reports."""

import copy
import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from initlab import gain, init_, mlp, noise, scheme
from initlab.initialize.report import measured_std
from initlab.schemes import applicable


def net():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def stds(report, *names):
    return [report[name].intended_std for name in names]


class Free(nn.Module):
    """Two layers whose order no Sequential tells."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


# ---------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("name", applicable((4, 4)))
def test_a_model_is_filled_layer_by_layer_with_one_generator(name):
    model = mlp(6, [4, 8, 2], "relu")
    seed = torch.Generator().manual_seed(5)
    init_(model, name, activation="relu", gain=1.1, bias="zeros", seed=seed)
    generator = torch.Generator().manual_seed(5)
    for layer in model[::2]:
        expected = scheme(name)(torch.empty_like(layer.weight), gain=1.1, generator=generator)
        assert torch.equal(layer.weight.detach(), expected)


def test_without_a_seed_the_weights_are_those_of_torchs_global_generator():
    torch.manual_seed(1)
    ours = net()
    torch.manual_seed(2)
    init_(ours, "xavier_normal")
    torch.manual_seed(2)
    for layer in ours[::2]:
        expected = nn.init.xavier_normal_(torch.empty_like(layer.weight))
        assert torch.allclose(layer.weight.detach(), expected, rtol=1e-6)


def test_with_a_seed_torchs_global_generator_is_left_alone():
    model, state = net(), torch.random.get_rng_state()
    init_(model, "kaiming_normal", activation="relu", bias="normal", bias_std=1.0, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_equal_seeds_of_weights_and_inputs_give_unrelated_numbers():
    """The correlation of 128² pairs of independent numbers has s.e. 1/128."""
    model = nn.Linear(128, 128)
    for seed in (0, 1, 7, 2**31 - 1):
        init_(model, "normal", seed=seed)
        weights = model.weight.detach().flatten()
        torch.manual_seed(seed)
        for inputs in (noise(128, 128, seed=seed).inputs, torch.randn(128, 128)):
            pair = torch.stack([weights, inputs.flatten()])
            assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / 128


def test_a_generator_of_ones_own_gives_the_numbers_of_torchs_calls():
    model, expected = net(), net()
    init_(model, "xavier_normal", seed=torch.Generator().manual_seed(4))
    torch.manual_seed(4)
    for layer in expected[::2]:
        nn.init.xavier_normal_(layer.weight)
    for one, other in zip(model[::2], expected[::2], strict=True):
        assert torch.allclose(one.weight, other.weight, rtol=1e-6)


def test_a_callable_draws_from_the_seed_too():
    state = torch.random.get_rng_state()
    models = [net() for _ in range(3)]
    torch.random.set_rng_state(state)
    init_(models[0], nn.init.xavier_normal_, bias=nn.init.normal_, seed=3)
    torch.rand(5)
    state = torch.random.get_rng_state()
    init_(models[1], nn.init.xavier_normal_, bias=nn.init.normal_, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    init_(models[2], "xavier_normal", bias=nn.init.normal_, seed=3)
    for first, *others in zip(*(model.parameters() for model in models), strict=True):
        assert all(torch.allclose(first, other, rtol=1e-6) for other in others)


def test_a_callable_that_fails_gives_torchs_global_generator_its_state_back():
    model, state = net(), torch.random.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        init_(model, lambda weight: 1 / 0, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_seed_may_be_any_kind_of_whole_number():
    first, second = net(), net()
    init_(first, "xavier_normal", seed=np.int64(3))
    init_(second, "xavier_normal", seed=3)
    assert torch.equal(first[0].weight, second[0].weight)


def test_parameters_stay_the_same_objects_and_keep_their_gradients():
    model = net()
    before = dict(model.named_parameters())
    model(torch.ones(2, 6)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in before.items()}
    init_(model, "orthogonal", seed=0)
    for name, parameter in model.named_parameters():
        assert parameter is before[name]
        assert parameter.requires_grad
        assert parameter.grad_fn is None
        assert torch.equal(parameter.grad, gradients[name])


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.sampled_from([2, 4, 10, 12]), min_size=1, max_size=4),
    name=st.sampled_from(applicable((4, 4))),
    phi=st.sampled_from(["relu", "tanh", "gelu"]),
    seed=st.integers(0, 2**31),
)
def test_the_same_seed_gives_the_same_model_and_the_same_report(widths, name, phi, seed):
    first, second = mlp(6, widths, phi), mlp(6, widths, phi)
    assert init_(first, name, activation=phi, seed=seed) == init_(
        second, name, activation=phi, seed=seed
    )
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


# ---------------------------------------------------------------- gain


@pytest.mark.parametrize("phi", ["relu", "tanh", "gelu", nn.LeakyReLU(0.3), torch.sin])
def test_a_given_activation_decides_the_gain_of_every_layer(phi):
    report = init_(net(), "kaiming_normal", activation=phi, seed=0)
    expected = [gain(phi) / math.sqrt(n) for n in (6, 5, 4)]
    assert stds(report, "0.weight", "2.weight", "4.weight") == pytest.approx(expected, rel=1e-12)


def test_in_a_sequential_the_activation_before_decides_for_fan_in():
    """The first layer reads the input itself: the gain of identity."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = init_(net(), "kaiming_normal", seed=0)
    expected = [1 / math.sqrt(6), gain("tanh") / math.sqrt(5), gain("relu") / math.sqrt(4)]
    assert stds(report, "0.weight", "2.weight", "4.weight") == pytest.approx(expected)


def test_in_a_sequential_the_activation_after_decides_for_fan_out():
    report = init_(net(), "kaiming_normal", mode="fan_out", seed=0)
    backward = [gain(phi, preserve="backward") for phi in ("tanh", "relu", "identity")]
    expected = [g / math.sqrt(n) for g, n in zip(backward, (5, 4, 3), strict=True)]
    assert stds(report, "0.weight", "2.weight", "4.weight") == pytest.approx(expected)


def test_inference_looks_through_norm_dropout_pooling_and_nested_sequentials():
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.SELU()),
        nn.Sequential(nn.MaxPool2d(2), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(4, 3),
        nn.Linear(3, 2),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = init_(model, "kaiming_normal", seed=0)
    assert report["2.weight"].intended_std == pytest.approx(gain("selu") / 2)
    assert report["3.weight"].intended_std == pytest.approx(1 / math.sqrt(3))  # linear to linear


@pytest.mark.filterwarnings("ignore:no activation found for layer 'second'")
def test_where_no_activation_can_be_found_identity_is_taken_with_a_warning():
    with pytest.warns(UserWarning, match=r"no activation found for layer 'first'.*activation=…"):
        report = init_(Free(), "kaiming_normal", seed=0)
    assert stds(report, "first.weight") == pytest.approx([1 / math.sqrt(6)])


def test_the_warning_points_at_the_line_that_called_init_():
    with pytest.warns(UserWarning, match="no activation found") as caught:
        init_(Free(), "kaiming_normal", seed=0)
    assert caught[0].filename == __file__


def test_a_layer_after_something_unknown_is_warned_about():
    model = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 4))
    with pytest.warns(UserWarning, match="layer '2'"):
        init_(model, "kaiming_normal", seed=0)


def test_a_layer_that_a_batch_shows_to_read_a_softmax_is_warned_about_too():
    class Weighs(nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("first", "second", "query", "key", "value", "out"):
                self.add_module(name, nn.Linear(4, 4))

        def forward(self, x):
            x = self.second(F.softmax(self.first(x), -1))
            scores = self.query(x) @ self.key(x).transpose(-1, -2)
            return self.out(F.dropout(scores.softmax(-1)) @ self.value(x))

    with pytest.warns(UserWarning, match="no activation found") as caught:
        init_(Weighs(), "kaiming_normal", batch=torch.randn(3, 5, 4))
    assert [str(w.message).split("'")[1] for w in caught] == ["second"]
    with pytest.warns(UserWarning, match="no activation found") as caught:
        init_(Weighs(), "kaiming_normal", batch=torch.randn(3, 5, 4), mode="fan_out")
    assert [str(w.message).split("'")[1] for w in caught] == ["first"]


def test_a_model_made_in_inference_mode_is_refused_before_anything_is_drawn():
    with torch.inference_mode():
        model = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="'weight' was made under torch"):
        init_(model, "kaiming_normal")


def test_a_gain_for_all_leaves_alone_the_gain_that_an_override_sets_by_itself():
    leaky = scheme("kaiming_normal", a=0.5)
    model = nn.Sequential(nn.Linear(50, 8), nn.Linear(8, 8))
    report = init_(model, "xavier_normal", gain=3.0, overrides={"0": leaky}, seed=0)
    assert report["0.weight"].intended_std == pytest.approx(math.sqrt(2 / 1.25 / 50))
    assert report["1.weight"].intended_std == pytest.approx(3 / math.sqrt(8))


@pytest.mark.parametrize("arguments", [{"gain": 1.0}, {"activation": "relu"}, {"a": 0.0}])
def test_nothing_is_warned_about_where_the_gain_is_given(arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        init_(Free(), "kaiming_normal", seed=0, **arguments)
        init_(Free(), "xavier_normal", seed=0)


def test_a_given_gain_overrules_activation_and_scheme():
    for name in ("kaiming_normal", "lecun_normal"):
        report = init_(net(), name, activation="relu", gain=3.0, seed=0)
        assert report["0.weight"].intended_std == pytest.approx(3 / math.sqrt(6))


@pytest.mark.parametrize(
    ("name", "params", "own"),
    [("kaiming_normal", {"a": 0.5}, math.sqrt(1.6)), ("variance_scaling", {"scale": 4.0}, 2.0)],
)
def test_two_gains_are_one_too_many(name, params, own):
    assert scheme(name, **params).gain_with("tanh") == pytest.approx(own)
    with pytest.raises(ValueError, match=rf"gain=3.0 and .*sets the gain {own:.4g}: give one"):
        init_(net(), name, gain=3.0, seed=0, **params)


def test_a_slope_overrules_the_activation():
    report = init_(net(), "kaiming_normal", activation="tanh", a=0.5, seed=0)
    assert report["0.weight"].intended_std == pytest.approx(math.sqrt(2 / 1.25 / 6))


@pytest.mark.parametrize("name", ["xavier_normal", "lecun_normal", "orthogonal"])
def test_published_schemes_use_gain_one_whatever_the_activation(name):
    with_tanh = init_(net(), name, activation="tanh", seed=0)
    assert with_tanh == init_(net(), name, activation="relu", seed=0)


def test_kaiming_preserves_the_second_moment_through_a_deep_wide_net():
    """ln E h² at layer 10 over 4 nets: sd √(5·10/512) = 0.31 each, mean −sd²/2; 5 s.e. = 0.8."""
    logs = []
    for seed in range(4):
        model = mlp(512, [512] * 10, "relu")
        init_(model, "kaiming_normal", activation="relu", seed=seed)
        with torch.no_grad():  # other seeds than the weights': equal ones draw equal numbers
            signal = model[:-1](noise(64, 512, seed=1000 + seed).inputs)
        logs.append(math.log(float(signal.square().mean()) / 2))
    assert abs(sum(logs) / 4) < 0.8


def test_a_mode_that_is_asked_for_reaches_a_scheme_that_is_given_as_one():
    he = scheme("kaiming_normal")
    fan_out = init_(net(), he, mode="fan_out", activation="relu", seed=0)["0.weight"]
    assert fan_out.intended_std == pytest.approx(math.sqrt(2 / 5))
    own = init_(net(), scheme(he, mode="fan_out"), activation="relu", seed=0)["0.weight"]
    assert own.intended_std == fan_out.intended_std


# ---------------------------------------------------------------- gain, from a batch


class Mixed(nn.Module):
    """Functions, a module with its own slope, a norm, a residual sum, attention."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.leaky, self.third = nn.LeakyReLU(0.3), nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = torch.tanh(self.norm(self.conv(x))).transpose(1, 2)
        x = x + self.second(F.gelu(self.first(F.dropout(x))))
        x = self.third(self.leaky(x))
        return self.attention(x, x, x)[0]


BEFORE = {
    "conv": "identity", "first": "tanh", "second": "gelu", "third": nn.LeakyReLU(0.3),
    "attention.out_proj": "identity",
}  # fmt: skip
AFTER = {
    "conv": "tanh", "first": "gelu", "second": "identity", "third": "identity",
    "attention.out_proj": "identity",
}  # fmt: skip


@pytest.mark.parametrize(("mode", "found"), [("fan_in", BEFORE), ("fan_out", AFTER)])
def test_a_batch_shows_which_activation_each_layer_reads_or_feeds(mode, found):
    model = Mixed()
    batch = torch.randn(4, 3, 6)
    with pytest.warns(UserWarning, match="no activation found for layer 'unused'"):
        report = init_(model, "kaiming_normal", mode=mode, batch=batch, seed=0)
    way = "forward" if mode == "fan_in" else "backward"
    for layer, phi in found.items():
        row = report[f"{layer}.weight"]
        fan = row.fan_in if mode == "fan_in" else row.fan_out
        assert row.intended_std == pytest.approx(gain(phi, preserve=way) / math.sqrt(fan)), layer
    assert report["attention.in_proj_weight"].intended_std == pytest.approx(1 / math.sqrt(8))


@pytest.mark.parametrize(
    ("call", "module"),
    [
        (lambda h: F.leaky_relu(h, 0.4), nn.LeakyReLU(0.4)),
        (lambda h: F.elu(h, alpha=0.3), nn.ELU(0.3)),
        (lambda h: F.hardtanh(h, -2.0, 2.0), nn.Hardtanh(-2.0, 2.0)),
        (lambda h: F.threshold(h, 0.2, 0.0), nn.Threshold(0.2, 0.0)),
        (lambda h: F.prelu(h, torch.tensor([0.7])), nn.PReLU(init=0.7)),
    ],
)
def test_a_batch_shows_the_slope_that_a_function_is_called_with(call, module):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(50, 400), nn.Linear(400, 400)

        def forward(self, x):
            return self.second(call(self.first(x)))

    report = init_(Net(), "kaiming_normal", batch=torch.randn(3, 50))
    assert report["second.weight"].intended_std == pytest.approx(gain(module) / 400**0.5, rel=1e-6)


def test_looking_at_a_batch_leaves_everything_else_alone():
    model = Mixed()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    batch = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0))
    report = init_(model, "kaiming_normal", only="first", batch=(batch,), seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    touched = {row.name for row in report if row.scheme}
    assert touched == {"first.weight", "first.bias"}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in touched), name


def test_a_batch_may_be_keyword_arguments():
    report = init_(Free(), "kaiming_normal", batch={"x": torch.ones(2, 6)}, seed=0)
    assert stds(report, "second.weight") == pytest.approx([math.sqrt(2 / 5)])


# ---------------------------------------------------------------- fans


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
@pytest.mark.parametrize("name", ["kaiming_normal", "xavier_uniform", "orthogonal"])
def test_convolutions_of_every_dimension_get_the_stated_std(kind, name):
    layer = kind(16, 24, 3)
    row = init_(layer, name, activation="relu", seed=0)["weight"]
    assert row.layer == kind.__name__
    assert row.fan_in == 16 * 3 ** (layer.weight.dim() - 2)
    spread = 5 / math.sqrt(2 * layer.weight.numel())  # 5 s.e. of a normal's std
    assert row.actual_std == pytest.approx(row.intended_std, rel=spread)


# ---------------------------------------------------------------- bias


def test_most_schemes_prescribe_zero_biases_and_pytorch_default_its_own():
    model = net()
    report = init_(model, "xavier_normal", bias=None, seed=0)
    assert report["0.bias"].scheme == "zeros"
    assert not model[0].bias.any()
    report = init_(model, "pytorch_default", seed=0)
    assert report["0.bias"].intended_std == pytest.approx(1 / math.sqrt(3 * 6))
    assert 0 < model[0].bias.abs().max() <= 1 / math.sqrt(6)


def test_a_number_is_a_constant_bias():
    model = net()
    assert init_(model, "xavier_normal", bias=0.25)["2.bias"].scheme == "constant 0.25"
    assert (model[2].bias == 0.25).all()


def test_normal_biases_have_the_std_asked_for():
    """4,096 biases: 5 s.e. of the std are 5/√8192 = 5.5 %."""
    layer = nn.Linear(2, 4096)
    row = init_(layer, "zeros", bias="normal", bias_std=0.3, seed=0)["bias"]
    assert row.intended_std == 0.3
    assert row.actual_std == pytest.approx(0.3, rel=0.055)


def test_pytorch_default_biases_go_with_any_scheme():
    """4,096 biases: the s.e. of a uniform's std is below that of a normal's: 5.5 % are 5."""
    layer = nn.Linear(9, 4096)
    row = init_(layer, "zeros", bias="pytorch_default", seed=0)["bias"]
    assert row.actual_std == pytest.approx(1 / math.sqrt(27), rel=0.055)
    assert layer.bias.abs().max() <= 1 / 3


def test_a_callable_bias_fills_the_bias():
    model = net()
    report = init_(model, "zeros", bias=nn.init.ones_)
    assert report["0.bias"].scheme == "ones_"
    assert (model[0].bias == 1).all()


def test_a_layer_without_bias_has_no_row_for_it():
    report = init_(nn.Linear(3, 2, bias=False), "zeros")
    assert [row.name for row in report] == ["weight"]


# ---------------------------------------------------------------- the ways of doing it


def by_a_rule(model):
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            nn.init.xavier_normal_(parameter)
        else:
            nn.init.zeros_(parameter)


def by_apply(model):
    def initialize(module):
        if isinstance(module, nn.Linear):
            scheme("xavier_normal")(module.weight)
            nn.init.zeros_(module.bias)

    model.apply(initialize)


def by_hand(model):
    with torch.no_grad():  # in place: the optimizer and tied layers hold this very tensor
        for layer in model[::2]:
            std = math.sqrt(2 / sum(layer.weight.shape))
            layer.weight.copy_(torch.randn(layer.weight.shape) * std)
            layer.bias.zero_()


def layer_by_layer(model):
    for layer in model[::2]:
        init_(layer, "xavier_normal")


WAYS = {
    "init_": lambda model: init_(model, "xavier_normal"),
    "a callable": lambda model: init_(model, nn.init.xavier_normal_),
    "a scheme as a callable": lambda model: init_(
        model, lambda weight: scheme("xavier_normal")(weight)
    ),
    "model.apply": by_apply,
    "a rule over named_parameters": by_a_rule,
    "by hand": by_hand,
    "layer by layer": layer_by_layer,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_all_ways_to_initialize_a_model_give_the_same_weights(way):
    model, expected = net(), net()
    torch.manual_seed(3)
    for layer in expected[::2]:
        nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    torch.manual_seed(3)
    way(model)
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5)


# ---------------------------------------------------------------- what is reached


def test_norms_embeddings_and_other_layers_keep_everything():
    model = nn.Sequential(
        nn.Embedding(7, 6), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.PReLU(5),
        nn.LayerNorm(5), nn.Linear(5, 2),
    )  # fmt: skip
    model[2].running_mean.normal_()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    report = init_(model, "zeros", activation="relu")
    touched = {row.name for row in report if row.scheme is not None}
    assert touched == {"1.weight", "1.bias", "6.weight", "6.bias"}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in touched), name
    assert [module.training for module in model.modules()] == modes
    assert "BatchNorm1d keeps its own" in report["2.weight"].note
    assert "Embedding keeps its own" in report["0.weight"].note


def test_every_parameter_has_one_row_in_the_models_order():
    model = mlp(4, [5, 6], norm="layer", head=2)
    report = init_(model, "xavier_normal", seed=0)
    assert [row.name for row in report] == [name for name, _ in model.named_parameters()]
    for row in report:
        assert row.shape == tuple(model.get_parameter(row.name).shape)
        actual = model.get_parameter(row.name).detach().double().std(correction=0)
        assert row.actual_std == pytest.approx(float(actual))


def test_frozen_parameters_stay_and_the_report_says_so():
    model = net()
    model[2].weight.requires_grad_(False)
    before = model[2].weight.clone()
    report = init_(model, "zeros", bias=1.0)
    assert torch.equal(model[2].weight, before)
    assert "frozen" in report["2.weight"].note
    assert (model[2].bias == 1).all()


def test_only_the_layers_named_by_only_are_touched():
    model = mlp(4, [5, 6], head=2)
    before = copy.deepcopy(model.state_dict())
    report = init_(model, "zeros", only="linear*", bias=1.0)
    assert torch.equal(model.head.weight, before["head.weight"])
    assert torch.equal(model.head.bias, before["head.bias"])
    assert report["head.weight"].note == "not selected by only"
    assert not model.linear1.weight.any()
    init_(model, "ones", only=["head", "linear2"])
    assert not model.linear1.weight.any()
    assert model.head.weight.all()


@pytest.mark.parametrize("only", [nn.Conv2d, ["0", nn.Conv2d]])
def test_only_goes_by_type_too(only):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3))
    report = init_(model, "ones", only=only)
    assert [row.scheme for row in report] == ["ones", "zeros", None, None]


def test_overrides_go_by_name_pattern_and_by_type_and_the_last_match_wins():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), net())
    report = init_(
        model,
        "zeros",
        overrides={nn.Linear: "ones", "3.[02]": scheme("constant", val=0.5), "3.2": nn.init.eye_},
    )
    assert not model[0].weight.any()
    assert (model[3][0].weight == 0.5).all()
    assert torch.equal(model[3][2].weight.detach(), torch.eye(4, 5))
    assert (model[3][4].weight == 1).all()
    assert [row.scheme for row in report if row.name.endswith("weight")] == [
        "zeros", "constant", "eye_", "ones",
    ]  # fmt: skip


def test_critical_brings_its_biases_with_their_deviation():
    """4,096 biases: 5 s.e. of the std are 5/√8192 = 5.5 %."""
    layer = nn.Linear(3, 4096)
    report = init_(layer, "critical", activation="tanh", sigma_b=0.2, seed=0)
    assert report["bias"].intended_std == 0.2
    assert report["bias"].actual_std == pytest.approx(0.2, rel=0.055)
    assert report["weight"].intended_std == pytest.approx(1.3041458401 / math.sqrt(3))  # table t2a
    assert not init_(layer, "critical", activation="tanh", bias="zeros", sigma_b=0.2)[1].actual_std


def test_an_override_brings_the_bias_that_it_prescribes():
    model = net()
    init_(model, "xavier_normal", overrides={"4": "pytorch_default"}, seed=0)
    assert not model[0].bias.any()
    assert model[4].bias.all()


def test_a_callable_scheme_fills_the_weights_and_leaves_biases_at_zero():
    model = net()
    report = init_(model, nn.init.ones_)
    assert all((layer.weight == 1).all() for layer in model[::2])
    assert not model[0].bias.any()
    assert report["0.weight"].scheme == "ones_"
    assert report["0.weight"].intended_std is None
    assert report["0.weight"].actual_std == 0


def test_a_shared_layer_is_initialized_once():
    shared = nn.Linear(4, 4)
    calls = []
    init_(nn.Sequential(shared, nn.Tanh(), shared), lambda weight: calls.append(weight))
    assert len(calls) == 1


def test_tied_weights_are_initialized_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    report = init_(model, "xavier_normal", seed=0)
    assert [row.name for row in report] == ["0.weight", "0.bias", "2.bias"]


def test_a_bare_layer_is_a_model_too():
    layer = nn.Linear(3, 2)
    assert init_(layer, "ones")["weight"].scheme == "ones"
    assert (layer.weight == 1).all()


def test_half_precision_and_double_models_keep_their_dtype():
    for dtype in (torch.float64, torch.bfloat16):
        model = net().to(dtype)
        init_(model, "kaiming_normal", activation="relu", seed=0)
        assert model[0].weight.dtype == dtype
        assert F.mse_loss(model(torch.ones(2, 6, dtype=dtype)), torch.zeros(2, 3, dtype=dtype)) > 0


# ---------------------------------------------------------------- the report


def test_the_report_reads_well_and_is_data():
    report = init_(net(), "kaiming_normal", activation="relu", seed=0)
    assert len(report) == 6
    assert str(report).startswith("InitReport: 6 of 6 parameters initialized\n  0.weight (5, 6)")
    frame = report.to_frame()
    assert list(frame.index) == [row.name for row in report]
    assert frame.loc["2.weight", "scheme"] == "kaiming_normal"
    assert "<table" in report._repr_html_()
    assert report[0] is report["0.weight"]
    assert report[1:3] == (report["0.bias"], report["2.weight"])


def test_a_std_that_is_not_what_was_meant_is_flagged():
    lying = dataclasses.replace(scheme("normal", std=0.1), std=lambda fans, mean, std: 1.2 * std)
    report = init_(nn.Linear(60, 50), lying, seed=0)
    assert [row.name for row in report.suspicious] == ["weight"]
    assert -16 < report["weight"].standard_errors < -10  # −1/6 of √(2·3000) = 77 s.e.
    assert "std 0.12 but is 0.1" in repr(report)


@pytest.mark.parametrize("name", applicable((20, 30)))
def test_what_was_meant_is_not_flagged(name):
    """5 s.e. of 600 weights: one in a million draws, or exactly none."""
    for seed in range(20):
        assert not init_(nn.Linear(30, 20), name, activation="relu", seed=seed).suspicious


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.3, 0.1), (100.0, 0.5), (1.0, 0.0)])
def test_the_std_of_a_large_tensor_is_measured_to_four_digits(dtype, mean, std):
    generator = torch.Generator().manual_seed(0)
    for rows in (300, 3000):  # 3 blocks, and 32, of which 4 show whether there is a mean
        tensor = (mean + std * torch.randn(rows, 700, generator=generator)).to(dtype)
        expected = float(tensor.double().std(correction=0))
        assert measured_std(tensor) == pytest.approx(expected, rel=5e-5, abs=1e-12)


def test_an_unknown_parameter_is_answered_with_the_nearest():
    report = init_(net(), "zeros")
    with pytest.raises(KeyError, match=r"did you mean '0\.weight'"):
        report["0.weigth"]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "kaimin_normal"}, "unknown scheme 'kaimin_normal'; did you mean 'kaiming_n"),
        ({"activation": "rellu"}, "unknown activation 'rellu'; did you mean 'relu'"),
        ({"scheme": "xavier_normal", "activation": "rellu"}, "did you mean 'relu'"),
        ({"mode": "fanin"}, "unknown mode 'fanin'; did you mean 'fan_in'"),
        ({"gain": math.nan}, "gain=nan must be a finite number"),
        ({"gain": 0.0}, "gain=0.0 must be greater than 0"),
        ({"bias": "zero"}, "unknown bias 'zero'; did you mean 'zeros'"),
        ({"bias": math.inf}, "bias=inf must be a finite number"),
        ({"bias": "normal"}, "bias='normal' needs bias_std"),
        ({"bias": "normal", "bias_std": -1.0}, "bias_std=-1.0 must be at least 0"),
        ({"bias": "normal", "bias_std": math.nan}, "bias_std=nan must be a finite"),
        ({"bias_std": 1.0}, "bias_std=1.0 is used with bias='normal' only"),
        ({"only": "haed"}, "unknown only pattern 'haed'; did you mean 'head'"),
        ({"overrides": {"haed": "zeros"}}, "unknown overrides pattern 'haed'; did you mean 'head'"),
        ({"overrides": {nn.Conv2d: "zeros"}}, "overrides type 'Conv2d'. Accepted: Linear$"),
        ({"overrides": {"head": "zero"}}, "unknown scheme 'zero'; did you mean 'zeros'"),
        ({"scheme": "normal", "std": -1.0}, "std=-1.0 must be at least 0"),
        ({"a": math.sqrt(2)}, r"a=1.414\d* must be a negative slope .* say gain=1.414"),
        ({"scheme": nn.init.xavier_uniform}, "nn.init.xavier_uniform is deprecated; pass nn"),
        ({"scheme": "xavier_uniform_"}, "did you mean 'xavier_uniform'"),
        ({"scheme": "dirac"}, "'linear1.weight': scheme 'dirac' needs a convolution"),
        ({"forget_bias": 1.0}, "the model has no LSTM"),
        ({"scheme": "he_normal"}, "unknown scheme 'he_normal'; did you mean 'kaiming_normal'"),
        ({"scheme": "GlorotUniform"}, "did you mean 'xavier_uniform'"),
        ({"recurrent": "orthogonal"}, "recurrent='orthogonal': the model has no recurrent layer"),
        ({"seed": 2**64}, f"seed={2**64} must be between {-(2**63)} and {2**63 - 1}"),
        ({"recurrent": "orthogonl"}, "unknown scheme 'orthogonl'; did you mean 'orthogonal'"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_and_nothing_is_touched(arguments, message):
    model = mlp(4, [5], head=2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        init_(model, **{"scheme": "kaiming_normal", "seed": 0, **arguments})
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def replace_data(weight):
    weight.data = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": 3}, "scheme=3 must be a name, a Scheme or a callable"),
        ({"scheme": None}, "scheme=None must be a name, a Scheme or a callable"),
        ({"gain": "big"}, "gain='big' must be a number"),
        ({"bias": True}, "bias=True must be a number"),
        ({"std": 0.1}, "'kaiming_normal' has no parameter 'std'; it has: mode, a"),
        ({"scheme": nn.init.zeros_, "a": 1.0}, "a callable scheme takes no parameters, got a"),
        ({"nonlinearity": "gelu"}, "no parameter 'nonlinearity'.*say activation=… to init_"),
        ({"scheme": nn.Linear}, "scheme=.* must be a name, a Scheme or a callable"),
        ({"scheme": nn.Linear(2, 2)}, "scheme=.* must be a name, a Scheme or a callable"),
        ({"overrides": {3: "ones"}}, "overrides: 3 must be a name pattern or a type of layer"),
        ({"overrides": ["0"]}, "overrides=.* must be a dict: name pattern or type of layer"),
        ({"scheme": replace_data}, "replace_data put a new tensor in place of the one that it is"),
        ({"scheme": torch.randn_like}, "randn_like returned a new tensor; it must fill the one"),
        ({"activation": nn.Softmax(-1)}, "not an elementwise function"),
        ({"seed": "x"}, "seed='x' must be a whole number, a torch.Generator or None"),
        ({"seed": 1.5}, "seed=1.5 must be a whole number, a torch.Generator or None"),
    ],
)
def test_arguments_of_a_wrong_type_are_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        init_(net(), **{"scheme": "kaiming_normal", **arguments})


def test_a_scheme_given_to_apply_is_told_what_to_do():
    with pytest.raises(TypeError, match=r"fills a tensor, not a Linear; for a whole model .*init_"):
        net().apply(scheme("xavier_normal"))


def test_a_tensor_instead_of_a_model_is_told_what_to_do():
    with pytest.raises(TypeError, match=r"must be an nn.Module, not a type; create it first"):
        init_(Free, "zeros")
    with pytest.raises(TypeError, match=r"must be an nn.Module, not a Tensor; .*scheme\(name\)"):
        init_(torch.zeros(3, 3), "zeros")
    with pytest.raises(TypeError, match=r"must be an nn\.Module, not a list"):
        init_([nn.Linear(2, 2)], "zeros")


def test_an_empty_model_is_refused():
    with pytest.raises(ValueError, match=r"model=Sequential\(\) has no parameters"):
        init_(nn.Sequential(), "zeros")


def test_a_lazy_layer_is_refused_by_name_until_it_has_a_shape():
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match="layer '0' is lazy and has no shape yet; run one batch"):
        init_(model, "zeros")
    model(torch.ones(2, 5))
    assert init_(model, "zeros")["0.weight"].shape == (3, 5)
