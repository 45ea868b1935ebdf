"""The phase explorer as a hand and an eye meet it: a point that is dragged, and moved by keys."""

import pytest
from page import LAPTOP

START = 'PhaseExplorer("tanh", 1.5, 0.3, depth=30, width=100)'


@pytest.fixture
def explorer(show):
    def open_explorer(*cells, **options):
        return show(f"from initlab import PhaseExplorer\nexplorer = {START}\nexplorer", *cells,
                    **options)  # fmt: skip

    return open_explorer


def point(shown):
    return shown.kernel("[round(explorer.controls[n].value, 9) for n in ('sigma_w', 'sigma_b')]")


def on_screen(shown, sigma_w, sigma_b):
    """Where the plane shows this point."""
    left, top, right, bottom = shown.kernel("explorer.live.area")
    box = shown.picture.bounding_box()
    x, y = left + sigma_w / 3 * (right - left), bottom - sigma_b * (bottom - top)
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def test_arrow_keys_on_the_picture_move_the_point(explorer):
    shown = explorer()
    cells = shown.page.locator(".jp-Notebook .jp-Cell").count()
    shown.picture.focus()
    shown.changes(lambda: shown.picture.press("ArrowRight"))
    shown.changes(lambda: shown.picture.press("ArrowUp"))
    shown.changes(lambda: shown.picture.press("Shift+ArrowLeft"))
    shown.settles()
    assert point(shown) == [1.41, 0.31]
    for _ in range(20):
        shown.picture.press("ArrowRight")
    shown.settles()
    assert point(shown) == [1.61, 0.31]  # no key of a burst is lost
    assert shown.page.locator(".jp-Notebook .jp-Cell").count() == cells
    assert shown.view.console_errors == []


def test_dragging_the_point_moves_it_and_the_sliders(explorer):
    shown = explorer()
    mouse = shown.page.mouse
    mouse.move(*on_screen(shown, 1.5, 0.3))
    mouse.down()
    for sigma_w, sigma_b in ((1.4, 0.4), (1.2, 0.6)):
        target = on_screen(shown, sigma_w, sigma_b)
        shown.changes(lambda target=target: mouse.move(*target))
    mouse.move(*on_screen(shown, 2.5, 0.1), steps=25)  # faster than pictures follow
    mouse.move(*on_screen(shown, 0.9, 1.02), steps=25)  # beyond the plane it stays at the border
    mouse.up()
    shown.settles()
    assert point(shown) == pytest.approx([0.9, 1.0], abs=0.011)
    mouse.move(*on_screen(shown, 2.0, 0.5))
    shown.settles()
    assert point(shown) == pytest.approx([0.9, 1.0], abs=0.011)
    boxes = shown.part(".initlab-number input[type=number]")
    assert float(boxes.first.input_value()) == point(shown)[0]
    assert shown.view.console_errors == []


def test_a_point_that_code_has_moved_is_not_pulled_back_by_a_slider(explorer):
    shown = explorer("for sigma_w in (2**0.5, 1.23456, 1.7):\n"
                     "    explorer.controls['sigma_w'].value = sigma_w")  # fmt: skip
    shown.settles()
    assert point(shown) == [1.7, 0.3]


def test_a_press_outside_of_the_plane_moves_nothing(explorer):
    shown = explorer()
    box = shown.picture.bounding_box()
    shown.page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.2 * box["height"])
    shown.settles()
    assert point(shown) == [1.5, 0.3]


def test_sliders_buttons_and_menu_work_by_keyboard(explorer):
    shown = explorer()
    handles = shown.part(".noUi-handle")
    shown.changes(lambda: handles.nth(0).press("ArrowRight"))
    shown.changes(lambda: handles.nth(1).press("ArrowLeft"))
    shown.changes(lambda: handles.nth(2).press("ArrowRight"))
    shown.settles()
    assert point(shown) == [1.51, 0.29]
    assert shown.kernel("explorer.experiment.depth") == 31
    shown.changes(lambda: shown.part("button:has-text('edge')").press("Enter"))
    assert "On the edge of chaos" in shown.alt
    menu = shown.part("select").first
    shown.changes(lambda: menu.press("ArrowDown"))
    assert "sigmoid" in shown.alt
    assert shown.view.console_errors == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_screen_fits_a_laptop_and_is_accessible(explorer, theme):
    shown = explorer(theme=theme, viewport=LAPTOP)
    shown.view.screenshot(f"phase-{theme}")
    assert shown.fits_the_screen()
    for header in shown.part(".jupyter-widget-Collapse-header").all():
        header.press("Enter")
    shown.settles()
    shown.is_accessible()
    shown.view.screenshot(f"phase-{theme}-open")
