"""The phase explorer as a hand and an eye meet it: a point that is dragged, and moved by keys."""

import ast
import json

import pytest
from lab import write_notebook

LAPTOP = (1366, 768)
PICTURE = ".initlab-explorer .initlab-draggable img"
START = 'PhaseExplorer("tanh", 1.5, 0.3, depth=30, width=100)'
ASK_KERNEL = """async expression => {
    const { kernel } = window.jupyterapp.shell.currentWidget.context.sessionContext.session;
    const reply = await kernel.requestExecute(
        { code: '', user_expressions: { answer: expression }, store_history: false }).done;
    return reply.content.user_expressions.answer.data['text/plain'];
}"""
# Picture, alt text and status arrive one after the other.
AGREE = f"""old => {{
    const image = document.querySelector('{PICTURE}');
    const status = document.querySelector('.initlab-status').textContent.trim();
    return image.src !== old && image.alt.includes(status);
}}"""


class Shown:
    """The explorer in its notebook."""

    def __init__(self, view):
        self.view, self.page = view, view.page
        self.page.wait_for_function(
            f"document.querySelector('{PICTURE}')?.naturalWidth > 0", timeout=60_000
        )
        self.picture = self.page.locator(PICTURE)

    def kernel(self, expression):
        return ast.literal_eval(self.page.evaluate(ASK_KERNEL, expression))

    @property
    def point(self):
        return self.kernel("[round(explorer.controls[n].value, 9) for n in ('sigma_w', 'sigma_b')]")

    def on_screen(self, sigma_w, sigma_b):
        """Where the plane shows this point."""
        left, top, right, bottom = self.kernel("explorer.live.area")
        box = self.picture.bounding_box()
        x, y = left + sigma_w / 3 * (right - left), bottom - sigma_b * (bottom - top)
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def changes(self, action):
        """Act, and wait until another picture is there with its words."""
        old = self.picture.get_attribute("src")
        action()
        self.page.wait_for_function(AGREE, arg=old, timeout=20_000)

    def settles(self):
        seen = None
        while seen != (seen := self.picture.get_attribute("src")):
            self.page.wait_for_timeout(400)


@pytest.fixture
def explorer(open_and_run, tmp_path):
    def open_explorer(*cells, **options):
        first = f"from initlab import PhaseExplorer\nexplorer = {START}\nexplorer"
        path = write_notebook(tmp_path / "phase.ipynb", first, *cells)
        return Shown(open_and_run(path, **options))

    return open_explorer


def test_arrow_keys_on_the_picture_move_the_point(explorer):
    shown = explorer()
    cells = shown.page.locator(".jp-Notebook .jp-Cell").count()
    shown.picture.focus()
    shown.changes(lambda: shown.picture.press("ArrowRight"))
    shown.changes(lambda: shown.picture.press("ArrowUp"))
    shown.changes(lambda: shown.picture.press("Shift+ArrowLeft"))
    shown.settles()
    assert shown.point == [1.41, 0.31]
    for _ in range(20):
        shown.picture.press("ArrowRight")
    shown.settles()
    assert shown.point == [1.61, 0.31]  # no key of a burst is lost
    assert shown.page.locator(".jp-Notebook .jp-Cell").count() == cells
    assert shown.view.console_errors == []


def test_dragging_the_point_moves_it_and_the_sliders(explorer):
    shown = explorer()
    mouse = shown.page.mouse
    mouse.move(*shown.on_screen(1.5, 0.3))
    mouse.down()
    for sigma_w, sigma_b in ((1.4, 0.4), (1.2, 0.6)):
        target = shown.on_screen(sigma_w, sigma_b)
        shown.changes(lambda target=target: mouse.move(*target))
    mouse.move(*shown.on_screen(2.5, 0.1), steps=25)  # faster than pictures follow
    mouse.move(*shown.on_screen(0.9, 1.02), steps=25)  # beyond the plane it stays at the border
    mouse.up()
    shown.settles()
    assert shown.point == pytest.approx([0.9, 1.0], abs=0.011)
    mouse.move(*shown.on_screen(2.0, 0.5))
    shown.settles()
    assert shown.point == pytest.approx([0.9, 1.0], abs=0.011)
    boxes = shown.page.locator(".initlab-explorer .initlab-number input[type=number]")
    assert float(boxes.first.input_value()) == shown.point[0]
    assert shown.view.console_errors == []


def test_a_point_that_code_has_moved_is_not_pulled_back_by_a_slider(explorer):
    shown = explorer("for sigma_w in (2**0.5, 1.23456, 1.7):\n"
                     "    explorer.controls['sigma_w'].value = sigma_w")  # fmt: skip
    shown.settles()
    assert shown.point == [1.7, 0.3]


def test_a_press_outside_of_the_plane_moves_nothing(explorer):
    shown = explorer()
    box = shown.picture.bounding_box()
    shown.page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.2 * box["height"])
    shown.settles()
    assert shown.point == [1.5, 0.3]


def test_sliders_buttons_and_menu_work_by_keyboard(explorer):
    shown = explorer()
    handles = shown.page.locator(".initlab-explorer .noUi-handle")
    shown.changes(lambda: handles.nth(0).press("ArrowRight"))
    shown.changes(lambda: handles.nth(1).press("ArrowLeft"))
    shown.changes(lambda: handles.nth(2).press("ArrowRight"))
    shown.settles()
    assert shown.point == [1.51, 0.29]
    assert shown.kernel("explorer.experiment.depth") == 31
    shown.changes(
        lambda: shown.page.locator(".initlab-explorer button:has-text('edge')").press("Enter")
    )
    assert "On the edge of chaos" in shown.picture.get_attribute("alt")
    menu = shown.page.locator(".initlab-explorer select").first
    shown.changes(lambda: menu.press("ArrowDown"))
    assert "sigmoid" in shown.picture.get_attribute("alt")
    assert shown.view.console_errors == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_screen_fits_a_laptop_and_is_accessible(explorer, theme):
    from axe_playwright_python.sync_playwright import Axe

    shown = explorer(theme=theme, viewport=LAPTOP)
    shown.view.screenshot(f"phase-{theme}")
    height = shown.page.locator(".initlab-explorer").bounding_box()["height"]
    assert height <= shown.page.locator(".jp-WindowedPanel-outer").bounding_box()["height"]
    for header in shown.page.locator(".initlab-explorer .jupyter-widget-Collapse-header").all():
        header.press("Enter")
    shown.settles()
    results = Axe().run(shown.page, context=".initlab-explorer").response
    serious = [
        (each["id"], [node["html"][:120] for node in each["nodes"]][:3])
        for each in results["violations"]
        if each["impact"] in ("serious", "critical")
    ]
    assert not serious, json.dumps(serious, indent=1)
    shown.view.screenshot(f"phase-{theme}-open")
