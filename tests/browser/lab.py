"""A private JupyterLab in a headless Chromium, for the browser tests and benchmarks/live.py."""

import ast
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nbformat

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SCREENSHOTS = Path(__file__).parent / "screenshots"

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    # every cell stays in the page, also when it is scrolled out of sight
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}

PATIENCE = 90_000
"""Milliseconds until a wait gives up: only a failure takes so long, or a very slow machine."""

ASK_KERNEL = """async expression => {
    const { kernel } = window.jupyterapp.shell.currentWidget.context.sessionContext.session;
    const reply = await kernel.requestExecute(
        { code: '', user_expressions: { answer: expression }, store_history: false }).done;
    return reply.content.user_expressions.answer.data['text/plain'];
}"""

Theme = Literal["light", "dark"]

STDERR = '[data-mime-type="application/vnd.jupyter.stderr"]'
ERROR = '[data-mime-type="application/vnd.jupyter.error"]'


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab server."""

    url: str
    root: Path
    token: str

    def api(self, path: str, method: str = "GET") -> Any:
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}/api/{path}", method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read() or "null")


@dataclass(frozen=True)
class OpenNotebook:
    """A notebook, open in JupyterLab, and what the browser's console said since it opened."""

    page: Any  # playwright's Page
    console_errors: list[str] = field(default_factory=list)

    def set_theme(self, theme: Theme) -> None:
        self.page.evaluate(
            "theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })",
            THEMES[theme],
        )
        light = "true" if theme == "light" else "false"
        self.page.wait_for_selector(f'body[data-jp-theme-light="{light}"]', state="attached")

    def run_all(self, timeout: float = 180) -> None:
        """Run all cells; fail with what they wrote to stderr or raised, if anything."""
        self.page.evaluate(
            """() => {
                window.allRan = undefined;
                window.jupyterapp.commands.execute('notebook:run-all-cells')
                    .finally(() => { window.allRan = true; });
            }"""
        )
        self.page.wait_for_function("window.allRan", timeout=1000 * timeout)
        complaints = self.page.locator(f"{STDERR}, {ERROR}").all_inner_texts()
        assert not complaints, "\n".join(complaints)

    def kernel(self, expression: str) -> Any:
        """The value of an expression in the notebook's kernel: anything with a literal repr."""
        return ast.literal_eval(self.page.evaluate(ASK_KERNEL, expression))

    def screenshot(self, name: str) -> Path:
        SCREENSHOTS.mkdir(exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        self.page.screenshot(path=path)
        return path


@contextmanager
def running_lab(home: Path) -> Iterator[Lab]:
    """JupyterLab on a free local port, in the empty folder ``home``, with nobody's settings."""
    root = home / "notebooks"
    root.mkdir()
    settings = home / "app-settings"
    settings.mkdir()
    (settings / "overrides.json").write_text(json.dumps(SETTINGS))

    server = Lab(f"http://127.0.0.1:{free_port()}", root, secrets.token_hex(16))
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={server.url.rpartition(':')[2]}", "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={root}", f"--LabApp.app_settings_dir={settings}",
        "--LabApp.expose_app_in_browser=True",
    ]  # fmt: skip
    private = {
        "JUPYTER_CONFIG_DIR": home / "config",
        "JUPYTER_DATA_DIR": home / "data",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": home / "user-settings",
        "JUPYTERLAB_WORKSPACES_DIR": home / "workspaces",
        "IPYTHONDIR": home / "ipython",
    }
    environment = os.environ | {name: str(path) for name, path in private.items()}
    environment["JUPYTER_TOKEN"] = server.token

    log = home / "lab.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            wait_until_up(server, process, log)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_up(server: Lab, process: subprocess.Popen, log: Path, timeout: float = 90) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        assert process.poll() is None, f"JupyterLab stopped:\n{log.read_text()[-2000:]}"
        try:
            server.api("status")
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(f"JupyterLab did not start in {timeout} s:\n{log.read_text()[-2000:]}")


class NoChromium(Exception):
    """There is no Chromium, or no playwright to drive it with."""


@contextmanager
def running_chromium() -> Iterator[Any]:
    """A headless Chromium: $CHROMIUM, the system's, or the one that playwright has installed."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise NoChromium("pip install playwright") from error
    with sync_playwright() as playwright:
        candidates = [os.environ.get("CHROMIUM"), *map(shutil.which, CHROMIUM_NAMES)]
        candidates.append(playwright.chromium.executable_path)
        executable = next((path for path in candidates if path and Path(path).exists()), None)
        if executable is None:
            raise NoChromium(
                "browser tests need Chromium: apt-get install chromium, or CHROMIUM=path"
            )
        chromium = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_ARGUMENTS)
        yield chromium
        chromium.close()


def open_notebook(
    browser: Any,
    lab: Lab,
    source: Path,
    *,
    theme: Theme = "light",
    viewport: tuple[int, int] = (1300, 1600),
) -> OpenNotebook:
    """A copy of the notebook, open in a page of its own and connected to its kernel."""
    # A folder of its own: JupyterLab shares one kernel between views of the same file.
    folder = lab.root / secrets.token_hex(4)
    folder.mkdir()
    shutil.copy(source, folder)
    context = browser.new_context(viewport={"width": viewport[0], "height": viewport[1]})
    context.set_default_timeout(PATIENCE)
    view = OpenNotebook(context.new_page())
    collect_console_errors(view)
    view.page.goto(f"{lab.url}/lab/tree/{folder.name}/{source.name}?reset&token={lab.token}")
    view.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    view.page.wait_for_function(
        "window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.session?.kernel"
        "?.connectionStatus === 'connected'"
    )
    view.set_theme(theme)
    return view


def close_notebooks(lab: Lab, views: list[OpenNotebook]) -> None:
    """Close the pages and shut down every kernel."""
    for view in views:
        view.page.context.close()
    for session in lab.api("sessions"):
        lab.api(f"sessions/{session['id']}", method="DELETE")


def write_notebook(path: Path, *cells: str) -> Path:
    """A notebook of these code cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, path)
    return path


def collect_console_errors(view: OpenNotebook) -> None:
    """JupyterLab itself logs no error (seen with 4.6), so nothing needs to be forgiven."""
    errors = view.console_errors
    view.page.on("pageerror", lambda error: errors.append(str(error)))
    view.page.on("console", lambda line: line.type == "error" and errors.append(line.text))
