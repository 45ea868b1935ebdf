import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from initlab import ACTIVATIONS, ARCHITECTURES, SCHEMES, Experiment

experiments = st.builds(
    Experiment,
    architecture=st.sampled_from(list(ARCHITECTURES)),
    depth=st.integers(1, 5),
    width=st.integers(1, 20),
    activation=st.sampled_from(list(ACTIVATIONS)),
    scheme=st.sampled_from(list(SCHEMES)),
    gain=st.none() | st.floats(0.1, 3),
    bias=st.sampled_from([None, "zeros", "pytorch_default", 0.5]),
    norm=st.sampled_from(["none", "batch", "layer"]),
    padding=st.sampled_from(["zeros", "circular"]),
    data=st.just("digits"),
    batch_size=st.integers(2, 16),
    loss=st.sampled_from(["probe", "cross_entropy"]),
    seed=st.integers(0, 1000),
)
relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(experiments)
@relaxed
def test_an_experiment_survives_json_and_sharing(experiment):
    assert Experiment.from_json(experiment.to_json()) == experiment
    assert Experiment.from_share(experiment.share()) == experiment
    assert hash(Experiment.from_share(experiment.share())) == hash(experiment)


@given(experiments, st.data())
@relaxed
def test_a_share_string_cut_short_is_refused(experiment, data):
    text = experiment.share()
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    with pytest.raises(ValueError, match="share string"):
        Experiment.from_share(cut)


@given(experiments)
@settings(max_examples=30, deadline=None)
def test_running_leaves_the_global_random_state_alone_and_repeats_itself(experiment):
    state = torch.get_rng_state()
    first = experiment.run()
    assert torch.equal(state, torch.get_rng_state())
    assert first.to_json() == experiment.run().to_json()


@given(experiments)
@settings(max_examples=40, deadline=None)
def test_theory_names_the_same_sites_or_says_why_not(experiment):
    prediction = experiment.predict()
    if prediction.reason:
        assert prediction.reason.endswith(".")
        assert len(prediction) == 0
    else:
        assert [site.name for site in prediction] == list(experiment.run().names)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_choice_is_predicted_or_explained(architecture, activation, scheme):
    prediction = Experiment(
        architecture=architecture, activation=activation, scheme=scheme, depth=30, data="noise"
    ).predict()
    assert prediction.reason or all(site.forward or site.reason for site in prediction)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"depth": -3}, "depth=-3"),
        ({"depth": 2.5}, "depth=2.5 must be a whole number"),
        ({"width": 0}, "width=0"),
        ({"gain": math.nan}, "gain=nan"),
        ({"gain": -1}, "gain=-1"),
        ({"activation": "relo"}, "did you mean 'relu'"),
        ({"scheme": "kaimin_normal"}, "did you mean 'kaiming_normal'"),
        ({"architecture": "mpl"}, "did you mean 'mlp'"),
        ({"data": "mnist"}, "Accepted: noise, digits"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2000}, "at most 1,797"),
        ({"loss": "cross_entropy", "data": "noise"}, "data='digits'"),
        ({"widths": ()}, "widths"),
        ({"widths": (3, 0)}, r"widths\[1\]=0"),
        ({"seed": -1}, "seed=-1"),
        ({"bias": "normal"}, "bias_std"),
        ({"norm": "batch", "batch_size": 1}, "at least 2"),
        ({"scheme_params": {"std": 1}}, "no parameter 'std'"),
        ({"depth": 10**9}, "GiB"),
        ({"depth": 10_000, "width": 1024}, "GiB"),
    ],
)
def test_bad_values_are_refused_with_argument_value_and_remedy(fields, words):
    with pytest.raises((ValueError, TypeError), match=words):
        Experiment(**fields)


def test_a_shared_absurdity_is_refused_without_being_built():
    text = Experiment().share()
    import base64
    import zlib

    packed = base64.urlsafe_b64encode(zlib.compress(b'{"depth": 1000000000}')).decode()
    with pytest.raises(ValueError, match="GiB"):
        Experiment.from_share(text.split(".")[0] + "." + packed)
    with pytest.raises(ValueError, match="unknown field"):
        Experiment.from_json('{"dpeth": 3}')
    with pytest.raises(ValueError, match="JSON"):
        Experiment.from_json("[1]")


def test_widths_decide_the_depth_and_a_new_depth_drops_them():
    experiment = Experiment(widths=(32, 16, 8))
    assert experiment.depth == 3
    assert experiment.run()["linear3"].shape == (256, 8)
    assert experiment.replace(depth=5).layer_widths == (32,) * 5
    with pytest.raises(ValueError, match="unknown field 'deep'"):
        experiment.replace(deep=3)


def test_ten_thousand_layers_are_within_the_limits():
    assert Experiment(depth=10_000, width=32, batch_size=64).depth == 10_000


def test_the_first_weights_are_independent_of_the_inputs():
    experiment = Experiment(depth=1, width=64, data="noise", scheme="normal", batch_size=64)
    weight = experiment.build().linear1.weight.detach()
    correlation = torch.corrcoef(
        torch.stack([weight.flatten(), experiment.inputs().inputs.flatten()])
    )[0, 1]
    assert abs(float(correlation)) < 5 / 64  # standard error 1/√(64·64)
