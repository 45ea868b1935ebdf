"""The scheme explorer as a hand and an eye meet it: JupyterLab in a real Chromium."""

import pytest
from page import LAPTOP

LABELS = ("inputs", "outputs")
CONVOLUTION = ("channels in", "channels out", "kernel", "groups")

# Of a text to the notebook behind it; the canvas turns every way to write a colour into numbers.
CONTRAST = """selector => {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d');
    const luminance = color => {
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(each => each / 255)
            .map(each => each > 0.04045 ? ((each + 0.055) / 1.055) ** 2.4 : each / 12.92);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const notebook = document.querySelector('.jp-Notebook');
    const ground = luminance(getComputedStyle(notebook).backgroundColor);
    const ink = luminance(getComputedStyle(document.querySelector(selector)).color);
    return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
}"""


@pytest.fixture
def explorer(show):
    def open_explorer(start: str = '"kaiming_normal"', **options):
        code = f"from initlab import SchemeExplorer\nexplorer = SchemeExplorer({start})\nexplorer"
        return show(code, **options)

    return open_explorer


def test_every_control_moves_the_picture_by_keyboard(explorer):
    shown = explorer()
    cells = shown.page.locator(".jp-Notebook .jp-Cell").count()
    shown.open_folds()
    assert "nn.init.kaiming_normal_" in shown.part("textarea").input_value()
    for label in (*LABELS, "seed"):
        handle, text = shown.number(label)
        shown.changes(lambda handle=handle: shown.press(handle, "ArrowRight"))
        shown.changes(lambda text=text: shown.type(text, "24"))
    for label in ("scheme", "reads"):
        menu = shown.menu(label)
        shown.changes(lambda menu=menu: shown.press(menu, "ArrowUp"))
    own_gain = shown.part("label:has-text('own gain') input[type=checkbox]").first
    shown.press(own_gain, "Space")
    handle = shown.part(".initlab-optional .noUi-handle").first
    handle.wait_for(state="visible")
    shown.changes(lambda: shown.press(handle, "ArrowRight"))
    menu = shown.menu("layer")
    shown.changes(lambda: shown.press(menu, "ArrowDown"))
    for label in CONVOLUTION:
        handle, text = shown.number(label)
        assert text.is_visible()
        shown.changes(lambda handle=handle: shown.press(handle, "ArrowRight"))
        typed = {"kernel": "2", "groups": "3"}.get(label, "24")
        shown.changes(lambda text=text, typed=typed: shown.type(text, typed))
    assert not shown.number("inputs")[1].is_visible()
    shown.view.screenshot("scheme-convolution")
    assert shown.kernel("explorer.experiment.describe()") == "Conv1d(24, 24, 2, groups=3)"
    for label in ("Resample", "Reset"):
        shown.changes(lambda label=label: shown.press(shown.button(label), "Enter"))
    assert shown.kernel("explorer.experiment == type(explorer.experiment)()")
    assert shown.page.locator(".jp-Notebook .jp-Cell").count() == cells
    assert shown.view.console_errors == []


def test_the_schemes_own_parameters_move_the_picture(explorer):
    shown = explorer('"trunc_normal"')
    handle, text = shown.number("std")
    shown.changes(lambda: shown.press(handle, "ArrowLeft"))
    shown.changes(lambda: shown.type(text, "0.5"))
    assert "intended is 0.5" in shown.status  # the cut at ±2 takes nothing off
    assert shown.view.console_errors == []


def test_no_schemes_parameter_is_clipped(explorer):
    shown = explorer(viewport=LAPTOP)
    menu = shown.menu("scheme")
    for name in ("variance_scaling", "trunc_normal", "looks_linear", "siren", "sparse"):
        shown.changes(lambda name=name: menu.select_option(name))
        shown.page.wait_for_selector(".initlab-formula mjx-container")
        assert shown.clipped() == [], name


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_scheme_that_cannot_fill_the_layer_is_said_and_dims_the_picture(explorer, theme):
    shown = explorer('"identity"', theme=theme)
    shown.changes(lambda: shown.press(shown.menu("layer"), "ArrowDown"))
    assert "needs a matrix" in shown.status
    assert shown.page.locator(".initlab-status [role=alert]").count() == 1
    assert shown.part(".initlab-dimmed").count() == 1
    assert shown.page.evaluate(CONTRAST, ".initlab-status [role=alert]") >= 4.5  # WCAG 2, AA
    shown.changes(lambda: shown.press(shown.menu("layer"), "ArrowUp"))
    shown.page.wait_for_selector(".initlab-explorer .initlab-dimmed", state="detached")
    assert shown.view.console_errors == []


def test_the_formula_is_typeset(explorer):
    shown = explorer()
    shown.page.wait_for_selector(".initlab-formula mjx-container")
    assert "$" not in shown.page.locator(".initlab-formula").inner_text()


def test_pointing_at_the_picture_reads_numbers(explorer):
    shown = explorer()
    box = shown.picture.bounding_box()
    for across, words in ((0.17, "weights from .* intended"), (0.8, "singular value .* law")):
        shown.picture.hover(position={"x": across * box["width"], "y": 0.5 * box["height"]})
        shown.page.wait_for_function(
            f"/{words}/.test(document.querySelector('.initlab-readout').textContent)"
        )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_screen_fits_a_laptop_and_is_accessible(explorer, theme):
    shown = explorer(theme=theme, viewport=LAPTOP)
    shown.page.wait_for_selector(".initlab-formula mjx-container")
    shown.view.screenshot(f"scheme-{theme}")
    assert shown.fits_the_screen()
    shown.open_folds()
    shown.page.wait_for_selector(".initlab-explorer li")
    assert shown.clipped() == []
    shown.is_accessible()
    shown.view.screenshot(f"scheme-{theme}-open")
