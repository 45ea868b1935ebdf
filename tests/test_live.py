import io
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from initlab import Experiment, PhaseExplorer, SignalExplorer
from initlab.explorers.phase_picture import CELLS
from initlab.live import LiveFigure
from initlab.plots import Panel, Picture, curve


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def shown(live: LiveFigure, panel: Panel, experiment: Experiment) -> np.ndarray:
    panel.update("forward", measured=[curve(experiment.run(), "forward", label="measured")])
    live.refresh(panel.moving, panel.background, "alt")
    return pixels(live.png)


def test_a_blitted_update_equals_a_full_redraw_pixel_for_pixel():
    start = Experiment(depth=30, width=16, data="noise")
    moved = start.replace(activation="tanh", depth=28)
    picture: Figure = Picture(5, 3)
    panel = Panel(picture.add_subplot(), animated=True)
    live = LiveFigure(picture)
    first = shown(live, panel, start)
    blitted = shown(live, panel, moved)
    live._backgrounds.clear()
    redrawn = shown(live, panel, moved)
    assert not np.array_equal(first, blitted)
    np.testing.assert_array_equal(blitted, redrawn)


def test_every_step_of_the_explorer_equals_a_full_redraw():
    explorer = SignalExplorer(Experiment(depth=8, width=16, batch_size=32))
    steps = (
        ("depth", 9),
        ("activation", "tanh"),
        ("scheme", "normal"),
        ("right", "units"),
        ("right", "histograms"),
        ("scheme", "zeros"),
        ("right", "backward"),
        ("depth", 40),
    )
    for name, value in steps:  # fmt: skip
        explorer.controls[name].value = value
        blitted = pixels(explorer.live.png)
        explorer.live._backgrounds.clear()
        explorer._draw()
        np.testing.assert_array_equal(blitted, pixels(explorer.live.png))
        assert explorer.status in explorer.live.alt


def test_every_point_of_the_plane_equals_a_full_redraw_of_the_figure():
    """Its Axes keep backgrounds of their own: none reaches beyond its cell."""
    explorer = PhaseExplorer("tanh", 1.5, 0.3, depth=20, width=64)
    steps = (
        {"sigma_w": 2.9},
        {"sigma_b": 0.9},
        {"sigma_w": 0.3, "sigma_b": 0.0},
        {"depth": 60},
        {"activation": "relu", "sigma_w": 1.8},
        {"sigma_b": 0.1},
        {"activation": "tanh", "sigma_w": 1.5, "sigma_b": 0.3, "depth": 20},
    )
    dressed = set()
    for step in steps:
        for name, value in step.items():
            explorer.controls[name].value = value
        dressed.add(explorer._picture.background)
        cells = pixels(explorer.live.png)
        canvas: Any = explorer.figure.canvas
        canvas.draw()
        for artist in explorer._picture.moving:
            explorer.figure.draw_artist(artist)
        np.testing.assert_array_equal(cells, np.asarray(canvas.buffer_rgba())[..., :3])
    assert len(dressed) == len(steps) - 1  # the axes did step


def test_the_cells_of_the_plane_are_its_figure():
    covered = np.zeros((1000, 1000), int)
    for left, bottom, right, top in CELLS:
        across, up = (slice(round(1000 * a), round(1000 * b))
                      for a, b in ((left, right), (bottom, top)))  # fmt: skip
        covered[up, across] += 1
    assert (covered == 1).all()


def test_a_refresh_brings_alt_text_and_ends_dimming():
    picture = Picture(3, 2)
    live = LiveFigure(picture)
    live.dimmed = True
    live.refresh([], "background", "what it says")
    assert live.alt == "what it says"
    assert not live.dimmed
    assert set(live.timing) == {"draw", "encode"}


def test_the_png_holds_the_canvas_pixel_for_pixel():
    picture = Picture(3.21, 1.23)
    picture.text(0.1, 0.4, "any text", color="#d55e00")
    live = LiveFigure(picture)
    live.refresh([], "background", "alt")
    Image.open(io.BytesIO(live.png)).verify()  # the checksums too
    canvas: Any = picture.canvas
    np.testing.assert_array_equal(pixels(live.png), np.asarray(canvas.buffer_rgba())[..., :3])


def test_boxes_are_fractions_of_the_image():
    picture = Picture(4, 2)
    picture.add_axes((0.1, 0.2, 0.3, 0.4))
    np.testing.assert_allclose(LiveFigure(picture).boxes(), [[0.1, 0.4, 0.4, 0.8]])
