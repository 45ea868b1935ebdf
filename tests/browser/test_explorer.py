"""The main explorer as a hand and an eye meet it: JupyterLab in a real Chromium."""

import re

import pytest
from page import LAPTOP

from initlab import Experiment

START = 'Experiment(depth=20, width=64, activation="tanh", scheme="xavier_normal", batch_size=64)'
FRAMES = """() => {
    const image = document.querySelector('.initlab-explorer img');
    window.blankFrames = 0;
    window.watching = true;
    const look = () => {
        if (image.naturalWidth === 0) window.blankFrames += 1;
        if (window.watching) requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
}"""


@pytest.fixture
def explorer(show):
    def open_explorer(start: str = START, **options):
        code = "from initlab import Experiment, SignalExplorer\n"
        return show(f"{code}explorer = SignalExplorer({start})\nexplorer", **options)

    return open_explorer


def test_every_control_moves_the_picture_by_keyboard(explorer):
    shown = explorer()
    cells = shown.page.locator(".jp-Notebook .jp-Cell").count()
    shown.open_folds()
    for label, typed in (("depth", "7"), ("width", "48"), ("batch", "32"), ("seed", "3")):
        handle, text = shown.number(label)
        shown.changes(lambda handle=handle: shown.press(handle, "ArrowRight"))
        shown.changes(lambda text=text, typed=typed: shown.type(text, typed))
    assert (
        shown.kernel("explorer.experiment.changed()")
        == Experiment(
            depth=7, width=48, batch_size=32, seed=3, activation="tanh", scheme="xavier_normal"
        ).changed()
    )
    handle, _ = shown.number("bias σ")
    shown.changes(lambda: shown.press(handle, *["ArrowRight"] * 5))
    assert shown.chosen("bias") == "normal"
    own_gain = shown.part("label:has-text('own gain') input[type=checkbox]").first
    shown.press(own_gain, "Space")
    handle = shown.part(".initlab-optional .noUi-handle").first
    handle.wait_for(state="visible")
    shown.changes(lambda: shown.press(handle, "ArrowRight"))
    handle, _ = shown.number("dropout")
    shown.changes(lambda: handle.press("ArrowRight"))
    for label in ("scheme", "activation", "norm", "measure", "network", "padding", "loss"):
        menu = shown.menu(label)
        shown.changes(lambda menu=menu: shown.press(menu, "ArrowDown"))
    menu = shown.menu("bias")
    shown.changes(lambda: shown.press(menu, "ArrowUp"))
    menu = shown.menu("input")
    shown.changes(lambda: shown.press(menu, "ArrowUp"))
    assert "labels" in shown.status  # the cross-entropy needs them, and noise has none
    shown.changes(lambda: shown.press(menu, "ArrowDown"))
    menu = shown.menu("right plot")
    for _ in range(4):
        shown.changes(lambda: shown.press(menu, "ArrowDown"))
    assert shown.page.locator(".jp-Notebook .jp-Cell").count() == cells
    for label in ("Pin", "Resample", "Reset"):
        shown.changes(lambda label=label: shown.press(shown.button(label), "Enter"))
    assert shown.part(".initlab-dimmed").count() == 0
    assert shown.view.console_errors == []


def test_scheme_parameters_appear_and_move_the_picture(explorer):
    shown = explorer('Experiment(depth=10, width=32, scheme="normal", scheme_params={"std": 0.2})')
    handle, text = shown.number("std")
    assert text.input_value() == "0.2"
    shown.changes(lambda: shown.press(handle, "ArrowRight"))
    assert shown.view.console_errors == []


def test_a_bad_number_is_said_and_dims_the_picture_until_it_is_mended(explorer):
    shown = explorer()
    _, text = shown.number("depth")
    shown.changes(lambda: shown.type(text, "0"))
    assert "depth=0 must be at least 1" in shown.status
    assert shown.page.locator(".initlab-status [role=alert]").count() == 1
    assert shown.part(".initlab-dimmed").count() == 1
    shown.changes(lambda: shown.type(text, "30"))
    assert "layer 30" in shown.status
    shown.page.wait_for_selector(".initlab-explorer .initlab-dimmed", state="detached")
    assert shown.view.console_errors == []


def test_a_burst_of_keys_ends_on_the_right_picture_without_a_blank_frame(explorer):
    shown = explorer()
    shown.page.evaluate(FRAMES)
    handle, text = shown.number("depth")
    shown.changes(lambda: shown.press(handle, *["ArrowRight"] * 30))
    assert "layer 50" in shown.status
    shown.page.evaluate("window.watching = false")
    assert text.input_value() == "50"
    assert shown.kernel("explorer.experiment.depth") == 50
    assert shown.kernel("explorer.live.alt") == shown.alt
    assert shown.kernel("explorer.status") == shown.status
    assert shown.status in shown.alt
    assert shown.page.evaluate("window.blankFrames") == 0
    assert shown.view.console_errors == []


def test_a_share_string_restores_what_it_was_made_from(explorer):
    shown = explorer()
    shown.open_folds()
    field = shown.part(".widget-text:has(.widget-label:text-is('share')) input")
    shown.page.wait_for_function(
        "field => field.value.startsWith('initlab1.')", arg=field.element_handle()
    )
    text = Experiment(depth=12, width=32, activation="relu", scheme="orthogonal").share()
    shown.changes(lambda: shown.type(field, text))
    assert shown.chosen("scheme") == "orthogonal"
    assert shown.number("depth")[1].input_value() == "12"
    shown.changes(lambda: shown.type(field, text[:-8]))
    assert re.search("cut short|damaged", shown.status)


def test_pointing_at_a_layer_reads_its_numbers(explorer):
    shown = explorer()
    box = shown.picture.bounding_box()
    shown.picture.hover(position={"x": 0.2 * box["width"], "y": 0.5 * box["height"]})
    shown.page.wait_for_function(
        "/layer \\d+: measured .*theory/.test("
        "document.querySelector('.initlab-readout').textContent)"
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_screen_fits_a_laptop_and_is_accessible(explorer, theme):
    shown = explorer(theme=theme, viewport=LAPTOP)
    shown.view.screenshot(f"explorer-{theme}")
    assert shown.fits_the_screen()
    shown.open_folds()
    assert shown.page.locator(".initlab-meaning").inner_text().startswith("E h²")
    assert shown.clipped() == []
    shown.settles()
    shown.is_accessible()
    shown.view.screenshot(f"explorer-{theme}-open")
