"""predict(): theory's counterpart of a trace, site by site."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from initlab import (
    ACTIVATIONS,
    ARCHITECTURES,
    SCHEMES,
    Experiment,
    activation,
    activations,
    predict,
)
from initlab.networks import NORMS
from initlab.prediction.many import pair_gaps, responses

SMALL = Experiment(depth=4, width=16, batch_size=20, data="noise")


def layers(predicted):
    return [site for site in predicted if site.kind == "affine"]


# ---------------------------------------------------------------- the same sites as the trace


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("loss", ["probe", "cross_entropy"])
@pytest.mark.parametrize("widths", [None, (9,), (30, 20, 10)])
def test_sites_are_named_as_those_of_the_trace(loss, widths, dropout, architecture):
    experiment = Experiment(
        architecture=architecture, depth=3, width=8, widths=widths, batch_size=20, loss=loss,
        dropout=dropout,
    )  # fmt: skip
    predicted, traced = experiment.predict(), experiment.run()
    for field in ("name", "kind", "depth"):
        assert [getattr(s, field) for s in predicted] == [getattr(s, field) for s in traced]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_sites_are_named_as_those_of_the_trace_for_every_activation(name):
    experiment = SMALL.replace(activation=name)
    assert [s.name for s in experiment.predict()] == [s.name for s in experiment.run()]


@pytest.mark.parametrize("norm", NORMS)
def test_with_a_norm_every_site_is_predicted_or_a_reason_is_given(norm):
    experiment = SMALL.replace(norm=norm)
    predicted = experiment.predict()
    if norm == "none":
        assert [s.name for s in predicted] == [s.name for s in experiment.run()]
    else:
        assert not len(predicted)
        assert predicted.reason.endswith(".")


def as_theory_knows(name: str) -> tuple:
    """Schemes of equal figures are one case to theory."""
    chosen = SCHEMES[name]
    figures = chosen.weight_std(16, 16, 1.0), chosen.weight_std(8, 32, 2.0)
    return (*figures, chosen.weight_mean(16, 16), chosen.ensemble, chosen.bias, chosen.uses_gain)


@pytest.mark.parametrize(("architecture", "phi"), list(product(ARCHITECTURES, ACTIVATIONS)))
def test_every_combination_is_predicted_or_a_reason_is_given(architecture, phi):
    offered = SMALL.replace(architecture=architecture).schemes
    for name in {as_theory_knows(name): name for name in offered}.values():
        gain = 1.2 if name == "critical" else None  # not every activation has a critical one
        predicted = SMALL.replace(
            architecture=architecture, scheme=name, activation=phi, gain=gain
        ).predict()
        assert bool(predicted.reason) == (len(predicted) == 0)
        if predicted.reason:
            assert predicted.reason[0].isupper()
            assert predicted.reason.endswith(".")
        for site in predicted:
            assert (site.forward is not None and site.backward is not None) or site.reason
            for stats in (site.forward, site.backward):
                assert stats is None or stats.second_moment >= 0
                assert stats is None or stats.low is None or stats.low <= stats.high


def test_where_theory_is_silent_the_sentence_says_why():
    reasons = {
        "normalization": SMALL.replace(norm="batch"),
        "structure": SMALL.replace(scheme="sparse"),
    }
    for word, experiment in reasons.items():
        assert word in experiment.predict().reason


def test_under_a_pooled_head_nothing_is_said_of_the_gradient_of_a_one_channel_image():
    """Measured it is twice what independence predicts, at any width: the kernel stays 3 × 3."""
    pooled = SMALL.replace(architecture="cnn", data="digits", loss="cross_entropy")
    site = pooled.predict()["input"]
    assert site.backward is None
    assert "9 weights" in site.reason
    assert pooled.replace(loss="probe").predict()["input"].backward is not None


def test_under_a_pooled_head_nothing_is_said_of_gradients_through_weights_of_nonzero_mean():
    pooled = SMALL.replace(architecture="cnn", data="digits", loss="cross_entropy")
    site = pooled.replace(scheme="uniform").predict()["conv2"]
    assert site.backward is None
    assert "nonzero mean" in site.reason
    assert pooled.replace(bias=0.3).predict()["conv2"].backward is not None


def test_a_bias_of_zero_and_weights_of_mean_zero_are_no_reason_for_silence():
    assert SMALL.replace(bias=0.0).predict().reason == ""
    centred = SMALL.replace(scheme="uniform", scheme_params={"low": -0.1, "high": 0.1})
    assert centred.predict().reason == ""
    assert SMALL.replace(scheme="zeros").predict()["linear1"].forward.second_moment == 0


# ---------------------------------------------------------------- the recursion


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(1, 64), min_size=1, max_size=6),
    std=st.floats(0.01, 2),
    bias_std=st.floats(0, 1),
    phi=st.sampled_from(["relu", "tanh", "gelu", "sigmoid"]),
)
def test_the_prediction_is_the_recursion_of_the_papers(widths, std, bias_std, phi):
    experiment = Experiment(
        widths=widths, activation=phi, scheme="normal", scheme_params={"std": std},
        bias="normal", bias_std=bias_std, data="noise",
    )  # fmt: skip
    predicted = experiment.predict()
    second, moments = 1.0, []
    for l, fan_in in enumerate(experiment.sizes[:-1], start=1):
        q = fan_in * std**2 * second + bias_std**2
        assert predicted[f"linear{l}"].forward.second_moment == pytest.approx(q, rel=1e-12)
        moments.append(ACTIVATIONS[phi].moments(q))
        second = moments[-1].second_moment
        assert predicted[f"act{l}"].forward.second_moment == pytest.approx(second, rel=1e-12)
    gradient = 1.0
    for l in range(len(widths), 0, -1):
        assert predicted[f"act{l}"].backward.second_moment == pytest.approx(gradient, rel=1e-9)
        gradient *= moments[l - 1].derivative_second_moment
        assert predicted[f"linear{l}"].backward.second_moment == pytest.approx(gradient, rel=1e-9)
        gradient *= experiment.sizes[l] * std**2
    assert predicted["input"].backward.second_moment == pytest.approx(gradient, rel=1e-9)


def test_he_initialization_keeps_relus_second_moments_in_both_directions():
    predicted = Experiment(depth=50, width=64, data="noise").predict()
    assert [s.forward.second_moment for s in layers(predicted)] == pytest.approx([2.0] * 50)
    assert [s.backward.second_moment for s in layers(predicted)] == pytest.approx([0.5] * 50)


def test_at_the_edge_of_chaos_gradients_stay_and_the_signal_settles():
    """tanh with σ_b = 0.2 (table t2a): σ_w = 1.3041458401, q* = 0.5120785."""
    experiment = Experiment(
        depth=200, width=64, activation="tanh", scheme="critical", data="noise",
        scheme_params={"sigma_b": 0.2},
    )  # fmt: skip
    last = layers(experiment.predict())[-1].forward.second_moment
    assert last == pytest.approx(0.5120785, rel=1e-4)
    gradients = [site.backward.second_moment for site in layers(experiment.predict())]
    assert gradients[100] / gradients[150] == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize("name", ["kaiming_normal", "xavier_normal", "pytorch_default"])
def test_a_given_gain_counts_where_the_scheme_uses_one(name):
    once, twice = (
        SMALL.replace(scheme=name, gain=g).predict()["linear1"].forward.second_moment
        for g in (1.0, 2.0)
    )
    assert twice / once == pytest.approx(4 if SCHEMES[name].uses_gain else 1)


def test_dropout_divides_second_moments_by_what_it_keeps_and_drives_samples_apart():
    plain, dropped = (Experiment(depth=8, data="noise", dropout=p).predict() for p in (0.0, 0.4))
    for layer in range(1, 9):
        before, after = (p[f"linear{layer}"].forward for p in (plain, dropped))
        assert after.second_moment == pytest.approx(before.second_moment / 0.6 ** (layer - 1))
    cosine = {
        name: 1 - stats.across_samples_var / stats.second_moment
        for name, stats in (
            ("plain", plain["linear8"].forward),
            ("dropped", dropped["linear8"].forward),
        )
    }
    assert cosine["dropped"] < 0.7 * cosine["plain"]
    assert dropped["drop1"].forward.second_moment == pytest.approx(1 / 0.6)
    assert dropped["act1"].backward.second_moment == pytest.approx(
        dropped["drop1"].backward.second_moment / 0.6
    )


def test_a_constant_activation_derivative_of_zero_stops_the_gradient_without_a_nan():
    predicted = SMALL.replace(scheme="zeros", activation="relu_squared").predict()
    assert all(math.isfinite(site.backward.second_moment) for site in predicted)


# ---------------------------------------------------------------- many pre-activations at once


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_many_pairs_at_once_are_as_far_apart_as_each_alone(name):
    phi, apart = ACTIVATIONS[name], np.array([1e-6, 1e-4, 1e-2, 0.1, 0.5, 1.0, 1.3])
    for q in (0.1, 1.0, 4.0):
        made, one = responses(phi, None, np.full(len(apart), q)), phi.moments(q)
        found = pair_gaps(phi, (made, made), np.full(len(apart), q), q * apart)
        alone = [phi.pair_moments(q, each).gap for each in apart]
        assert made.squares == pytest.approx(one.second_moment, rel=1e-6)
        assert made.slope_squares == pytest.approx(one.derivative_second_moment, rel=1e-6)
        assert found == pytest.approx(alone, rel=0.01)


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "hardtanh", "selu", "relu_squared"])
def test_many_pairs_of_unequal_means_and_variances_agree_with_sums_over_a_plane(name):
    """The plane by 400 × 400 trapezoids, good to 1e-4 at a kink."""
    phi = ACTIVATIONS[name]
    means, variances, cosine = np.array([0.4, -1.3]), np.array([0.7, 2.5]), 0.6
    z = np.linspace(-8, 8, 401)
    weight = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
    u = means[0] + math.sqrt(variances[0]) * z[:, None] + 0 * z
    v = means[1] + math.sqrt(variances[1]) * (cosine * z[:, None] + math.sqrt(1 - cosine**2) * z)
    f, g = (phi(torch.from_numpy(x)).numpy() for x in (u, v))
    slope = phi.derivative(torch.from_numpy(v)).numpy()
    made = responses(phi, means, variances)
    size = math.sqrt(variances.prod())
    one, two = (made.at(np.array([index])) for index in (0, 1))
    gap = pair_gaps(phi, (one, two), np.array([size]), np.array([size * (1 - cosine)]))
    assert made.means[1] == pytest.approx(weight @ g @ weight, rel=1e-3, abs=1e-4)
    assert made.slope_means[1] == pytest.approx(weight @ slope @ weight, rel=1e-3, abs=1e-3)
    assert made.slope_squares[1] == pytest.approx(weight @ slope**2 @ weight, rel=2e-2)
    product = math.sqrt(made.squares.prod()) - gap[0]
    assert product == pytest.approx(weight @ (f * g) @ weight, rel=2e-3)


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "hardtanh", "sigmoid", "sin"])
def test_very_many_shifted_pre_activations_are_as_each_alone(name):
    """By table and one by one: to 2 % of E φ² and of E φ'², where they are not next to nothing."""
    phi, rng = ACTIVATIONS[name], np.random.default_rng(0)
    variances = np.exp(rng.uniform(-4, 4, 400))
    means = np.sqrt(1 + variances) * rng.uniform(-12, 12, 400) * rng.uniform(size=400)
    made = responses(phi, means, variances)
    parts = [responses(phi, *each) for each in np.split(np.stack([means, variances]), 4, axis=1)]
    for field in ("squares", "means", "variances", "slope_means", "slope_squares"):
        alone = np.concatenate([getattr(part, field) for part in parts])
        size = np.sqrt(made.squares) if field == "means" else 1.0
        assert getattr(made, field) / size == pytest.approx(alone / size, rel=2e-2, abs=1e-5)


# ---------------------------------------------------------------- the same numbers as the trace


@pytest.mark.parametrize(
    ("name", "data", "bias"),
    [
        ("lecun_normal", "noise", None),
        ("lecun_normal", "digits", "normal"),
        ("xavier_uniform", "noise", "pytorch_default"),
        ("xavier_uniform", "digits", None),
        ("orthogonal", "noise", "normal"),
        ("orthogonal", "digits", None),
    ],
)
def test_the_measurement_of_a_wide_tanh_net_lies_near_the_prediction(name, data, bias):
    """512 wide, 5 deep, 4 seeds. One net's rel. sd of E h² is at most √(2·5/512) = 0.14 (an input
    by itself), of the gradient about the same; 4 standard errors of 4 seeds and 0.5·l/n: 0.29.
    """
    experiment = Experiment(
        depth=5, width=512, batch_size=64, activation="tanh", scheme=name, data=data,
        bias=bias, bias_std=0.3 if bias == "normal" else None,
    )  # fmt: skip
    predicted = experiment.predict()
    runs = [experiment.replace(seed=seed).run() for seed in range(4)]
    for site in predicted:
        forward = sum(run[site.name].forward.second_moment for run in runs) / 4
        backward = sum(run[site.name].backward.second_moment for run in runs) / 4
        assert forward == pytest.approx(site.forward.second_moment, rel=0.29)
        assert backward == pytest.approx(site.backward.second_moment, rel=0.29)


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "relu", "data": "digits"},
        {"activation": "tanh", "data": "digits", "bias": "normal", "bias_std": 0.3},
        {"activation": "gelu", "data": "noise"},
        {"activation": "selu", "data": "digits", "dropout": 0.3},
        {"activation": "relu", "data": "noise", "architecture": "cnn", "width": 64},
    ],
    ids=lambda changes: f"{changes['activation']}-{changes['data']}",
)
def test_the_measured_cosine_between_inputs_lies_near_the_prediction(changes):
    """Mean over 6 networks: 5 standard errors of it, and 0.02 for what finite width adds."""
    experiment = Experiment(**({"depth": 5, "width": 512, "batch_size": 64} | changes))
    predicted = experiment.predict()
    runs = [experiment.replace(seed=seed).run(geometry=True, backward=False) for seed in range(6)]
    for site in predicted:
        seen = np.array([run[site.name].cosine for run in runs])
        error = 5 * seen.std(ddof=1) / math.sqrt(len(seen)) + 0.02
        assert abs(seen.mean() - site.cosine) < error, site.name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("data", ["noise", "digits"])
@pytest.mark.parametrize("changes", [{}, {"scheme": "uniform"}, {"scheme": "ones"}, {"bias": 0.3}])
def test_what_tells_inputs_apart_is_predicted_at_every_site(architecture, data, changes):
    predicted = SMALL.replace(architecture=architecture, data=data, **changes).predict()
    for site in predicted:
        assert site.forward.across_samples_var >= 0
        assert -1 <= site.cosine <= 1


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "relu", "data": "digits", "bias": 0.4},
        {"activation": "tanh", "data": "noise", "bias": -0.5, "scheme": "orthogonal"},
        {"activation": "sigmoid", "data": "digits", "bias": 1.0, "dropout": 0.2},
        {"activation": "gelu", "data": "digits", "bias": 0.2, "loss": "cross_entropy"},
    ],
    ids=lambda changes: f"{changes['activation']}-{changes['bias']}",
)
def test_a_constant_bias_moves_all_units_of_a_layer_alike(changes):
    """5 layers of 256, 12 seeds: 5 standard errors of the mean over the seeds, and 0.5·l/n."""
    experiment = Experiment(**({"depth": 5, "width": 256, "batch_size": 64} | changes))
    predicted = experiment.predict()
    runs = [experiment.replace(seed=seed).run() for seed in range(12)]
    scale = np.array([run["output"].backward.second_moment for run in runs])
    for site in predicted:
        for place, unit in (("forward", 1.0), ("backward", scale)):
            seen = np.array([getattr(run[site.name], place).second_moment for run in runs]) / unit
            ratio = seen / getattr(site, place).second_moment
            error = 5 * ratio.std(ddof=1) / math.sqrt(len(runs)) + 0.01
            assert abs(ratio.mean() - 1) < error, (site.name, place)


def test_digits_start_from_their_own_second_moment():
    experiment = Experiment(depth=3, activation="tanh", data="digits")
    measured = experiment.run()["input"].forward.second_moment
    # Sums of squares in float32 lose up to 1e-5.
    assert predict(experiment)["input"].forward.second_moment == pytest.approx(measured, rel=2e-5)


@pytest.mark.parametrize("phi", ["tanh", "relu", "sigmoid", "gelu"])
@pytest.mark.parametrize("loss", ["probe", "cross_entropy"])
def test_the_measurement_of_one_wide_net_on_digits_lies_near_the_prediction(phi, loss):
    """6 layers of 1024: one standard deviation of relu's E h² is √(5·6/1024) = 17 % at most.

    So 0.5 is 3 of them and of the gradient, in whose loss all samples pull alike, log₂ 2 is 4.
    """
    experiment = Experiment(
        depth=6, width=1024, activation=phi, loss=loss, batch_size=64, bias="pytorch_default"
    )
    traced, predicted = experiment.run(), experiment.predict()
    output = traced["output"].backward.second_moment
    for site in predicted:
        measured = traced[site.name]
        assert measured.forward.second_moment == pytest.approx(site.forward.second_moment, rel=0.5)
        back = measured.backward.second_moment / output / site.backward.second_moment
        assert abs(math.log2(back)) < 1, site.name


def test_under_cross_entropy_the_gradient_is_relative_to_the_outputs():
    experiment = Experiment(depth=4, width=512, activation="tanh", loss="cross_entropy")
    predicted = experiment.predict()
    assert predicted["output"].backward.second_moment == 1
    assert predicted["head"].backward.second_moment == 1
    last = SCHEMES["kaiming_normal"].gain_with("tanh") ** 2 / 512 * 10
    assert predicted["act4"].backward.second_moment == pytest.approx(last)


@pytest.mark.parametrize("data", ["noise", "digits"])
@pytest.mark.parametrize(
    "function", [torch.exp, torch.sinh, lambda z: z.abs().sqrt()], ids=["exp", "sinh", "root"]
)
def test_moments_without_end_are_told_in_words(function, data, monkeypatch):
    monkeypatch.setitem(activations._registry, "steep", replace(activation(function), name="steep"))
    predicted = Experiment(
        depth=6, width=32, activation="steep", data=data, batch_size=64
    ).predict()
    for site in predicted:
        assert (site.forward and site.backward) or site.reason


def test_dropout_under_weights_of_nonzero_mean_tells_samples_apart_by_its_masks():
    experiment = Experiment(
        depth=8, width=128, activation="softplus", scheme="uniform", dropout=0.2, data="noise",
        scheme_params={"low": 0.0, "high": 0.02},
    )  # fmt: skip
    predicted = experiment.predict()
    assert predicted["linear8"].forward.across_samples_var is None
    assert "masks" in predicted.unsaid["across_samples_var"]
    without = experiment.replace(dropout=0.0).predict()
    assert without["linear8"].forward.across_samples_var > 0


def test_where_the_signal_overflows_the_sites_say_so():
    predicted = Experiment(
        depth=300, width=128, data="noise", scheme="normal", scheme_params={"std": 2.0}
    ).predict()
    reasons = [site.reason for site in predicted]
    first = reasons.index("The signal overflows here.")
    assert all(reason == "The signal overflows here." for reason in reasons[first:])
    assert all(reason == "The forward signal overflows further on." for reason in reasons[:first])
    assert all(site.forward is not None for site in predicted[:first])
    assert math.log10(predicted[first - 1].forward.second_moment) > 280


@pytest.mark.parametrize("scheme", ["normal", "orthogonal", "kaiming_normal", "lecun_normal"])
@pytest.mark.parametrize("phi", ["relu_squared", "tanhshrink"])
@pytest.mark.parametrize("data", ["noise", "digits"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lengths_that_square_with_every_layer_end_in_a_reason(architecture, data, phi, scheme):
    """q' ~ q² or q³: within a few layers they leave float64, and their scatter before them."""
    predicted = Experiment(
        architecture=architecture, data=data, activation=phi, scheme=scheme, depth=60, width=48,
        batch_size=64,
    ).predict()  # fmt: skip
    assert all(site.forward or site.reason for site in predicted)
    for site in predicted:
        for stats in (site.forward, site.backward):
            assert stats is None or stats.low is None or 0 <= stats.low <= stats.high


def test_a_vanishing_signal_is_not_reported_as_zero():
    predicted = Experiment(
        depth=60, width=128, data="noise", scheme="normal", scheme_params={"std": 0.001}
    ).predict()
    expected = 60 * math.log10(128 * 1e-6 / 2) + math.log10(2)
    assert math.log10(predicted["linear60"].forward.second_moment) == pytest.approx(expected)


def test_a_prediction_is_plain_data():
    predicted = predict(SMALL)
    assert predicted == SMALL.predict()
    assert len(predicted) == 10
    assert predicted[0] is predicted["input"]
    assert [site.name for site in predicted[1:3]] == ["linear1", "act1"]
    assert repr(predicted) == "Prediction(10 sites)"
    with pytest.raises(KeyError, match="unknown site 'linear5'; did you mean 'linear"):
        predicted["linear5"]


def test_predicting_draws_nothing_from_torchs_global_generator():
    state = torch.random.get_rng_state()
    Experiment(depth=3, batch_size=32).predict()
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("data", ["noise", "digits"])
def test_without_its_band_a_prediction_is_the_same(data):
    experiment = SMALL.replace(data=data, activation="tanh")
    whole, bare = predict(experiment), predict(experiment, band=False)
    for a, b in zip(whole, bare, strict=True):
        assert a.forward.second_moment == b.forward.second_moment
        assert a.backward.second_moment == b.backward.second_moment
        assert b.forward.low is b.backward.high is None


@pytest.mark.parametrize("scheme", ["xavier_normal", "pytorch_default", "orthogonal"])
@pytest.mark.parametrize("phi", ["tanh", "gelu", "hardswish"])
def test_a_width_never_seen_needs_no_integral(phi, scheme, monkeypatch):
    """Moving a slider stays live: a quadrature takes half a millisecond, each layer needs two."""
    experiment = Experiment(depth=60, width=120, activation=phi, scheme=scheme, data="digits")
    for width in (60, 300, 90):
        experiment.replace(width=width).predict()
    integrated = []
    for name in ("gaussian_expectations", "pair_expectation"):
        monkeypatch.setattr(activations, name, lambda *args: integrated.append(args))
    experiment.replace(width=113).predict()
    assert not integrated


def test_where_nothing_varies_a_kink_has_the_slope_that_torch_gives_it():
    experiment = Experiment(depth=3, width=16, scheme="zeros", activation="relu")
    gradients = [site.backward.second_moment for site in experiment.predict()]
    assert gradients == [0.0] * 6 + [1.0, 1.0]
    assert [site.backward.second_moment > 0 for site in experiment.run()] == [False] * 6 + [
        True
    ] * 2
