"""An explorer in its notebook, and what a test does with it."""

import json

from axe_playwright_python.sync_playwright import Axe

LAPTOP = (1366, 768)
PICTURE = ".initlab-explorer img"
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


class Explorer:
    """What a test does with the explorer: find a control, act, and wait for what follows.

    Nothing here waits for a length of time alone: a slow machine gets as long as it needs.
    """

    def __init__(self, view):
        self.view, self.page = view, view.page
        self.page.evaluate(LISTEN)
        self.picture = self.page.locator(PICTURE)
        self.page.wait_for_function(f"document.querySelector('{PICTURE}')?.naturalWidth > 0")
        self.settles()

    def menu(self, label):
        return self.part(f".widget-dropdown:has(.widget-label:text-is('{label}')) select")

    def chosen(self, label):
        return self.menu(label).locator("option:checked").inner_text()

    def number(self, label):
        """The slider handle and the text field of a control."""
        box = self.part(f".initlab-number:has(.widget-label:text-is('{label}'))").first
        return box.locator(".noUi-handle"), box.locator("input[type=number]")

    def part(self, selector):
        return self.page.locator(f".initlab-explorer {selector}")

    def button(self, label):
        return self.part(f"button:has-text('{label}')").first

    @property
    def status(self):
        return self.page.locator(".initlab-status").inner_text().strip()

    @property
    def alt(self):
        return self.picture.get_attribute("alt")

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
        for number, header in enumerate(self.part(".jupyter-widget-Collapse-header").all()):
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

    def fits_the_screen(self):
        height = self.page.locator(".jp-WindowedPanel-outer").bounding_box()["height"]
        return self.page.locator(".initlab-explorer").bounding_box()["height"] <= height

    def clipped(self):
        """Parts whose content is cut off; MathJax hides so what it offers to screen readers."""
        return [part for part in self.page.evaluate(CLIPPED) if "mjx-assistive" not in part]

    def is_accessible(self):
        """Fail with what axe-core finds serious, or with a slider that has no name."""
        results = Axe().run(self.page, context=".initlab-explorer").response
        serious = [
            (each["id"], [node["html"][:120] for node in each["nodes"]][:3])
            for each in results["violations"]
            if each["impact"] in ("serious", "critical")
        ]
        assert not serious, json.dumps(serious, indent=1)
        names = self.part(".noUi-handle").evaluate_all(
            "handles => handles.map(handle => handle.getAttribute('aria-label'))"
        )
        assert all(names), names
