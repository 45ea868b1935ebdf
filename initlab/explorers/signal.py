"""SignalExplorer: activation and gradient signal per layer, live, with the theory behind them."""

from __future__ import annotations

import dataclasses
import html
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import ipywidgets as widgets

from initlab.activations import ACTIVATIONS
from initlab.data import DATA
from initlab.experiment import LOSSES, Experiment
from initlab.explorers.controls import (
    Number,
    OptionalNumber,
    SchemeParameters,
    choice,
    with_defaults,
)
from initlab.explorers.explorer import ExperimentExplorer, button, fold, one_thread, sentence
from initlab.explorers.finding import finding
from initlab.live import LiveFigure
from initlab.networks import ARCHITECTURES, NORMS, PADDINGS
from initlab.plots import (
    BESIDE_FORWARD,
    MOST_ROWS,
    QUANTITIES,
    VIEWS,
    Curve,
    Panel,
    Picture,
    digits,
    ghost,
    lines,
    output_gradient,
    readout,
    theory_curve,
)
from initlab.prediction import Prediction
from initlab.tracing import Trace, uncollected

_OWN_BIAS = "scheme"  # a menu shows nothing for a value of None
_BIASES = (
    ("the scheme's own", _OWN_BIAS),
    ("zeros", "zeros"),
    ("PyTorch's default", "pytorch_default"),
    ("normal", "normal"),
)
_MORE = (
    "architecture", "data", "loss",
    "norm", "dropout", "padding", "batch_size",
    "bias", "bias_std", "gain",
    "seed", "right",
)  # fmt: skip
_NOTICEABLE = 5e9  # operations; more than about 150 ms on two cores
_LARGE = 2e10


class SignalExplorer(ExperimentExplorer[Experiment]):
    """Choose a network and its initialization; see what reaches each layer, forward and backward.

    Args:
        experiment: what to start from; also what Reset returns to.

    Attributes:
        controls: field name → widget with a ``value``; ``"quantity"`` and ``"right"`` choose what
            is drawn.
        trace, prediction: the latest measurement and theory; None while there is an error.
        figure: the matplotlib figure.
        timing: milliseconds of the last update: compute, draw, encode.
    """

    _kind = Experiment

    def __init__(self, experiment: Experiment | None = None) -> None:
        self._start = experiment or Experiment()
        if not isinstance(self._start, Experiment):
            raise TypeError(
                f"experiment must be an Experiment, not a {type(experiment).__name__}; "
                "for a model of your own use initlab.trace(model, batch)"
            )
        super().__init__(status_height="38px")  # two lines: what stands below does not jump
        self._experiment = self._start
        self._pinned: tuple[str, Trace] | None = None
        self._seen: Trace | None = None
        self._seen_whole = False
        self.prediction: Prediction | None = None
        self.figure = Picture(11.0, 3.7)
        self._panels = [
            Panel(self.figure.add_axes((left, 0.135, 0.345, 0.765)), animated=True)
            for left in (0.048, 0.548)
        ]
        self.live = LiveFigure(self.figure)
        self.controls = self._make_controls()
        self._meaning = widgets.HTML(layout=widgets.Layout(flex="1 1 320px", margin="0 0 0 10px"))
        self._meaning.add_class("initlab-meaning")
        self._table = widgets.HTML()
        self._code = widgets.Textarea(
            rows=18, layout=widgets.Layout(width="auto"), description="code"
        )
        self._share = widgets.Text(
            description="share",
            placeholder="a share string; paste one here to restore it",
            continuous_update=False,
            layout=widgets.Layout(width="auto"),
        )
        self._share_note = widgets.HTML(layout=widgets.Layout(display="none", margin="0 0 0 98px"))
        self.children = self._arrange()
        self._load(self._experiment)
        self._observe()
        self._refresh()

    # ------------------------------------------------------------ the parts

    def _make_controls(self) -> dict[str, Any]:
        now = self._experiment
        return {
            "scheme": choice("scheme", now.schemes, now.scheme),
            "activation": choice("activation", ACTIVATIONS, now.activation),
            "depth": Number("depth", now.depth, 1, 100, label_width="50px"),
            "width": Number("width", now.width, 8, 1024, step=8, label_width="50px"),
            "scheme_params": SchemeParameters(),
            "architecture": choice("network", ARCHITECTURES, now.architecture),
            "data": choice("input", DATA, now.data),
            "loss": choice("loss", zip(("random probe", "cross-entropy"), LOSSES, strict=True),
                           now.loss),
            "gain": OptionalNumber("own gain", 1.0, 0.05, 3.0),
            "bias": choice("bias", _BIASES, _OWN_BIAS),
            "bias_std": Number("bias σ", 0.0, 0.0, 1.0, step=0.01),
            "norm": choice("norm", NORMS, now.norm),
            "dropout": Number("dropout", now.dropout, 0.0, 0.9, step=0.05),
            "padding": choice("padding", PADDINGS, now.padding),
            "batch_size": Number("batch", now.batch_size, 1, 1024),
            "seed": Number("seed", now.seed, 0, 100),
            "quantity": choice(
                "measure", [(words, key) for key, (words, _) in QUANTITIES.items()], "second_moment"
            ),
            "right": choice("right plot", BESIDE_FORWARD, "backward"),
        }  # fmt: skip

    def _arrange(self) -> list[widgets.Widget]:
        main = widgets.HBox(
            [self.controls[name] for name in ("scheme", "activation", "depth", "width")],
            layout=widgets.Layout(flex_flow="row wrap", width="100%"),
        )
        settings = widgets.GridBox(
            [self.controls[name] for name in _MORE],
            layout=widgets.Layout(
                width="100%",
                grid_template_columns="repeat(auto-fill, minmax(260px, 1fr))",
                grid_gap="0 8px",
            ),
        )
        self.controls["quantity"].layout.flex = "0 1 300px"
        measure = widgets.HBox(
            [self.controls["quantity"], self._meaning],
            layout=widgets.Layout(flex_flow="row wrap", width="100%", align_items="center"),
        )
        more = widgets.VBox([settings, measure])
        self._folds = [
            fold("more: network, input, loss, bias, gain, seed, what is drawn", more),
            fold("table of the same numbers", self._table),
            fold(
                "PyTorch code, and a string to share",
                widgets.VBox([self._share, self._share_note, self._code]),
            ),
        ]
        buttons = [
            button("Pin", "keep this curve for comparison; again to let it go", self.pin, "96px"),
            button("Resample", "draw new weights, inputs and probe", self.resample, "96px"),
            button("Reset", "return to where this explorer began", self.reset, "96px"),
        ]
        return [
            main,
            self.controls["scheme_params"],
            self.live,
            self._status,
            widgets.HBox(buttons),
            *self._folds,
        ]

    def _observe(self) -> None:
        for name, control in self.controls.items():
            control.observe(lambda change, name=name: self._changed(name), "value")
        for each in self._folds:
            each.observe(lambda change: self._fill_folds(), "selected_index")
        self._share.observe(self._pasted, "value")

    # ------------------------------------------------------------ what others may call

    @property
    def trace(self) -> Trace | None:
        """The latest measurement, every statistic of it; None while there is an error.

        What a moving slider does not show is measured when it is asked for.
        """
        with self._lock:
            if self._seen is not None and not self._seen_whole:
                with _threads(self._experiment):
                    self._measure(whole=True)
            return self._seen

    def summary(self) -> str:
        """What is shown, in two short deterministic lines."""
        now = self._experiment
        size = "-".join(map(str, now.widths)) if now.widths else f"{now.depth} × {now.width}"
        return (
            f"{now.architecture} {size}, {now.activation}, {now.scheme}, {now.data}\n{self._text}"
        )

    def code(self) -> str:
        """A stand-alone PyTorch script that measures what is shown."""
        return self._experiment.code()

    def pin(self) -> None:
        """Keep the present curves as ghosts; a second call lets them go."""
        with self._lock:
            trace = self.trace if self._pinned is None else None
            label = f"pinned: {self._experiment.activation}, {self._experiment.scheme}"
            self._pinned = None if trace is None else (label, trace)
            self._draw()

    def reset(self) -> None:
        """Return to the first experiment and the first view of it, nothing pinned."""
        with self._lock:
            self._pinned = None
            with self._quietly():
                self.controls["quantity"].value = "second_moment"
                self.controls["right"].value = "backward"
            super().reset()

    # ------------------------------------------------------------ controls ⇄ experiment

    def _load(self, experiment: Experiment) -> None:
        """Show this experiment in the controls, without reacting to each."""
        with self._quietly():
            self._experiment = experiment
            self._widths = experiment.widths
            self.controls["scheme_params"].show(experiment.scheme)
            self._offer_bias(experiment.bias)
            self._offer()
            for field in dataclasses.fields(experiment):
                if field.name in self.controls:
                    value = getattr(experiment, field.name)
                    if field.name == "scheme_params":
                        value = with_defaults(experiment.scheme, value)
                    if field.name == "bias":
                        value = _OWN_BIAS if value is None else value
                    if field.name == "bias_std":
                        value = value or 0.0
                    self.controls[field.name].value = value

    def _offer_bias(self, bias: Any) -> None:
        """A numeric bias is not on the menu until an experiment brings one."""
        numeric = bias is not None and not isinstance(bias, str)
        extra = [(f"constant {bias}", bias)] if numeric else []
        self.controls["bias"].options = [*_BIASES, *extra]

    def _offer(self) -> None:
        """The menu holds the schemes that can fill the weights of the network that is shown."""
        menu = self.controls["scheme"]
        if tuple(menu.options) != self._experiment.schemes:
            with self._quietly():
                menu.options = self._experiment.schemes
                menu.value = self._experiment.scheme

    def _read(self) -> Experiment:
        """The experiment that the controls describe; ValueError or TypeError if there is none."""
        with self._quietly():
            self.controls["scheme_params"].show(self.controls["scheme"].value)
        names = [field.name for field in dataclasses.fields(Experiment)]
        values = {name: self.controls[name].value for name in names if name in self.controls}
        if values["bias"] == _OWN_BIAS:
            values["bias"] = None
        if values["bias"] != "normal":
            values["bias_std"] = None
        return Experiment(**values, widths=self._widths)

    def _changed(self, name: str) -> None:
        if self._is_writing:
            return
        if name == "bias_std" and self.controls["bias"].value != "normal":
            self.controls["bias"].value = "normal"  # which comes here again
            return
        if name in ("depth", "width"):
            self._widths = None
        self._follow()

    def _pasted(self, change: Any) -> None:
        text = change["new"].strip()
        if not text or self._is_writing:
            return
        with self._lock:
            try:
                self.experiment = Experiment.from_share(text)
            except (ValueError, TypeError) as error:
                self._fail(str(error))
                self._note_share(str(error))  # the status may be out of sight from here
            else:
                self._note_share("")

    def _note_share(self, text: str) -> None:
        self._share_note.value = sentence(f"⚠ {text}", role="alert") if text else ""
        self._share_note.layout.display = None if text else "none"

    # ------------------------------------------------------------ compute and draw

    def _refresh(self) -> None:
        try:
            if self._experiment.estimate()[1] > _NOTICEABLE:
                self._say("Computing …")
            start = time.perf_counter()
            with uncollected():  # until the picture is on its way
                with _threads(self._experiment):
                    self._measure(whole=self._shows_more_than_moments())
                self.prediction = self._experiment.predict()
                self.timing = {"compute": 1e3 * (time.perf_counter() - start)}
                self._draw()
        except Exception as error:  # a callback's exception would be shown nowhere
            self._fail(f"{type(error).__name__}: {error}")

    def _shows_more_than_moments(self) -> bool:
        _, table, _ = self._folds
        return (
            not VIEWS[self.controls["right"].value].log
            or self.controls["quantity"].value == "across_samples_var"
            or table.selected_index is not None
        )

    def _measure(self, *, whole: bool) -> None:
        """Trace the experiment: whole, or in two thirds of the time what is drawn alone."""
        right = VIEWS[self.controls["right"].value]
        self._seen = self._experiment.run(
            weight_grad=whole or right.field == "weight_grad",
            statistics="all" if whole else "moments",
            **right.options,
        )
        self._seen_whole = whole

    def _draw(self) -> None:
        if self._seen is None or self.prediction is None:
            return
        start = time.perf_counter()
        quantity = self.controls["quantity"].value
        self._meaning.value = sentence(QUANTITIES[quantity][1])
        right = self.controls["right"].value
        self._update_panel(self._panels[0], "forward")
        self._update_panel(self._panels[1], right)
        moving = [artist for panel in self._panels for artist in panel.moving]
        self._publish(start, moving, tuple(panel.background for panel in self._panels))
        # What follows says the same in words and numbers.
        views = ("forward", right)
        words = finding(self._experiment, self._seen, self.prediction, quantity, views)
        self.live.alt = f"Signal per layer. {words}"
        self.live.readout = self._readout()
        self._say(words)
        self._fill_folds()

    def _update_panel(self, panel: Panel, what: str) -> None:
        assert self._seen is not None
        quantity = self.controls["quantity"].value
        pinned = None
        if self._pinned:
            label, trace = self._pinned
            pinned = ghost(trace, what, quantity, label)
        panel.show(
            what,
            self._seen,
            theory=self._theory(what, quantity),
            pinned=pinned,
            quantity=quantity,
            depth=self._experiment.depth,
        )

    def _theory(self, what: str, quantity: str) -> Curve | None:
        return theory_curve(self.prediction, what, quantity) if self.prediction else None

    def _readout(self) -> list[dict[str, Any]]:
        assert self._seen is not None
        quantity = self.controls["quantity"].value
        views = ("forward", self.controls["right"].value)
        parts = []
        for box, panel, what in zip(self.live.boxes(), self._panels, views, strict=True):
            theory = self._theory(what, quantity)
            drawn = [*lines(self._seen, what, quantity), *([theory] if theory else [])]
            parts.append({"box": box, "span": list(panel.ax.get_xlim()), "rows": readout(drawn)})
        return parts

    def _fill_folds(self) -> None:
        """Write the table and the code where they are open; hidden, they cost nothing."""
        _, table, code = self._folds
        with self._lock, self._quietly():
            if table.selected_index is not None and (trace := self.trace) is not None:
                self._table.value = _numbers(trace, self.prediction)
            if code.selected_index is not None:
                self._code.value = self.code()
                self._share.value = self._experiment.share()
                self._note_share("")

    def _fail(self, text: str) -> None:
        self._seen = self.prediction = None
        super()._fail(text)


def _threads(experiment: Experiment) -> AbstractContextManager[None]:
    """One thread for a small network, all for a large one."""
    return nullcontext() if experiment.estimate()[1] > _LARGE else one_thread()


def _numbers(trace: Trace, prediction: Prediction | None) -> str:
    """Every layer's numbers as an HTML table, at most 400 rows."""
    theory = {site.name: site for site in prediction or ()}
    head = (
        "layer", "site", "E h²", "E h², theory", "variance across samples",
        "E δ², of the output's", "E δ², theory", "weight gradient", "zeros", "not finite",
    )  # fmt: skip
    scale = output_gradient(trace)  # as in the picture: theory is relative to the output
    rows = []
    for site in trace[:MOST_ROWS]:
        said = theory.get(site.name)
        cells = (
            str(site.depth),
            site.name,
            _cell(site.forward, "second_moment"),
            _cell(said and said.forward, "second_moment"),
            _cell(site.forward, "across_samples_var"),
            _cell(site.backward, "second_moment", scale),
            _cell(said and said.backward, "second_moment"),
            _cell(site.weight_grad, "second_moment"),
            "" if site.zero_fraction is None else f"{site.zero_fraction:.0%}",
            f"{site.forward.nonfinite:,}" if site.forward.nonfinite else "",
        )
        rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
    titles = "".join(f'<th scope="col">{title}</th>' for title in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        '<div tabindex="0" role="region" aria-label="numbers per layer" '
        'style="max-height: 320px; overflow: auto; line-height: 1.5">'
        f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(stats: Any, quantity: str, scale: float = 1.0) -> str:
    if getattr(stats, "nonfinite", 0):
        return "overflow"
    value = getattr(stats, quantity, None)
    return "" if value is None else digits(value / scale)
