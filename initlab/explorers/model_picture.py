"""The picture of ModelExplorer: the signal over depth, and the values of one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from initlab.plots import BLUE, ORANGE, SKY, VIEWS, Panel, Picture, ghost, lines, readout
from initlab.tracing import Histogram, Site, Trace

_BINS = 64
_MOST = 1_000_000  # weights that a histogram counts; of more, every k-th
_LEFT, _WIDTH = (0.06, 0.56), 0.32  # of the axes; names at the curves' ends stand right of them


@dataclass(frozen=True)
class Seen:
    """A model as it was traced, and what to call it."""

    label: str
    model: nn.Module
    trace: Trace


class ModelPicture:
    """Two panels over depth with the selected layer marked, and two histograms of that layer."""

    def __init__(self) -> None:
        self.figure = Picture(8.8, 4.25)  # beside a tree: as many pixels as the screen has left
        self.panels = [
            Panel(self.figure.add_axes((left, 0.54, _WIDTH, 0.385)), animated=True)
            for left in _LEFT
        ]
        self._values, self._weights = (
            self.figure.add_axes((left, 0.065, _WIDTH, 0.26)) for left in _LEFT
        )

    @property
    def moving(self) -> list[Any]:
        return [artist for panel in self.panels for artist in panel.moving]

    def update(self, now: Seen, was: Seen | None, site: str, *, quantity: str, right: str) -> None:
        """Draw what is seen now, and dashed what was, with one site selected.

        The histograms are new with every site, so all of the figure is drawn anew.
        """
        for panel, what in zip(self.panels, ("forward", right), strict=True):
            panel.show(
                what,
                now.trace,
                label=now.label if was else "",  # a curve alone needs no name
                pinned=was and ghost(was.trace, what, quantity, was.label),
                quantity=quantity,
            )
            if VIEWS[what].over_depth:
                panel.mark(now.trace[site].depth)
        self._of_site(now, was, site)

    def readout(
        self, boxes: list[list[float]], now: Seen, was: Seen | None, *, quantity: str, right: str
    ) -> list[dict[str, Any]]:
        """What a pointer over a panel reads: each layer's number, and what it was."""
        return [
            {
                "box": box,
                "span": list(panel.ax.get_xlim()),
                "rows": _rows(what, now, was, quantity),
            }
            for panel, what, box in zip(self.panels, ("forward", right), boxes, strict=False)
        ]

    def _of_site(self, now: Seen, was: Seen | None, name: str) -> None:
        site = now.trace[name]
        old = was.trace[name] if was and name in was.trace else None
        _set_up(self._values, f"Values of {_shortened(name)}")
        _histograms(self._values, site.histogram, old and old.histogram)
        if site.parameter is None:
            _set_up(self._weights, f"{_shortened(site.op or site.kind)} has no weights")
            return
        _set_up(self._weights, f"Weights of {_shortened(name)}")
        before = _weights(was, site) if was else None
        _histograms(self._weights, _weights(now, site), before)


def _rows(what: str, now: Seen, was: Seen | None, quantity: str) -> list[list[Any]]:
    before = was and ghost(was.trace, what, quantity, was.label)
    drawn = lines(now.trace, what, quantity, now.label)
    names = [site.name for site in now.trace if site.kind in VIEWS[what].kinds]
    return readout([*drawn, *([before] if before else [])], names)


def _set_up(ax: Any, title: str) -> None:
    ax.clear()
    ax.set_title(title, loc="left", fontsize=10.5)
    ax.set_yticks([])
    ax.tick_params(labelsize=9, colors="#444444")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _histograms(ax: Any, now: Histogram | None, was: Histogram | None) -> None:
    """Counts, each relative to its largest: filled what is, dashed what was."""
    if now is None and was is None:
        ax.text(0.5, 0.5, "nothing that can be counted", transform=ax.transAxes, ha="center",
                fontsize=9)  # fmt: skip
    if now is not None:
        _one(ax, now, BLUE, "-", SKY)
    if was is not None:
        _one(ax, was, ORANGE, "--", None)


def _one(ax: Any, histogram: Histogram, color: str, style: str, fill: str | None) -> None:
    edges, counts = np.array(histogram.edges), np.array(histogram.counts, float)
    heights = counts / max(counts.max(), 1)
    if edges[-1] - edges[0] <= 1e-9 * abs(edges).max():  # equal values: a line, not a block
        ax.plot([edges[0], edges[0]], [0, 1], color=color, linewidth=3, linestyle=style)
        return
    if fill:
        ax.stairs(heights, edges, fill=True, color=fill, alpha=0.75)
    ax.stairs(heights, edges, color=color, linewidth=1.0, linestyle=style)


def _weights(seen: Seen, site: Site) -> Histogram | None:
    """The parameter of a site, counted; None where there is nothing finite to count."""
    try:
        parameter: Tensor = seen.model.get_parameter(site.parameter or "")
    except AttributeError:  # computed on the way, and held nowhere
        return None
    if not parameter.is_floating_point():
        return None
    flat = parameter.detach().reshape(-1)
    numbers = flat[:: max(1, -(-flat.numel() // _MOST))].double().cpu().numpy()
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return None
    low, high = float(numbers.min()), float(numbers.max())
    if low == high:
        return Histogram((low, high), (numbers.size,))
    counts, edges = np.histogram(numbers, _BINS, (low, high))
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def _shortened(name: str) -> str:
    return name if len(name) <= 34 else f"…{name[-33:]}"
