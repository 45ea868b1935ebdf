import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hammering import hammer
from torch import nn

from initlab import SCHEMES, SchemeExplorer
from initlab.schemes import Fans, scheme
from initlab.weights import LAYER_KINDS, LayerDraw
from initlab.weights.laws import (
    DENSITIES,
    Ensemble,
    marchenko_pastur,
    singular_value_law,
    weight_law,
)

LINEAR = LayerDraw(in_features=120, out_features=200, activation="tanh")
CONV = LayerDraw(layer="Conv2d", in_channels=32, out_channels=64, activation="tanh")
GROUPED = CONV.replace(groups=4)
LAYERS = {"linear": LINEAR, "convolution": CONV, "grouped": GROUPED}
DRAWS = [
    pytest.param(base.replace(scheme=name), id=f"{kind}-{name}")
    for kind, base in LAYERS.items()
    for name in base.schemes
]
TINY = LayerDraw(in_features=12, out_features=8)


@pytest.fixture
def explorer():
    return SchemeExplorer(TINY)


# ---------------------------------------------------------------- the laws


@pytest.mark.parametrize("draw", DRAWS)
def test_weights_follow_the_law_that_is_drawn_over_them(draw):
    """Kolmogorov–Smirnov at 1e-5 beside the atoms; the atoms' shares within 5 standard errors."""
    drawn = draw.draw()
    law, weights = drawn.law, drawn.matrix.ravel().astype(float)
    assert law is not None
    beside = np.ones(len(weights), dtype=bool)
    for value, share in law.atoms:
        found = weights == np.float32(value)
        error = 5 * math.sqrt(share * (1 - share) / len(weights)) + 1e-12
        assert abs(found.mean() - share) <= error
        beside &= ~found
    if law.density is None:
        assert not beside.any()
        return
    ends = np.linspace(*law.support, 4001)
    steps = law.density((ends[1:] + ends[:-1]) / 2) * np.diff(ends)
    assert steps.sum() == pytest.approx(1, abs=1e-4)
    rest = np.sort(weights[beside])
    below = np.interp(rest, ends, np.concatenate([[0.0], np.cumsum(steps)]))
    distance = np.abs(below - (np.arange(len(rest)) + 0.5) / len(rest)).max()
    assert distance * math.sqrt(len(rest)) < 2.5


@pytest.mark.parametrize("draw", DRAWS)
def test_singular_values_follow_their_law(draw):
    """Known exactly to float32; those of independent entries to 4 % of the largest at this size."""
    drawn = draw.draw()
    if draw.scheme == "sparse":
        assert drawn.expected is None
        return
    assert drawn.expected is not None
    _, expected = drawn.expected
    iid = drawn.ensemble.scheme.ensemble == "iid"
    np.testing.assert_allclose(
        drawn.singular_values, expected, rtol=0, atol=(0.04 if iid else 1e-5) * expected[0] + 1e-9
    )


@pytest.mark.parametrize(
    ("params", "words"),
    [({"distribution": "uniform"}, "ends"), ({"distribution": "normal"}, "no ends"),
     ({"distribution": "truncated_normal"}, "ends")],
)  # fmt: skip
def test_variance_scaling_has_the_law_that_its_parameter_names(params, words):
    drawn = LINEAR.replace(scheme="variance_scaling", scheme_params=params).draw()
    low, high = drawn.law.support
    beyond = drawn.law.density(np.array([low * 1.01, high * 1.01]))
    assert (beyond == 0).all() == (words == "ends")
    assert low <= drawn.matrix.min() <= 0.8 * low


@pytest.mark.parametrize("mirror", ["both", "outputs", "inputs"])
def test_each_mirroring_of_looks_linear_raises_the_singular_values_by_root_two(mirror):
    draw = LINEAR.replace(scheme="looks_linear", scheme_params={"mirror": mirror}, gain=1.5)
    drawn = draw.draw()
    assert drawn.singular_values[0] == pytest.approx(3 if mirror == "both" else 1.5 * 2**0.5)
    np.testing.assert_allclose(drawn.singular_values, drawn.expected[1], atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_entries_of_a_small_rotation_have_a_law_too(size):
    ensemble = Ensemble(scheme("orthogonal"), Fans(size, size, 1.0, size), 0.0, size**-0.5)
    law = weight_law(ensemble)
    if size == 1:
        assert law.atoms == ((-1.0, 0.5), (1.0, 0.5))
        return
    ends = np.linspace(-1, 1, 200_001)
    middles = (ends[1:] + ends[:-1]) / 2
    masses = law.density(middles) * np.diff(ends)
    assert masses.sum() == pytest.approx(1, abs=3e-3)
    assert (masses * middles**2).sum() == pytest.approx(1 / size, abs=3e-3)


def test_marchenko_pastur_has_the_moments_of_a_random_matrix():
    """E λ/max = 1 and Var λ/max = min/max, of the squares of the singular values."""
    squares = marchenko_pastur(50, 200, 100_000) ** 2 / 200
    assert squares.mean() == pytest.approx(1, abs=1e-4)
    assert squares.var() == pytest.approx(1 / 4, abs=1e-3)
    wide = marchenko_pastur(200, 50, 100_000)
    np.testing.assert_array_equal(wide, marchenko_pastur(50, 200, 100_000))


def test_a_mean_too_small_for_the_noise_does_not_stand_out():
    """Below σ(mn)^¼ a mean leaves no trace in the singular values."""
    fans = Fans(100, 100, 1.0, 100)
    hidden = Ensemble(scheme("normal"), fans, 0.09, 1.0)  # θ = 9, where 10 would show
    assert singular_value_law(hidden)[0] == "Marchenko–Pastur"
    seen = Ensemble(scheme("normal"), fans, 0.2, 1.0)
    name, values = singular_value_law(seen, maps=3)
    assert "mean" in name
    assert len(values) == 300
    assert (values > 20.5).sum() == 3  # one per map, above the bulk's 20


def test_every_tensor_scheme_has_a_law():
    random = {name for name, each in SCHEMES.items() if not each.whole_model}
    assert random - set(DENSITIES) == {"zeros", "ones", "constant"}  # all at one value


def test_a_scheme_of_the_users_own_is_drawn_without_a_law():
    law = weight_law(Ensemble(scheme("normal"), Fans(4, 4, 1, 4), 0.0, 1.0))
    assert law.density is not None
    unknown = replace(scheme("normal"), name="my_own")
    assert weight_law(Ensemble(unknown, Fans(4, 4, 1, 4), 0.0, 1.0)) is None


# ---------------------------------------------------------------- one layer, drawn


@pytest.mark.parametrize("draw", DRAWS)
def test_the_code_draws_the_very_weights_that_are_shown(draw):
    scope: dict = {}
    exec(draw.code(), scope)
    np.testing.assert_array_equal(
        scope["layer"].weight.detach().flatten(1).numpy(), draw.draw().matrix
    )


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_every_kind_of_layer_is_built_by_its_code(kind):
    draw = LayerDraw("xavier_uniform", layer=kind, in_channels=8, out_channels=4, kernel_size=2)
    scope: dict = {}
    exec(draw.code(), scope)
    assert type(scope["layer"]) is getattr(nn, kind)
    np.testing.assert_array_equal(
        scope["layer"].weight.detach().flatten(1).numpy(), draw.draw().matrix
    )


def test_drawing_uses_up_nobodys_random_numbers():
    before = torch.random.get_rng_state()
    LINEAR.draw()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_fans_are_the_true_ones_and_torchs_are_said_where_they_differ():
    row = GROUPED.replace(scheme="xavier_normal").draw().row
    assert (row.fan_in, row.fan_out) == (32 // 4 * 9, 64 // 4 * 9)
    assert row.note == f"torch's fans are {32 // 4 * 9} and {64 * 9}"
    assert CONV.draw().row.note == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"layer": "Conv4d"}, "did you mean 'Conv"), ({"in_features": 0}, "in_features=0"),
     ({"layer": "Conv2d", "groups": 3}, "groups=3 must divide in_channels=64"),
     ({"layer": "Conv2d", "kernel_size": 0}, "kernel_size=0"), ({"seed": -1}, "seed=-1"),
     ({"seed": 2**63}, f"seed={2**63} must be between 0 and {2**63 - 1}"),
     ({"gain": 0.0}, "gain=0.0"), ({"activation": "rellu"}, "did you mean 'relu'"),
     ({"in_features": 10**5}, r"25,600,000 weights; at most 2,000,000 are shown"),
     ({"scheme": "dirac"}, "needs a convolution's kernel"), ({"scheme": "lsuv"}, "whole model")],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=words):
        LayerDraw(**changes)


# ---------------------------------------------------------------- the explorer


def test_every_choice_of_every_menu_draws(explorer):
    for layer in LAYER_KINDS:
        explorer.experiment = TINY.replace(layer=layer, in_channels=4, out_channels=8)
        for name in explorer.controls["scheme"].options:
            explorer.controls["scheme"].value = name
            assert not explorer.live.dimmed, (layer, name, explorer.status)
            assert explorer.drawn.row.scheme == name
            assert name in explorer.summary()
    explorer.reset()
    for name in explorer.controls["activation"].options:
        explorer.controls["activation"].value = name
        assert f"Reading {name}" in explorer.status


def test_every_control_moves_the_picture_or_the_words(explorer):
    moves = {
        "scheme": "normal", "scheme_params": {"mean": 0.5, "std": 0.1}, "in_features": 20,
        "out_features": 21, "seed": 3, "layer": "Conv2d", "in_channels": 8, "out_channels": 16,
        "kernel_size": 1, "groups": 2, "activation": "tanh", "gain": 2.0,
    }  # fmt: skip
    assert moves.keys() == explorer.controls.keys()
    for name, value in moves.items():
        if name == "activation":  # only some schemes listen to it and to the gain
            explorer.controls["scheme"].value = "kaiming_normal"
        seen = explorer.live.png + explorer.status.encode()
        explorer.controls[name].value = value
        assert explorer.live.png + explorer.status.encode() != seen, name
        assert getattr(explorer.experiment, name) == value
    assert not explorer.live.dimmed


def test_sizes_are_offered_where_the_layer_has_them(explorer):
    def offered():
        names = ("in_features", "out_features", "in_channels", "kernel_size", "groups")
        return [name for name in names if explorer.controls[name].layout.display != "none"]

    assert offered() == ["in_features", "out_features"]
    explorer.controls["layer"].value = "Conv1d"
    assert offered() == ["in_channels", "kernel_size", "groups"]


def test_schemes_that_cannot_fill_the_layer_are_off_the_menu_with_the_reason(explorer):
    menu = explorer.controls["scheme"]
    assert "identity" in menu.options
    assert "dirac" not in menu.options
    explorer._folds[1].selected_index = 0
    assert "needs a convolution" in explorer._left_out.value
    menu.value = "identity"
    explorer.controls["layer"].value = "Conv2d"
    assert "needs a matrix" in explorer.status
    assert explorer.live.dimmed
    menu.value = "orthogonal"
    assert not explorer.live.dimmed
    assert "identity" not in menu.options
    assert "needs a matrix" in explorer._left_out.value


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("in_features", 0, "in_features=0"), ("out_features", 10**6, "at most 2,000,000"),
     ("gain", float("nan"), "gain=nan"), ("seed", -1, "seed=-1")],
)  # fmt: skip
def test_a_bad_value_is_said_and_dims_the_picture_until_it_is_mended(explorer, name, value, words):
    good = explorer.controls[name].value
    explorer.controls[name].value = value
    assert words in explorer.status
    assert explorer.live.dimmed
    assert explorer.drawn is None
    explorer.controls[name].value = good
    assert not explorer.live.dimmed
    assert explorer.experiment == TINY


@pytest.mark.parametrize(
    ("mean", "std"), [(1.0, 0.0), (1.0, 1e-9), (1e-3, 1e-30), (0.0, 1e30), (-3.0, 0.001)]
)
def test_any_scale_can_be_shown(explorer, mean, std):
    explorer.experiment = TINY.replace(scheme="normal", scheme_params={"mean": mean, "std": std})
    assert not explorer.live.dimmed, explorer.status
    assert len(explorer.live.readout[0]["rows"]) < 2000


@pytest.mark.parametrize(
    "sizes",
    [{"in_features": 1, "out_features": 1}, {"in_features": 2, "out_features": 2},
     {"in_features": 1, "out_features": 7}, {"layer": "Conv2d", "groups": 64},
     {"layer": "Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": 1},
     {"layer": "Conv3d", "in_channels": 3, "out_channels": 6, "groups": 3, "kernel_size": 2}],
)  # fmt: skip
def test_small_and_depthwise_layers_can_be_shown(explorer, sizes):
    base = LayerDraw("normal", **sizes)
    for name in base.schemes:
        explorer.experiment = base.replace(scheme=name)
        assert not explorer.live.dimmed, (name, explorer.status)


def test_an_activation_without_a_critical_point_is_said(explorer):
    explorer.controls["scheme"].value = "critical"
    explorer.controls["activation"].value = "softplus"
    assert "has no edge of chaos" in explorer.status
    assert explorer.live.dimmed


def test_the_words_say_what_becomes_of_the_signal():
    words = {
        ("kaiming_normal", "relu"): "keep E h²",
        ("pytorch_default", "relu"): "by 0.167 per layer, by 2·10⁻⁸ in ten",
        ("xavier_normal", "tanh"): "by 0.394.",
        ("orthogonal", "identity"): "All singular values are 1",
        ("constant", "relu"): "All 65,536 weights are 0.1",
        ("sparse", "relu"): "no law of them is known",
    }
    for (name, phi), part in words.items():
        explorer = SchemeExplorer(LayerDraw(name, activation=phi))
        assert part in explorer.status, explorer.status


def test_no_factor_is_promised_where_weights_have_a_mean(explorer):
    explorer.controls["scheme"].value = "uniform"  # on [0, 1]
    assert "E h²" not in explorer.status
    explorer.controls["scheme_params"].value = {"low": -1.0, "high": 1.0}
    assert "E h²" in explorer.status


def test_facts_hold_the_formula_the_source_and_the_numbers(explorer):
    explorer.experiment = GROUPED.replace(scheme="xavier_normal")
    chosen = SCHEMES["xavier_normal"]
    assert f"$\\displaystyle {chosen.formula}$" in explorer._formula.value
    for part in ("fan_in 72, fan_out 144", "torch&#x27;s fans are 72 and 576", "gain 1",
                 "Glorot &amp; Bengio 2010"):  # fmt: skip
        assert part in explorer._facts.value, explorer._facts.value


def test_the_gain_that_is_shown_is_the_one_that_the_slope_sets(explorer):
    explorer.controls["activation"].value = "tanh"
    explorer.controls["scheme_params"].value = {"mode": "fan_in", "a": 1.0}
    assert "gain 1<br>" in explorer._facts.value
    explorer.controls["gain"].value = 2.0
    assert "gain=2.0 and the scheme's own a or scale" in explorer.status
    explorer.controls["scheme_params"].value = {"mode": "fan_in", "a": None}
    assert "gain 2<br>" in explorer._facts.value


def test_the_fold_shows_the_code_of_what_is_shown(explorer):
    explorer._folds[0].selected_index = 0
    assert explorer._code.value == explorer.code()
    explorer.controls["scheme"].value = "orthogonal"
    assert "nn.init.orthogonal_(layer.weight)" in explorer._code.value


def test_resample_and_reset(explorer):
    first = explorer.drawn.matrix
    explorer.resample()
    assert explorer.experiment.seed == 1
    assert not np.array_equal(explorer.drawn.matrix, first)
    explorer.controls["layer"].value = "Conv2d"
    explorer.reset()
    assert explorer.experiment == TINY
    np.testing.assert_array_equal(explorer.drawn.matrix, first)


def test_pointing_reads_drawn_and_intended_numbers(explorer):
    weights, _, _, values = explorer.live.readout
    assert any("intended" in text for _, text in weights["rows"])
    assert values["rows"][0][1].startswith("singular value 1: drawn ")
    shares = [float(text.split(": ")[1].split("%")[0]) for _, text in weights["rows"]]
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_many_threads_end_on_what_the_controls_say(explorer):
    sequences = {
        "scheme": ["normal", "zeros", "uniform", "orthogonal", "trunc_normal", "normal"],
        "in_features": range(2, 14),
        "activation": ["tanh", "relu", "gelu"] * 3,
    }

    hammer(explorer, **sequences)
    now = explorer.experiment
    assert (now.scheme, now.in_features, now.activation) == ("normal", 13, "gelu")
    alone = SchemeExplorer(now)
    assert explorer.live.png == alone.live.png
    assert explorer.live.alt == alone.live.alt
    assert explorer.status == alone.status


def test_only_a_scheme_or_a_layer_draw_can_be_shown(explorer):
    assert SchemeExplorer("orthogonal").experiment == LayerDraw("orthogonal")
    with pytest.raises(ValueError, match="did you mean 'kaiming_normal'"):
        SchemeExplorer("kaimin_normal")
    with pytest.raises(TypeError, match="must be of type LayerDraw"):
        explorer.experiment = "orthogonal"


def test_labels_are_large_enough_and_none_is_cut_off(explorer):
    explorer.experiment = LayerDraw("uniform", layer="Conv2d")
    figure = explorer.figure
    texts = [text for ax in figure.axes for text in ax.texts if text.get_text()]
    renderer = figure.canvas.get_renderer()
    for text in texts:
        assert text.get_fontsize() >= 9
        box = text.get_window_extent(renderer)
        inside = (box.x0 >= 0, box.x1 <= figure.bbox.x1, box.y0 >= 0, box.y1 <= figure.bbox.y1)
        assert all(inside), text.get_text()
