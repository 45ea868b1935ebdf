"""The controls that explorers share: numbers that slide and can be typed, and choices.

Every control is an ipywidget with a ``value``, so that code drives it as a hand does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ipywidgets as widgets
import traitlets

from initlab.schemes import Parameter, scheme

_LABEL = "72px"


def choice(
    description: str, options: Iterable[Any], value: Any, *, label_width: str = _LABEL
) -> widgets.Dropdown:
    """A menu; ``options`` are values or (label, value) pairs."""
    return widgets.Dropdown(
        description=description,
        options=list(options),
        value=value,
        layout=widgets.Layout(width="auto", min_width="200px", flex="1 1 200px"),
        style={"description_width": label_width},
    )


class _Composite(widgets.HBox):
    """A control made of others: while its value is written to its parts, they do not write back."""

    _writing = False

    @contextmanager
    def _to_parts(self) -> Iterator[None]:
        self._writing = True
        try:
            yield
        finally:
            self._writing = False


class Number(_Composite):
    """A slider with a number to type beside it; what is typed may lie beyond the slider's ends."""

    value = traitlets.Any()

    def __init__(
        self,
        description: str,
        value: float,
        low: float,
        high: float,
        *,
        step: float = 1,
        label_width: str = _LABEL,
    ) -> None:
        whole = isinstance(value, int) and float(step).is_integer()
        # Of fractions a browser sends back its own rounding, later, as if it were a move: a slider
        # counts whole steps.
        self._unit = 1 if whole else step
        self.slider = widgets.IntSlider(
            description=description,
            min=math.ceil(round(low / self._unit, 9)),
            max=math.floor(round(high / self._unit, 9)),
            step=round(step / self._unit),
            readout=False,
            layout=widgets.Layout(width="auto", flex="1 1 120px", min_width="120px"),
            style={"description_width": label_width},
        )
        text = widgets.IntText if whole else widgets.FloatText
        self.text = text(value=value, layout=widgets.Layout(width="68px"))
        super().__init__(
            [self.slider, self.text], layout=widgets.Layout(flex="1 1 200px", min_width="200px")
        )
        self.add_class("initlab-number")
        self.value = value
        self.slider.value = self._on_slider()
        self.slider.observe(self._slid, "value")
        self.text.observe(self._changed, "value")
        self.observe(self._follow, "value")

    def _changed(self, change: Any) -> None:
        if not self._writing:
            self.value = change["new"]

    def _slid(self, change: Any) -> None:
        if change["new"] != self._on_slider() and not self._writing:
            self.value = round(change["new"] * self._unit, 9)

    def _on_slider(self) -> int:
        """The step of the slider that is nearest to the value."""
        low, high, step = self.slider.min, self.slider.max, self.slider.step
        if not math.isfinite(self.value):
            return low
        at = min(max(self.value / self._unit, low), high)
        return min(low + round((at - low) / step) * step, high)

    def _follow(self, change: Any) -> None:
        """Show the value in both parts; the slider stops at its ends."""
        with self._to_parts():
            self.text.value = self.value
            self.slider.value = self._on_slider()


class OptionalNumber(_Composite):
    """A number that may be left to the scheme: ``value`` is None until the box is ticked."""

    value = traitlets.Any(None, allow_none=True)

    def __init__(self, description: str, start: float, low: float, high: float) -> None:
        self.box = widgets.Checkbox(
            description=description,
            value=False,
            indent=False,
            layout=widgets.Layout(width="auto", margin="2px 0 0 12px"),
        )
        self.number = Number(description, start, low, high, step=0.01, label_width="0px")
        self.number.slider.description = ""
        self.number.slider.layout.min_width = "60px"
        self.number.layout.min_width = "0"
        self.number.layout.display = "none"
        super().__init__(
            [self.box, self.number], layout=widgets.Layout(flex="1 1 260px", overflow="hidden")
        )
        self.add_class("initlab-optional")
        self.box.observe(self._changed, "value")
        self.number.observe(self._changed, "value")
        self.observe(self._follow, "value")

    def _changed(self, change: Any) -> None:
        if not self._writing:
            self.value = self.number.value if self.box.value else None

    def _follow(self, change: Any) -> None:
        with self._to_parts():
            self.box.value = self.value is not None
            self.number.layout.display = None if self.box.value else "none"
            if self.value is not None:
                self.number.value = self.value


class SchemeParameters(_Composite):
    """The parameters of the chosen scheme; ``value`` is a dict, and empty where it has none."""

    value = traitlets.Dict()

    def __init__(self) -> None:
        super().__init__([], layout=widgets.Layout(flex_flow="row wrap", width="100%"))
        self._scheme = ""
        self._inputs: dict[str, Any] = {}
        self.observe(self._follow, "value")

    def show(self, name: str) -> None:
        """Offer the parameters of this scheme, at their defaults."""
        if name == self._scheme:
            return
        parameters = scheme(name).parameters
        self._inputs = {key: _parameter(key, each) for key, each in parameters.items()}
        for each in self._inputs.values():
            each.observe(self._changed, "value")
        self.children = tuple(self._inputs.values())
        self._scheme = name
        with self._to_parts():
            self.value = self._read()

    def _read(self) -> dict[str, Any]:
        return {key: each.value for key, each in self._inputs.items()}

    def _changed(self, change: Any) -> None:
        if not self._writing:
            self.value = self._read()

    def _follow(self, change: Any) -> None:
        if self._writing:
            return
        with self._to_parts():
            for key, value in self.value.items():
                if key in self._inputs:
                    self._inputs[key].value = value


def _parameter(name: str, parameter: Parameter) -> widgets.DOMWidget:
    if parameter.choices:
        wide = "initial" if len(name) > 9 else _LABEL  # as wide as it has to be
        return choice(name, parameter.choices, parameter.default, label_width=wide)
    low, high = parameter.low or 0.0, 1.0 if parameter.high is None else parameter.high
    if parameter.default is None:
        return OptionalNumber(f"{name} ({parameter.meaning.split(';')[0]})", 0.01, low, high)
    return Number(name, float(parameter.default), low, high, step=0.01)


def with_defaults(name: str, values: Mapping[str, Any] | None) -> dict[str, Any]:
    """The scheme's parameters with these values over their defaults."""
    return dict(scheme(name, **(values or {})).values)
