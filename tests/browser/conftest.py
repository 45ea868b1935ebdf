"""The notebooks as a reader meets them: JupyterLab in a real Chromium.

A test asks for `open_and_run` and gets the notebook, open and executed:

    def test_depth_changes_the_picture(open_and_run):
        notebook = open_and_run("00_start_here.ipynb")
        notebook.page.locator(".noUi-handle").first.press("ArrowRight")
        notebook.screenshot("depth")
        assert not notebook.console_errors

Without Chromium these tests skip; with INITLAB_REQUIRE_BROWSER=1 (CI) every skip is a failure.
JupyterLab keeps its own defaults, under which widget changes reach the kernel on a second thread:
the harder case. `make lab` and Binder turn that off (binder/overrides.json).
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import (
    NOTEBOOKS,
    Lab,
    NoChromium,
    OpenNotebook,
    Theme,
    close_notebooks,
    open_notebook,
    running_chromium,
    running_lab,
    write_notebook,
)
from page import Explorer

REQUIRED = os.environ.get("INITLAB_REQUIRE_BROWSER") == "1"


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    try:
        with running_chromium() as chromium:
            yield chromium
    except NoChromium as reason:
        pytest.skip(f"browser tests need Chromium and playwright: {reason}")


@pytest.fixture
def open_and_run(
    browser: Any, lab: Lab, request: pytest.FixtureRequest
) -> Iterator[Callable[..., OpenNotebook]]:
    """open_and_run(notebook, theme="light", run=True, viewport=(1300, 1600)) -> OpenNotebook.

    `notebook` is the name of one in notebooks/, or the absolute path of any other; a copy is
    opened. When the test ends its pages are closed and its kernels shut down; if it failed, a
    screenshot of each page is left.
    """
    opened: list[OpenNotebook] = []

    def open_and_run(
        notebook: str | Path,
        *,
        theme: Theme = "light",
        run: bool = True,
        viewport: tuple[int, int] = (1300, 1600),
    ) -> OpenNotebook:
        source = NOTEBOOKS / notebook  # an absolute path stays itself
        view = open_notebook(browser, lab, source, theme=theme, viewport=viewport)
        opened.append(view)
        if run:
            view.run_all()
        return view

    yield open_and_run

    if getattr(request.node, "call_failed", False):
        for number, view in enumerate(opened):
            view.screenshot(f"failed-{request.node.name}-{number}")
    close_notebooks(lab, opened)


@pytest.fixture
def show(open_and_run: Callable[..., OpenNotebook], tmp_path: Path) -> Callable[..., Explorer]:
    """show(*cells, **options of open_and_run) -> the Explorer that one of the cells shows."""

    def show(*cells: str, **options: Any) -> Explorer:
        return Explorer(open_and_run(write_notebook(tmp_path / "cells.ipynb", *cells), **options))

    return show


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = yield
    if REQUIRED and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but INITLAB_REQUIRE_BROWSER=1: {call.excinfo.value}"
    if report.when == "call" and report.failed:
        item.call_failed = True
    return report
