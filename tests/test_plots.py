import math
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.patches import Polygon
from matplotlib.path import Path
from matplotlib.text import Text
from torch import nn

from initlab import Experiment, plot, trace
from initlab.plots import VIEWS, Curve, Panel, Picture, Stamp, curve, nice_depth, theory_curve

SMALL = Experiment(depth=6, width=16, activation="tanh", scheme="xavier_normal", data="noise")


def lines(figure):
    return figure.axes[0].lines


@pytest.fixture(scope="module")
def measured():
    return SMALL.run(histogram=True, geometry=True)


@pytest.mark.parametrize("what", VIEWS)
def test_every_picture_draws(what, measured):
    figure = plot(measured, what)
    assert figure.axes[0].get_title(loc="left")
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_the_line_holds_the_traced_numbers(measured):
    (line,) = lines(plot(measured, "forward"))
    expected = [site.forward.second_moment for site in measured.select(kind="affine")]
    np.testing.assert_array_equal(line.get_ydata(), expected)
    np.testing.assert_array_equal(line.get_xdata(), range(1, 7))


def test_backward_is_relative_to_the_output(measured):
    (line,) = lines(plot(measured, "backward"))
    site, output = measured["linear6"], measured["output"]
    expected = site.backward.second_moment / output.backward.second_moment
    assert line.get_ydata()[-1] == pytest.approx(expected)


def test_theory_and_measurement_share_an_axes(measured):
    assert len(lines(plot([measured, SMALL.predict()], "backward"))) == 2
    assert len(lines(plot(SMALL.predict()))) == 1
    labelled = plot({"xavier": measured, "he": SMALL.replace(scheme="kaiming_normal").run()})
    assert {text.get_text() for text in labelled.axes[0].texts} >= {"xavier", "he"}


def test_three_seeds_are_a_median_with_its_band():
    traces = [SMALL.replace(seed=seed).run() for seed in range(5)]
    figure = plot(traces)
    (line,) = lines(figure)
    values = [[site.forward.second_moment for site in each.select(kind="affine")]
              for each in traces]  # fmt: skip
    np.testing.assert_allclose(line.get_ydata(), np.median(values, axis=0))
    assert sum(isinstance(each, Polygon) for each in figure.axes[0].patches) == 1


def test_an_overflow_ends_the_curve_and_is_named():
    exploded = Experiment(depth=50, width=128, scheme="normal", data="noise").run()
    forward = curve(exploded, "forward")
    first = next(site.depth for site in exploded if site.forward.nonfinite)
    assert forward.note == f"overflow at layer {first}"
    assert np.isfinite(forward.values[: first - 1]).all()
    assert np.isnan(forward.values[first - 1 :]).all()
    assert "and below" in curve(exploded, "backward").note


def test_zeros_are_named_and_never_drawn_as_a_line():
    dead = Experiment(depth=4, scheme="zeros").run()
    assert curve(dead, "forward").note == "0 at layer 1"
    texts = [text.get_text() for text in plot(dead).axes[0].texts]
    assert any("0 at layer 1" in text for text in texts)


def drawn_boxes(figure):
    """Where the curves' names are, in pixels."""
    figure.canvas.draw()
    texts = [text for text in figure.axes[0].texts if text.get_text() != "healthy"]
    return [text.get_window_extent() for text in texts]


@pytest.mark.parametrize("what", ["forward", "backward"])
@pytest.mark.parametrize("scheme", ["xavier_normal", "normal", "zeros"])
@pytest.mark.parametrize("box", [(0.1, 0.135, 0.69, 0.765), (0.07, 0.6, 0.5, 0.37)])
def test_names_of_curves_never_touch_and_stay_in_the_picture(scheme, what, box):
    explored = Experiment(depth=50, width=32, scheme=scheme, activation="relu", data="noise")
    panel = Panel(Picture(5.5, 3.7).add_axes(box))
    panel.update(
        what,
        measured=[curve(explored.run(), what, label="measured")],
        theory=curve(explored.predict(), what, label="theory"),
        pinned=curve(SMALL.run(), what, label="pinned: tanh, pytorch_default"),
    )
    boxes = drawn_boxes(panel.ax.figure)
    assert len(boxes) >= 2
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])
        assert 0 <= box.x0 <= box.x1 <= 550
        assert 0 <= box.y0 <= box.y1 <= 370


@pytest.mark.parametrize("value", [3.0, 10.0, 15.0, 30.0, 60.0])
@pytest.mark.parametrize("depth", [13, 15, 17, 19])  # the axis ends at 20
def test_names_of_curves_never_touch_that_of_the_healthy_zone(depth, value):
    panel = Panel(Picture(5.5, 3.7).add_axes((0.1, 0.135, 0.69, 0.765)))
    level = Curve("measured", np.arange(1, depth + 1), np.full(depth, value))
    panel.update("forward", measured=[level], theory=replace(level, label="theory"))
    (zone,) = (text for text in panel.ax.texts if text.get_text() == "healthy")
    boxes = drawn_boxes(panel.ax.figure)
    assert len(boxes) == 2
    assert not any(box.overlaps(zone.get_window_extent()) for box in boxes)


@pytest.mark.parametrize("what", ["weights", "weight_grad"])
def test_a_picture_of_weights_says_that_they_have_no_samples(what, measured):
    picture = plot(measured, what, quantity="across_samples_var")
    assert [text.get_text() for text in picture.axes[0].texts] == [
        "measured: no samples to vary across"
    ]


def test_a_name_keeps_clear_of_the_last_marker_also_in_a_small_picture():
    panel = Panel(Picture(7.6, 5.2).add_axes((0.07, 0.6, 0.29, 0.29)))
    panel.update("forward", measured=[curve(SMALL.run(), label="measured")])
    (box,), (line,) = drawn_boxes(panel.ax.figure), panel.ax.lines
    x, _ = panel.ax.transData.transform(line.get_xydata()[-1])
    assert box.x0 > x + line.get_markersize() / 2 * 100 / 72 + 1


def test_a_mark_leaves_out_the_name_of_the_healthy_zone():
    panel = Panel(Picture(7.6, 5.2).add_axes((0.07, 0.6, 0.29, 0.29)))
    panel.update("forward", measured=[curve(SMALL.run())])
    (name,) = (text for text in panel.ax.texts if text.get_text() == "healthy")
    for layer, crosses in ((2, False), (9, True)):
        panel.mark(layer)
        heights = panel.moving[-1].get_ydata()
        assert np.isnan(heights).any() == crosses
    box = name.get_window_extent().transformed(panel.ax.transAxes.inverted())
    assert heights[[1, 3]] == pytest.approx([box.y0, box.y1])


@pytest.mark.parametrize("what", ["forward", "backward"])
@pytest.mark.parametrize("std", [0.01, 1.0, 12.0])
def test_the_name_of_a_curve_cut_short_is_crossed_neither_by_it_nor_by_theory(what, std):
    experiment = Experiment(depth=60, scheme="normal", scheme_params={"std": std}, data="noise")
    picture = plot(experiment.run(), what)
    (box,), (line,) = drawn_boxes(picture), lines(picture)
    assert not crossed(box, line)
    assert np.isfinite(line.get_ydata()).sum() < 60
    picture = plot([experiment.run(), experiment.predict()], what)
    (name,) = (text for text in picture.axes[0].texts if "measured: " in text.get_text())
    box = name.get_window_extent()
    assert not any(crossed(box, each) for each in lines(picture))
    axes = picture.axes[0].bbox
    assert axes.x0 < box.x0 < box.x1 < axes.x1


def crossed(box, line):
    points = line.get_transform().transform(line.get_xydata())
    return Path(points[np.isfinite(points).all(axis=1)]).intersects_bbox(box, filled=False)


def test_of_what_overflows_no_share_is_drawn():
    exploded = Experiment(depth=50, scheme="normal", data="noise").run()
    dead, zeros = lines(plot(exploded, "units"))
    clean = [not site.forward.nonfinite for site in exploded.select(kind="activation")]
    assert not all(clean)
    for line in (dead, zeros):
        assert np.isfinite(line.get_ydata()).tolist() == clean


def test_theory_of_a_single_layer_is_seen():
    predicted = SMALL.replace(depth=1).predict()
    picture = plot(predicted)
    (line,) = lines(picture)
    low, high = line.get_xdata()
    assert low < 1 < high
    (band,) = (each for each in picture.axes[0].patches if isinstance(each, Polygon))
    assert np.ptp(band.get_xy()[:, 0]) == high - low


def test_the_log_axis_holds_every_value_and_steps_in_whole_decades():
    for scale in (1e-200, 1e-30, 1e-5, 1.0, 1e5, 1e60, 1e250):
        panel = Panel(Picture().add_subplot())
        panel.update("forward", measured=[Curve("", np.array([1, 2]), np.array([1.0, scale]))])
        low, high = panel.ax.get_ylim()
        assert low < scale < high
        assert low <= 1e-8
        assert high >= 1e4
        ticks = [tick for tick in panel.ax.get_yticks() if low <= tick <= high]
        assert 3 <= len(ticks) <= 8, (scale, ticks)
        assert 1.0 in ticks


@pytest.mark.parametrize(("scale", "named"), [(1e-5, True), (1e3, True), (1e60, False)])
def test_the_healthy_zone_is_named_where_it_is_tall_enough(scale, named):
    panel = Panel(Picture().add_subplot())
    panel.update("forward", measured=[Curve("", np.array([1, 2]), np.array([1.0, scale]))])
    (text,) = panel.ax.texts
    assert text.get_text() == "healthy"
    assert text.get_visible() == named


def test_a_drawing_goes_into_the_given_axes(measured):
    figure = Picture()
    ax = figure.add_subplot()
    assert plot(measured, ax=ax) is figure


def test_what_cannot_be_drawn_is_refused(measured):
    plain = SMALL.run()
    for call, words in (
        (lambda: plot(plain, "forwards"), "did you mean 'forward'"),
        (lambda: plot(plain, quantity="std"), "unknown quantity"),
        (lambda: plot(plain, "histograms"), "histogram=True"),
        (lambda: plot(plain, "cosine"), "geometry=True"),
        (lambda: plot(SMALL.predict(), "units"), "needs a Trace"),
        (lambda: plot([]), "at least one"),
        (lambda: plot(trace(nn.Linear(2, 2), torch.ones(2, 2), backward=False), "backward"),
         "backward=True"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            call()
    for wrong in ([1], 1):
        with pytest.raises(TypeError, match="not a int"):
            plot(wrong)


def test_drawing_imports_no_pyplot_state(measured):
    before = matplotlib.get_backend()
    plot(measured)
    assert matplotlib.get_backend() == before


def test_small_moves_leave_the_background_alone():
    panel = Panel(Picture().add_subplot())
    panel.update("forward", measured=[curve(SMALL.run(), "forward")])
    background = panel.background
    panel.update("forward", measured=[curve(SMALL.replace(depth=9).run(), "forward")])
    assert panel.background == (*background[:2], 10, background[3])
    panel.update("forward", measured=[curve(SMALL.replace(depth=8).run(), "forward")])
    assert panel.background[2] == 10


def test_a_panel_keeps_nothing_of_what_it_showed_before(measured):
    """Drawn after every other picture, each is the same as drawn alone."""
    used = Panel(Picture().add_subplot())
    wild = Experiment(depth=40, width=32, scheme="normal", data="noise").run()

    def draw(panel, what):
        if what == "histograms":
            panel.histograms(measured)
        else:
            panel.update(what, measured=[curve(measured, what)], quantity="var")
        return panel.ax.figure._repr_png_()

    for what in VIEWS:
        used.histograms(measured)
        used.update("backward", measured=[curve(wild, "backward")])
        used.update(what, measured=[curve(wild, what)])
        assert draw(used, what) == draw(Panel(Picture().add_subplot()), what), what


@pytest.mark.parametrize("depth", [1, 5, 6, 99, 100, 101, 999, 10_000, 123_456])
def test_the_depth_axis_ends_at_a_round_number_not_far_off(depth):
    assert depth <= nice_depth(depth) <= max(5, math.ceil(2.01 * depth))


@pytest.mark.parametrize(("side", "x"), [("left", 0.1), ("right", 0.9)])
def test_a_stamped_label_is_where_and_what_a_set_one_is(side, x):
    shown = []
    for kind in (Stamp, Text):
        picture = Picture(3, 1)
        label = kind(x, 0.5, "theory,\n95 % of draws", color="#0072B2", fontsize=9,
                     va="center", ha=side, transform=picture.transFigure)  # fmt: skip
        picture.add_artist(label)
        picture.canvas.draw()
        shown.append(255.0 - np.asarray(picture.canvas.buffer_rgba())[..., :3].mean(axis=2))
    rows, columns = np.indices(shown[0].shape)
    for axis in (rows, columns):  # the centre of the ink, to a pixel
        stamped, written = ((axis * ink).sum() / ink.sum() for ink in shown)
        assert stamped == pytest.approx(written, abs=1)
    assert shown[0].sum() == pytest.approx(shown[1].sum(), rel=0.02)


def test_the_cosine_of_theory_is_drawn_with_that_of_a_trace_or_alone():
    experiment = Experiment(depth=3, width=16, batch_size=16)
    predicted = experiment.predict()
    expected = [site.cosine for site in predicted if site.kind == "affine"]
    assert theory_curve(predicted, "cosine").values.tolist() == expected
    plot(predicted, "cosine")
    plot([experiment.run(geometry=True), predicted], "cosine")
