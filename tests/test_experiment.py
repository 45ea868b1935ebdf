"""Experiment: its checks, its run, and its three ways out: JSON, share string, script."""

import base64
import copy
import json
import math
import pickle
import re
import time
import zlib
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

from initlab import ACTIVATIONS, ARCHITECTURES, SCHEMES, Experiment
from initlab.data import DATA
from initlab.experiment import MEMORY_LIMIT, WORK_LIMIT
from initlab.initialize import BIASES
from initlab.networks import NORMS, PADDINGS

SMALL = Experiment(depth=3, width=8, batch_size=16)


@st.composite
def experiments(draw):
    """Any valid experiment of moderate size."""
    loss = draw(st.sampled_from(["probe", "cross_entropy"]))
    plain = Experiment(
        architecture=draw(st.sampled_from(sorted(ARCHITECTURES))),
        depth=draw(st.integers(1, 6)),
        width=draw(st.integers(1, 12)),
        widths=draw(st.none() | st.lists(st.integers(1, 12), min_size=1, max_size=5)),
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
        norm=draw(st.sampled_from(NORMS)),
        dropout=draw(st.sampled_from([0.0, 0.3])),
        padding=draw(st.sampled_from(PADDINGS)),
        data="digits" if loss == "cross_entropy" else draw(st.sampled_from(DATA)),
        batch_size=draw(st.integers(2, 40)),
        loss=loss,
        seed=draw(st.integers(0, 2**31 - 1)),
    )
    scheme_name = draw(st.sampled_from(plain.schemes))
    gains = st.floats(0.01, 5) if scheme_name == "critical" else st.none() | st.floats(0.01, 5)
    params = {
        "normal": {"std": draw(st.floats(0, 3)), "mean": draw(st.floats(-1, 1))},
        "constant": {"val": draw(st.floats(-1, 1))},
        "kaiming_normal": {"mode": draw(st.sampled_from(["fan_in", "fan_out"]))},
        "kaiming_uniform": {"a": draw(st.none() | st.floats(0, 1))},
    }.get(scheme_name)
    bias = draw(st.none() | st.sampled_from(BIASES) | st.floats(-2, 2))
    return plain.replace(
        widths=plain.widths,
        scheme=scheme_name,
        scheme_params=draw(st.sampled_from([params, None])),
        gain=draw(gains),  # not every activation has a critical one
        bias=bias,
        bias_std=draw(st.floats(0, 2)) if bias == "normal" else None,
    )


# ---------------------------------------------------------------- running


@settings(max_examples=25, deadline=None)
@given(experiment=experiments())
def test_running_twice_gives_the_same_trace_and_leaves_torchs_generator_alone(experiment):
    """layer norm over a single unit gives 0, and its gradient may be nan: compared as text."""
    state = torch.random.get_rng_state()
    first, second = experiment.run(), experiment.run()
    assert first.to_json() == second.to_json()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_run_does_not_depend_on_torchs_global_generator():
    for norm in NORMS:
        experiment = SMALL.replace(norm=norm, loss="cross_entropy")
        torch.manual_seed(1)
        first = experiment.run()
        torch.manual_seed(2)
        assert experiment.run().to_json() == first.to_json()


def test_another_seed_draws_other_inputs_weights_and_cotangents():
    one, other = SMALL, SMALL.replace(seed=1)
    assert not torch.equal(one.inputs().inputs, other.inputs().inputs)
    assert not torch.equal(one.build()[0].weight, other.build()[0].weight)
    assert (
        len({seed for e in (one, other) for seed in (e.data_seed, e.weight_seed, e.probe_seed)})
        == 6
    )


def test_inputs_and_weights_of_one_experiment_are_independent():
    experiment = Experiment(depth=1, width=64, data="noise", scheme="normal")
    inputs, weights = experiment.inputs().inputs, experiment.build()[0].weight.detach()
    assert not torch.allclose(inputs[:4, :64], weights[:4], atol=0.1)
    correlation = torch.corrcoef(torch.stack([inputs[:64].flatten(), weights.flatten()]))[0, 1]
    assert abs(correlation) < 5 / 64  # 4,096 pairs: s.e. 1/64


def test_the_network_has_the_fields_sizes_and_a_head_under_cross_entropy_only():
    model = SMALL.build()
    assert [name for name, _ in model.named_children()][-2:] == ["linear3", "act3"]
    assert model.linear1.weight.shape == (8, 64)
    assert SMALL.replace(data="noise").build().linear1.weight.shape == (8, 8)
    head = SMALL.replace(loss="cross_entropy").build().head
    assert head.weight.shape == (10, 8)
    pyramid = Experiment(widths=[9, 5], data="noise")
    assert pyramid.sizes == (9, 9, 5)
    assert (pyramid.depth, pyramid.width) == (2, 9)


def test_a_cnn_reads_images_and_honours_its_padding():
    experiment = SMALL.replace(architecture="cnn", padding="circular")
    assert experiment.inputs().inputs.shape == (16, 1, 8, 8)
    assert experiment.build().conv2.padding_mode == "circular"
    assert experiment.run()["act3"].shape == (16, 8, 8, 8)
    assert experiment.replace(data="noise").inputs().inputs.shape == (16, 8, 8, 8)


def test_the_probe_enters_at_the_last_activation_and_has_unit_variance():
    """16 × 4,096 entries: s.e. of the second moment √2/256."""
    trace = Experiment(depth=2, width=4096, batch_size=16, data="noise").run()
    assert trace["act2"].backward.second_moment == pytest.approx(1, abs=5 * 2**0.5 / 256)
    assert trace.loss is None


def test_under_cross_entropy_the_trace_has_a_loss_and_weight_gradients():
    trace = SMALL.replace(loss="cross_entropy").run()
    assert 0 < trace.loss < 10
    assert trace.num_classes == 10
    assert trace["head"].weight_grad.second_moment > 0


def test_the_report_of_the_initialization_comes_with_the_model():
    model, report = SMALL.replace(bias="normal", bias_std=0.5).build_with_report()
    assert [row.name for row in report] == [name for name, _ in model.named_parameters()]
    assert report["linear1.bias"].scheme == "normal"


def test_options_of_a_run_are_those_of_trace():
    trace = SMALL.run(backward=False, statistics="moments")
    assert trace["act1"].backward is None


def test_a_run_without_weight_gradients_shows_the_same_signals():
    whole, light = SMALL.run(), SMALL.run(weight_grad=False)
    for site, other in zip(whole, light, strict=True):
        assert (site.forward, site.backward) == (other.forward, other.backward)
        assert other.weight_grad is None


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "mpl"}, "unknown architecture 'mpl'; did you mean 'mlp'"),
        ({"activation": "rellu"}, "unknown activation 'rellu'; did you mean 'relu'"),
        ({"scheme": "kaimin_normal"}, "unknown scheme 'kaimin_normal'; did you mean 'kaiming_norm"),
        ({"norm": "bach"}, "unknown norm 'bach'; did you mean 'batch'"),
        ({"dropout": 1.0}, "dropout=1.0 must be a probability of at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout=-0.1 must be a probability of at least 0 and below 1"),
        ({"padding": "zeroes"}, "unknown padding 'zeroes'; did you mean 'zeros'"),
        ({"data": "digit"}, "unknown data 'digit'; did you mean 'digits'"),
        ({"loss": "crossentropy"}, "unknown loss 'crossentropy'; did you mean 'cross_entropy'"),
        ({"activation": ["relu"]}, r"unknown activation \['relu'\]"),
        ({"scheme": None}, "unknown scheme None"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"depth": -3}, "depth=-3 must be at least 1"),
        ({"width": 0}, "width=0 must be at least 1"),
        ({"widths": []}, "widths=.* must be a sequence of at least one whole number"),
        ({"widths": "84"}, "widths='84' must be a sequence"),
        ({"widths": 5}, "widths=5 must be a sequence"),
        ({"widths": [4, 0]}, r"widths\[1\]=0 must be at least 1"),
        ({"gain": math.nan}, "gain=nan must be a finite number"),
        ({"gain": -1.0}, "gain=-1.0 must be greater than 0"),
        ({"bias": math.inf}, "bias=inf must be a finite number"),
        ({"bias": "zero"}, "unknown bias 'zero'; did you mean 'zeros'"),
        ({"bias": "normal"}, "bias='normal' and bias_std go together"),
        ({"bias_std": 1.0}, "bias='normal' and bias_std go together"),
        ({"bias": "normal", "bias_std": -1.0}, "bias_std=-1.0 must be at least 0"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"batch_size": 1798}, "batch_size=1798 must be at most 1,797, the number of digits"),
        ({"norm": "batch", "batch_size": 1}, "batch_size=1 leaves norm='batch' nothing"),
        ({"loss": "cross_entropy", "data": "noise"}, "needs labels, which data='noise' has not; "),
        ({"seed": -1}, "seed=-1 must be between 0 and"),
        ({"seed": 2**31}, "seed=2147483648 must be between 0 and"),
        ({"scheme": "normal", "scheme_params": {"std": -1.0}}, "std=-1.0 must be at least 0"),
        ({"scheme": "uniform", "scheme_params": {"low": 2.0}}, "low=2.0 must be below high=1.0"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_values_are_refused_with_argument_value_and_remedy(fields, message):
    with pytest.raises(ValueError, match=message):
        Experiment(**fields)
    with pytest.raises(ValueError, match=message):
        Experiment().replace(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 2.0}, "depth=2.0 must be a whole number"),
        ({"depth": True}, "depth=True must be a whole number"),
        ({"width": "64"}, "width='64' must be a whole number"),
        ({"gain": "2"}, "gain='2' must be a number"),
        ({"bias": True}, "bias=True must be a number"),
        ({"bias": [1]}, r"bias=\[1\] must be a number"),
        ({"seed": 1.5}, "seed=1.5 must be a whole number"),
        ({"seed": None}, "seed=None must be a whole number"),
        ({"scheme_params": [1]}, "scheme_params=.* must be a mapping"),
        ({"scheme_params": {"std": 1.0}}, "'kaiming_normal' has no parameter 'std'"),
    ],
    ids=str,
)
def test_values_of_a_wrong_type_are_refused(fields, message):
    with pytest.raises(TypeError, match=message):
        Experiment(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"depth": 10**9},
        {"width": 10**6},
        {"widths": (10**7, 10**7)},
        {"batch_size": 10**9, "data": "noise"},
        {"architecture": "cnn", "width": 4096, "depth": 50},
    ],
    ids=str,
)
def test_sizes_are_refused_at_once_with_the_estimate(fields):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"needs about [\d,.e+]+ (GiB|operations).*smaller depth"):
        Experiment(**fields)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "fields",
    [{"depth": 10_000, "width": 64}, {"depth": 100, "width": 1024}, {"depth": 1, "width": 10_000}],
    ids=str,
)
def test_what_the_sliders_offer_is_not_refused(fields):
    memory, work = Experiment(**fields).estimate()
    assert memory <= MEMORY_LIMIT
    assert work <= WORK_LIMIT


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_estimate_counts_the_weights_that_the_network_has(architecture):
    experiment = Experiment(architecture=architecture, depth=5, width=32)
    weights = sum(p.numel() for p in experiment.build().parameters() if p.dim() > 1)
    positions = 64 if architecture == "cnn" else 1
    assert experiment.estimate()[1] == 6 * weights * positions * 256
    assert experiment.estimate() == experiment.replace(widths=(32,) * 5).estimate()


def test_an_unknown_field_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="unknown field 'dept'; did you mean 'depth'"):
        Experiment().replace(dept=3)


# ---------------------------------------------------------------- as a value


def test_an_experiment_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        SMALL.depth = 4
    with pytest.raises(TypeError):
        Experiment(scheme="normal", scheme_params={"std": 0.1}).scheme_params["std"] = 1.0


def test_a_list_of_widths_is_kept_as_a_tuple_and_numpy_numbers_as_plain_ones():
    assert Experiment(widths=[3, 4]) == Experiment(widths=(3, 4))
    experiment = Experiment(
        depth=np.int64(3), gain=np.float64(1.5), bias=np.float32(0.5),
        scheme="normal", scheme_params={"std": np.float64(0.1)},
    )  # fmt: skip
    assert [type(experiment.depth), type(experiment.gain), type(experiment.bias)] == [
        int, float, float,
    ]  # fmt: skip
    assert "np." not in experiment.code()
    assert Experiment.from_json(experiment.to_json()) == experiment


def test_replacing_depth_or_width_drops_an_explicit_list_of_widths():
    pyramid = Experiment(widths=(9, 5))
    assert pyramid.replace(depth=4).layer_widths == (9, 9, 9, 9)
    assert pyramid.replace(activation="tanh").widths == (9, 5)


def test_replacing_the_scheme_drops_the_parameters_of_the_old_one():
    normal = Experiment(scheme="normal", scheme_params={"std": 0.1})
    assert normal.replace(scheme="zeros").scheme_params == {}
    assert normal.replace(scheme="normal").scheme_params == {"std": 0.1}


def test_replacing_a_normal_bias_drops_its_std():
    normal = Experiment(bias="normal", bias_std=0.1)
    assert normal.replace(bias="zeros").bias_std is None
    assert normal.replace(bias_std=0.2).bias_std == 0.2


@given(experiment=experiments())
def test_an_experiment_survives_json_sharing_pickling_and_copying(experiment):
    assert Experiment.from_json(experiment.to_json()) == experiment
    assert Experiment.from_share(experiment.share()) == experiment
    assert pickle.loads(pickle.dumps(experiment)) == experiment
    assert copy.deepcopy(experiment) == experiment
    assert hash(Experiment.from_share(experiment.share())) == hash(experiment)
    assert json.loads(experiment.to_json()) == experiment.changed()


def test_json_and_share_string_of_the_default_are_short():
    assert Experiment().to_json() == "{}"
    assert len(Experiment().share()) < 25
    assert len(Experiment(depth=50, activation="tanh", scheme="xavier_normal").share()) < 100


@given(experiment=experiments(), data=st.data())
def test_a_share_string_cut_short_is_refused_in_words(experiment, data):
    text = experiment.share()
    with pytest.raises(ValueError, match=r"share string"):
        Experiment.from_share(text[: data.draw(st.integers(0, len(text) - 1))])


@given(experiment=experiments(), data=st.data())
def test_an_altered_share_string_is_refused_or_means_a_valid_experiment(experiment, data):
    text = experiment.share()
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("Az09-_.!é\x00"))
    altered = text[:place] + letter + text[place + 1 :]
    assume(altered != text)
    try:
        found = Experiment.from_share(altered)
    except ValueError:
        return
    assert isinstance(found, Experiment)


@example("initlab1.")
@example("initlab1.AAAA")
@example("")
@given(text=st.text() | st.text().map("initlab1.".__add__))
def test_any_other_text_is_refused_as_a_share_string(text):
    with pytest.raises(ValueError, match="share string"):
        Experiment.from_share(text)


def shared(payload: bytes) -> str:
    return "initlab1." + base64.urlsafe_b64encode(zlib.compress(payload)).decode().rstrip("=")


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b'{"depth": 1000000000}', "depth=1,000,000,000 with width=128.*GiB of memory"),
        (b'{"depth": "3"}', "depth='3' must be a whole number"),
        (b'{"depth": NaN}', "depth=nan must be a whole number"),
        (b'{"gain": Infinity}', "gain=inf must be a finite number"),
        (b'{"activation": {"relu": 1}}', "unknown activation"),
        (b'{"depht": 3}', "unknown field 'depht'; did you mean 'depth'"),
        (b"[]", "an object, not list"),
        (b"depth", "not an experiment in JSON"),
        (b"\xff\xfe", "damaged"),
        (b"[" * 90_000, "not an experiment in JSON"),
        (b"{" + b" " * 10**8 + b"}", "cut short"),  # unpacked no further than the limit
        (b'{"depth":' + b"9" * 5000 + b"}", "not an experiment in JSON"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_share_string_that_asks_for_nonsense_is_refused(payload, message):
    with pytest.raises(ValueError, match=message):
        Experiment.from_share(shared(payload))


def test_spaces_around_a_share_string_do_no_harm_and_other_types_are_refused():
    assert Experiment.from_share(f"  {SMALL.share()}\n") == SMALL
    with pytest.raises(TypeError, match="a share string is a str, not a NoneType"):
        Experiment.from_share(None)


# ---------------------------------------------------------------- as a script

LINE = re.compile(r"layer (\d+): E h\^2 = (\S+), E \(dL/dh\)\^2 = (\S+)")


def script_agrees_with_run(experiment, capsys):
    """The script, executed in a namespace of its own, prints what a run measures to 7 digits."""
    state = torch.random.get_rng_state()
    exec(compile(experiment.code(), "script", "exec"), {"__name__": "__main__"})
    torch.random.set_rng_state(state)
    printed = [tuple(map(float, row)) for row in LINE.findall(capsys.readouterr().out)]
    sites = [site for site in experiment.run() if site.kind == "affine"]
    assert [int(number) for number, _, _ in printed] == list(range(1, len(sites) + 1))
    for (_, forward, backward), site in zip(printed, sites, strict=True):
        assert forward == pytest.approx(site.forward.second_moment, rel=1e-5)
        assert backward == pytest.approx(site.backward.second_moment, rel=1e-4, abs=1e-30)


@pytest.mark.parametrize(
    ("architecture", "data", "loss"),
    [
        (architecture, *rest)
        for architecture, rest in product(
            ARCHITECTURES,
            [("noise", "probe"), ("digits", "probe"), ("digits", "cross_entropy")],
        )
    ],
)
@pytest.mark.parametrize("norm", NORMS)
def test_the_script_prints_the_numbers_of_the_run(architecture, data, loss, norm, capsys):
    experiment = SMALL.replace(
        architecture=architecture, data=data, loss=loss, norm=norm, padding="circular", seed=3
    )
    script_agrees_with_run(experiment, capsys)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_script_spells_every_activation(name, capsys):
    script_agrees_with_run(SMALL.replace(activation=name), capsys)


@pytest.mark.parametrize("bias", [None, "pytorch_default", 0.5])
@pytest.mark.parametrize(
    ("architecture", "name"),
    [(a, name) for a in ARCHITECTURES for name in SMALL.replace(architecture=a).schemes],
)
def test_the_script_spells_every_scheme(architecture, name, bias, capsys):
    experiment = SMALL.replace(architecture=architecture, scheme=name, activation="tanh", bias=bias)
    script_agrees_with_run(experiment, capsys)


def test_a_scheme_that_cannot_fill_a_weight_of_the_network_is_refused_with_the_reason():
    for changes, message in (
        ({"scheme": "dirac"}, r"needs a convolution's kernel .* got shape \(8, 64\)"),
        ({"scheme": "identity", "architecture": "cnn"}, r"got shape \(8, 1, 3, 3\)"),
        ({"scheme": "looks_linear", "width": 7}, r"takes even sizes, got shape \(7, 64\)"),
        ({"scheme": "delta_orthogonal", "architecture": "cnn", "widths": (8, 4)}, "got 8 to 4"),
        (
            {"scheme": "dirac", "architecture": "cnn", "loss": "cross_entropy"},
            r"got shape \(10, 8\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            SMALL.replace(**changes)


def test_a_critical_point_that_does_not_exist_is_refused():
    for changes in ({"activation": "softplus"}, {"scheme_params": {"sigma_b": 0.1}}):
        with pytest.raises(ValueError, match="has no edge of chaos at sigma_b="):
            SMALL.replace(scheme="critical", **changes)
    assert SMALL.replace(scheme="critical", activation="softplus", gain=1.0).run()


def test_the_schemes_of_an_experiment_are_those_that_run():
    for architecture in ARCHITECTURES:
        experiment = SMALL.replace(architecture=architecture)
        for name in SCHEMES:
            if name in experiment.schemes:
                assert len(experiment.replace(scheme=name).run())
            else:
                with pytest.raises(ValueError, match=f"scheme {name!r}"):
                    experiment.replace(scheme=name)


@pytest.mark.parametrize(
    "fields",
    [
        {"gain": 1.7},
        {"bias": "normal", "bias_std": 0.3},
        {"widths": (9, 5, 12)},
        {"depth": 12},
        {"scheme_params": {"mode": "fan_out"}},
        {"scheme_params": {"a": 0.3}},
        {"scheme": "normal", "scheme_params": {"std": 0.01, "mean": 0.1}},
        {"scheme": "trunc_normal", "scheme_params": {"a": 0.0, "std": 0.1, "mean": -0.1}},
        {"scheme": "critical", "scheme_params": {"sigma_b": 0.2}, "activation": "tanh"},
        {"scheme": "variance_scaling", "scheme_params": {"mode": "fan_avg"}},
        {"scheme": "siren", "scheme_params": {"omega": 1.0}, "activation": "sin"},
    ],
    ids=str,
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_script_spells_every_option(fields, architecture, capsys):
    script_agrees_with_run(SMALL.replace(architecture=architecture, **fields), capsys)


def test_the_script_imports_nothing_of_initlab():
    for experiment in (SMALL, SMALL.replace(data="noise")):
        code = experiment.code()
        assert "initlab" not in code
        assert ("sklearn" in code) == (experiment.data == "digits")
        assert max(map(len, code.splitlines())) <= 140


def test_every_module_of_a_built_network_is_torchs_own_or_an_elementwise_one():
    for name in ACTIVATIONS:
        for module in SMALL.replace(activation=name).build().modules():
            assert isinstance(module, nn.Module)
            assert type(module).__module__.startswith("torch.nn") or "initlab" in str(type(module))
