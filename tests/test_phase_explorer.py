import subprocess
import sys
import warnings

import numpy as np
import pytest
from hammering import hammer

from initlab import ACTIVATIONS, Experiment, PhaseExplorer, theory
from initlab.explorers.phase_picture import STARTS
from initlab.explorers.phase_point import measure
from initlab.explorers.plane import SIGMA_B, SIGMA_W, plane, trajectories

SMALL = {"depth": 20, "width": 64}


@pytest.fixture
def explorer():
    return PhaseExplorer("tanh", 1.5, 0.3, **SMALL)


def at(explorer):
    return explorer.controls["sigma_w"].value, explorer.controls["sigma_b"].value


# ---- moving the point


def test_arrow_keys_move_the_point_and_the_picture(explorer):
    before = explorer.live.png
    explorer.live.steps = [3, -2]
    assert at(explorer) == (1.53, 0.28)
    assert explorer.live.png != before
    assert "sigma_w 1.53, sigma_b 0.28" in explorer.summary()
    explorer.live.steps = [-7, -2]
    assert at(explorer) == (1.43, 0.28)


def test_a_press_moves_the_point_to_where_the_plane_is_pressed(explorer):
    explorer.live.pressed = [0.5, 0.25]
    assert at(explorer) == (SIGMA_W[1] / 2, SIGMA_B[1] / 4)
    explorer.live.pressed = [0.0, 0.0]  # weights need some spread
    assert at(explorer) == (0.01, 0.0)
    assert not explorer.live.dimmed


def test_the_area_that_can_be_pressed_is_the_plane(explorer):
    left, top, right, bottom = explorer.live.area
    spot = explorer.figure.axes[0].get_position()
    assert (left, right) == (spot.x0, spot.x1)
    assert (top, bottom) == (1 - spot.y1, 1 - spot.y0)


def test_the_picture_says_how_to_move_the_point(explorer):
    assert "Drag the point, or move it with the arrow keys." in explorer.live.hint


def test_sliders_move_the_same_point(explorer):
    explorer.controls["sigma_w"].value = 1.2
    explorer.controls["sigma_b"].value = 0.05
    scales = theory.depth_scales("tanh", 1.2, 0.05)
    assert explorer.prediction.scales == scales
    assert f"ξ_c = {scales.xi_c:.3g}" in explorer.status
    assert explorer.experiment.gain == 1.2
    assert explorer.experiment.bias_std == 0.05


def test_a_point_typed_beyond_the_plane_is_computed_all_the_same(explorer):
    explorer.controls["sigma_w"].value = 4.0
    explorer.controls["sigma_b"].value = 0.1
    assert explorer.prediction.length == pytest.approx(12.5121153964)
    assert not explorer.live.dimmed


def test_a_point_beside_the_sliders_steps_stays_where_it_is(explorer):
    explorer.to_the_edge()
    exact = explorer.controls["sigma_w"].value
    assert explorer.controls["sigma_w"].slider.value == round(100 * exact)
    assert explorer.experiment.gain == exact
    explorer.controls["sigma_w"].slider.value = 145
    assert explorer.experiment.gain == 1.45
    explorer.controls["sigma_w"].text.value = 1.401
    assert explorer.experiment.gain == 1.401


def test_to_the_edge_and_back(explorer):
    explorer.to_the_edge()
    assert explorer.controls["sigma_w"].value == theory.critical_sigma_w("tanh", 0.3)
    assert explorer.status.startswith("On the edge of chaos")
    explorer.resample()
    assert explorer.experiment.seed == 1
    explorer.reset()
    assert explorer.summary() == PhaseExplorer("tanh", 1.5, 0.3, **SMALL).summary()


def test_many_threads_end_on_what_the_controls_say(explorer):
    moves = {"sigma_w": [1.0, 1.3, 2.0, 1.1], "activation": ["erf", "gelu", "sin"] * 2,
             "depth": range(3, 12)}  # fmt: skip
    hammer(explorer, **moves)
    alone = PhaseExplorer("sin", 1.1, 0.3, depth=11, width=64)
    assert explorer.summary() == alone.summary()
    assert explorer.live.png == alone.live.png


# ---- what is said


@pytest.mark.parametrize(
    ("activation", "sigma_w", "sigma_b", "words"),
    [
        ("tanh", 1.3, 0.3, "Ordered phase"),
        ("tanh", 2.5, 0.1, "Chaotic phase"),
        ("tanh", 0.8, 0.0, "correlations freeze"),
        ("relu", 2**0.5, 0.0, "χ₁ = 1 at every q"),
        ("relu", 1.6, 0.1, "q grows without bound"),
        ("relu", 1.0, 0.3, "Ordered phase"),
        ("gelu", 1.6, 0.0, "q grows without bound"),
        ("softplus", 1.0, 0.2, "softplus has no edge of chaos at any q"),
        ("sigmoid", 2.0, 0.1, "sigmoid's edge of chaos lies beyond this plane"),
        ("tanhshrink", 2.0, 0.1, "No signal settles on tanhshrink's edge of chaos"),
        ("identity", 0.9, 0.0, "correlations freeze"),
        (
            "gelu",
            theory.critical_sigma_w("gelu", 0.3),
            0.3,
            "for q = 1.4 alone, which signals leave",
        ),
    ],
)
def test_the_status_names_what_the_point_means(activation, sigma_w, sigma_b, words):
    explorer = PhaseExplorer(activation, sigma_w, sigma_b, **SMALL)
    assert words in explorer.status
    assert explorer.status in explorer.live.alt
    assert not explorer.live.dimmed


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_draws_everywhere_without_a_warning(activation):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explorer = PhaseExplorer(activation, 1.2, 0.2, **SMALL)
        for sigma_w, sigma_b in ((0.05, 0.0), (1.0, 0.0), (3.0, 1.0), (2**0.5, 0.0)):
            explorer.live.pressed = [sigma_w / SIGMA_W[1], sigma_b / SIGMA_B[1]]
            assert not explorer.live.dimmed, explorer.status
            assert "Measured at layer" in explorer.status


def test_the_horizon_is_compared_with_the_depth(explorer):
    explorer.controls["sigma_w"].value = 1.0
    assert "fewer than these 20" in explorer.status
    explorer.controls["depth"].value = 5
    assert "more than these 5" in explorer.status


def test_near_a_repelling_fixed_point_the_network_is_said_to_stray():
    explorer = PhaseExplorer("gelu", 1.5, 0.2, depth=50)
    assert "repelling fixed point" in explorer.status


def test_what_is_0_has_no_angle():
    measured = PhaseExplorer("tanh", 1e-6, 0.0, **SMALL).measured
    assert (measured.q == 0).any()
    assert (np.isnan(measured.c).all(axis=1) == (measured.q == 0)).all()


@pytest.mark.parametrize("activation", ["gelu", "silu", "hardswish", "mish"])
def test_the_name_of_the_edge_keeps_clear_of_it(activation):
    explorer = PhaseExplorer(activation, **SMALL)
    plane, edge = explorer.figure.axes[0], ("edge of chaos", "critical, but q leaves it")
    lines = [line for line in plane.lines if not line.get_animated()]
    assert len(lines) >= 2
    for text in (text for text in plane.texts if text.get_text() in edge):
        box = text.get_window_extent()
        assert plane.bbox.x0 < box.x0 < box.x1 < plane.bbox.x1
        for line in lines:
            path = line.get_path().transformed(line.get_transform())
            assert not path.intersects_bbox(box, filled=False)


# ---- errors


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("sigma_w", 0.0, "sigma_w=0.0"), ("sigma_w", float("nan"), "sigma_w=nan"),
     ("sigma_b", -0.1, "sigma_b=-0.1"), ("depth", 0, "depth=0"), ("width", 2, "width=2"),
     ("width", 10**6, "too large"), ("seed", -1, "seed=-1")],
)  # fmt: skip
def test_a_bad_value_is_said_and_dims_the_picture_until_it_is_mended(explorer, name, value, words):
    good = explorer.controls[name].value
    explorer.controls[name].value = value
    assert words in explorer.status
    assert explorer.live.dimmed
    assert explorer.prediction is None
    assert explorer.trace is None
    explorer.controls[name].value = good
    assert explorer.status.startswith("Chaotic phase")
    assert not explorer.live.dimmed


def test_arguments_are_checked_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'tanh'"):
        PhaseExplorer("tanhh")
    with pytest.raises(ValueError, match="sigma_b=-1"):
        PhaseExplorer("tanh", 1.0, -1)
    with pytest.raises(TypeError, match=r"depth=2\.5"):
        PhaseExplorer("tanh", depth=2.5)  # type: ignore[arg-type]


def test_where_there_is_no_edge_the_button_says_so():
    explorer = PhaseExplorer("softplus", 1.0, 0.3, **SMALL)
    explorer.to_the_edge()
    assert "has no edge of chaos" in explorer.status
    assert at(explorer) == (1.0, 0.3)


# ---- experiments


def test_an_experiment_is_shown_at_its_place_on_the_plane(explorer):
    explorer.experiment = Experiment(activation="relu", depth=10, width=64, batch_size=8)
    assert at(explorer) == (pytest.approx(2**0.5), 0.0)
    explorer.experiment = Experiment(activation="tanh", scheme="pytorch_default", depth=9, width=48)
    assert at(explorer) == (pytest.approx(3**-0.5), pytest.approx((3 * 48) ** -0.5))
    assert explorer.experiment.width == 48


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"architecture": "cnn"}, "architecture='cnn'"), ({"norm": "layer"}, "norm='layer'"),
     ({"widths": (8, 16)}, r"widths=\(8, 16\)"), ({"bias": 0.5}, "bias=0.5"),
     ({"scheme": "constant", "scheme_params": {"val": 0.1}}, "mean")],
)  # fmt: skip
def test_an_experiment_that_has_no_place_on_the_plane_is_refused(explorer, changes, words):
    with pytest.raises(ValueError, match=words):
        explorer.experiment = Experiment(**changes)
    with pytest.raises(TypeError, match="must be of type Experiment"):
        explorer.experiment = "tanh"
    assert at(explorer) == (1.5, 0.3)


def test_the_measured_network_is_the_experiments_own(explorer):
    lengths = [site.forward.second_moment for site in explorer.trace.select(kind="affine")]
    assert explorer.measured.q[1:] == pytest.approx(lengths, rel=1e-4)
    explorer.controls["depth"].value = 7
    assert len(explorer.trace.select(kind="affine")) == 7
    lengths = [site.forward.second_moment for site in explorer.trace.select(kind="affine")]
    assert explorer.measured.q[1:] == pytest.approx(lengths, rel=1e-4)


def test_the_code_measures_the_same(explorer):
    explorer._folds[1].selected_index = 0
    explorer.controls["sigma_w"].value = 2.0
    assert explorer._code.value == explorer.code()
    wide = PhaseExplorer("sin", 2.0, 0.1, depth=6, width=400)
    lines = subprocess.run(
        [sys.executable, "-c", wide.code()], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert len(lines) == 6
    q = float(lines[-1].split("q = ")[1].split(",")[0])
    assert q == pytest.approx(wide.measured.q[-1], rel=0.1)


def test_a_wide_network_does_what_the_maps_say():
    explorer = PhaseExplorer("tanh", 1.5, 0.3, depth=15, width=1000)
    said = explorer.prediction
    assert explorer.measured.q == pytest.approx(said.q, rel=0.1)
    for k, start in enumerate(STARTS):
        assert explorer.measured.c[:, k] == pytest.approx(said.c[start], abs=0.08)


def test_the_inputs_have_the_length_and_the_correlations_they_are_named_for(explorer):
    seen = measure(explorer.experiment)
    assert seen.q[0] == pytest.approx(1, abs=1e-6)
    assert seen.c[0] == pytest.approx(STARTS, abs=1e-6)


# ---- the plane's tables against theory itself


@pytest.mark.parametrize("activation", ["tanh", "gelu", "relu6", "softplus", "elu"])
def test_the_plane_agrees_with_theory(activation):
    phi = ACTIVATIONS[activation]
    drawn = plane(phi)
    for row, column in np.random.default_rng(0).integers([1, 2], [41, 73], (12, 2)):
        point = phi, float(drawn.sigma_w[column]), float(drawn.sigma_b[row])
        length = theory.settled_length(*point)
        if length is None:
            assert drawn.growth[row, column] > 0
            continue
        assert drawn.growth[row, column] <= 0
        assert drawn.length[row, column] == pytest.approx(length, rel=2e-3)
        chi = theory.chi_1(phi, length, point[1])
        assert drawn.chi[row, column] == pytest.approx(chi, rel=1e-3)
        xi_c = theory.depth_scales(*point).xi_c
        assert xi_c is not None
        rate = np.copysign(1 / xi_c, chi - 1)
        assert drawn.rate[row, column] == pytest.approx(rate, rel=0.02, abs=1e-3)


@pytest.mark.parametrize("activation", ["tanh", "relu", "silu", "hardtanh"])
def test_trajectories_follow_theorys_maps(activation):
    q, c = trajectories(ACTIVATIONS[activation], 1.5, 0.3, 12, STARTS)
    length, correlation = 1.0, STARTS[0]
    for layer in range(12):
        mapped = theory.length_map(activation, length, 1.5, 0.3)
        correlation = theory.correlation_map(activation, correlation, length, 1.5, 0.3)
        length = mapped
        assert q[layer + 1] == pytest.approx(length, rel=1e-4)
        assert c[layer + 1, 0] == pytest.approx(correlation, abs=1e-3)


def test_the_edge_that_repels_q_is_told_from_the_one_that_holds_it():
    assert not plane(ACTIVATIONS["tanh"]).repelling
    assert plane(ACTIVATIONS["gelu"]).edge
    assert plane(ACTIVATIONS["gelu"]).repelling
    (line,) = plane(ACTIVATIONS["relu"]).edge
    assert line[0] == pytest.approx([2**0.5] * 2)
    assert not plane(ACTIVATIONS["sigmoid"]).edge
