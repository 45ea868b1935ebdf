"""PhaseExplorer: the ordered and the chaotic phase of a network, and whether one obeys the maps."""

from __future__ import annotations

import html
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
import traitlets
from torch import Tensor

from initlab import theory
from initlab.activations import ACTIVATIONS, Activation
from initlab.activations import activation as resolve
from initlab.errors import finite_number, positive_int, unknown_name
from initlab.experiment import Experiment
from initlab.explorers.controls import Number, choice
from initlab.explorers.draggable import DraggableFigure
from initlab.explorers.finding import power
from initlab.explorers.phase_picture import HORIZON, STARTS, Course, PhasePicture, View
from initlab.explorers.plane import SIGMA_B, SIGMA_W, moment_table, plane, trajectories
from initlab.plots import nice_depth
from initlab.prediction import prescribed
from initlab.scripts import activation_class, module_call
from initlab.tracing import Trace, trace

_PAIRS = 8
_STEP = 0.01  # of sigma, per arrow key
_ON_THE_EDGE = 5e-4  # a χ₁ this close to 1 is 1 to all the digits that are shown
_BIASES = ("zeros", "normal", "pytorch_default")
_MOST_UNITS = 40_000_000  # weights held at once: 160 MB


@dataclass(frozen=True)
class Forecast:
    """What theory says of one point of the plane, and of one network there.

    Attributes:
        length: q*, to which q = 1 is drawn; None where it grows without bound.
        lengths: every fixed point of the length map; none where it keeps every q.
        chi: χ₁ at q*; None where there is no q*, unless it is the same at every q.
        correlation: c*, to which two inputs are drawn; None where nothing draws them.
        scales: the depth scales ξ_q and ξ_c.
        q: E h² of the layers 0 … depth, from q = 1.
        c: for each correlation that the inputs start from, those of the layers 0 … depth.
    """

    length: float | None
    lengths: tuple[theory.FixedPoint, ...]
    chi: float | None
    correlation: float | None
    scales: theory.DepthScales
    q: tuple[float, ...]
    c: dict[float, tuple[float, ...]]

    @property
    def repels(self) -> bool:
        """Is there a q from which signals are driven away?"""
        return any(point.q > 0 and not point.stable for point in self.lengths)

    @property
    def horizon(self) -> float | None:
        """6 ξ_c, the layers through which signals and gradients reach; None where undefined."""
        return None if self.scales.xi_c is None else HORIZON * self.scales.xi_c


class PhaseExplorer(widgets.VBox):
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
        controls: name of an argument → widget with a ``value``.
        prediction: what theory says, a ``Forecast``; None while there is an error.
        figure: the matplotlib figure.
        timing: milliseconds of the last update: compute, draw, encode.

    Raises:
        ValueError, TypeError: the sentence names argument, value and what is accepted.
    """

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
        self._start = self._experiment = _experiment(
            activation, sigma_w, sigma_b, depth, width, seed
        )
        self._lock = threading.RLock()
        self._newest = 0
        self._writer: int | None = None  # the thread that writes the controls, if one does
        self._steps = (0, 0)
        self._text = ""
        self._seen: Trace | None = None
        self.prediction: Forecast | None = None
        self.measured: Course | None = None
        self.timing: dict[str, float] = {}
        self._picture = PhasePicture()
        self.figure = self._picture.figure
        self.live = DraggableFigure(self.figure)
        self.live.area = [float(edge) for edge in self.live.boxes()[0]]
        self._status = widgets.HTML(layout=widgets.Layout(min_height="44px", margin="0 6px"))
        self._status.add_class("initlab-status")
        self.controls = self._make_controls()
        self._code = widgets.Textarea(
            rows=18, layout=widgets.Layout(width="100%"), description="code"
        )
        super().__init__(self._arrange())
        self.add_class("initlab-explorer")
        self._load(self._experiment)
        self._observe()
        self._refresh()

    # ------------------------------------------------------------ the parts

    def _make_controls(self) -> dict[str, Any]:
        now = self._experiment
        return {
            "activation": choice("activation", ACTIVATIONS, now.activation),
            "sigma_w": _Sigma("σ_w", _sigma_w(now), 0.05, SIGMA_W[1]),
            "sigma_b": _Sigma("σ_b", _sigma_b(now), *SIGMA_B),
            "depth": Number("depth", now.depth, 1, 100, label_width="50px"),
            "width": Number("width", now.width, 50, 1000, step=50, label_width="50px"),
            "seed": Number("seed", now.seed, 0, 100, label_width="50px"),
        }

    def _arrange(self) -> list[widgets.Widget]:
        row = widgets.Layout(flex_flow="row wrap", width="100%")
        main = [self.controls[name] for name in ("activation", "sigma_w", "sigma_b", "depth")]
        more = [self.controls[name] for name in ("width", "seed")]
        self._folds = [
            _fold("more: width and seed of the network", widgets.HBox(more, layout=row)),
            _fold("PyTorch code", self._code),
        ]
        buttons = [
            self._button("To the edge", "move σ_w to the edge of chaos", self.to_the_edge),
            self._button("Resample", "draw new weights and inputs", self.resample),
            self._button("Reset", "return to where this explorer began", self.reset),
        ]
        return [
            widgets.HBox(main, layout=row),
            self.live,
            self._status,
            widgets.HBox(buttons),
            *self._folds,
        ]

    def _button(self, text: str, tooltip: str, action: Any) -> widgets.Button:
        button = widgets.Button(
            description=text, tooltip=tooltip, layout=widgets.Layout(width="104px")
        )
        button.on_click(lambda _: action())
        return button

    def _observe(self) -> None:
        for control in self.controls.values():
            control.observe(lambda _: self._changed(), "value")
        self._folds[1].observe(lambda _: self._fill_folds(), "selected_index")
        self.live.observe(self._dragged, "pressed")
        self.live.observe(self._stepped, "steps")

    # ------------------------------------------------------------ what others may call

    @property
    def experiment(self) -> Experiment:
        """The network as an Experiment, with the very weights that are measured.

        Assign any mlp without norm whose weights have mean 0: its sigma_w and sigma_b are shown.
        """
        return self._experiment

    @experiment.setter
    def experiment(self, experiment: Experiment) -> None:
        if not isinstance(experiment, Experiment):
            raise TypeError(f"experiment must be an Experiment, not {type(experiment).__name__}")
        shown = _on_the_plane(experiment)
        with self._lock:
            self._load(shown)
            self._refresh()

    @property
    def trace(self) -> Trace | None:
        """The network that is shown, traced forward and backward; None while there is an error."""
        with self._lock:
            if self._seen is None and self.measured is not None:
                now = self._experiment
                phi = resolve(now.activation)
                entering = phi(_inputs(now.width, now.data_seed))
                self._seen = trace(now.build(), entering, seed=now.probe_seed)
            return self._seen

    @property
    def status(self) -> str:
        """The text of the status line."""
        return self._text

    def summary(self) -> str:
        """What is shown, in two short deterministic lines."""
        now = self._experiment
        place = f"sigma_w {now.gain:.4g}, sigma_b {now.bias_std:.4g}"
        return f"mlp {now.depth} × {now.width}, {now.activation}, {place}\n{self._text}"

    def code(self) -> str:
        """A stand-alone PyTorch script that measures q and c of every layer, as shown."""
        now = self._experiment
        return _SCRIPT.format(
            activation=activation_class(now.activation),
            phi=module_call(now.activation),
            depth=now.depth,
            width=now.width,
            sigma_w=now.gain,
            sigma_b=now.bias_std,
            seed=now.seed,
            starts=STARTS,
        )

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

    def resample(self) -> None:
        """Draw everything anew, with the next seed."""
        self.controls["seed"].value = (self.controls["seed"].value + 1) % 2**31

    def reset(self) -> None:
        """Return to the first point of the first activation."""
        self.experiment = self._start

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """The widget; where there is no kernel, its picture; where there are no pictures, text."""
        widget: dict[str, Any] = dict(super()._repr_mimebundle_(**kwargs) or {})
        return {**widget, "text/plain": self.summary(), "image/png": self.live.png}

    def __repr__(self) -> str:
        return f"PhaseExplorer: {self.summary()}"

    # ------------------------------------------------------------ controls ⇄ experiment

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
            at = (self.controls[name].value for name in ("sigma_w", "sigma_b"))
        sigma_w, sigma_b = at
        self._move(sigma_w + right * _STEP, sigma_b + up * _STEP)

    def _move(self, sigma_w: float, sigma_b: float) -> None:
        """Both coordinates at once, rounded to steps, in one update of the picture."""
        with self._lock, self._quietly():
            self.controls["sigma_w"].value = max(round(sigma_w, 2), _STEP)
            self.controls["sigma_b"].value = max(round(sigma_b, 2), 0.0)
        self._changed()

    def _changed(self) -> None:
        if self._writer == threading.get_ident():
            return
        self._newest += 1
        mine = self._newest
        with self._lock:
            if mine != self._newest:  # a later change is waiting; it will show both
                return
            try:
                asked = _experiment(**{name: each.value for name, each in self.controls.items()})
            except (ValueError, TypeError) as error:
                self._fail(str(error))
                return
            self._experiment = asked
            self._refresh()

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Write to the controls without reacting; other threads' changes are still heard."""
        outer, self._writer = self._writer, threading.get_ident()
        try:
            yield
        finally:
            self._writer = outer

    # ------------------------------------------------------------ compute and draw

    def _refresh(self) -> None:
        try:
            start = time.perf_counter()
            now = self._experiment
            self._seen = None
            self.prediction = forecast(
                now.activation, _sigma_w(now), _sigma_b(now), depth=now.depth
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
        self._picture.update(phi.name, plane(phi), _view(now, said, seen), now.depth)
        words = finding(now, said, seen)
        self.live.refresh(
            self._picture.moving,
            self._picture.background,
            f"The plane of sigma_w and sigma_b for {phi.name}, with the point at "
            f"{_sigma_w(now):.4g}, {_sigma_b(now):.4g}. {words}",
        )
        encode = self.live.timing["encode"]
        self.timing |= {"draw": 1e3 * (time.perf_counter() - start) - encode, "encode": encode}
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

    def _say(self, text: str) -> None:
        self._text = text
        self._status.value = (
            f'<div role="status" style="line-height: 1.4">{html.escape(text)}</div>'
        )

    def _fail(self, text: str) -> None:
        """Say what is wrong, and show the picture as out of date."""
        self._text = text
        self._seen = self.prediction = self.measured = None
        self._status.value = (
            f'<div role="alert" style="line-height: 1.4; color: var(--jp-error-color0, #a00)">'
            f"⚠ {html.escape(text)}</div>"
        )
        self.live.dimmed = True


class _Sigma(widgets.HBox):
    """A number with a slider that counts whole steps of it.

    A slider of floats rounds, in the browser, what it is given, and later reports that as a move of
    its own: a point that code has put beside the steps, or has moved on, would be pulled back.
    """

    value = traitlets.Any()

    def __init__(self, description: str, value: float, low: float, high: float) -> None:
        self._writing = False
        self.slider = widgets.IntSlider(
            description=description,
            min=round(low / _STEP),
            max=round(high / _STEP),
            readout=False,
            layout=widgets.Layout(width="auto", flex="1 1 120px", min_width="120px"),
            style={"description_width": "34px"},
        )
        self.text = widgets.FloatText(layout=widgets.Layout(width="68px"))
        super().__init__(
            [self.slider, self.text], layout=widgets.Layout(flex="1 1 200px", min_width="200px")
        )
        self.add_class("initlab-number")
        self.observe(self._follow, "value")
        self.value = value
        self.slider.observe(lambda change: self._take(round(change["new"] * _STEP, 2)), "value")
        self.text.observe(lambda change: self._take(change["new"]), "value")

    def _take(self, value: float) -> None:
        if not self._writing:
            self.value = value

    def _follow(self, change: Any) -> None:
        """Show the value in both parts; the slider stops at its ends."""
        self._writing = True
        try:
            self.text.value = self.value
            if math.isfinite(self.value):
                steps = round(self.value / _STEP)
                self.slider.value = min(max(steps, self.slider.min), self.slider.max)
        finally:
            self._writing = False


def _fold(title: str, content: widgets.Widget) -> widgets.Accordion:
    return widgets.Accordion([content], titles=(title,), selected_index=None)


# ---------------------------------------------------------------- the network


def _experiment(
    activation: str, sigma_w: float, sigma_b: float, depth: int, width: int, seed: int
) -> Experiment:
    """The network of a point as an Experiment, or the sentence that refuses it."""
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise unknown_name("activation", activation, ACTIVATIONS)
    sigma_w = finite_number("sigma_w", sigma_w, positive=True)
    sigma_b = finite_number("sigma_b", sigma_b)
    if sigma_b < 0:
        raise ValueError(f"sigma_b={sigma_b} must be at least 0")
    depth, width = positive_int("depth", depth), positive_int("width", width)
    if width < 2 * _PAIRS:
        raise ValueError(f"width={width} must be at least {2 * _PAIRS}, to hold as many inputs")
    if nice_depth(depth) * width**2 > _MOST_UNITS:
        raise ValueError(
            f"depth={depth:,} with width={width:,} is too large to follow a moving point; "
            "take a smaller depth or width"
        )
    return Experiment(
        depth=depth,
        width=width,
        activation=activation,
        scheme="lecun_normal",
        gain=sigma_w,
        bias="normal",
        bias_std=sigma_b,
        data="noise",
        seed=seed,
    )


def _sigma_w(experiment: Experiment) -> float:
    assert experiment.gain is not None
    return experiment.gain


def _sigma_b(experiment: Experiment) -> float:
    return experiment.bias_std or 0.0


def _on_the_plane(experiment: Experiment) -> Experiment:
    """The point of the plane at which an experiment's own network lies.

    Raises:
        ValueError: its layers are not those of the plane.
    """
    plain = experiment.architecture == "mlp" and experiment.norm == "none"
    if not plain:
        raise ValueError(
            f"architecture={experiment.architecture!r} with norm={experiment.norm!r} has no place "
            "on the plane; take an mlp with norm='none'"
        )
    width = experiment.width
    if len(set(experiment.layer_widths)) > 1:
        raise ValueError(f"widths={experiment.widths} differ; the plane is for equal widths")
    chosen, gain, bias = prescribed(experiment)
    if chosen.weight_mean(width, width) != 0:
        raise ValueError(
            f"scheme={experiment.scheme!r} gives the weights a mean; the plane is for a mean of 0"
        )
    spreads = {
        "zeros": 0.0,
        "normal": experiment.bias_std,
        "pytorch_default": 1 / math.sqrt(3 * width),
        0.0: 0.0,
    }
    if bias not in spreads:
        raise ValueError(f"bias={bias!r} has no place on the plane; take {', '.join(_BIASES)}")
    return _experiment(
        experiment.activation,
        chosen.weight_std(width, width, gain) * math.sqrt(width),
        spreads[bias] or 0.0,
        experiment.depth,
        width,
        experiment.seed,
    )


@lru_cache(maxsize=4)
def _draws(depth: int, width: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of every layer for sigma_w = sigma_b = 1; those of a point are multiples.

    A shallower network with this seed has the first of them, so depth is a step of a ladder.
    """
    layers = _experiment("identity", 1.0, 1.0, depth, width, seed).build()
    affine = [layer for layer in layers.children() if isinstance(layer, torch.nn.Linear)]
    return [each.weight.detach() for each in affine], [each.bias.detach() for each in affine]


@lru_cache(maxsize=8)
def _inputs(width: int, seed: int) -> Tensor:
    """h₀ of shape (3 · pairs, width): _PAIRS inputs, then their partners for each of STARTS.

    Every h₀ has second moment 1, and partners have the correlation that they are named for, not
    only on average: they are combinations of orthogonal vectors.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(width, 2 * _PAIRS, generator=generator)
    first, other = (math.sqrt(width) * torch.linalg.qr(draw).Q.T).split(_PAIRS)
    partners = [c * first + math.sqrt(1 - c**2) * other for c in STARTS]
    return torch.cat([first, *partners])


def measure(experiment: Experiment) -> Course:
    """q and c of every layer of the network of a point, for the pairs of inputs that are followed.

    The same as a trace of ``experiment.build()``, without building it: moving the point scales
    weights that are drawn already.
    """
    now, phi = experiment, resolve(experiment.activation)
    weights, biases = _draws(nice_depth(now.depth), now.width, now.seed)
    layers = torch.empty(now.depth + 1, (1 + len(STARTS)) * _PAIRS, now.width)
    layers[0] = _inputs(now.width, now.data_seed)
    with torch.no_grad():
        for weight, bias, below, h in zip(weights, biases, layers, layers[1:], strict=False):
            torch.addmm(bias, phi(below), weight.T, alpha=_sigma_w(now), beta=_sigma_b(now), out=h)
    return _course(layers.double())  # squares leave float32 long before h does


def _course(h: Tensor) -> Course:
    """q of every layer, and the cosine of the pairs for each of STARTS, averaged over them."""
    first, *partners = torch.nn.functional.normalize(h, dim=-1, eps=1e-300).split(_PAIRS, dim=1)
    angles = [(first * partner).sum(dim=-1).mean(dim=-1) for partner in partners]
    return Course(h.square().mean(dim=(1, 2)).numpy(), torch.stack(angles, dim=-1).numpy())


_SCRIPT = """\
import torch
from torch import nn
{activation}
depth, width, sigma_w, sigma_b = {depth}, {width}, {sigma_w!r}, {sigma_b!r}
starts = {starts}
phi = {phi}

torch.manual_seed({seed})
first, other = (width**0.5 * torch.linalg.qr(torch.randn(width, 16)).Q.T).split(8)
h = torch.cat([first, *(c * first + (1 - c**2) ** 0.5 * other for c in starts)])

with torch.no_grad():
    for layer in range(1, depth + 1):
        affine = nn.Linear(width, width)
        nn.init.normal_(affine.weight, std=sigma_w / width**0.5)
        nn.init.normal_(affine.bias, std=sigma_b)
        h = affine(phi(h))
        q = h.double().square().mean().item()
        first, *partners = nn.functional.normalize(h.double(), dim=1).split(8)
        c = [(first * partner).sum(dim=1).mean().item() for partner in partners]
        print(f"layer {{layer}}: q = {{q:.6e}}, c = {{c[0]:.4f}} and {{c[1]:.4f}}")
"""


# ---------------------------------------------------------------- theory


def forecast(activation: str, sigma_w: float, sigma_b: float, *, depth: int) -> Forecast:
    """What theory says of a point and of a network of this depth there.

    >>> said = forecast("tanh", 1.5, 0.1, depth=3)
    >>> round(said.correlation, 3), round(said.horizon)
    (0.18, 89)
    """
    phi = resolve(activation)
    length = theory.settled_length(phi, sigma_w, sigma_b)
    chi = None
    if length is not None or phi.homogeneous:
        chi = theory.chi_1(phi, 1.0 if length is None else length, sigma_w)
    try:
        lengths = tuple(theory.fixed_points(phi, sigma_w, sigma_b))
    except ValueError:  # a continuum
        lengths = ()
    q, c = trajectories(phi, sigma_w, sigma_b, depth, STARTS)
    return Forecast(
        length,
        lengths,
        chi,
        theory.correlation_fixed_point(phi, sigma_w, sigma_b),
        theory.depth_scales(phi, sigma_w, sigma_b),
        tuple(q.tolist()),
        {start: tuple(c[:, k].tolist()) for k, start in enumerate(STARTS)},
    )


def _view(experiment: Experiment, said: Forecast, seen: Course) -> View:
    phi, sigma_w, sigma_b = (
        resolve(experiment.activation),
        _sigma_w(experiment),
        _sigma_b(experiment),
    )
    table = moment_table(phi)
    lengths = np.geomspace(1e-4, 1e3, 141)
    # Angles at q* = 0 are those of a very short signal; where q has no end, those of q = 1.
    q = np.full(101, max(1.0 if said.length is None else said.length, 1e-8))
    apart = np.linspace(0, 1, 101) ** 2
    mapped = table.map_apart(apart, q, sigma_w, table.map_length(q, sigma_w, sigma_b))
    return View(
        sigma_w,
        sigma_b,
        (lengths, table.map_length(lengths, sigma_w, sigma_b)),
        [(point.q, point.stable) for point in said.lengths],
        (1 - apart, 1 - mapped),
        said.correlation,
        said.horizon,
        Course(np.array(said.q), np.array([said.c[start] for start in STARTS]).T),
        seen,
    )


# ---------------------------------------------------------------- in words


def finding(experiment: Experiment, said: Forecast, seen: Course) -> str:
    """What the point means, how far its network reaches, and whether the network obeys the maps."""
    parts = [_phase(experiment, said), _reach(experiment, said), _obeys(said, seen)]
    parts.append(_edge(resolve(experiment.activation)))
    return " ".join(part for part in parts if part)


def _phase(experiment: Experiment, said: Forecast) -> str:
    if said.length is None:
        words = "No phase: q grows without bound, so there is no length to settle at"
        return f"{words}; χ₁ = {said.chi:.3g} at every q." if said.chi else f"{words}."
    assert said.chi is not None
    settled = f"χ₁ = {said.chi:.3g} at q* = {power(said.length) if said.length else '0'}"
    if resolve(experiment.activation).homogeneous and abs(said.chi - 1) < _ON_THE_EDGE:
        return (
            f"On the edge of chaos: χ₁ = {said.chi:.3g} at every q, and q stays near where it is."
        )
    if abs(said.chi - 1) < _ON_THE_EDGE:
        return f"On the edge of chaos: {settled}; gradients neither vanish nor explode."
    if said.chi < 1:
        return f"Ordered phase: {settled}; gradients vanish."
    apart = "" if said.correlation is None else f", like inputs part to c* = {said.correlation:.2g}"
    return f"Chaotic phase: {settled}; gradients explode{apart}."


def _reach(experiment: Experiment, said: Forecast) -> str:
    depth, horizon = experiment.depth, said.horizon
    if horizon is None:
        if said.length == 0 and said.correlation is None:
            return "As q falls to 0 the network becomes linear and correlations freeze: no ξ_c."
        return "Correlations have nothing to settle at: no ξ_c."
    if math.isinf(horizon):
        return "ξ_c is infinite: what inputs share is forgotten slower than any exponential."
    scale = f"ξ_c = {said.scales.xi_c:.3g}, so signals reach through about {horizon:.3g} layers"
    return f"{scale}, {'more' if horizon >= depth else 'fewer'} than these {depth}."


def _obeys(said: Forecast, seen: Course) -> str:
    """The measured q and c at the last layer where there is one, beside the maps'."""
    kept = np.flatnonzero(np.isfinite(seen.q) & (seen.q > 0) & np.isfinite(said.q))
    last = int(kept[-1])
    cut = ""
    if last < len(seen.q) - 1:
        cut = " (overflow above)" if not np.isfinite(seen.q[last + 1]) else " (0 above)"
    numbers = f"q = {power(seen.q[last])}, the map {power(said.q[last])}"
    pairs = ", ".join(
        f"{seen.c[last, k]:.2f} (map {said.c[start][last]:.2f})" for k, start in enumerate(STARTS)
    )
    starts = " and ".join(str(start) for start in STARTS)
    words = f"Measured at layer {last}{cut}: {numbers}; c from {starts}: {pairs}."
    if abs(math.log(seen.q[last] / said.q[last])) < math.log(1.5):
        return words
    if said.repels:
        return f"{words} It strays because small deviations grow at a repelling fixed point."
    return f"{words} It strays, as networks of finite width do with depth."


@lru_cache(maxsize=64)
def _edge(phi: Activation) -> str:
    """What is to be said where the plane shows no edge on which a signal settles."""
    drawn = plane(phi)
    if drawn.edge:
        return ""
    if drawn.repelling:
        return f"No signal settles on {phi.name}'s edge of chaos (dotted): q leaves it."
    widths = []
    for q in 10 ** np.linspace(-4, 4, 33):
        with suppress(ValueError):
            widths.append(theory.edge_of_chaos(phi, float(q))[0])
    if widths:
        beyond = f"{phi.name}'s edge of chaos lies beyond this plane"
        return f"{beyond}, at a σ_w of {min(widths):.2g} or more."
    return f"{phi.name} has no edge of chaos at any q."


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
