"""Key press to changed pixels in JupyterLab, beside ``interactive_output`` with ``plt.show()``.

Both draw the same experiment in the same notebook, kernel and browser, and take turns. Needs
Chromium; prints a table and asserts nothing.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))

from lab import (  # pyright: ignore[reportMissingImports]
    NoChromium,
    close_notebooks,
    open_notebook,
    running_chromium,
    running_lab,
    write_notebook,
)

ROUNDS = 3
WARM_UP = 2  # presses of every round that are not counted

OURS = """\
import json
from initlab import Experiment, SignalExplorer

start = Experiment(depth=50, width=128, activation="tanh", scheme="xavier_normal", data="noise")
explorer = SignalExplorer(start)
log = open({log!r}, "w", buffering=1)
explorer.live.observe(lambda _: print(json.dumps(explorer.timing), file=log), "readout")
explorer
"""
THEIRS = """\
import ipywidgets as widgets
import matplotlib.pyplot as plt


def draw(depth):
    experiment = start.replace(depth=depth)
    trace, theory = experiment.run(), experiment.predict()
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.7))
    for ax, way in zip(axes, ("forward", "backward")):
        for style, sites in ("o-", trace), ("k-", theory):
            shown = [site for site in sites if site.kind == "affine"]
            ax.semilogy([getattr(site, way).second_moment for site in shown], style)
    plt.show()


depth = widgets.IntSlider(value=50, min=1, max=100)
widgets.VBox([depth, widgets.interactive_output(draw, {"depth": depth})])
"""

# The time from the key's own time stamp until another picture is there and decoded.
STOPWATCH = """picture => {
    const source = () => document.querySelector(picture)?.src;
    const before = source();
    window.taken = new Promise((resolve, reject) => addEventListener('keydown', event => {
        setTimeout(reject, 20000, new Error('no other picture in 20 s'));
        const look = async () => {
            const image = document.querySelector(picture);
            if (image && image.src !== before && image.complete && image.naturalWidth > 0) {
                await image.decode();
                resolve(performance.now() - event.timeStamp);
            } else requestAnimationFrame(look);
        };
        look();
    }, { once: true, capture: true }));
}"""

OUR_PICTURE = ".initlab-explorer img"
THEIR_PICTURE = ".jp-RenderedImage img"


def press(page: Any, control: Any, picture: str, keys: tuple[str, ...], count: int) -> list[float]:
    """Milliseconds from key to pixels, once per press."""
    control.focus()
    times = []
    for number in range(count + WARM_UP):
        page.evaluate(STOPWATCH, picture)
        page.keyboard.press(keys[number % len(keys)])
        times.append(page.evaluate("window.taken"))
        page.wait_for_timeout(80)  # a hand's pause, in which the kernel comes to rest
    return times[WARM_UP:]


def measure(page: Any, log: Path, presses: int) -> tuple[dict[str, list[float]], dict[str, dict]]:
    """Milliseconds per control, and of them those of each part of the kernel's work."""
    ours = page.locator(".initlab-explorer")
    back_and_forth = ("ArrowRight", "ArrowLeft")
    sweep = ("ArrowLeft",) * 6 + ("ArrowRight",) * 6  # as a hand moves it, within one axis
    controls = {
        "depth slider": (ours.locator(".noUi-handle").nth(0), OUR_PICTURE, sweep),
        "depth, axis jumps": (ours.locator(".noUi-handle").nth(0), OUR_PICTURE, back_and_forth),
        "width slider": (ours.locator(".noUi-handle").nth(1), OUR_PICTURE, back_and_forth),
        "scheme menu": (ours.locator("select").nth(0), OUR_PICTURE, ("ArrowUp", "ArrowDown")),
        "activation menu": (ours.locator("select").nth(1), OUR_PICTURE, ("ArrowUp", "ArrowDown")),
        "plt.show()": (page.locator(".noUi-handle").last, THEIR_PICTURE, sweep),
    }
    times: dict[str, list[float]] = {name: [] for name in controls}
    parts: dict[str, dict] = {name: {} for name in controls}
    for _ in range(ROUNDS):
        for name, (control, picture, keys) in controls.items():
            before = len(log.read_text().splitlines())
            times[name] += press(page, control, picture, keys, presses // ROUNDS)
            for line in log.read_text().splitlines()[before + WARM_UP :]:
                for part, milliseconds in json.loads(line).items():
                    parts[name].setdefault(part, []).append(milliseconds)
    return times, parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presses", type=int, default=30)
    presses = parser.parse_args().presses
    with tempfile.TemporaryDirectory() as folder:
        home, log = Path(folder), Path(folder) / "timing.jsonl"
        notebook = write_notebook(home / "live.ipynb", OURS.format(log=str(log)), THEIRS)
        try:
            with running_chromium() as chromium, running_lab(home) as lab:
                view = open_notebook(chromium, lab, notebook, viewport=(1366, 1600))
                view.run_all()
                view.page.wait_for_selector(OUR_PICTURE)
                view.page.wait_for_selector(THEIR_PICTURE)
                view.page.wait_for_timeout(1000)
                times, parts = measure(view.page, log, presses)
                close_notebooks(lab, [view])
        except NoChromium as reason:
            print(f"not measured, there is no browser: {reason}")
            return

    print(f"key press to pixels, median of {presses}; mlp 50 × 128, batch 256 (aim: 100 ms)")
    print(f"{'':18}{'ms':>6}{'90 %':>7}{'compute':>10}{'draw':>7}{'encode':>8}{'faster':>9}")
    slow = statistics.median(times["plt.show()"])
    for name, each in times.items():
        middle, tail = statistics.median(each), statistics.quantiles(each, n=10)[-1]
        split = "".join(
            f"{statistics.median(parts[name][part]):{width}.0f}" if parts[name] else " " * width
            for part, width in (("compute", 10), ("draw", 7), ("encode", 8))
        )
        print(f"{name:18}{middle:6.0f}{tail:7.0f}{split}{slow / middle:8.1f}×")


if __name__ == "__main__":
    main()
