"""Three views of a drawn weight: the density of its entries, the matrix, its singular values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.text import Text

from initlab.plots.curves import BLACK, BLUE, ORANGE, SKY, Picture
from initlab.plots.numbers import digits, size, tick
from initlab.weights import DrawnLayer, WeightLaw

DIVERGING = LinearSegmentedColormap.from_list("initlab", [BLUE, "white", ORANGE])
MOST_CELLS = 96
"""Rows and columns of the matrix that are shown: more would be smaller than a pixel."""

_MOST_BINS = 48
_ROOM = 1.4  # the y-axis' end over the highest value: above it stand the names
_MOST_MARKERS = 48  # more would hide the law


class WeightPicture:
    """The figure with its artists, which are made once and moved.

    Every Axes runs from 0 or −1 to 1 in units of its own end, so that what stays is always the
    same: the numbers beside the axes move like the curves.
    """

    def __init__(self) -> None:
        self.figure = Picture(11.0, 3.5)
        self.weights = self.figure.add_axes((0.02, 0.145, 0.3, 0.755))
        self.matrix = self.figure.add_axes((0.375, 0.145, 0.235, 0.755))
        self.scale = self.figure.add_axes((0.622, 0.145, 0.012, 0.755))
        self.values = self.figure.add_axes((0.735, 0.145, 0.25, 0.755))
        self._set_up()
        self._drawn_weights = self.weights.stairs(
            [0], [-1, 1], fill=True, facecolor=SKY, edgecolor=BLUE, linewidth=0.8, zorder=2
        )
        (self._density,) = self.weights.plot([], [], color=BLACK, linewidth=1.3, zorder=4)
        self._cells = self.matrix.imshow(
            np.zeros((1, 1)), cmap=DIVERGING, aspect="auto", interpolation="nearest",
            extent=(0, 1, 1, 0), zorder=2,
        )  # fmt: skip
        (self._drawn_values,) = self.values.plot([], [], color=BLUE, marker="o", markersize=4,
                                                 linestyle="", zorder=3)  # fmt: skip
        (self._law,) = self.values.plot([], [], color=BLACK, linewidth=1.3, zorder=4)
        self._atoms: list[Artist] = []
        self._texts = self._make_texts()
        lasting = (self._drawn_weights, self._density, self._cells, self._drawn_values, self._law)
        self._lasting: list[Artist] = [*lasting, *self._texts.values()]
        for artist in self._lasting:
            artist.set_animated(True)

    @property
    def moving(self) -> list[Artist]:
        """What is drawn anew at every step, over what always stays."""
        return [*self._lasting, *self._atoms]

    def show(self, drawn: DrawnLayer) -> None:
        """Draw this layer in place of the last."""
        self._show_weights(drawn)
        self._show_matrix(drawn)
        self._show_values(drawn)

    # ------------------------------------------------------------ what stays

    def _set_up(self) -> None:
        self.weights.set_title("Weights: drawn and intended", loc="left", fontsize=10.5)
        self.weights.set(xlim=(-1, 1), ylim=(0, _ROOM), yticks=[], xticks=_fifths(-1))
        self.values.set_title("Singular values", loc="left", fontsize=10.5)
        self.values.set(xlim=(0, 1.02), ylim=(0, 1), yticks=_fifths(0), xticks=_fifths(0))
        self.values.grid(axis="y", color="#e8e8e8", linewidth=0.7)
        self.matrix.set(xlim=(0, 1), ylim=(1, 0), xticks=[0, 1], yticks=[0, 1])
        ramp = np.linspace(-1, 1, 128)[:, None]
        self.scale.imshow(ramp, cmap=DIVERGING, aspect="auto", origin="lower",
                          extent=(0, 1, -1, 1))  # fmt: skip
        self.scale.set(xticks=[], yticks=[-1, 0, 1])
        self.scale.yaxis.tick_right()
        names = ((self.weights, "weight", ""), (self.values, "number, from the largest", ""),
                 (self.matrix, "input (× tap)", "output"))  # fmt: skip
        for ax, x, y in names:
            ax.set_xlabel(x, fontsize=9.5, labelpad=15)
            ax.set_ylabel(y, fontsize=9.5, labelpad=5)
        for ax in self.figure.axes:
            ax.tick_params(labelleft=False, labelbottom=False, labelright=False, colors="#444444")
            ax.set_axisbelow(True)
            ax.spines[:].set_color("#999999")
        for ax in (self.weights, self.values):
            ax.spines[["top", "right"]].set_visible(False)
        self.weights.spines["left"].set_visible(False)

    def _make_texts(self) -> dict[str, Text]:
        """Every number and name that moves, by a name of its own."""
        texts = {
            "matrix": self.matrix.text(0, 1.022, "", transform=self.matrix.transAxes,
                                       fontsize=10.5, va="bottom"),
            "rows": _tick(self.matrix, "left", 1),
            "columns": _tick(self.matrix, "bottom", 1),
        }  # fmt: skip
        for at in self.weights.get_xticks():
            texts[f"weight {at:g}"] = _tick(self.weights, "bottom", at)
        for at in (-1, 0, 1):
            texts[f"scale {at}"] = _tick(self.scale, "right", at)
        for at in self.values.get_yticks():
            texts[f"value {at:g}"] = _tick(self.values, "left", at)
            texts[f"number {at:g}"] = _tick(self.values, "bottom", at)
        for side, ax in (("weights", self.weights), ("values", self.values)):
            for row, (name, color) in enumerate((("drawn", BLUE), ("law", BLACK))):
                texts[f"{side} {name}"] = ax.text(
                    0.99, 0.955 - 0.075 * row, "", color=color, fontsize=9, ha="right",
                    va="center", transform=ax.transAxes, zorder=6,
                )  # fmt: skip
        return texts

    # ------------------------------------------------------------ what moves

    def _show_weights(self, drawn: DrawnLayer) -> None:
        law, reach = drawn.law or WeightLaw(), _reach(drawn)
        for at in self.weights.get_xticks():
            self._texts[f"weight {at:g}"].set_text(tick(at * reach))
        others = _beside(drawn.matrix, law)
        edges = _bins(drawn)
        density = np.histogram(others, edges)[0] / max(len(others), 1) / np.diff(edges)
        along = np.linspace(-reach, reach, 401)
        expected = np.zeros(0) if law.density is None else law.density(along)
        # An infinite peak, of an entry of a 2 × 2 rotation, is cut off.
        top = max([float(density.max()), *expected[np.isfinite(expected)]]) or 1.0
        self._drawn_weights.set_data(density / top, edges / reach)
        self._density.set_data(along[: len(expected)] / reach, np.clip(expected / top, 0, _ROOM))
        self._texts["weights drawn"].set_text("■ drawn" if len(others) else "● drawn")
        self._texts["weights law"].set_text("━ intended" if drawn.law else "no law is known")
        self._show_atoms(drawn, law, reach)

    def _show_atoms(self, drawn: DrawnLayer, law: WeightLaw, reach: float) -> None:
        """A stem at each value that weights take exactly, as high as the share that should."""
        for artist in self._atoms:
            artist.remove()
        self._atoms = []
        bars = 1.0 if law.density else 0.0  # a name in front of them would hide their peak
        for value, share in law.atoms:
            x, found = value / reach, float(np.mean(drawn.matrix == np.float32(value)))
            self._atoms += self.weights.plot([x, x], [0, share], color=BLACK, linewidth=3)
            self._atoms += self.weights.plot([x], [found], color=BLUE, marker="o", markersize=6)
            self._atoms.append(
                self.weights.annotate(
                    f"{100 * found:.3g} % are {value:.3g}", (x, max(found, bars)), (0, 7),
                    textcoords="offset points", ha="center", va="bottom", fontsize=9, color=BLACK,
                )
            )  # fmt: skip
        for order, artist in enumerate(self._atoms):
            artist.set(animated=True, zorder=5 + order)

    def _show_matrix(self, drawn: DrawnLayer) -> None:
        cells, shade = drawn.matrix[:MOST_CELLS, :MOST_CELLS], _shade(drawn.matrix)
        self._cells.set_data(cells)
        self._cells.set_clim(-shade, shade)
        rows, columns = cells.shape
        of = "" if cells.shape == drawn.matrix.shape else f" of {size(drawn.matrix.shape)}"
        self._texts["matrix"].set_text(f"Matrix, {rows} × {columns}{of}")
        self._texts["rows"].set_text(str(rows))
        self._texts["columns"].set_text(str(columns))
        self._texts["scale -1"].set_text(f"≤ {tick(-shade)}")
        self._texts["scale 0"].set_text("0")
        self._texts["scale 1"].set_text(f"≥ {tick(shade)}")

    def _show_values(self, drawn: DrawnLayer) -> None:
        values, law = drawn.singular_values, drawn.expected
        count, highest = len(values), _highest(drawn)
        end = _whole_rung(count)
        for at in self.values.get_yticks():
            self._texts[f"value {at:g}"].set_text(tick(at * highest))
            self._texts[f"number {at:g}"].set_text(tick(at * end))
        shown = np.arange(0, count, math.ceil(count / _MOST_MARKERS))  # evenly, to the eye
        self._drawn_values.set_data((shown + 1) / end, values[shown] / highest)
        expected = np.zeros(0) if law is None else law[1]
        self._law.set_data((np.arange(len(expected)) + 1) / end, expected / highest)
        self._texts["values drawn"].set_text("● drawn")
        self._texts["values law"].set_text("no law is known" if law is None else f"━ {law[0]}")

    def readout(self, drawn: DrawnLayer) -> list[dict[str, Any]]:
        """What to read under the pointer, Axes by Axes."""
        content = {0: _weight_rows(drawn), 3: _value_rows(drawn)}
        return [
            {"span": list(ax.get_xlim()), "rows": content.get(index, [])}
            for index, ax in enumerate(self.figure.axes)
        ]


def _fifths(low: float) -> list[float]:
    return np.linspace(low, 1, 5).tolist()


def _tick(ax: Axes, side: str, at: float) -> Text:
    """The number beside a tick, which is drawn with what moves."""
    across = {"left": -0.03, "bottom": -0.035, "right": 1.9}[side]
    style: dict[str, Any] = {"fontsize": 9, "color": "#444444"}
    if side == "bottom":
        return ax.text(at, across, "", transform=ax.get_xaxis_transform(),
                       ha="center", va="top", **style)  # fmt: skip
    return ax.text(across, at, "", transform=ax.get_yaxis_transform(), va="center",
                   ha="right" if side == "left" else "left", **style)  # fmt: skip


# ---------------------------------------------------------------- numbers under the pointer


def _weight_rows(drawn: DrawnLayer) -> list[list[Any]]:
    law, reach = drawn.law or WeightLaw(), _reach(drawn)
    edges = _bins(drawn)
    middles, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    shares = np.histogram(drawn.matrix, edges)[0] / drawn.matrix.size
    texts = [
        f"weights from {low:.3g} to {high:.3g}: {share:.2%} are drawn there"
        for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True)
    ]
    if law.density is not None and not law.atoms:
        intended = law.density(middles) * widths
        texts = [f"{text}, {part:.2%} intended" for text, part in zip(texts, intended, strict=True)]
    return [[at, text] for at, text in zip((middles / reach).tolist(), texts, strict=True)]


def _value_rows(drawn: DrawnLayer) -> list[list[Any]]:
    values, law = drawn.singular_values, drawn.expected
    end = _whole_rung(len(values))
    rows = []
    for i in np.unique(np.linspace(0, len(values) - 1, min(len(values), 400)).astype(int)):
        text = f"singular value {i + 1}: drawn {digits(float(values[i]))}"
        rows.append(
            [(i + 1) / end, text if law is None else f"{text}, law {digits(float(law[1][i]))}"]
        )
    return rows


# ---------------------------------------------------------------- numbers for the eye


def _beside(matrix: np.ndarray, law: WeightLaw) -> np.ndarray:
    """The weights that are at no atom of the law."""
    atoms = np.array([value for value, _ in law.atoms], dtype=np.float32)
    return matrix.ravel() if not len(atoms) else matrix[~np.isin(matrix, atoms)]


def _bins(drawn: DrawnLayer) -> np.ndarray:
    """Edges that cover what is drawn; where the law has ends, they are edges too."""
    law, reach = drawn.law or WeightLaw(), _reach(drawn)
    bins = min(_MOST_BINS, 8 + math.isqrt(drawn.matrix.size) // 2)  # few where weights are few
    low, high = law.support
    width = (high - low) / bins
    if law.density is None or width < 1e-3 * reach:  # of a spike one bin is enough
        return np.linspace(-reach, reach, bins + 1)
    first, last = math.floor((-reach - low) / width), math.ceil((reach - low) / width)
    return low + width * np.arange(first, last + 1)


_LADDER = (1.0, 1.2, 1.6, 2.0, 2.4, 3.2, 4.0, 6.0, 8.0, 10.0)


def _rung(value: float) -> float:
    """The next round number of which a quarter is round as well; 1 for 0.

    >>> _rung(0.29), _rung(0.0)
    (0.32, 1.0)
    """
    if not value > 0:
        return 1.0
    lead = 10.0 ** math.floor(math.log10(value))
    return next(
        float(f"{step * lead:.2g}") for step in _LADDER if step * lead >= value * (1 - 1e-9)
    )


def _whole_rung(count: int) -> int:
    """The next multiple of 4 of two leading digits, so that quarters are whole numbers too.

    >>> _whole_rung(1), _whole_rung(64), _whole_rung(250)
    (4, 64, 280)
    """
    step = 4 * 10 ** max(0, int(math.log10(count)) - 1)
    return math.ceil(count / step) * step


def _reach(drawn: DrawnLayer) -> float:
    """Where the axis of weights ends: beyond all that is drawn and all that could well be."""
    ends = [float(np.abs(drawn.matrix).max())]
    if drawn.law is not None:
        ends += [abs(end) for end in drawn.law.support]
    return _rung(1.06 * max(ends))


def _shade(matrix: np.ndarray) -> float:
    """Where colours end: at three times a typical weight, or at the largest."""
    typical = math.sqrt(float(np.square(matrix, dtype=np.float64).mean()))
    return _rung(min(3 * typical, float(np.abs(matrix).max())))


def _highest(drawn: DrawnLayer) -> float:
    top = float(drawn.singular_values[0])
    law = drawn.expected
    return _rung(_ROOM * (top if law is None else max(top, float(law[1][0]))))
