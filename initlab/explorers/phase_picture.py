"""The picture of PhaseExplorer: the plane, the two maps, and one network along its depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from initlab.explorers.plane import SIGMA_B, SIGMA_W, Plane
from initlab.plots import BLACK, BLUE, ORANGE, Picture, Stamp, nice_depth, power_of_ten

_DARK_GREEN, _DARK_ORANGE, _GREY = (
    "#00795a",
    "#9a3f00",
    "#555555",
)  # as text, with enough contrast on their shades
_ORDERED, _CHAOTIC, _UNBOUNDED = "#e3f1fa", "#fbe9df", "#e4e4e4"
_LETTER, _HALF = 0.045, 0.03  # a letter's width in sigma_w, half its height in sigma_b
_CONTOUR_ROW, _ROOM = 0.8, 0.11  # where contours are named: sigma_b, and how far apart
_CONTOURS = (3, 10, 30)  # of ξ_c, in layers
_LENGTHS = (1.5, 3.0, 7.5, 15.0, 30.0, 75.0, 150.0, 300.0)  # where the length map's axes end
_LOWS, _HIGHS = (-1, -2, -4, -8, -16, -32), (1, 2, 4, 8, 16, 32)  # decades, of q over depth
_COBWEB = 40  # layers
_ANGLES = (-0.16, 1.06)  # at finite width a c of 0 scatters below it

STARTS = (0.9, 0.1)
"""The correlations of the pairs of inputs that are followed through the network."""

HORIZON = 6
"""Signals and gradients reach through about 6 ξ_c layers (Schoenholz et al. 2017, sec. 5)."""


@dataclass(frozen=True)
class Course:
    """Lengths and correlations of the layers 0 … depth: q of (depth + 1,), c of (depth + 1, k)."""

    q: np.ndarray
    c: np.ndarray


@dataclass(frozen=True)
class View:
    """All that is drawn of one point of the plane.

    Attributes:
        sigma_w, sigma_b: the point.
        length_curve: the length map: q and its image, beyond the ends of every axis.
        lengths: (q, stable) of its fixed points.
        correlation_curve: the correlation map: c and its image.
        correlation: the c that it draws to, or None.
        horizon: 6 ξ_c, or None where ξ_c is undefined.
        theory, measured: the network along its depth.
    """

    sigma_w: float
    sigma_b: float
    length_curve: tuple[np.ndarray, np.ndarray]
    lengths: Sequence[tuple[float, bool]]
    correlation_curve: tuple[np.ndarray, np.ndarray]
    correlation: float | None
    horizon: float | None
    theory: Course
    measured: Course


CELLS = (  # of the plane, the maps of q and c, and q and c along the depth
    (0.0, 0.0, 0.43, 1.0),
    (0.43, 0.487, 0.72, 1.0),
    (0.72, 0.487, 1.0, 1.0),
    (0.43, 0.0, 0.72, 0.487),
    (0.72, 0.0, 1.0, 0.487),
)


class PhasePicture:
    """The figure and its artists; ``moving`` are drawn anew for every point, over the rest."""

    def __init__(self) -> None:
        self.figure = Picture(11.0, 4.35)
        self.plane, self.length, self.correlation, self.signal, self.angle = (
            self.figure.add_axes(box)
            for box in (
                (0.046, 0.115, 0.372, 0.805),
                (0.483, 0.615, 0.205, 0.305),
                (0.772, 0.615, 0.205, 0.305),
                (0.483, 0.115, 0.205, 0.305),
                (0.772, 0.115, 0.205, 0.305),
            )
        )
        self._set_up()
        self.background: tuple = ()
        self._reach: list[Any] = []
        self._reached: tuple = ()
        self._make_artists()

    @property
    def moving(self) -> list[Any]:
        return [*self._reach, *self._artists.values()]

    def update(self, name: str, plane: Plane, view: View, depth: int) -> None:
        """Show this point of this activation's plane, in a network of this depth."""
        top = _length_axis(view)
        limits = _signal_axis(view)
        end = nice_depth(depth)
        self._dress(plane, (name,), (top,), (1.0,), (end, limits), (end,))
        self._show_reach(name, plane, depth)
        self._show_point(view)
        self._show_maps(view, top)
        self._show_depth(view, depth, limits)

    # ------------------------------------------------------------ what stays

    def _set_up(self) -> None:
        """All that is the same in every state."""
        _calm(self.plane, "", r"$\sigma_w$", r"$\sigma_b$", beside=0.39)
        self.plane.set(xlim=SIGMA_W, ylim=SIGMA_B)
        _calm(self.length, "Length map", "q", "q′", beside=0.48)
        _calm(self.correlation, "Correlation map", "c", "c′", beside=0.4)
        _calm(self.signal, "q per layer", "layer")
        self.signal.set_yscale("log")
        self.signal.minorticks_off()
        for x, color, words in ((0.84, BLUE, "measured"), (1.0, BLACK, "map")):
            self.signal.text(x, 1.02, words, color=color, fontsize=9, ha="right", va="bottom",
                             transform=self.signal.transAxes)  # fmt: skip
        _calm(self.angle, "c of two inputs", "layer")
        self.angle.set(ylim=_ANGLES, yticks=[0, 0.5, 1])

    def _dress(self, plane: Plane, *wanted: tuple) -> None:
        """Give every Axes what it stands on, where that has changed."""
        dress = (
            partial(self._dress_plane, plane),
            partial(self._dress_map, self.length),
            partial(self._dress_map, self.correlation),
            self._dress_signal,
            self._dress_angle,
        )
        before = self.background or (None,) * len(dress)
        for paint, now, last in zip(dress, wanted, before, strict=True):
            if now != last:
                paint(*now)
        self.background = wanted

    def _dress_signal(self, depth: int, limits: tuple[float, float]) -> None:
        _number_layers(self.signal, depth)
        self.signal.set_ylim(*limits)
        decades = _ticks(*limits)
        labels = [
            power_of_ten(decade) for decade in decades
        ]  # formulas would be set letter by letter
        self.signal.set_yticks([10.0**decade for decade in decades], labels)

    def _dress_angle(self, depth: int) -> None:
        _number_layers(self.angle, depth)

    def _dress_plane(self, plane: Plane, name: str) -> None:
        ax = self.plane
        for artist in self._drawn_in_plane:
            artist.remove()
        before = set(ax.get_children())
        ax.set_title(f"Phases of {name}", **_TITLE)
        where = (plane.sigma_w, plane.sigma_b)
        shades = {"levels": [-1, 1, 1e9], "colors": [_ORDERED, _CHAOTIC], "zorder": 0}
        ax.contourf(*where, _filled(plane.chi), **shades)
        grows = plane.growth > 0
        if grows.any():
            ax.contourf(*where, plane.growth, levels=[0, 1e9], colors=[_UNBOUNDED], zorder=1.5)
        self._name_all(plane)
        self._rate = self._beside_names(plane, _filled(plane.rate))
        ax.contour(*where, self._rate, levels=_levels(), colors="#999999", linewidths=0.8,
                   linestyles="solid", zorder=1)  # fmt: skip
        self._drawn_in_plane = set(ax.get_children()) - before

    def _name_all(self, plane: Plane) -> None:
        """The edge of chaos; what it, the regions and the contours are called."""
        grows = plane.growth > 0
        settled = ~grows & np.isfinite(plane.chi)
        names = [
            self._name_region("ordered", settled & (plane.chi < 1), plane, "#00507e"),
            self._name_region("chaotic", settled & (plane.chi > 1), plane, _DARK_ORANGE),
            self._name_region("q grows without bound", grows, plane, _GREY),
        ]
        taken = [y for y in names if y is not None]
        for style, words, pieces in (
            ("-", "edge of chaos", plane.edge),
            (":", "critical, but q leaves it", plane.repelling),
        ):
            for sigma_w, sigma_b in pieces:
                self.plane.plot(sigma_w, sigma_b, color=BLACK, linewidth=1.8, linestyle=style,
                                zorder=2)  # fmt: skip
            self._name_edge(pieces, words, taken)
        self._name_contours(plane, np.where(grows, np.nan, _filled(plane.rate)))

    def _beside_names(self, plane: Plane, rate: np.ndarray) -> np.ndarray:
        """The rate without what lies under a name, so that no contour line crosses one."""
        beside = rate.copy()
        for text in self.plane.texts:
            if text.get_animated():
                continue
            box = text.get_window_extent().transformed(self.plane.transData.inverted())
            columns = (box.x0 <= plane.sigma_w) & (plane.sigma_w <= box.x1)
            rows = (box.y0 <= plane.sigma_b) & (plane.sigma_b <= box.y1)
            beside[np.ix_(rows, columns)] = np.nan
        return beside

    def _name_contours(self, plane: Plane, rate: np.ndarray) -> None:
        """Write each contour's ξ_c in it, all in one row, where there is room between them."""
        row = rate[round(_CONTOUR_ROW * (len(rate) - 1))]
        taken = np.interp(0.0, row, plane.sigma_w, np.nan, np.nan)
        for level in sorted(_levels(), key=abs, reverse=True):
            at = np.interp(level, row, plane.sigma_w, np.nan, np.nan)
            if not np.isfinite(at) or np.nanmin(np.abs(np.append(taken, at + 1) - at)) < _ROOM:
                continue
            taken = np.append(taken, at)
            self.plane.text(at, _CONTOUR_ROW * SIGMA_B[1], f"{1 / abs(level):.0f}", color=_GREY,
                            fontsize=9, ha="center", va="center", zorder=1.2)  # fmt: skip

    def _name_edge(self, pieces: Sequence[np.ndarray], words: str, taken: list[float]) -> None:
        """Name the longest piece of the edge, beside the end that is freer of other names.

        ``taken`` are the heights of those; the new one is added.
        """
        within = [piece[:, (piece <= [[SIGMA_W[1]], [SIGMA_B[1]]]).all(axis=0)] for piece in pieces]
        sigma_w, sigma_b = max(within, key=lambda piece: piece.shape[1], default=np.empty((2, 0)))
        if not len(sigma_w):
            return
        ends = (sigma_b.min() + 0.05 * SIGMA_B[1], sigma_b.max() - 0.05 * SIGMA_B[1])
        free = [y for y in ends if all(abs(y - other) > 0.1 for other in taken)]
        y = (free or ends)[0]
        order = np.argsort(sigma_b)
        passed = np.interp([y - _HALF, y, y + _HALF], sigma_b[order], sigma_w[order])
        right = passed.max() + 0.05
        fits = right + _LETTER * len(words) < SIGMA_W[1]
        self.plane.text(right if fits else passed.min() - 0.05, y, words, color=BLACK, fontsize=9,
                        va="center", ha="left" if fits else "right", zorder=3)  # fmt: skip
        taken.append(y)

    def _name_region(self, text: str, region: np.ndarray, plane: Plane, color: str) -> Any:
        """Write a region's name where it is widest, if it is wide enough; at which sigma_b."""
        inside = _distance_inside(region)
        row, column = np.unravel_index(inside.argmax(), region.shape)
        if inside[row, column] < 4:
            return None
        words = text if inside[row, column] > 15 else text.replace(" ", "\n", 2)
        at = plane.sigma_w[column], plane.sigma_b[row]
        style = {"fontsize": 10.5, "ha": "center", "va": "center", "zorder": 3}
        self.plane.text(*at, words, color=color, **style)
        return at[1]

    def _dress_map(self, ax: Any, top: float) -> None:
        ax.set_xlim(0, top)
        ax.set_ylim(0, top)
        ax.set_xticks(np.linspace(0, top, 3))
        ax.set_yticks(np.linspace(0, top, 3))
        self._diagonals[ax].set_data([0, top], [0, top])

    # ------------------------------------------------------------ what moves

    def _make_artists(self) -> None:
        """Every moving artist, once; they are given new data for every point."""

        def line(ax: Any, **style: Any) -> Any:
            return ax.plot([], [], animated=True, **style)[0]

        def text(ax: Any, **style: Any) -> Any:
            common = {"ha": "right", "va": "bottom", "transform": ax.transAxes, "fontsize": 9}
            return ax.text(0, 0, "", **(common | {"animated": True} | style))

        def word(color: str, written: str) -> Any:
            stamp = Stamp(0.97, 0.5, written, color=color, fontsize=9, ha="right", va="center",
                          transform=self.angle.transAxes, animated=True, zorder=5)  # fmt: skip
            return self.angle.add_artist(stamp)

        dot = {
            "clip_on": False,
            "marker": "o",
            "linestyle": "",
            "markersize": 6,
            "zorder": 6,
            "color": BLACK,
        }
        hollow = dot | {"markerfacecolor": "white"}
        small = {"linestyle": "", "markersize": 3.5, "zorder": 4}
        limit = {"color": _DARK_GREEN, "linewidth": 1.2, "linestyle": "--", "zorder": 3}
        self._artists: dict[str, Any] = {
            "point": line(self.plane, **dot | {"markersize": 11, "markeredgecolor": "white"}),
            "reach": text(self.plane, color=_DARK_GREEN),
            "length": line(self.length, color=BLACK, linewidth=1.3),
            "cobweb": line(self.length, color=BLUE, linewidth=0.9),
            "repelling": line(self.length, **hollow),
            "settled": line(self.length, **dot),
            "q": text(self.length),
            "correlation": line(self.correlation, color=BLACK, linewidth=1.3),
            "settled c": line(self.correlation, **dot),
            "c": text(self.correlation),
            "horizon of q": line(self.signal, **limit),
            "theory of q": line(self.signal, color=BLACK, linewidth=1.2),
            "measured q": line(self.signal, marker="o", color=BLUE, **small),
            "horizon of c": line(self.angle, **limit),
            "theory of c": line(self.angle, color=BLACK, linewidth=1.2),
            "high c": line(self.angle, marker="s", color=ORANGE, **small),
            "low c": line(self.angle, marker="o", color=BLUE, **small),
            "horizon": text(self.angle, color=_DARK_GREEN),
            "high start": word(_DARK_ORANGE, f"from {STARTS[0]}"),
            "low start": word(BLUE, f"from {STARTS[1]}"),
        }
        self._drawn_in_plane: set[Any] = set()
        grey = {"color": "#bbbbbb", "linewidth": 0.8, "zorder": 1}
        self._diagonals = {ax: ax.plot([], [], **grey)[0] for ax in (self.length, self.correlation)}

    def _show_reach(self, name: str, plane: Plane, depth: int) -> None:
        """The dashed lines between which 6 ξ_c is more than the depth."""
        if self._reached == (name, depth):
            return
        for artist in self._reach:
            artist.remove()
        level = HORIZON / depth
        self._reach = [
            self.plane.contour(
                plane.sigma_w, plane.sigma_b, np.where(plane.growth > 0, np.nan, self._rate),
                levels=[-level, level], colors=_DARK_GREEN, linewidths=1.2, linestyles="--",
                zorder=2.5, animated=True,
            )
        ]  # fmt: skip
        self._reached = (name, depth)
        contours = ", ".join(map(str, _CONTOURS))
        self._write("reach", 1.0, 1.012, f"ξ = {contours}; dashed: {HORIZON} ξ = {depth}")

    def _show_point(self, view: View) -> None:
        """The point; where it lies beyond the plane, at its border and hollow."""
        at = np.clip(view.sigma_w, *SIGMA_W), np.clip(view.sigma_b, *SIGMA_B)
        point = self._artists["point"]
        point.set_data([at[0]], [at[1]])
        point.set_markerfacecolor(BLACK if at == (view.sigma_w, view.sigma_b) else "white")
        point.set_markeredgecolor("white" if at == (view.sigma_w, view.sigma_b) else BLACK)

    def _show_maps(self, view: View, top: float) -> None:
        draw = self._draw
        draw("length", *view.length_curve)
        steps = np.repeat(view.theory.q[: _COBWEB + 1], 2)
        draw("cobweb", steps[:-1], [0.0, *steps[2:]])
        for key, stable in (("settled", True), ("repelling", False)):
            shown = [q for q, is_stable in view.lengths if is_stable == stable and q <= top]
            draw(key, shown, shown)
        settled = [q for q, stable in view.lengths if stable]
        self._write("q", 1.0, 1.02, f"q* = {settled[0]:.3g}" if len(settled) == 1 else "")
        draw("correlation", *view.correlation_curve)
        known = [] if view.correlation is None else [view.correlation]
        draw("settled c", known, known)
        self._write("c", 1.0, 1.02, f"c* = {known[0]:.3g}" if known else "no c*")

    def _show_depth(self, view: View, depth: int, limits: tuple[float, float]) -> None:
        draw = self._draw
        layers = np.arange(depth + 1)
        with np.errstate(invalid="ignore"):
            theory, measured = (
                np.where((each.q > 0) & np.isfinite(each.q), each.q, np.nan)
                for each in (view.theory, view.measured)
            )
        draw("theory of q", layers, theory)
        draw("measured q", layers, measured)
        lines = np.full((depth + 2, len(STARTS)), np.nan)  # nan parts one line from the next
        lines[:-1] = view.theory.c
        draw("theory of c", np.tile(np.append(layers, np.nan), len(STARTS)), lines.T.ravel())
        for key, column in (("high c", 0), ("low c", 1)):
            draw(key, layers, view.measured.c[:, column])
        self._show_horizon(view.horizon, depth, limits)
        at = _free_height((view.measured.c, view.theory.c))
        self._artists["high start"].set_position((0.97, at + 0.065))
        self._artists["low start"].set_position((0.97, at - 0.065))

    def _show_horizon(self, horizon: float | None, depth: int, limits: Any) -> None:
        end = 1.02 * nice_depth(depth)
        inside = horizon is not None and horizon <= end
        for key, span in (("horizon of q", limits), ("horizon of c", _ANGLES)):
            self._draw(key, [horizon] * 2 if inside else [], span if inside else [])
        words = ""
        if horizon is not None and not inside:
            words = f"{HORIZON} ξ = {horizon:.3g} →" if math.isfinite(horizon) else "ξ = ∞"
        if inside:
            words = f"{HORIZON} ξ = {horizon:.3g}"
        self._write("horizon", 1.0, 1.02, words)

    def _draw(self, key: str, x: Any, y: Any) -> None:
        self._artists[key].set_data(x, y)

    def _write(self, key: str, x: float, y: float, text: str) -> None:
        self._artists[key].set_position((x, y))
        self._artists[key].set_text(text)


_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 10.5, "pad": 4, "y": 1.0}
_BELOW = 0.25  # the axes, in inches


def _calm(ax: Any, title: str, xlabel: str, ylabel: str = "", *, beside: float = 0.0) -> None:
    """Title and labels where they are told to stand, ``beside`` in inches.

    To find a place of their own they would measure all ticks, for a third of the drawing's time.
    """
    ax.set_title(title, **_TITLE)
    ax.set_xlabel(xlabel, fontsize=9.5, va="top")
    ax.set_ylabel(ylabel, fontsize=9.5, va="center")
    width, height = ax.get_position().size * ax.figure.get_size_inches()
    ax.xaxis.set_label_coords(0.5, -_BELOW / height)
    ax.yaxis.set_label_coords(-beside / width, 0.5)
    ax.tick_params(labelsize=9, colors="#444444")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color("#999999")


def _number_layers(ax: Any, depth: int) -> None:
    ax.set_xlim(-0.02 * depth, 1.02 * depth)
    ax.set_xticks(np.linspace(0, depth, 3 if depth % 4 else 5).round().astype(int))


def _levels() -> list[float]:
    """The rates of the thin lines, from the ordered phase to the chaotic."""
    return sorted(sign / scale for scale in _CONTOURS for sign in (-1, 1))


def _distance_inside(region: np.ndarray) -> np.ndarray:
    """How many steps each cell of a region is away from the nearest cell outside."""
    steps, left = np.zeros(region.shape, int), np.pad(region, 1)
    while left.any():
        steps += left[1:-1, 1:-1]
        beside = left[:-2, 1:-1] & left[2:, 1:-1] & left[1:-1, :-2] & left[1:-1, 2:]
        left[1:-1, 1:-1] &= beside
    return steps


def _filled(values: np.ndarray) -> np.ndarray:
    """Without nan: where q grows without bound, what stands beside it at smaller sigma_w."""
    columns = np.where(np.isnan(values), 0, np.arange(values.shape[1]))
    return np.take_along_axis(values, np.maximum.accumulate(columns, axis=1), axis=1)


def _length_axis(view: View) -> float:
    """Where the axes of the length map end: a ladder, so that they rarely change."""
    stable = [q for q, is_stable in view.lengths if is_stable]
    needed = 1.2 * max([1.0, *stable]) if stable else 1.2 * max(1.0, view.theory.q[1])
    return next((top for top in _LENGTHS if top >= needed), _LENGTHS[-1])


def _free_height(curves: Sequence[np.ndarray]) -> float:
    """Where two words stand freest at the end of the angles: low, high or between, in the Axes."""
    low, high = _ANGLES
    late = np.concatenate([each[len(each) // 2 :].ravel() for each in curves])
    late = (late - low) / (high - low)
    return min((0.17, 0.76, 0.48), key=lambda at: np.count_nonzero(np.abs(late - at) < 0.18))


def _signal_axis(view: View) -> tuple[float, float]:
    both = np.concatenate([view.theory.q, view.measured.q])
    logs = np.log10(both[(both > 0) & np.isfinite(both)])
    low = next((step for step in _LOWS if step <= logs.min()), _LOWS[-1])
    high = next((step for step in _HIGHS if step >= logs.max()), _HIGHS[-1])
    return 10.0**low, 10.0**high


def _ticks(low: float, high: float) -> list[int]:
    """Decades of a log axis, both ends and 0 before what lies between, and none near another.

    >>> _ticks(1e-16, 1e2), _ticks(1e-1, 1e1)
    ([-16, -8, 0], [-1, 0, 1])
    """
    ends = round(math.log10(low)), round(math.log10(high))
    apart = 0.15 * (ends[1] - ends[0])
    taken: list[int] = []
    for decade in (0, *ends, ends[0] // 2, ends[1] // 2):
        if all(abs(decade - other) > apart for other in taken):
            taken.append(decade)
    return sorted(taken)
