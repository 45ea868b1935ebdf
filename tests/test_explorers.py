import re
import threading
from itertools import product

import numpy as np
import pytest
import torch
from hammering import hammer

from initlab import (
    ACTIVATIONS,
    ARCHITECTURES,
    SCHEMES,
    Experiment,
    ModelExplorer,
    PhaseExplorer,
    SchemeExplorer,
    SignalExplorer,
)
from initlab.explorers.finding import finding, silence
from initlab.plots import BESIDE_FORWARD, QUANTITIES, theory_curve
from initlab.weights import LayerDraw

START = Experiment(depth=6, width=16, batch_size=32)
MODEL = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU())


@pytest.fixture
def explorer():
    return SignalExplorer(START)


def choices(explorer):
    """Every menu's every option, menu by menu."""
    return [
        (name, value)
        for name in ("scheme", "activation", "architecture", "data", "bias", "norm", "padding")
        for value in [option[-1] if isinstance(option, tuple) else option
                      for option in explorer.controls[name].options]
    ]  # fmt: skip


def test_every_choice_of_every_menu_draws(explorer):
    last = None
    for name, value in choices(explorer):
        if name != last:
            explorer.experiment, last = START, name
        explorer.controls[name].value = value
        expected = None if value == "scheme" else value
        assert getattr(explorer.experiment, name) == expected
        assert explorer.status.startswith("The signal"), (name, value, explorer.status)
        assert not explorer.live.dimmed
        assert explorer.trace.names[-1] == "output"


def test_the_menu_offers_the_schemes_that_can_fill_the_networks_weights(explorer):
    menu = explorer.controls["scheme"]
    assert "identity" in menu.options
    assert "dirac" not in menu.options
    explorer.controls["architecture"].value = "cnn"
    assert "identity" not in menu.options
    menu.value = "dirac"
    assert explorer.status.startswith("The signal")
    explorer.controls["architecture"].value = "mlp"
    assert "needs a convolution's kernel (3 to 5 dimensions), got shape (16, 64)" in explorer.status
    menu.value = "orthogonal"
    assert explorer.status.startswith("The signal")
    assert explorer.experiment == START.replace(scheme="orthogonal")
    assert "dirac" not in menu.options


def test_an_activation_without_a_critical_point_is_said(explorer):
    explorer.controls["scheme"].value = "critical"
    assert explorer.status.startswith("The signal")
    explorer.controls["activation"].value = "softplus"
    assert "has no edge of chaos at sigma_b=0" in explorer.status
    assert explorer.live.dimmed


@pytest.mark.parametrize("right", [value for _, value in BESIDE_FORWARD])
@pytest.mark.parametrize("quantity", ["second_moment", "var", "across_samples_var"])
def test_every_view_draws(explorer, right, quantity):
    explorer.pin()
    explorer.controls["quantity"].value = quantity
    before = explorer.live.png
    explorer.controls["right"].value = right
    assert not explorer.live.dimmed, explorer.status
    assert right == "backward" or explorer.live.png != before


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_what_the_chosen_measure_says_stands_beside_the_choice(explorer, quantity):
    explorer.controls["quantity"].value = quantity
    _, sentence = QUANTITIES[quantity]
    assert sentence in explorer._meaning.value


def test_no_cure_is_promised_for_what_theory_does_not_give():
    explorer = SignalExplorer(START.replace(depth=30, scheme="xavier_normal", width=64))
    assert "kaiming_normal keeps both" in explorer.status
    explorer.controls["quantity"].value = "across_samples_var"
    assert explorer.status.startswith("What tells the inputs apart vanishes")
    assert "keeps both" not in explorer.status  # He's weights lose it as well


def test_controls_replace_fields_of_the_experiment(explorer):
    explorer.controls["depth"].value = 9
    explorer.controls["gain"].value = 1.1
    explorer.controls["scheme"].value = "normal"
    explorer.controls["scheme_params"].value = {"mean": 0.0, "std": 0.1}
    assert explorer.experiment == START.replace(
        depth=9, gain=1.1, scheme="normal", scheme_params={"mean": 0.0, "std": 0.1}
    )
    assert len(explorer.trace.select(kind="affine")) == 9


def test_a_typed_depth_may_lie_beyond_the_slider(explorer):
    explorer.controls["width"].value = 8
    explorer.controls["depth"].text.value = 300
    assert explorer.experiment.depth == 300
    assert explorer.controls["depth"].slider.value == 100


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("depth", 0, "depth=0"), ("depth", -3, "depth=-3"), ("width", 0, "width=0"),
     ("width", 10**7, "GiB"), ("batch_size", 0, "batch_size=0"), ("gain", float("nan"), "gain=nan"),
     ("seed", -1, "seed=-1")],
)  # fmt: skip
def test_a_bad_value_is_said_and_dims_the_picture_until_it_is_mended(explorer, name, value, words):
    good = explorer.controls[name].value
    explorer.controls[name].value = value
    assert words in explorer.status
    assert explorer.live.dimmed
    explorer.controls["activation"].value = "tanh"
    assert words in explorer.status
    explorer.controls[name].value = good
    assert explorer.status.startswith("The signal")
    assert not explorer.live.dimmed
    assert explorer.experiment.activation == "tanh"


def test_an_error_leaves_no_stale_numbers_behind(explorer):
    explorer.controls["depth"].value = 0
    assert explorer.trace is None
    assert explorer.prediction is None
    explorer.pin()
    for fold in explorer._folds:
        fold.selected_index = 0
    assert explorer.live.dimmed
    assert "depth=0" in explorer.status
    explorer._share.value = START.replace(activation="tanh").share()
    assert explorer.status.startswith("The signal")
    assert not explorer.live.dimmed
    explorer.reset()
    assert explorer.experiment == START


def test_reset_returns_to_the_first_view_too(explorer):
    first = explorer.live.png
    explorer.pin()
    explorer.controls["quantity"].value = "var"
    explorer.controls["right"].value = "histograms"
    explorer.controls["depth"].value = 9
    explorer.reset()
    assert explorer.live.png == first


def test_a_bias_deviation_chooses_the_normal_bias(explorer):
    explorer.controls["bias_std"].value = 0.3
    assert explorer.controls["bias"].value == explorer.experiment.bias == "normal"
    assert explorer.experiment.bias_std == 0.3
    explorer.controls["bias"].value = "zeros"
    assert explorer.experiment.bias_std is None


def test_cross_entropy_on_noise_is_refused_in_words(explorer):
    explorer.controls["loss"].value = "cross_entropy"
    assert explorer.trace.loss > 0
    explorer.controls["data"].value = "noise"
    assert "labels" in explorer.status
    assert explorer.live.dimmed


def test_pin_keeps_a_ghost_and_a_second_pin_lets_it_go(explorer):
    plain = explorer.live.png
    explorer.controls["activation"].value = "tanh"
    explorer.pin()
    explorer.controls["activation"].value = "relu"
    assert explorer.live.png != plain
    explorer.pin()
    assert explorer.live.png == plain


def test_resample_and_reset(explorer):
    first = explorer.trace.to_json()
    explorer.resample()
    assert explorer.experiment.seed == 1
    assert explorer.trace.to_json() != first
    explorer.controls["scheme"].value = "zeros"
    explorer.reset()
    assert explorer.experiment == START
    assert explorer.trace.to_json() == first


def test_the_share_field_restores_and_refuses(explorer):
    other = START.replace(activation="tanh", scheme="orthogonal", bias="normal", bias_std=0.3)
    explorer._share.value = other.share()
    assert explorer.experiment == other
    explorer._share.value = other.share()[:-6]
    assert "cut short" in explorer.status or "damaged" in explorer.status
    assert explorer.live.dimmed
    assert explorer.status in explorer._share_note.value  # and beside the field
    explorer._share.value = other.share()
    assert explorer.experiment == other
    assert not explorer.live.dimmed
    assert explorer._share_note.value == ""


def test_the_folds_show_the_numbers_and_the_code(explorer):
    _, table, code = explorer._folds
    table.selected_index = 0
    code.selected_index = 0
    site = explorer.trace["linear6"]
    assert f"{site.forward.second_moment:.4g}" in explorer._table.value
    assert explorer._code.value == explorer.code() == explorer.experiment.code()
    explorer.controls["depth"].value = 7
    assert "linear7" in explorer._table.value


@pytest.mark.parametrize(
    "make",
    [
        lambda: SignalExplorer(START),
        lambda: SchemeExplorer(LayerDraw(in_features=12, out_features=8)),
        lambda: PhaseExplorer("tanh", 1.5, 0.3, depth=20, width=64),
        lambda: ModelExplorer(MODEL, torch.eye(16)),
    ],
    ids=["signal", "scheme", "phase", "model"],
)
def test_the_summary_is_deterministic_and_is_the_text_of_the_saved_widget(make):
    explorer = make()
    assert explorer.summary() == make().summary()
    assert explorer.status in explorer.live.alt
    bundle = explorer._repr_mimebundle_()
    assert bundle["text/plain"] == explorer.summary()
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert "model_id" in bundle["application/vnd.jupyter.widget-view+json"]
    assert repr(explorer) == f"{type(explorer).__name__}: {explorer.summary()}"


def test_where_theory_is_silent_the_sentence_says_why(explorer):
    explorer.controls["norm"].value = "batch"
    assert "No theory is drawn: normalization rescales" in explorer.status


def test_why_there_is_nothing_to_compare_is_said():
    shown = SignalExplorer(Experiment(depth=3, batch_size=1))
    shown.controls["quantity"].value = "across_samples_var"
    assert "single sample" in shown.status
    shown.experiment = Experiment(depth=3, scheme="zeros")
    shown.controls["right"].value = "cosine"
    assert "has no angle" in shown.status
    assert "rounding" not in shown.status


def test_an_explosion_is_named_by_its_layer():
    explorer = SignalExplorer(Experiment(depth=50, width=128, scheme="normal", data="noise"))
    assert "overflow at layer" in explorer.status
    assert "kaiming_normal keeps both" in explorer.status


def test_an_experiment_of_widths_and_a_numeric_bias_can_be_shown():
    experiment = Experiment(widths=(32, 16, 8), bias=0.25, batch_size=32)
    explorer = SignalExplorer(experiment)
    explorer.controls["activation"].value = "tanh"
    assert explorer.experiment == experiment.replace(activation="tanh")
    explorer.controls["depth"].value = 5
    assert explorer.experiment.layer_widths == (32,) * 5


def assert_consistent(explorer):
    """What is measured, said and drawn is what the controls say."""
    shown = explorer.experiment
    for name in ("scheme", "activation", "depth", "width"):
        assert getattr(shown, name) == explorer.controls[name].value
    alone = SignalExplorer(shown)
    assert explorer.trace.to_json() == alone.trace.to_json()
    assert explorer.status == alone.status
    assert explorer.live.alt == alone.live.alt
    assert explorer.live.png == alone.live.png


def test_many_threads_end_on_what_the_controls_say(explorer):
    hammer(
        explorer,
        depth=range(2, 22),
        activation=["tanh", "relu", "gelu", "sin"] * 4,
        width=range(8, 24),
    )
    shown = explorer.experiment
    assert (shown.depth, shown.activation, shown.width) == (21, "sin", 23)
    assert_consistent(explorer)


def test_schemes_with_and_without_parameters_may_race_with_the_depth(explorer):
    for _ in range(3):
        hammer(
            explorer,
            scheme=["normal", "zeros", "kaiming_normal", "uniform", "orthogonal", "normal"],
            depth=range(2, 14),
        )
        assert explorer.experiment.scheme == "normal"
        assert set(explorer.controls["scheme_params"].value) == {"mean", "std"}
        assert_consistent(explorer)


def test_no_change_is_lost_while_an_experiment_is_loaded(explorer):
    others = [START.replace(seed=seed) for seed in range(6)]

    def load():
        for other in others:
            explorer.experiment = other

    loader = threading.Thread(target=load)
    loader.start()
    hammer(explorer, activation=["tanh", "relu", "gelu", "sin"] * 3)
    loader.join()
    assert_consistent(explorer)


def test_only_an_experiment_can_be_shown():
    with pytest.raises(TypeError, match=r"initlab\.trace"):
        SignalExplorer("mlp")
    with pytest.raises(TypeError, match="must be of type Experiment"):
        SignalExplorer(START).experiment = None


def test_the_table_sets_the_gradient_beside_theory_on_the_same_scale():
    """Relative to the output's, under a loss too: the output's own row is 1, like theory's."""
    explorer = SignalExplorer(START.replace(loss="cross_entropy"))
    explorer._folds[1].selected_index = 0
    row = next(part for part in explorer._table.value.split("<tr>") if "<td>output</td>" in part)
    cells = re.findall(r"<td>(.*?)</td>", row)
    assert cells[5:7] == ["1", "1"]
    assert explorer.trace["output"].backward.second_moment < 0.01


def test_a_slider_counts_whole_steps_and_does_not_round_the_value():
    """Fractions come back from a browser rounded its own way, and would look like a move."""
    explorer = SignalExplorer(START)
    explorer.experiment = START.replace(gain=1.592537)
    number = explorer.controls["gain"].number
    assert number.slider.value == 159
    assert explorer.experiment.gain == 1.592537
    number.slider.value = 160  # a key press
    assert explorer.experiment.gain == 1.60


@pytest.mark.parametrize("seed", range(4))
def test_what_one_draw_scatters_is_not_called_exploding_or_vanishing(seed):
    experiment = Experiment(depth=50, width=32, data="noise", batch_size=32, seed=seed)
    prediction, traced = experiment.predict(), experiment.run()
    words = finding(experiment, traced, prediction)
    last, theory = traced[-1].forward.second_moment, prediction[-1].forward
    inside = theory.low <= last <= theory.high
    assert not 0.1 <= last <= 10 or "signal holds" in words
    assert ("one draw of this width" in words.split("Gradients")[0]) == (
        inside and not 0.1 <= last <= 10
    )


def test_a_head_that_scales_the_gradient_once_makes_none_vanish():
    for depth in (1, 30):
        shown = SignalExplorer(Experiment(depth=depth, loss="cross_entropy"))
        assert "Gradients hold" in shown.status
    shown.controls["scheme"].value = "xavier_normal"
    assert "Gradients vanish" in shown.status


def test_what_theory_expects_to_vanish_is_no_chance():
    experiment = Experiment(depth=20, width=32, scheme="xavier_normal", data="noise", batch_size=32)
    words = finding(experiment, experiment.run(), experiment.predict())
    assert words.startswith("The signal vanishes")
    assert "one draw" not in words


# ---- no value, no sentence


DRAWN = [
    (what, quantity)
    for what in ("forward", "backward", "cosine", "weight_grad", "units", "histograms")
    for quantity in (QUANTITIES if what in ("forward", "backward") else ("second_moment",))
]


def as_theory_knows(scheme: str) -> tuple:
    """Schemes of equal figures are one case to theory."""
    chosen = SCHEMES[scheme]
    figures = chosen.weight_std(16, 16, 1.0), chosen.weight_std(8, 32, 2.0)
    return (*figures, chosen.weight_mean(16, 16), chosen.ensemble, chosen.bias, chosen.uses_gain)


def assert_drawn_or_said(experiment: Experiment) -> None:
    prediction = experiment.predict()
    for what, quantity in DRAWN:
        words = silence(prediction, what, quantity)
        theory = theory_curve(prediction, what, quantity)
        whole = theory is not None and np.isfinite(theory.values).all()
        if whole and what != "cosine":
            whole = theory.low is not None and np.isfinite([theory.low, theory.high]).all()
        doubtful = what == "backward" and what in prediction.unsaid
        assert (whole and not doubtful) != bool(words), (what, quantity, words)
        assert not words or (words[0].isupper() and words.endswith(".")), words


@pytest.mark.parametrize(("architecture", "phi"), list(product(ARCHITECTURES, ACTIVATIONS)))
def test_theory_is_drawn_with_its_band_or_the_explorer_says_why_not(architecture, phi):
    small = Experiment(architecture=architecture, activation=phi, depth=2, width=16, batch_size=20)
    for scheme in {as_theory_knows(name): name for name in small.schemes}.values():
        gain = 1.2 if scheme == "critical" else None  # not every activation has a critical one
        for data in ("noise", "digits"):
            assert_drawn_or_said(small.replace(scheme=scheme, gain=gain, data=data))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "changes",
    [
        {"bias": 0.3},
        {"norm": "batch"},
        {"dropout": 0.3},
        {"loss": "cross_entropy"},
        {"depth": 400, "scheme": "normal", "scheme_params": {"std": 2.0}},
        {"depth": 100, "activation": "tanh", "scheme": "normal", "scheme_params": {"std": 0.1}},
        {"depth": 300, "activation": "gelu"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_so_it_is_for_other_biases_norms_losses_and_depths(architecture, changes):
    assert_drawn_or_said(Experiment(**({"architecture": architecture, "width": 16} | changes)))


def test_the_status_says_why_theory_is_silent_of_what_is_drawn():
    start = Experiment(architecture="cnn", depth=3, width=8, batch_size=16, bias=0.3)
    explorer = SignalExplorer(start)
    assert "No theory" not in explorer.status
    explorer.controls["quantity"].value = "across_samples_var"
    assert "No theory" not in explorer.status
    explorer.controls["quantity"].value = "var"
    assert "No theory is drawn of the variance" in explorer.status
    explorer.controls["quantity"].value = "second_moment"
    explorer.controls["right"].value = "weight_grad"
    assert "No theory is drawn of weight gradients" in explorer.status
