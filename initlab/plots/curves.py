"""Matplotlib drawings of traces and predictions, each drawable once and updatable in place.

``plot`` is the one door. A ``Panel`` draws the same pictures into one Axes and keeps its artists,
so that an explorer can move them: what changes rarely (axes, grid, zone) is told apart from what
changes at every step (``Panel.moving``), which a ``LiveFigure`` blits.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from initlab.errors import unknown_name
from initlab.plots.numbers import digits
from initlab.plots.views import QUANTITIES, VIEWS, Quantity, View
from initlab.prediction import PredictedSite, Prediction
from initlab.tracing import Site, Trace

Subject = Trace | Prediction

# Okabe & Ito 2008: told apart by all common kinds of colour vision.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, SKY, YELLOW, BLACK = "#CC79A7", "#56B4E9", "#E69F00", "#222222"
_CYCLE = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"), (YELLOW, "v"))

ROUNDING = 1e-12
"""The share of E h² below which a variance across samples is that of float32's rounding."""

HEALTHY = (0.1, 10.0)
"""The zone shaded as healthy: within a factor of 10 of 1."""


@dataclass(frozen=True)
class Curve:
    """One line: layer numbers, values (nan where there are none), and what cut it short."""

    label: str
    layers: np.ndarray
    values: np.ndarray
    note: str = ""
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass
class _Spot:
    """Where a curve ends and what is written there; first in data, then in Axes coordinates."""

    x: float
    y: float
    text: str
    color: str
    backward: bool | None = None
    """Of a curve cut short: is it read from the output down? None: the curve is whole."""
    rising: bool = True
    """Does it rise towards its end there? Then what is above it is free."""
    right: bool = True
    """Is that written to the right of the end, or to the left?"""

    @property
    def lines(self) -> int:
        return 1 + self.text.count("\n")

    @property
    def longest(self) -> int:
        return max(map(len, self.text.split("\n")))


class Picture(Figure):
    """A Figure that shows itself as a PNG in a notebook, without pyplot."""

    def __init__(self, width: float = 9.0, height: float = 3.6, dpi: float = 100) -> None:
        super().__init__(figsize=(width, height), dpi=dpi, facecolor="white")
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


class Stamp(Text):
    """A vertically centred text that is set once for each wording and then copied as pixels.

    Setting four labels takes 6 ms, six times as long as all that they label.
    """

    def draw(self, renderer: Any) -> None:
        side = self.get_horizontalalignment()
        pixels = _pixels(self.get_text(), self.get_color(), self.get_fontsize(), renderer.dpi, side)
        x, y = self.get_transform().transform(self.get_position())
        height, width, _ = pixels.shape
        left = x if side == "left" else x - width
        renderer.draw_image(renderer.new_gc(), round(left), round(y - height / 2), pixels)


@lru_cache(maxsize=128)
def _pixels(text: str, color: str, size: float, dpi: float, side: str) -> np.ndarray:
    """The text on a clear ground, as (height, width, 4) bytes from the bottom up."""
    sheet = Figure(figsize=(10, 2), dpi=dpi, facecolor="none")
    canvas = FigureCanvasAgg(sheet)
    written = sheet.text(0.5, 0.5, text, color=color, fontsize=size, ha="center", va="center",
                         multialignment=side)  # fmt: skip
    canvas.draw()
    box = written.get_window_extent()
    columns = slice(math.floor(box.x0), math.ceil(box.x1))
    rows = slice(math.floor(box.y0), math.ceil(box.y1))
    return np.asarray(canvas.buffer_rgba())[::-1][rows, columns].copy()


# ---------------------------------------------------------------- from sites to curves


def curve(
    subject: Subject, what: str = "forward", quantity: str = "second_moment", label: str = ""
) -> Curve:
    """The values of one picture as a Curve over layers.

    Backward values are divided by the output's, so that a loss and a probe can be compared.
    """
    return _curve(subject, VIEWS[what], quantity, label)


def lines(
    trace: Trace, what: str, quantity: str = "second_moment", label: str = "measured"
) -> list[Curve]:
    """All curves of one picture of a trace: none where its axis is not depth."""
    view = VIEWS[what]
    if not view.parts:
        return [_curve(trace, view, quantity, label)] if view.over_depth else []
    drawn = [_curve(trace, replace(view, field=field), "", name) for field, name in view.parts]
    return [each for each in drawn if np.isfinite(each.values).any()]


def ghost(trace: Trace, what: str, quantity: str, label: str) -> Curve | None:
    """The one curve of a picture, to be drawn dashed beside another; None where there is none."""
    if VIEWS[what].stands_alone:
        return None
    drawn = curve(trace, what, quantity, label)
    return drawn if np.isfinite(drawn.values).any() or drawn.note else None


MOST_ROWS = 400
"""Layers whose numbers are listed."""


def readout(curves: Sequence[Curve], names: Sequence[str] = ()) -> list[list[Any]]:
    """Layer by layer what the curves say, as (layer, sentence); sites may have names."""
    shown = [each for each in curves if len(each.layers)]
    if not shown:
        return []
    layers = shown[0].layers
    rows = []
    for i in np.unique(np.linspace(0, len(layers) - 1, min(len(layers), MOST_ROWS)).astype(int)):
        where = f"layer {layers[i]}, {names[i]}" if names else f"layer {layers[i]}"
        numbers = [f"{each.label} {digits(float(each.values[i]))}" for each in shown
                   if i < len(each.values)]  # fmt: skip
        rows.append([int(layers[i]), f"{where}: {', '.join(numbers)}"])
    return rows


def _curve(subject: Subject, view: View, quantity: str, label: str) -> Curve:
    scale = output_gradient(subject) if view.relative else 1.0
    sites = [site for site in subject if site.kind in view.kinds]
    values = np.array([_value(site, view.field, quantity) for site in sites]) / scale
    layers = np.array([site.depth for site in sites])
    if quantity == "across_samples_var" and not view.sampled:
        return Curve(label, layers, values, "no samples to vary across")
    note, end = _cut_short(sites, values, view) if view.log else ("", len(values))
    values[end:] = math.nan
    return Curve(label, layers, values, note)


def theory_curve(
    prediction: Prediction, what: str = "forward", quantity: str = "second_moment"
) -> Curve | None:
    """Theory's curve for the same picture, with its band; None where theory says nothing of it.

    >>> from initlab import Experiment
    >>> prediction = Experiment(depth=3, data="noise").predict()
    >>> theory_curve(prediction, quantity="var").values.round(2).tolist()
    [2.0, 2.0, 2.0]
    """
    if VIEWS[what].no_theory:
        return None
    if not VIEWS[what].log:  # a number of its own, of which no quantity is taken
        theory = curve(prediction, what, quantity, "theory")
    elif quantity == "across_samples_var":
        theory = curve(prediction, what, quantity, "theory")
        # A variance over a batch divides by B, not by B − 1.
        shown = 1 - 1 / prediction.batch_size if prediction.batch_size else 1.0
        values = theory.values * shown
        rounded = values <= ROUNDING * curve(prediction, what, "second_moment").values
        theory = replace(theory, values=np.where(rounded, math.nan, values))
        theory = _banded(theory, prediction, what, "across_low", "across_high")
    elif quantity == "var" and not prediction.centred:
        return None
    else:  # E h = 0, so that variance and second moment agree
        theory = curve(prediction, what, "second_moment", "theory")
        theory = _banded(theory, prediction, what, "low", "high")
    return theory if np.isfinite(theory.values).any() else None


def _banded(theory: Curve, prediction: Prediction, what: str, lowest: str, highest: str) -> Curve:
    """The curve with its band, or without one if there is none; both end where that has no end."""
    low, high = (curve(prediction, what, bound).values for bound in (lowest, highest))
    drawn = np.isfinite(theory.values) & ~np.isinf(high)
    values, low, high = (np.where(drawn, each, math.nan) for each in (theory.values, low, high))
    theory = replace(theory, values=values)
    if not np.isfinite(low).any():
        return theory
    return replace(theory, label="theory, 95\u00a0%\u00a0of\u00a0draws", low=low, high=high)


def _widened(each: Curve) -> Curve:
    """A line of a single layer, which would not be seen, as a dash there."""
    (at,) = np.nonzero(np.isfinite(each.values))
    if len(at) != 1:
        return each
    ends = np.repeat(at, 2)
    layers = each.layers[ends] + np.array([-0.25, 0.05])  # its dot and name stand on the right
    low, high = (None if edge is None else edge[ends] for edge in (each.low, each.high))
    return replace(each, layers=layers, values=each.values[ends], low=low, high=high)


def _value(site: Site | PredictedSite, field: str, quantity: str) -> float:
    value = getattr(site, field, None)
    if value is None:
        return math.nan
    if isinstance(value, int | float):  # a share of the values, if they are numbers
        return math.nan if getattr(site.forward, "nonfinite", 0) else float(value)
    number = getattr(value, quantity, None)
    return math.nan if number is None else float(number)


def output_gradient(subject: Subject) -> float:
    """E δ² at the output: 1 where there is none, or where it is 0 or not finite."""
    if not len(subject) or subject[-1].backward is None:
        return 1.0
    value = subject[-1].backward.second_moment
    return value if 0 < value < math.inf else 1.0


def _cut_short(
    sites: Sequence[Site | PredictedSite], values: np.ndarray, view: View
) -> tuple[str, int]:
    """Where a log curve ends, and why in words: overflow, or a value of exactly 0.

    A backward curve is read from the output down, so its flaw is the one nearest the output.
    """
    order = range(len(sites) - 1, -1, -1) if view.from_output else range(len(sites))
    for index in order:
        stats = getattr(sites[index], view.field, None)
        word = ""
        if stats is not None and getattr(stats, "nonfinite", 0):
            word = f"overflow at layer {sites[index].depth}"
        elif values[index] == 0:
            word = f"0 at layer {sites[index].depth}"
        if word:
            if view.from_output:
                values[: index + 1] = math.nan
                return word + " and below", len(values)
            return word, index
    return "", len(values)


def _fold_seeds(curves: Sequence[Curve]) -> Curve:
    """Median and 10-90 % band over seeds."""
    table = np.stack([each.values for each in curves])
    low, middle, high = np.nanquantile(table, [0.1, 0.5, 0.9], axis=0)
    note = next((each.note for each in curves if each.note), "")
    return Curve(f"median of {len(curves)}", curves[0].layers, middle, note, low, high)


# ---------------------------------------------------------------- one Axes, updated in place


def _choose_side(spot: _Spot, line: float, letter: float) -> None:
    """Where the name of a curve that was cut short stands: over what there is of it if it fits
    there, in two lines on the wider side if not, and in either case beside the line.

    Theory's line goes on from there, and so rises or falls on the far side as well.
    """
    if spot.backward is None:
        return
    room = {True: 1 - spot.x, False: spot.x}
    spot.right = spot.backward
    if spot.longest * letter > room[spot.right]:
        spot.right = not spot.right
    if spot.longest * letter > room[spot.right]:
        spot.right = spot.x < 0.5
        spot.text = textwrap.fill(spot.text, _CUT_WIDTH)
    is_beyond = spot.right != spot.backward
    spot.y += (line if spot.rising != is_beyond else -line) * (1 + spot.lines) / 2


class Panel:
    """One Axes with its curves; ``background`` says when more than ``moving`` has changed."""

    def __init__(self, ax: Axes, *, animated: bool = False) -> None:
        self.ax = ax
        self.animated = animated
        self.view = ""
        self._healthy: Text | None = None
        self.background: tuple = ()
        self.moving: list[Artist] = []

    def show(
        self,
        what: str,
        trace: Trace,
        *,
        label: str = "measured",
        theory: Curve | None = None,
        pinned: Curve | None = None,
        quantity: str = "second_moment",
        depth: int | None = None,
    ) -> None:
        """Draw one picture of a trace, whatever it needs."""
        if not VIEWS[what].over_depth:
            self.histograms(trace)
            return
        measured = lines(trace, what, quantity, label)
        self.update(
            what, measured=measured, theory=theory, pinned=pinned, quantity=quantity, depth=depth
        )

    def update(
        self,
        what: str,
        *,
        measured: Sequence[Curve] = (),
        theory: Curve | None = None,
        pinned: Curve | None = None,
        quantity: str = "second_moment",
        depth: int | None = None,
    ) -> None:
        """Draw these curves instead of the last ones."""
        self.clear_moving()
        view = VIEWS[what]
        curves = [*measured, *(each for each in (theory, pinned) if each is not None)]
        deepest = max([int(each.layers.max()) for each in curves if len(each.layers)] or [1])
        limits = _limits(curves) if view.log else (-0.03, 1.03)
        background = (what, quantity, nice_depth(max(deepest, depth or 1)), limits)
        if background != self.background:
            if what != self.view:
                self._set_up(what)
            self._set_range(quantity, *background[2:])
            self.background = background
        ends: list[_Spot] = []
        if theory is not None:
            silent = replace(theory, note="")  # the measurement says where float32 ends
            ends += self._draw(silent, color=BLACK, linewidth=1.3, zorder=2)
        if pinned is not None:
            ends += self._draw(pinned, color=ORANGE, linewidth=1.4, linestyle="--", zorder=3)
        for each, (color, marker) in zip(measured, _CYCLE * (1 + len(measured) // 5), strict=False):
            ends += self._draw(
                each,
                color=color,
                marker=marker,
                markersize=4.5 if deepest <= 120 else 2,
                linewidth=0.8,
                zorder=4,
            )
        self._label(ends)

    def histograms(self, trace: Trace) -> None:
        """A ridgeline: one density per layer, each over its own range, from first to last."""
        self.clear_moving()
        self._set_up("histograms")
        self.ax.set_title(VIEWS["histograms"].title, loc="left", fontsize=10.5)
        self.background = ("histograms", object())  # equal to no other
        sites = [site for site in trace if site.kind == "affine" and site.histogram is not None]
        count = min(12, int(self._inches[1] / _RIDGE))
        shown = [sites[i] for i in np.unique(np.linspace(0, len(sites) - 1, count).astype(int))]
        spread = max([site.forward.std for site in shown if site.histogram] or [1.0])
        reach = 4 * spread if math.isfinite(spread) and spread > 0 else 1.0
        for row, site in enumerate(shown):
            self._ridge(site, len(shown) - row, reach)
        self.ax.set_xlim(-reach, reach)
        self.ax.set_ylim(0.6, len(shown) + 1.9)
        self.ax.set_yticks(range(1, len(shown) + 1), [str(site.depth) for site in shown[::-1]])
        self.ax.set_ylabel("layer")
        self.ax.set_xlabel("pre-activation")
        self.ax.grid(False)

    def _ridge(self, site: Site, base: float, reach: float) -> None:
        histogram = site.histogram
        assert histogram is not None
        edges, counts = np.array(histogram.edges), np.array(histogram.counts, float)
        height = 1.5 * counts / max(counts.max(), 1)
        if edges[-1] - edges[0] < reach / 200:  # a spike: all values nearly equal
            edges = edges.mean() + np.linspace(-1, 1, len(edges)) * reach / 200
        order = 10 - base / 100
        self.ax.stairs(base + height, edges, baseline=base, fill=True, color=SKY, alpha=0.75,
                       zorder=order)  # fmt: skip
        self.ax.stairs(base + height, edges, baseline=base, color=BLUE, linewidth=0.8, zorder=order)

    def _draw(self, each: Curve, **style) -> list[_Spot]:
        """Add the line, and return where its label goes."""
        if "marker" not in style:
            each = _widened(each)
        finite = np.isfinite(each.values)
        (line,) = self.ax.plot(each.layers, each.values, **style)
        artists: list[Artist] = [line]
        if each.low is not None and each.high is not None:
            inside = np.isfinite(each.low) & np.isfinite(each.high)
            edge = np.concatenate([each.high[inside], each.low[inside][::-1]])
            around = np.concatenate([each.layers[inside], each.layers[inside][::-1]])
            band = Polygon(np.column_stack([around, edge]), color=style["color"], alpha=0.15,
                           linewidth=0, zorder=1)  # fmt: skip
            artists.append(self.ax.add_artist(band))  # add_patch would walk it for data limits
        for artist in artists:
            artist.set_animated(self.animated)
        self.moving += artists
        color = style["color"]
        if not each.note:
            if not finite.any():
                return []
            last = np.flatnonzero(finite)[-1]
            name = textwrap.fill(each.label, _LABEL_WIDTH)
            return [_Spot(float(each.layers[last]), float(each.values[last]), name, color)]
        text = f"{each.label}: {each.note}" if each.label else each.note
        if not finite.any():
            beyond = self.ax.get_ylim()[0 if each.note.startswith("0") else 1]
            return [_Spot(1, beyond, text, color, backward=True)]
        backward = each.note.endswith("below")
        start, last = np.flatnonzero(finite)[[-1, 0] if backward else [0, -1]]
        x, y = float(each.layers[last]), float(each.values[last])
        return [_Spot(x, y, text, color, backward, bool(y >= each.values[start]))]

    def _label(self, ends: Sequence[_Spot]) -> None:
        """Names at the curves' ends, pushed apart where they would touch."""
        wide, high = self._inches
        line, letter, gap = _LINE / high, _LETTER / wide, _GAP / wide
        to_axes = (self.ax.transData + self.ax.transAxes.inverted()).transform
        spots = []
        for end in ends:
            x, y = to_axes((end.x, end.y))
            spots.append(replace(end, x=float(x), y=float(y)))
        spots = [spot for spot in spots if spot.text and math.isfinite(spot.y)]
        for spot in spots:
            _choose_side(spot, line, letter)
        spots.sort(key=lambda spot: -spot.y)
        for rank, spot in enumerate(spots):
            half = line * spot.lines / 2
            lowest = half + line * sum(below.lines for below in spots[rank + 1 :])
            near = [above for above in spots[:rank] if abs(above.x - spot.x) < 0.3]
            highest = min([1.0, *(above.y - line * above.lines / 2 for above in near)]) - half
            longest = max(spot.longest, len("healthy"))
            if self._zone_is_named and 1 - 2 * (longest + 1) * letter < spot.x < 1:
                zone = float(to_axes((1, HEALTHY[1]))[1])  # not where its name stands
                if zone - half < spot.y < zone + line + half:
                    highest = min(highest, zone - half)
            spot.y = min(max(spot.y, lowest), highest)
        for spot in spots:
            label = (Stamp if self.animated else Text)(
                spot.x + (gap if spot.right else -gap),
                spot.y,
                spot.text,
                color=spot.color,
                fontsize=9,
                va="center",
                ha="left" if spot.right else "right",
                transform=self.ax.transAxes,
                clip_on=False,
                zorder=6,
                animated=self.animated,
            )
            self.moving.append(self.ax.add_artist(label))

    def mark(self, layer: int) -> None:
        """Draw a dotted line at this layer, which leaves out the name of the zone."""
        ends = [0.0, 1.0]
        if self._zone_is_named:
            assert self._healthy is not None
            name = self._healthy.get_window_extent()
            if name.x0 - 4 < self.ax.transData.transform((layer, 1))[0] < name.x1 + 4:
                below, above = self.ax.transAxes.inverted().transform(name)[:, 1]
                ends = [0.0, below, math.nan, above, 1.0]
        (line,) = self.ax.plot(
            [layer] * len(ends), ends, color=BLACK, linewidth=1.2, linestyle=":", zorder=2,
            transform=self.ax.get_xaxis_transform(), animated=self.animated,
        )  # fmt: skip
        self.moving.append(line)

    @property
    def _zone_is_named(self) -> bool:
        return self._healthy is not None and self._healthy.get_visible()

    @property
    def _inches(self) -> tuple[float, float]:
        """How wide and high the Axes are."""
        box, dpi = self.ax.bbox, self.ax.figure.dpi
        return box.width / dpi, box.height / dpi

    def clear_moving(self) -> None:
        """Take the last curves out of the Axes."""
        for artist in self.moving:
            artist.remove()
        self.moving = []

    def _set_up(self, what: str) -> None:
        """Everything that stays while one kind of picture is shown; slow, since ticks are."""
        self.view = what
        view, ax = VIEWS[what], self.ax
        ax.clear()
        self._healthy = None
        ax.set_xlabel("layer", fontsize=9.5)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        if view.log:
            ax.set_yscale("log")
            ax.yaxis.set_minor_locator(NullLocator())
        if view.healthy:
            ax.axhspan(*HEALTHY, color=GREEN, alpha=0.07, linewidth=0, zorder=0)
            self._healthy = ax.text(0.99, HEALTHY[1], "healthy", color="#00795a", fontsize=9,
                                    transform=ax.get_yaxis_transform(),
                                    ha="right", va="bottom", zorder=1)  # fmt: skip
        ax.grid(axis="y", color="#e8e8e8", linewidth=0.7)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=9, colors="#444444")
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            ax.spines[side].set_color("#999999")

    def _set_range(self, quantity: str, depth: int, limits: tuple[float, float]) -> None:
        """Title and limits: what changes where a curve leaves the axes, or the quantity does."""
        view, ax = VIEWS[self.view], self.ax
        ax.set_title(view.title.format(QUANTITIES[quantity][0]), loc="left", fontsize=10.5)
        ax.set_xlim(0, depth * 1.02)
        if view.log:
            decades = math.log10(limits[1] / limits[0]) if limits[0] > 1e-300 else 600
            step = next(step for step in _TICK_STEPS if decades <= 6.2 * step)
            ax.yaxis.set_major_locator(LogLocator(base=10.0**step))
            if self._healthy is not None:  # in a thinner zone the curve would run through its name
                zone = math.log10(HEALTHY[1] / HEALTHY[0])
                self._healthy.set_visible(zone > _THINNEST * decades)
        ax.set_ylim(*limits)


_DEPTHS = (5, 10, 20, 30, 50, 75, 100)


def nice_depth(depth: int) -> int:
    """The x-axis' end: steps of a ladder, so that a moving depth rarely moves the axis.

    >>> nice_depth(37), nice_depth(101), nice_depth(10_000)
    (50, 200, 10000)
    """
    ladder = [*_DEPTHS, *(lead * 10**power for power in range(2, 9) for lead in (2, 3, 5, 7.5, 10))]
    return int(next((step for step in ladder if step >= depth), depth))


_LINE, _LETTER, _GAP = 0.184, 0.063, 0.076  # of labels, in inches
_RIDGE = 0.2  # from one to the next, in inches
_THINNEST = 0.065  # of the Axes, the zone that has its name
_LABEL_WIDTH = 18  # letters, in the margin
_CUT_WIDTH = 22  # letters, of a name within the Axes that is broken
_TICK_STEPS = (1, 2, 3, 4, 6, 10, 20, 30, 50, 100, 200)  # decades
_LOWS = (-8, -16, -32, -64, -128, -308)
_HIGHS = (4, 8, 16, 32, 64, 128, 300)


def _limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """A generous y-range on a ladder: the same for small changes of the curves."""
    logs = [np.log10(each.values[each.values > 0]) for each in curves]
    values = np.concatenate([*logs, [0.0]])
    low = next((step for step in _LOWS if step <= values.min() - 0.5), _LOWS[-1])
    high = next((step for step in _HIGHS if step >= values.max() + 0.5), _HIGHS[-1])
    return 10.0**low, 10.0**high


# ---------------------------------------------------------------- the door


def plot(
    subject: Subject | Sequence[Subject] | Mapping[str, Subject],
    what: str = "forward",
    ax: Axes | None = None,
    *,
    quantity: Quantity = "second_moment",
) -> Figure:
    """Draw traces and predictions over depth.

    Args:
        subject: one Trace or Prediction; several, drawn over each other (three or more traces of
            the same sites are drawn as median and 10-90 % band); or a mapping label → subject.
        what: "forward", "backward", "weights", "weight_grad", "units", "cosine" (a trace needs
            ``geometry=True``) or "histograms" (``histogram=True``).
        ax: an Axes to draw into; a new figure if None.
        quantity: "second_moment", "var" or "across_samples_var".

    Returns:
        The figure.

    Raises:
        ValueError: unknown ``what`` or ``quantity``, or a trace without what is to be drawn.
        TypeError: something that is neither a Trace nor a Prediction.
    """
    if what not in VIEWS:
        raise unknown_name("what", what, VIEWS)
    if quantity not in QUANTITIES:
        raise unknown_name("quantity", quantity, QUANTITIES)
    named = _named(subject)
    if ax is None:
        figure = Picture(6.4, 3.8)
        ax = figure.add_axes((0.12, 0.14, 0.68, 0.74))
    panel = Panel(ax)
    traces = {label: each for label, each in named.items() if isinstance(each, Trace)}
    predictions = [each for each in named.values() if isinstance(each, Prediction)]
    _require(what, traces)
    if VIEWS[what].stands_alone:
        panel.show(what, next(iter(traces.values())))
        return ax.figure  # type: ignore[return-value]
    measured = [curve(each, what, quantity, label) for label, each in traces.items()]
    if len(measured) >= 3 and isinstance(subject, Sequence) and _same_layers(measured):
        measured = [_fold_seeds(measured)]
    theory = theory_curve(predictions[0], what, quantity) if predictions else None
    panel.update(what, measured=measured, theory=theory, quantity=quantity)
    return ax.figure  # type: ignore[return-value]


def _named(subject: Subject | Sequence[Subject] | Mapping[str, Subject]) -> dict[str, Subject]:
    if isinstance(subject, Trace | Prediction):
        subject = [subject]
    if not isinstance(subject, Sequence | Mapping):
        raise TypeError(f"plot draws a Trace or a Prediction, not a {type(subject).__name__}")
    if not isinstance(subject, Mapping):
        count = sum(isinstance(each, Trace) for each in subject)
        labels = ["measured" if count == 1 else f"trace {i + 1}" for i in range(len(subject))]
        subject = {
            label if isinstance(each, Trace) else f"theory {i}": each
            for i, (label, each) in enumerate(zip(labels, subject, strict=True))
        }
    for each in subject.values():
        if not isinstance(each, Trace | Prediction):
            raise TypeError(f"plot draws a Trace or a Prediction, not a {type(each).__name__}")
    if not subject:
        raise ValueError("plot needs at least one Trace or Prediction")
    return dict(subject)


def _require(what: str, traces: Mapping[str, Trace]) -> None:
    view = VIEWS[what]
    if view.no_theory and not traces:
        raise ValueError(f"what={what!r} needs a Trace; a Prediction has none")
    seen = [getattr(site, view.field) for each in traces.values() for site in each]
    if view.needs and traces and all(value is None for value in seen):
        raise ValueError(f"what={what!r} needs trace(…, {view.needs}=True)")


def _same_layers(curves: Sequence[Curve]) -> bool:
    return all(np.array_equal(each.layers, curves[0].layers) for each in curves)
