"""SchemeExplorer: one layer's weights, drawn by the scheme of your choice, beside what they should
be."""

from __future__ import annotations

import dataclasses
import html
import math
import time
from typing import Any

import ipywidgets as widgets

from initlab.activations import ACTIVATIONS, activation
from initlab.explorers.controls import (
    Number,
    OptionalNumber,
    SchemeParameters,
    choice,
    with_defaults,
)
from initlab.explorers.explorer import ExperimentExplorer, button, fold, one_thread
from initlab.live import LiveFigure
from initlab.plots import WeightPicture, power
from initlab.weights import LAYER_KINDS, DrawnLayer, LayerDraw

_SIZES = {
    "in_features": ("inputs", 512, "72px"),
    "out_features": ("outputs", 512, "72px"),
    "in_channels": ("channels in", 128, "76px"),
    "out_channels": ("channels out", 128, "84px"),
    "kernel_size": ("kernel", 7, "48px"),
    "groups": ("groups", 16, "48px"),
}
"""Field → its label, the slider's upper end, and the width of the label."""

_NOTICEABLE = 2e8  # rows · columns · the smaller of them; more than some 150 ms


class SchemeExplorer(ExperimentExplorer[LayerDraw]):
    """Choose a scheme and a layer; see its weights, their matrix and their singular values.

    Args:
        scheme: a name of ``SCHEMES``, or a whole LayerDraw; also what Reset returns to.

    Attributes:
        controls: field name → widget with a ``value``.
        drawn: the weights that are shown and what they should be; None while there is an error.
        figure: the matplotlib figure.
        timing: milliseconds of the last update: compute, draw, encode.

    Raises:
        ValueError: an unknown scheme, or one that cannot fill a Linear layer.
    """

    _kind = LayerDraw

    def __init__(self, scheme: str | LayerDraw = "kaiming_normal") -> None:
        self._start = scheme if isinstance(scheme, LayerDraw) else LayerDraw(scheme)
        super().__init__(status_height="38px")  # two lines: what stands below does not jump
        self._experiment = self._start
        self.drawn: DrawnLayer | None = None
        self._picture = WeightPicture()
        self.figure = self._picture.figure
        self.live = LiveFigure(self.figure)
        self.controls = self._make_controls()
        self._formula = widgets.HTMLMath(layout=widgets.Layout(flex="1 1 400px", min_width="0"))
        self._formula.add_class("initlab-formula")
        self._facts = widgets.HTML(layout=widgets.Layout(flex="1 1 400px", min_width="0"))
        self._facts.add_class("initlab-facts")
        self._code = widgets.Textarea(
            rows=10, layout=widgets.Layout(width="auto"), description="code"
        )
        self._left_out = widgets.HTML()
        self.children = self._arrange()
        self._load(self._experiment)
        self._observe()
        self._refresh()

    # ------------------------------------------------------------ the parts

    def _make_controls(self) -> dict[str, Any]:
        now = self._experiment
        sizes = {
            name: Number(label, getattr(now, name), 1, most, label_width=width)
            for name, (label, most, width) in _SIZES.items()
        }
        seed = Number("seed", now.seed, 0, 100, label_width="50px")
        seed.layout.flex = "0 1 300px"
        return {
            "scheme": choice("scheme", now.schemes, now.scheme),
            "layer": choice("layer", LAYER_KINDS, now.layer),
            "activation": choice("reads", ACTIVATIONS, now.activation),
            **sizes,
            "gain": OptionalNumber("own gain", 1.0, 0.05, 3.0),
            "seed": seed,
            "scheme_params": SchemeParameters(),
        }

    def _arrange(self) -> list[widgets.Widget]:
        row = widgets.Layout(flex_flow="row wrap", width="100%")
        main = ("scheme", "layer", "activation")
        sizes = (*_SIZES, "gain")
        self._folds = [
            fold("PyTorch code that draws these weights", self._code),
            fold("schemes that are not on the menu, and why", self._left_out),
        ]
        buttons = [
            button("Resample", "draw new weights", self.resample, "96px"),
            button("Reset", "return to where this explorer began", self.reset, "96px"),
        ]
        return [
            widgets.HBox([self.controls[name] for name in main], layout=row),
            widgets.HBox([self.controls[name] for name in sizes], layout=row),
            self.controls["scheme_params"],
            self.live,
            self._status,
            widgets.HBox([self._formula, self._facts], layout=row),
            widgets.HBox([*buttons, self.controls["seed"]]),
            *self._folds,
        ]

    def _observe(self) -> None:
        for control in self.controls.values():
            control.observe(lambda change: self._follow(), "value")
        for each in self._folds:
            each.observe(lambda change: self._fill_folds(), "selected_index")

    # ------------------------------------------------------------ what others may call

    def summary(self) -> str:
        """What is shown, in two short deterministic lines."""
        now = self._experiment
        return f"{now.scheme}, {now.describe()}, {now.activation}\n{self._text}"

    def code(self) -> str:
        """The PyTorch lines that draw what is shown."""
        return self._experiment.code()

    # ------------------------------------------------------------ controls ⇄ experiment

    def _load(self, experiment: LayerDraw) -> None:
        """Show this experiment in the controls, without reacting to each."""
        with self._quietly():
            self._experiment = experiment
            self._offer()
            for field in dataclasses.fields(experiment):
                value = getattr(experiment, field.name)
                if field.name == "scheme_params":
                    value = with_defaults(experiment.scheme, value)
                self.controls[field.name].value = value

    def _offer(self) -> None:
        """The menu holds the schemes that can fill this layer; sizes are those that it has."""
        with self._quietly():
            now, menu = self._experiment, self.controls["scheme"]
            self.controls["scheme_params"].show(now.scheme)
            if tuple(menu.options) != now.schemes:
                menu.options = now.schemes
                menu.value = now.scheme
            for name in _SIZES:
                self.controls[name].layout.display = None if name in now.kind.sizes else "none"

    def _read(self) -> LayerDraw:
        """The experiment that the controls describe; ValueError or TypeError if there is none."""
        with self._quietly():
            self.controls["scheme_params"].show(self.controls["scheme"].value)
        return LayerDraw(**{name: control.value for name, control in self.controls.items()})

    # ------------------------------------------------------------ compute and draw

    def _refresh(self) -> None:
        try:
            start = time.perf_counter()
            if _work(self._experiment) > _NOTICEABLE:
                self._say("Drawing …")
            with one_thread():
                drawn = self._experiment.draw()
            computed = time.perf_counter()
            self.timing = {"compute": 1e3 * (computed - start)}
            words = finding(self._experiment, drawn)
            self._picture.show(drawn)
            self._publish(
                computed, self._picture.moving, "weights", f"Weights of one layer. {words}"
            )
            readout = self._picture.readout(drawn)
            boxes = self.live.boxes()
            self.live.readout = [
                {"box": box, **each} for box, each in zip(boxes, readout, strict=True)
            ]
            self.drawn = drawn
            self._formula.value = _formula(self._experiment)
            self._facts.value = _facts(self._experiment, drawn)
            self._say(words)
            self._fill_folds()
        except Exception as error:  # a callback's exception would be shown nowhere
            self._fail(str(error) if isinstance(error, ValueError) else repr(error))

    def _fill_folds(self) -> None:
        """Write code and reasons where they are open; hidden, they cost nothing."""
        code, left_out = self._folds
        with self._lock, self._quietly():
            if code.selected_index is not None and self.drawn is not None:
                self._code.value = self.code()
            if left_out.selected_index is not None:
                self._left_out.value = _reasons(self._experiment)

    def _fail(self, text: str) -> None:
        self.drawn = None
        super()._fail(text)


def _work(experiment: LayerDraw) -> float:
    """Of the singular values, in operations up to a constant."""
    rows, *others = experiment.map_shape
    columns = math.prod(others)
    return experiment.maps * rows * columns * min(rows, columns)


# ---------------------------------------------------------------- in words


def finding(experiment: LayerDraw, drawn: DrawnLayer) -> str:
    """What was drawn, what it does to the signal, and what the singular values are."""
    return " ".join(
        part for part in (_drawn(drawn), _effect(experiment, drawn), _spectrum(drawn)) if part
    )


def _drawn(drawn: DrawnLayer) -> str:
    row, count = drawn.row, drawn.matrix.size
    if drawn.ensemble.std == 0:
        return f"All {count:,} weights are {drawn.ensemble.mean:.4g}."
    words = f"{count:,} weight{'s' if count > 1 else ''} of std {row.actual_std:.3g}"
    if row.suspicious:
        away = abs(row.standard_errors or 0)
        return f"{words}, {away:.0f} standard errors from the intended {row.intended_std:.3g}."
    return f"{words}; intended is {row.intended_std:.3g}."


def _effect(experiment: LayerDraw, drawn: DrawnLayer) -> str:
    """The factor of E h² per layer, where E h = 0 and weights are independent of their input."""
    ensemble = drawn.ensemble
    scattered = ensemble.scheme.ensemble in ("iid", "orthogonal") and ensemble.std > 0
    if not scattered or ensemble.mean:
        return ""
    phi = activation(experiment.activation)
    factor = ensemble.fans.fan_in * ensemble.std**2 * phi.moments(1.0).second_moment
    reading = f"Reading {phi.name} of N(0, 1), they"
    if abs(factor - 1) < 0.005:
        return f"{reading} keep E h²."
    shown = f"{factor:.3g}" if 0.01 <= factor < 1000 else power(factor)  # 1.01 is not 1
    words = f"{reading} multiply E h² by {shown}"
    if phi.homogeneous is None or not 1e-30 < factor < 1e30:
        return f"{words}."
    return f"{words} per layer, by {power(factor**10)} in ten."


def _spectrum(drawn: DrawnLayer) -> str:
    values, expected = drawn.singular_values, drawn.expected
    largest, smallest = float(values[0]), float(values[-1])
    if expected is None:
        return f"The largest singular value is {largest:.3g}; no law of them is known."
    _, law = expected
    exact = abs(largest - law[0]) + abs(smallest - law[-1]) <= 1e-4 * largest
    if law[0] == law[-1] and exact:
        number = "The singular value is" if len(values) == 1 else "All singular values are"
        return f"{number} {largest:.3g}, as expected."
    return f"The largest singular value is {largest:.3g}; its law says {law[0]:.3g}."


def _formula(experiment: LayerDraw) -> str:
    chosen = experiment.chosen
    return f"<b>{html.escape(chosen.title)}</b>&emsp;$\\displaystyle {chosen.formula}$"


def _facts(experiment: LayerDraw, drawn: DrawnLayer) -> str:
    row, chosen = drawn.row, experiment.chosen
    note = f" ({html.escape(row.note)})" if row.note else ""
    gain = f", gain {experiment.used_gain:.4g}" if chosen.uses_gain else ""
    fans = f"fan_in {row.fan_in:g}, fan_out {row.fan_out:g}"
    return (
        f"<div class='initlab-sentence'>{fans}{note}{gain}<br>"
        f"{html.escape(chosen.suits)} <i>{html.escape(chosen.source)}</i></div>"
    )


def _reasons(experiment: LayerDraw) -> str:
    items = "".join(f"<li>{html.escape(reason)}</li>" for reason in experiment.left_out.values())
    return f"<ul class='initlab-sentence'>{items}</ul>"
