"""The main explorer as a hand and an eye meet it: JupyterLab in a real Chromium."""

import json
import re

import pytest
from lab import write_notebook

from initlab import Experiment

START = 'Experiment(depth=20, width=64, activation="tanh", scheme="xavier_normal", batch_size=64)'
LAPTOP = (1366, 768)
PICTURE = ".initlab-explorer img"
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
def explorer(open_and_run, tmp_path):
    """A notebook that shows one explorer, opened and run."""

    def open_explorer(start: str = START, **options):
        path = write_notebook(
            tmp_path / "explorer.ipynb",
            "from initlab import Experiment, SignalExplorer\n"
            f"explorer = SignalExplorer({start})\nexplorer",
        )
        return Explorer(open_and_run(path, **options))

    return open_explorer


class Explorer:
    """What a test does with the explorer: find a control, act, and wait for what follows.

    Nothing here waits for a length of time alone: a slow machine gets as long as it needs.
    """

    def __init__(self, view):
        self.view, self.page = view, view.page
        self.page.evaluate(LISTEN)
        self.page.wait_for_function(f"document.querySelector('{PICTURE}')?.naturalWidth > 0")
        self.settles()

    def menu(self, label):
        return self.page.locator(
            f".initlab-explorer .widget-dropdown:has(.widget-label:text-is('{label}')) select"
        )

    def chosen(self, label):
        return self.menu(label).locator("option:checked").inner_text()

    def number(self, label):
        """The slider handle and the text field of a control."""
        box = self.page.locator(
            f".initlab-explorer .initlab-number:has(.widget-label:text-is('{label}'))"
        ).first
        return box.locator(".noUi-handle"), box.locator("input[type=number]")

    def button(self, label):
        return self.page.locator(f".initlab-explorer button:has-text('{label}')").first

    @property
    def status(self):
        return self.page.locator(".initlab-status").inner_text().strip()

    @property
    def alt(self):
        return self.page.locator(PICTURE).get_attribute("alt")

    def kernel(self, expression):
        """The value of an expression in the notebook's kernel."""
        return self.view.kernel(expression)

    def press(self, control, *keys):
        """Press keys on a control once it can take them: a hidden one would lose them."""
        control.wait_for(state="visible")
        control.focus()
        self.page.wait_for_function(
            "control => document.activeElement === control && !control.disabled",
            arg=control.element_handle(),
        )
        for key in keys:
            self.page.keyboard.press(key)

    def type(self, field, text):
        field.fill(text)
        self.press(field, "Enter")

    def open_folds(self):
        """By keyboard, like everything."""
        for number, header in enumerate(
            self.page.locator(".initlab-explorer .jupyter-widget-Collapse-header").all()
        ):
            self.press(header, ("Enter", "Space")[number % 2])
            self.page.wait_for_function(
                "header => header.getAttribute('aria-expanded') === 'true'",
                arg=header.element_handle(),
            )
        self.settles()

    def changes(self, action):
        """Act, and wait until the picture or the status is another, and all is at rest again."""
        self.settles()
        seen = self.page.evaluate(SEEN)
        action()
        self.page.wait_for_function(f"seen => ({SEEN})() !== seen", arg=seen)
        self.settles()

    def settles(self):
        """Wait until the kernel owes no answer and what is shown agrees."""
        self.page.wait_for_function(AT_REST)


SEEN = """() => document.querySelector('.initlab-explorer img').src
    + document.querySelector('.initlab-status').textContent"""

# Every message to the kernel is owed an answer, until the kernel says that it is idle again.
LISTEN = """() => {
    window.owed = new Set();
    window.lastMessage = performance.now();
    const { kernel } = window.jupyterapp.shell.currentWidget.context.sessionContext.session;
    kernel.anyMessage.connect((_, { msg, direction }) => {
        window.lastMessage = performance.now();
        if (direction === 'send' && msg.channel === 'shell') window.owed.add(msg.header.msg_id);
        if (msg.header.msg_type === 'status' && msg.content.execution_state === 'idle')
            window.owed.delete(msg.parent_header.msg_id);
    });
}"""

# A slider sends its newest value only when the last was answered, hence the pause. Picture and
# status arrive one after the other; a dimmed picture is of an earlier state.
AT_REST = """() => {
    if (window.owed.size || performance.now() - window.lastMessage < 200) return false;
    return document.querySelector('.initlab-explorer .initlab-dimmed')
        || document.querySelector('.initlab-explorer img').alt.includes(
            document.querySelector('.initlab-status').textContent.trim());
}"""
CLIPPED = """() => [...document.querySelectorAll('.initlab-explorer *')]
    .filter(part => part.checkVisibility() && part.scrollWidth > part.clientWidth + 1
        && getComputedStyle(part).overflowX !== 'visible' && part.tagName !== 'INPUT')
    .map(part => part.outerHTML.slice(0, 120))"""


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
    own_gain = shown.page.locator(
        ".initlab-explorer label:has-text('own gain') input[type=checkbox]"
    ).first
    shown.press(own_gain, "Space")
    handle = shown.page.locator(".initlab-explorer .initlab-optional .noUi-handle").first
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
    assert shown.page.locator(".initlab-explorer .initlab-dimmed").count() == 0
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
    assert shown.page.locator(".initlab-explorer .initlab-dimmed").count() == 1
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
    field = shown.page.locator(
        ".initlab-explorer .widget-text:has(.widget-label:text-is('share')) input"
    )
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
    picture = shown.page.locator(PICTURE)
    box = picture.bounding_box()
    picture.hover(position={"x": 0.2 * box["width"], "y": 0.5 * box["height"]})
    shown.page.wait_for_function(
        "/layer \\d+: measured .*theory/.test("
        "document.querySelector('.initlab-readout').textContent)"
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_screen_fits_a_laptop_and_is_accessible(explorer, theme):
    from axe_playwright_python.sync_playwright import Axe

    shown = explorer(theme=theme, viewport=LAPTOP)
    shown.view.screenshot(f"explorer-{theme}")
    height = shown.page.locator(".initlab-explorer").bounding_box()["height"]
    assert height <= shown.page.locator(".jp-WindowedPanel-outer").bounding_box()["height"]
    shown.open_folds()
    assert shown.page.locator(".initlab-meaning").inner_text().startswith("E h²")
    assert shown.page.evaluate(CLIPPED) == []
    shown.settles()
    results = Axe().run(shown.page, context=".initlab-explorer").response
    serious = [
        (each["id"], [node["html"][:120] for node in each["nodes"]][:3])
        for each in results["violations"]
        if each["impact"] in ("serious", "critical")
    ]
    assert not serious, json.dumps(serious, indent=1)
    names = shown.page.locator(".initlab-explorer .noUi-handle").evaluate_all(
        "handles => handles.map(handle => handle.getAttribute('aria-label'))"
    )
    assert all(names), names
    shown.view.screenshot(f"explorer-{theme}-open")
