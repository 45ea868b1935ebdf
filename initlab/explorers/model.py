"""ModelExplorer: your own model, what is wrong with it, and what another start would do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as widgets
from torch import Tensor, nn

from initlab.diagnosis import Diagnosis, diagnose, joined
from initlab.explorers.controls import Number, SchemeParameters, choice
from initlab.explorers.explorer import Explorer, button, fold, settled
from initlab.explorers.model_picture import ModelPicture, Seen
from initlab.explorers.model_trial import (
    REMEDY,
    Change,
    batch_of,
    by_remedy,
    by_scheme,
    changed,
    check_code,
    schemes_for,
    write,
)
from initlab.explorers.model_words import advice, numbers, tree, verdict
from initlab.live import LiveFigure
from initlab.plots import BESIDE_FORWARD, QUANTITIES, VIEWS
from initlab.tracing import Trace, trace

AS_IS = "as it is"
_NOTICEABLE = 150.0  # milliseconds
_LONG = 1000.0  # from here on a kernel that computes is missed: it is left free


class ModelExplorer(Explorer):
    """Look into a model of your own, and try another initialization on a copy of it.

    The model stays bit for bit what it is until ``apply_`` (or its button) is asked for. (As with
    ``trace``, a lazy module is materialized by the first look.)

    Args:
        model: any ``nn.Module``.
        inputs: its positional arguments, one batch.
        target: with it, the gradient is that of ``loss_fn(output, target)``, and the initial loss
            is checked.
        loss_fn: by default cross-entropy for an integer target, mean squared error for a float one.
        model_kwargs: its keyword arguments.

    Attributes:
        controls: "site" (the tree), "scheme", "scheme_params", "seed" (of what is tried),
            "quantity" and "right" (what is drawn) → widget with a ``value``.
        figure: the matplotlib figure.
        timing: milliseconds of the last update: compute, draw, encode.

    Raises:
        TypeError, ValueError: as ``trace`` does.
        Exception: whatever the model itself raises on this batch.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> _ = nn.init.constant_(model[0].weight, 0.5)
    >>> explorer = ModelExplorer(model, torch.randn(32, 16))
    >>> explorer.controls["scheme"].value = "the remedy"
    >>> print(explorer.status)
    A copy with the remedy: healthy, as far as was checked. Your model as it is: symmetry at 0.
    >>> explorer.apply_()
    """

    def __init__(
        self,
        model: nn.Module,
        *inputs: Any,
        target: Any = None,
        loss_fn: Callable[[Tensor, Any], Tensor] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._model, self._inputs = model, inputs
        self._options = {"target": target, "loss_fn": loss_fn, "model_kwargs": model_kwargs}
        self._failed = False
        self._measured: dict[str, Any] = {"histogram": True}  # options of ``trace``
        self._tried: Change | None = None
        self._trial: tuple[Seen, Diagnosis] | None = None
        self._warned: list[str] = []
        start = time.perf_counter()
        self._was = self._look(AS_IS, model)
        took = 1e3 * (time.perf_counter() - start)
        self._batch = batch_of(model, inputs, model_kwargs or {})
        super().__init__(status_height="44px")
        self.timing = {"compute": took}
        self._picture = ModelPicture()
        self.figure = self._picture.figure
        self.live = LiveFigure(self.figure)
        self.controls = self._make_controls()
        self._numbers, self._report = widgets.HTML(), widgets.HTML()
        self._code = widgets.Textarea(
            rows=12, layout=widgets.Layout(width="100%"), description="code"
        )
        self.children = self._arrange()
        self._offer()
        self._observe()
        self._update()

    # ------------------------------------------------------------ the parts

    def _make_controls(self) -> dict[str, Any]:
        sites = widgets.Select(
            description="layers",
            rows=6,  # at least: it grows to the height of the picture beside it
            layout=widgets.Layout(width="auto", height="auto", flex="1 1 210px", margin="2px"),
        )
        sites.add_class("initlab-tree")
        quantities = [(words, key) for key, (words, _) in QUANTITIES.items()]
        return {
            "scheme": choice("try", [AS_IS], AS_IS),
            "seed": Number("seed", 0, 0, 100, label_width="50px"),
            "quantity": choice("measure", quantities, "second_moment"),
            "right": choice("right plot", BESIDE_FORWARD, "backward"),
            "scheme_params": SchemeParameters(),
            "site": sites,
        }

    def _arrange(self) -> list[widgets.Widget]:
        row = widgets.Layout(flex_flow="row wrap", width="100%")
        main = [self.controls[name] for name in ("scheme", "seed", "quantity", "right")]
        self._status.layout.flex = "1 1 0"
        said = widgets.HBox([self._status, self._stop])  # Stop stands beside "Computing …"
        self.live.layout.flex = "100 1 520px"  # on a narrow screen it moves below the tree
        self._apply = self._button(
            "Apply", "write what is tried to your model", self._apply_pressed
        )
        buttons = [
            self._apply,
            button(
                "Resample", "draw what is tried anew, with the next seed", self.resample, "104px"
            ),
            self._button("Look again", "trace your model as it is now", self.look_again),
            self._button("Reset", "return to your model as it is, and the first view", self.reset),
        ]
        self._folds = [
            fold("diagnosis and remedy", self._report),
            fold("PyTorch code of what is tried", self._code),
        ]
        return [
            widgets.HBox(main, layout=row),
            self.controls["scheme_params"],
            widgets.HBox([self.controls["site"], self.live], layout=row),
            said,
            self._numbers,
            widgets.HBox(buttons),
            *self._folds,
        ]

    def _button(self, text: str, tooltip: str, action: Callable[[], None]) -> widgets.Button:
        return button(text, tooltip, lambda: self._react(action), "104px")

    def _observe(self) -> None:
        for control in self.controls.values():
            control.observe(lambda _: self._changed(), "value")
        for each in self._folds:
            each.observe(lambda _: self._fill_folds(), "selected_index")

    def _offer(self) -> None:
        """The menu holds what can be tried on the model as it is; the tree, its sites."""
        seen, diagnosis = self._was
        remedy = [REMEDY] if diagnosis.code else []
        with self._quietly():
            menu, kept = self.controls["scheme"], self.controls["scheme"].value
            menu.options = [AS_IS, *remedy, *schemes_for(self._model, seen.trace)]
            menu.value = kept if kept in menu.options else AS_IS
            self._show_tree()

    def _show_tree(self) -> None:
        """The sites of what is shown; the selection stays where it is."""
        seen, diagnosis = self._shown
        sites, kept = self.controls["site"], self.controls["site"].value
        options = tree(seen.trace, diagnosis)
        if tuple(sites.options) != tuple(options):
            with self._quietly():
                sites.options = options
                sites.value = kept if kept in seen.trace else self._first_site()

    def _first_site(self) -> str:
        """Where the first fault begins, else the first layer."""
        seen, diagnosis = self._shown
        wanted = [finding.where for finding in diagnosis.findings]
        wanted += [site.name for site in seen.trace if site.parameter is not None]
        return next((name for name in wanted if name in seen.trace), seen.trace[0].name)

    # ------------------------------------------------------------ what others may call

    @property
    def _shown(self) -> tuple[Seen, Diagnosis]:
        return self._trial or self._was

    @property
    @settled
    def trace(self) -> Trace | None:
        """Of what is shown: the copy on which something is tried, or else the model."""
        return None if self._failed else self._shown[0].trace

    @property
    @settled
    def diagnosis(self) -> Diagnosis | None:
        """Of what is shown."""
        return None if self._failed else self._shown[1]

    @property
    @settled
    def trial(self) -> nn.Module | None:
        """The copy on which something is tried; None while the model is shown as it is."""
        return self._trial[0].model if self._trial else None

    @settled
    def summary(self) -> str:
        """What is shown, in two short deterministic lines."""
        seen = self._was[0].trace
        layers = sum(site.parameter is not None for site in seen)
        what = f"{type(self._model).__name__}, {len(seen)} sites, {layers} with weights"
        shown = self.controls["scheme"].value
        return f"{what}; {shown}; {self.controls['site'].value} selected\n{self._text}"

    @settled
    def code(self) -> str:
        """What is tried, and a second diagnosis; expects ``model``, ``batch`` and ``target``."""
        return self._script()

    def _script(self) -> str:
        given = {name: self._options[name] is not None for name in ("target", "loss_fn")}
        change = [self._tried.code] if self._tried else []
        return joined([*change, check_code(self._batch, **given)])

    @settled
    def apply_(self) -> None:
        """Write what is tried to your own model: the very numbers that are shown.

        Raises:
            ValueError: nothing is tried.
        """
        if self._tried is None or self._trial is None:
            offered = ", ".join(map(repr, self.controls["scheme"].options[1:5]))
            raise ValueError(
                f"nothing to apply: the model is shown as it is; first choose one of {offered},"
                ' … as controls["scheme"].value'
            )
        applied = self._tried
        fresh, _ = changed(self._model, applied, self._batch)
        write(fresh, self._model)
        self._start_over(f"Applied to your model: {applied.label}. ")

    @settled
    def look_again(self) -> None:
        """Trace the model as it is now, after training say, and let go of what was tried."""
        self._start_over()

    def _start_over(self, before: str = "") -> None:
        with self._quietly():
            self._tried = self._trial = None
            self.controls["scheme"].value = AS_IS
            try:
                self._was = self._look(AS_IS, self._model)
                self._offer()
            except Exception as error:
                self._fail(f"{type(error).__name__}: {error}")
                return
            self._update(before)

    @settled
    def reset(self) -> None:
        """Return to the model as it is, and to the first view of it."""
        with self._quietly():
            self.controls["scheme"].value = AS_IS
            self.controls["seed"].value = 0
            self.controls["quantity"].value = "second_moment"
            self.controls["right"].value = "backward"
            self._tried = self._trial = None
            self.controls["site"].value = self._first_site()
        self._update()

    # ------------------------------------------------------------ reacting

    def _react(self, action: Callable[[], None]) -> None:
        """Do what a control asks for; where the model takes long, without holding up the others."""
        if self._is_busy or self.timing["compute"] > _LONG:
            self._later(action)
        else:
            action()

    def _apply_pressed(self) -> None:
        try:
            self.apply_()
        except Exception as error:  # a callback's exception would be shown nowhere
            self._fail(str(error))

    def _changed(self) -> None:
        if not self._is_writing:
            self._react(self._follow)

    def _follow(self) -> None:
        with self._in_turn() as newest:
            if newest:
                self._update()

    def _wanted(self) -> Change | None:
        """What the controls ask to try; None: the model as it is."""
        name, seed = self.controls["scheme"].value, self.controls["seed"].value
        parameters = self.controls["scheme_params"]
        is_scheme = name not in (AS_IS, REMEDY)
        parameters.layout.display = None if is_scheme else "none"
        if name == AS_IS:
            return None
        if name == REMEDY:
            return by_remedy(self._was[1], seed)
        with self._quietly():
            parameters.show(name)
        return by_scheme(name, parameters.value, seed, batch=self._batch is not None)

    # ------------------------------------------------------------ compute and draw

    def _look(self, label: str, model: nn.Module) -> tuple[Seen, Diagnosis]:
        seen = trace(model, *self._inputs, **self._options, **self._measured)
        return Seen(label, model, seen), diagnose(seen)

    def _update(self, before: str = "") -> None:
        """Compute what the controls ask for and is not there, then draw."""
        try:
            start = time.perf_counter()
            if self._compute():
                self.timing = {"compute": 1e3 * (time.perf_counter() - start)}
            self._failed = False
            self._show_tree()
            self._draw(before)
        except Exception as error:  # a callback's exception would be shown nowhere
            self._fail(f"{type(error).__name__}: {error}")

    def _compute(self) -> bool:
        """Whether anything had to be computed."""
        wanted = self._wanted()
        measured = self._measured | VIEWS[self.controls["right"].value].options
        deeper = measured != self._measured
        if wanted == self._tried and not deeper and not self._failed:
            return False
        if self.timing["compute"] > _NOTICEABLE:
            self._say("Computing …")
        self._measured = measured
        if deeper or self._failed:  # what failed may have been the look at the model itself
            self._was = self._look(AS_IS, self._model)
        self._tried = self._trial = None
        if wanted is not None:
            copy, self._warned = changed(self._model, wanted, self._batch)
            self._trial = self._look(wanted.label, copy)
            self._tried = wanted
        return True

    def _draw(self, before: str) -> None:
        start = time.perf_counter()
        (seen, _), name = self._shown, self.controls["site"].value
        was = self._was[0] if self._trial else None
        drawn = {key: self.controls[key].value for key in ("quantity", "right")}
        self._picture.update(seen, was, name, **drawn)
        words = before + self._words()
        alt = f"Signal per layer; {name} is selected. {words}"
        self._publish(start, self._picture.moving, (object(),), alt)
        self.live.readout = self._picture.readout(self.live.boxes(), seen, was, **drawn)
        old = was.trace[name] if was and name in was.trace else None
        self._numbers.value = numbers(seen.trace[name], old)
        self._apply.disabled = self._trial is None
        self._say(words)
        self._fill_folds()

    def _words(self) -> str:
        was = f"Your model as it is: {verdict(self._was[1])}."
        if self._trial is None:
            return was + advice(self._was[1])
        seen, diagnosis = self._trial
        evidence = "".join(f" {each.evidence}" for each in diagnosis.findings[:1])
        warned = f" Note: {self._warned[0]}." if self._warned else ""
        return f"A copy with {seen.label}: {verdict(diagnosis)}.{evidence} {was}{warned}"

    def _fill_folds(self) -> None:
        """Write the report and the code where they are open; hidden, they cost nothing."""
        report, code = self._folds
        if self._is_busy:  # and fills them when it is done
            return
        with self._lock:
            if report.selected_index is not None and not self._failed:
                self._report.value = self._shown[1]._repr_html_()
            if code.selected_index is not None:
                self._code.value = self._script()

    def _fail(self, text: str) -> None:
        self._failed = True
        self._apply.disabled = True
        super()._fail(text)
