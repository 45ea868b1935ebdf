"""The model explorer as a hand and an eye meet it: a tree, a trial, and an explicit Apply."""

import pytest
from page import LAPTOP, PICTURE

SETUP = """\
import torch
from torch import nn
from initlab import ModelExplorer

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
with torch.no_grad():
    model[2].weight.mul_(1e-6)
    model[2].bias.zero_()
first = model[2].weight.clone()
explorer = ModelExplorer(model, torch.randn(64, 64), target=torch.arange(64) % 10)
explorer"""


@pytest.fixture
def explorer(show):
    return lambda **options: show(SETUP, **options)


def test_arrow_keys_walk_the_tree_and_a_click_selects(explorer):
    shown = explorer()
    tree = shown.part(".widget-select select")
    assert shown.kernel("explorer.controls['site'].value") == "2"
    shown.changes(lambda: tree.press("ArrowDown"))
    assert "3 is selected" in shown.alt
    shown.changes(lambda: tree.select_option(index=1))
    assert shown.kernel("explorer.controls['site'].value") == "0"
    assert shown.view.console_errors == []


def test_a_trial_and_every_control_work_by_keyboard_and_apply_alone_writes(explorer):
    shown = explorer()
    scheme, quantity, right = (shown.part(".widget-dropdown select").nth(i) for i in range(3))
    shown.changes(lambda: scheme.press("ArrowDown"))
    assert "A copy with the remedy: healthy" in shown.alt
    shown.changes(lambda: shown.part(".noUi-handle").first.press("ArrowRight"))
    assert shown.kernel("explorer.controls['seed'].value") == 1
    shown.changes(lambda: quantity.press("ArrowDown"))
    shown.changes(lambda: right.press("ArrowDown"))
    assert shown.kernel("explorer.controls['right'].value") == "weight_grad"
    shown.changes(lambda: shown.part("button:has-text('Resample')").press("Enter"))
    assert shown.kernel("explorer.controls['seed'].value") == 2
    assert shown.kernel("torch.equal(model[2].weight, first)")
    shown.changes(lambda: shown.part("button:has-text('Apply')").press("Enter"))
    assert not shown.kernel("torch.equal(model[2].weight, first)")
    assert shown.kernel("explorer.diagnosis.healthy")
    assert "Applied to your model" in shown.part(".initlab-status").text_content()
    shown.part("button:has-text('Look again')").press("Enter")  # and sees the same
    shown.page.wait_for_function(
        "!document.querySelector('.initlab-status').textContent.includes('Applied')"
    )
    shown.changes(lambda: shown.part("button:has-text('Reset')").press("Enter"))
    assert shown.kernel("explorer.controls['seed'].value") == 0
    for header in shown.part(".jupyter-widget-Collapse-header").all():
        header.press("Enter")
    code = shown.part("textarea")
    code.wait_for(state="visible")
    shown.page.wait_for_function(
        "document.querySelector('.initlab-explorer textarea').value.includes('diagnose')"
    )
    assert shown.view.console_errors == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_the_screen_and_is_accessible_with_all_folds_open(explorer, theme):
    shown = explorer(theme=theme, viewport=LAPTOP)
    shown.changes(lambda: shown.part(".widget-dropdown select").first.press("ArrowDown"))
    shown.view.screenshot(f"model-{theme}")
    assert shown.fits_the_screen()
    for header in shown.part(".jupyter-widget-Collapse-header").all():
        header.press("Enter")
    shown.settles()
    shown.is_accessible()
    shown.view.screenshot(f"model-{theme}-open")
    shown.page.set_viewport_size({"width": 1000, "height": 768})  # 570 beside the file browser
    shown.page.wait_for_function(f"document.querySelector('{PICTURE}').clientWidth > 500")
    shown.view.screenshot(f"model-{theme}-narrow")


SLOW = """\
import time
import torch
from torch import nn
from initlab import ModelExplorer

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(30))
        self.pause = 0.05
    def forward(self, x):
        for layer in self.layers:
            time.sleep(self.pause)
            x = torch.relu(layer(x))
        return x

torch.manual_seed(0)
model = Slow()
explorer = ModelExplorer(model, torch.randn(64, 64))
model.pause = 0.5
explorer"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_model_that_takes_long_can_be_stopped(show, theme):
    shown = show(SLOW, theme=theme, viewport=LAPTOP)
    stop = shown.part("button:text-is('Stop')")
    assert not stop.is_visible()
    shown.part(".widget-dropdown:has(.widget-label:text-is('try')) select").select_option(
        "kaiming_normal"
    )
    stop.wait_for(state="visible")
    shown.page.wait_for_selector(".initlab-dimmed")
    assert shown.kernel("explorer.controls['seed'].value") == 0  # the kernel is free
    shown.page.locator(".initlab-explorer").evaluate("part => part.scrollIntoView()")
    assert stop.bounding_box()["y"] < 740  # a laptop's screen holds the picture and the button
    shown.view.screenshot(f"model-working-{theme}")
    stop.click()
    stop.wait_for(state="hidden", timeout=10_000)
    assert shown.part(".initlab-status").inner_text().strip().startswith("⚠ Stopped")
    assert shown.part(".initlab-dimmed").count() == 1
    shown.view.screenshot(f"model-stopped-{theme}")
    assert not shown.view.console_errors
