import copy
import math
import warnings

import pytest
import torch
from torch import nn

from initlab import gain, init_


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 16),
        nn.Tanh(),
        nn.Linear(16, 4),
    )


def test_the_report_has_one_row_per_parameter():
    net = network()
    report = init_(net, "kaiming_normal", activation="relu", seed=0)
    assert [row.name for row in report] == [name for name, _ in net.named_parameters()]
    assert report["0.weight"].fan_in == 27
    assert report["0.weight"].fan_out == 72
    assert report["4.weight"].intended_std == pytest.approx(math.sqrt(2 / 72))
    assert "keeps its own" in report["1.weight"].note
    assert report.to_frame().loc["6.bias", "scheme"] == "zeros"
    assert "4.weight" in repr(report)
    assert "<table" in report._repr_html_()


def test_only_what_is_reported_changes():
    net = network()
    before = copy.deepcopy(net.state_dict())
    rng = torch.get_rng_state()
    report = init_(net, "xavier_uniform", only="4", seed=0)
    changed = {name for name in before if not torch.equal(before[name], net.state_dict()[name])}
    assert changed == {"4.weight", "4.bias"}
    assert {row.name for row in report if row.scheme} == changed
    assert torch.equal(rng, torch.get_rng_state())


def test_the_gain_is_that_of_the_activation_it_reads():
    net = network()
    report = init_(net, "kaiming_normal", seed=0)
    assert report["0.weight"].intended_std == pytest.approx(1 / math.sqrt(27))
    assert report["4.weight"].intended_std == pytest.approx(gain("relu") / math.sqrt(72))
    assert report["6.weight"].intended_std == pytest.approx(gain("tanh") / math.sqrt(16))


def test_with_fan_out_it_is_the_activation_that_follows():
    report = init_(network(), "kaiming_normal", mode="fan_out", seed=0)
    assert report["4.weight"].intended_std == pytest.approx(
        gain("tanh", "backward") / math.sqrt(16)
    )


def test_an_activation_that_cannot_be_found_is_warned_about():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

    with pytest.warns(UserWarning, match="no activation found for layer 'fc'"):
        report = init_(Net(), "kaiming_normal", seed=0)
    assert report["fc.weight"].intended_std == pytest.approx(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        init_(Net(), "xavier_normal", seed=0)
        init_(Net(), "kaiming_normal", a=0.2, seed=0)


@pytest.mark.parametrize(
    ("bias", "low", "high"), [("zeros", 0, 0), (0.3, 0.3, 0.3), ("pytorch_default", -0.1, 0.1)]
)
def test_biases(bias, low, high):
    layer = nn.Linear(100, 400)
    init_(layer, "xavier_normal", bias=bias, seed=0)
    assert low - 1e-6 <= float(layer.bias.min().detach())
    assert float(layer.bias.max().detach()) <= high + 1e-6


def test_normal_biases_have_the_asked_std():
    layer = nn.Linear(10, 10_000)
    init_(layer, "xavier_normal", bias="normal", bias_std=0.2, seed=0)
    assert float(layer.bias.std().detach()) == pytest.approx(0.2, rel=5 / math.sqrt(20_000))


def test_pytorch_default_draws_the_bias_too():
    layer = nn.Linear(50, 4000)
    init_(layer, "pytorch_default", seed=0)
    expected = 1 / math.sqrt(150)
    assert float(layer.bias.std().detach()) == pytest.approx(expected, rel=0.05)


def test_overrides_by_pattern_and_by_type():
    report = init_(
        network(), "xavier_normal", overrides={nn.Linear: "orthogonal", "6": "zeros"}, seed=0
    )
    assert [report[f"{i}.weight"].scheme for i in (0, 4, 6)] == [
        "xavier_normal", "orthogonal", "zeros",
    ]  # fmt: skip


def test_a_users_own_callable_is_a_scheme():
    def halves(weight):
        weight.fill_(0.5)

    net = nn.Linear(3, 3)
    assert init_(net, halves)["weight"].scheme == "halves"
    assert torch.equal(net.weight, torch.full((3, 3), 0.5))


def test_frozen_and_tied_parameters():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    net[0].bias.requires_grad_(False)
    report = init_(net, "xavier_normal", seed=0)
    assert [row.name for row in report] == ["0.weight", "0.bias", "1.bias"]
    assert "frozen" in report["0.bias"].note


def test_grouped_convolutions_get_their_true_fans():
    report = init_(nn.Conv2d(64, 64, 3, groups=64), "xavier_normal", seed=0)
    assert (report["weight"].fan_in, report["weight"].fan_out) == (9, 9)
    assert "torch's fans are 9 and 576" in report["weight"].note


def test_misuse_is_refused_in_words():
    net = network()
    for call, error, words in (
        (lambda: init_(torch.empty(2, 2), "zeros"), TypeError, "nn.Module"),
        (lambda: init_(net, "xavier_uniforn"), ValueError, "did you mean 'xavier_uniform'"),
        (lambda: init_(net, 3), TypeError, "scheme=3"),
        (lambda: init_(net, "zeros", gain=math.nan), ValueError, "gain=nan"),
        (lambda: init_(net, "zeros", mode="fan"), ValueError, "did you mean 'fan_in'"),
        (lambda: init_(net, "zeros", bias="zero"), ValueError, "did you mean 'zeros'"),
        (lambda: init_(net, "zeros", bias="normal"), ValueError, "bias_std"),
        (lambda: init_(net, "zeros", bias_std=1.0), ValueError, "bias_std=1.0"),
        (lambda: init_(net, "zeros", overrides={"head": "ones"}), ValueError, "overrides pattern"),
        (lambda: init_(net, "zeros", only="head"), ValueError, "only pattern 'head'"),
        (lambda: init_(nn.LazyLinear(3), "zeros"), ValueError, "lazy"),
        (lambda: init_(net, "normal", sigma=1), TypeError, "no parameter 'sigma'"),
    ):
        with pytest.raises(error, match=words):
            call()
