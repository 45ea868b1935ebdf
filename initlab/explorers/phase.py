"""PhaseExplorer: the ordered and the chaotic phase of a network, and whether one obeys the maps."""

from __future__ import annotations

import time
from typing import Any

import ipywidgets as widgets

from initlab import theory
from initlab.activations import ACTIVATIONS
from initlab.activations import activation as resolve
from initlab.experiment import Experiment
from initlab.explorers.controls import Number, choice
from initlab.explorers.draggable import DraggableFigure
from initlab.explorers.explorer import ExperimentExplorer, button, fold
from initlab.explorers.phase_picture import CELLS, STARTS, Course, PhasePicture
from initlab.explorers.phase_point import (
    Forecast,
    finding,
    forecast,
    inputs,
    measure,
    network_at,
    on_the_plane,
    script,
    sigma_b_of,
    sigma_w_of,
    view,
)
from initlab.explorers.plane import SIGMA_B, SIGMA_W, plane
from initlab.tracing import Trace, trace, uncollected

_STEP = 0.01  # of sigma, per arrow key


class PhaseExplorer(ExperimentExplorer[Experiment]):
    """Move a point over the (sigma_w, sigma_b) plane; see which phase it is in, and if a net obeys.

    The network is a wide mlp with weights N(0, sigma_w²/n) and biases N(0, sigma_b²). What enters
    its first layer is φ(h₀), where the h₀ have second moment 1 and are correlated in pairs, so that
    layer 0 is where the maps begin. The point is dragged in the picture, or moved by the arrow keys
    when the picture has the focus (with Shift ten times as far), or by the sliders.

    Args:
        activation: a name of ``ACTIVATIONS``.
        sigma_w: standard deviation of the weights times √width, above 0.
        sigma_b: standard deviation of the biases, at least 0.
        depth: layers of the measured network.
        width: units of each.
        seed: of its weights and inputs.

    Attributes:
        experiment: the network, with the very weights that are measured; assign any mlp without
            norm whose weights have mean 0, and its sigma_w and sigma_b are shown.
        controls: name of an argument → widget with a ``value``.
        prediction: what theory says, a ``Forecast``; None while there is an error.
        figure: the matplotlib figure.
        timing: milliseconds of the last update: compute, draw, encode.

    Raises:
        ValueError, TypeError: the sentence names argument, value and what is accepted.
    """

    _kind = Experiment

    def __init__(
        self,
        activation: str = "tanh",
        sigma_w: float = 1.5,
        sigma_b: float = 0.3,
        depth: int = 50,
        *,
        width: int = 300,
        seed: int = 0,
    ) -> None:
        self._start = self._experiment = network_at(
            activation, sigma_w, sigma_b, depth, width, seed
        )
        super().__init__(status_height="58px")  # three lines: what stands below stays
        self._steps = (0, 0)
        self._seen: Trace | None = None
        self.prediction: Forecast | None = None
        self.measured: Course | None = None
        self._picture = PhasePicture()
        self.figure = self._picture.figure
        self.live = DraggableFigure(self.figure, CELLS)
        self.live.area = [float(edge) for edge in self.live.boxes()[0]]
        self.controls = self._make_controls()
        self._code = widgets.Textarea(
            rows=18, layout=widgets.Layout(width="100%"), description="code"
        )
        self.children = self._arrange()
        self._load(self._experiment)
        self._observe()
        self._refresh()

    # ------------------------------------------------------------ the parts

    def _make_controls(self) -> dict[str, Any]:
        now = self._experiment
        sigma: Any = {"step": _STEP, "label_width": "34px"}
        return {
            "activation": choice("activation", ACTIVATIONS, now.activation),
            "sigma_w": Number("σ_w", sigma_w_of(now), 0.05, SIGMA_W[1], **sigma),
            "sigma_b": Number("σ_b", sigma_b_of(now), *SIGMA_B, **sigma),
            "depth": Number("depth", now.depth, 1, 100, label_width="50px"),
            "width": Number("width", now.width, 50, 1000, step=50, label_width="50px"),
            "seed": Number("seed", now.seed, 0, 100, label_width="50px"),
        }

    def _arrange(self) -> list[widgets.Widget]:
        row = widgets.Layout(flex_flow="row wrap", width="100%")
        main = [self.controls[name] for name in ("activation", "sigma_w", "sigma_b", "depth")]
        more = [self.controls[name] for name in ("width", "seed")]
        self._folds = [
            fold("more: width and seed of the network", widgets.HBox(more, layout=row)),
            fold("PyTorch code", self._code),
        ]
        buttons = [
            button("To the edge", "move σ_w to the edge of chaos", self.to_the_edge, "104px"),
            button("Resample", "draw new weights and inputs", self.resample, "104px"),
            button("Reset", "return to where this explorer began", self.reset, "104px"),
        ]
        return [
            widgets.HBox(main, layout=row),
            self.live,
            self._status,
            widgets.HBox(buttons),
            *self._folds,
        ]

    def _observe(self) -> None:
        for control in self.controls.values():
            control.observe(lambda _: self._follow(), "value")
        self._folds[1].observe(lambda _: self._fill_folds(), "selected_index")
        self.live.observe(self._dragged, "pressed")
        self.live.observe(self._stepped, "steps")

    # ------------------------------------------------------------ what others may call

    @property
    def trace(self) -> Trace | None:
        """The network that is shown, traced forward and backward; None while there is an error."""
        with self._lock:
            if self._seen is None and self.measured is not None:
                now = self._experiment
                phi = resolve(now.activation)
                entering = phi(inputs(now.width, now.data_seed))
                self._seen = trace(now.build(), entering, seed=now.probe_seed)
            return self._seen

    def summary(self) -> str:
        """What is shown, in two short deterministic lines."""
        now = self._experiment
        place = f"sigma_w {now.gain:.4g}, sigma_b {now.bias_std:.4g}"
        return f"mlp {now.depth} × {now.width}, {now.activation}, {place}\n{self._text}"

    def code(self) -> str:
        """A stand-alone PyTorch script that measures q and c of every layer, as shown."""
        return script(self._experiment)

    def to_the_edge(self) -> None:
        """Move sigma_w to the edge of chaos; say so where there is none at this sigma_b."""
        try:
            sigma_w = theory.critical_sigma_w(
                self.controls["activation"].value, self.controls["sigma_b"].value
            )
        except (ValueError, TypeError) as error:
            self._say(f"{_capital(str(error))}.")
            return
        self.controls["sigma_w"].value = sigma_w

    # ------------------------------------------------------------ controls ⇄ experiment

    def _placed(self, experiment: Experiment) -> Experiment:
        return on_the_plane(experiment)

    def _load(self, experiment: Experiment) -> None:
        """Show this experiment in the controls, without reacting to each."""
        with self._quietly():
            self._experiment = experiment
            self.controls["sigma_w"].value = experiment.gain
            self.controls["sigma_b"].value = experiment.bias_std
            for name in ("activation", "depth", "width", "seed"):
                self.controls[name].value = getattr(experiment, name)

    def _dragged(self, change: Any) -> None:
        x, y = change["new"]
        self._move(x * SIGMA_W[1], y * SIGMA_B[1])

    def _stepped(self, change: Any) -> None:
        with self._lock:
            right, up = (new - old for new, old in zip(change["new"], self._steps, strict=True))
            self._steps = tuple(change["new"])
            sigma_w, sigma_b = (self.controls[name].value for name in ("sigma_w", "sigma_b"))
            self._move(sigma_w + right * _STEP, sigma_b + up * _STEP)

    def _move(self, sigma_w: float, sigma_b: float) -> None:
        """Both coordinates at once, rounded to steps, in one update of the picture."""
        with self._lock, self._quietly():
            self.controls["sigma_w"].value = max(round(sigma_w, 2), _STEP)
            self.controls["sigma_b"].value = max(round(sigma_b, 2), 0.0)
        self._follow()

    def _read(self) -> Experiment:
        """The experiment that the controls describe; ValueError or TypeError if there is none."""
        return network_at(**{name: each.value for name, each in self.controls.items()})

    # ------------------------------------------------------------ compute and draw

    def _refresh(self) -> None:
        try:
            start = time.perf_counter()
            now = self._experiment
            self._seen = None
            with uncollected():  # until the picture is on its way
                self.prediction = forecast(
                    now.activation, sigma_w_of(now), sigma_b_of(now), depth=now.depth
                )
                self.measured = measure(now)
                self.timing = {"compute": 1e3 * (time.perf_counter() - start)}
                self._draw()
            self._fill_folds()
        except Exception as error:  # a callback's exception would be shown nowhere
            self._fail(f"{type(error).__name__}: {error}")

    def _draw(self) -> None:
        now, said, seen = self._experiment, self.prediction, self.measured
        assert said is not None
        assert seen is not None
        start = time.perf_counter()
        phi = resolve(now.activation)
        self._picture.update(phi.name, plane(phi), view(now, said, seen), now.depth)
        words = finding(now, said, seen)
        self._publish(
            start,
            self._picture.moving,
            self._picture.background,
            f"The plane of sigma_w and sigma_b for {phi.name}, with the point at "
            f"{sigma_w_of(now):.4g}, {sigma_b_of(now):.4g}. {words}",
        )
        self.live.readout = self._readout(said, seen)
        self._say(words)

    def _readout(self, said: Forecast, seen: Course) -> list[dict[str, Any]]:
        """The numbers of each layer, for the two panels that have layers."""
        boxes, layers = self.live.boxes(), range(len(said.q))
        lengths = [
            [l, f"layer {l}: q measured {seen.q[l]:.4g}, the map {said.q[l]:.4g}"] for l in layers
        ]
        angles = [
            [l, f"layer {l}: c " + "; ".join(
                f"from {start} measured {seen.c[l, k]:.3f}, the map {said.c[start][l]:.3f}"
                for k, start in enumerate(STARTS))]
            for l in layers
        ]  # fmt: skip
        axes = self.figure.axes
        return [
            {"box": boxes[index], "span": list(axes[index].get_xlim()), "rows": rows}
            for index, rows in ((3, lengths), (4, angles))
        ]

    def _fill_folds(self) -> None:
        """Write the code where it is open; hidden, it costs nothing."""
        with self._lock:
            if self._folds[1].selected_index is not None:
                self._code.value = self.code()

    def _fail(self, text: str) -> None:
        self._seen = self.prediction = self.measured = None
        super()._fail(text)


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
