"""Every notebook runs from top to bottom in JupyterLab, without a word on stderr or the console,
and in little memory.
"""

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))

MEMORY_LIMIT = 600e6
"""Bytes of a kernel; mybinder.org is content with 450 MB and ends a server above 2 GB."""
RESIDENT = "__import__('psutil').Process().memory_info().rss"  # ipykernel brings psutil


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_and_shows_its_explorer(open_and_run, notebook):
    view = open_and_run(notebook.name)
    view.page.wait_for_function("document.querySelector('.initlab-explorer img')?.naturalWidth > 0")
    view.page.locator(".initlab-explorer").first.scroll_into_view_if_needed()
    view.screenshot(notebook.stem)
    handle = view.page.locator(".initlab-explorer .noUi-handle").first
    tree = view.page.locator(".initlab-explorer .widget-select select")
    control, key = (tree.first, "ArrowUp") if tree.count() else (handle, "ArrowLeft")
    before = view.page.locator(".initlab-explorer img").first.get_attribute("src")
    control.press(key)
    view.page.wait_for_function(
        "src => document.querySelector('.initlab-explorer img').src !== src", arg=before
    )
    assert view.console_errors == []
    assert view.kernel(RESIDENT) < MEMORY_LIMIT
