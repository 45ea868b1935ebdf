"""What every explorer is: one lock, the newest state wins, and a status line that says all."""

from __future__ import annotations

import html
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import ipywidgets as widgets
import torch
import torch.nn.modules.module as module_hooks
from torch import Tensor, nn

from initlab.live import LiveFigure

Given = ParamSpec("Given")
Result = TypeVar("Result")
AnyExplorer = TypeVar("AnyExplorer", bound="Explorer")


def settled(
    method: Callable[Concatenate[AnyExplorer, Given], Result],
) -> Callable[Concatenate[AnyExplorer, Given], Result]:
    """A method for code that asks for a result, and so means that of now.

    It waits for what is being computed, then holds the lock. Not to be called with the lock held:
    what is waited for may need it.
    """

    @wraps(method)
    def waiting(self: AnyExplorer, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        self._settle()
        with self._lock:
            return method(self, *args, **kwargs)

    return waiting


class Explorer(widgets.VBox):
    """A picture that follows its controls; widgets' changes may come on any thread.

    Of changes that wait for the lock only the newest is carried out. What takes long runs on a
    thread of its own (``_later``), under a dimmed picture and a Stop button. An error goes to the
    status line in words, and the stale picture is dimmed.

    Attributes:
        controls: name → widget with a ``value``.
        live: the picture.
        timing: milliseconds of the last update.
    """

    live: LiveFigure

    def __init__(self, *, status_height: str) -> None:
        self._lock = threading.RLock()
        self._newest = 0
        self._writer: int | None = None  # the thread that writes the controls, if one does
        self._text = ""
        self._status = widgets.HTML(layout=widgets.Layout(min_height=status_height, margin="0 6px"))
        self._status.add_class("initlab-status")
        self._guard = threading.Lock()  # of the two below
        self._worker: threading.Thread | None = None
        self._waiting: Callable[[], None] | None = None
        self._stopped = threading.Event()
        self._stop = button("Stop", "give up what is being computed", self._stop_pressed, "72px")
        self._stop.layout.flex = "0 0 72px"
        self._stop.button_style = "warning"
        self._stop.layout.display = "none"
        self.controls: dict[str, Any] = {}
        self.timing: dict[str, float] = {}
        super().__init__()
        self.add_class("initlab-explorer")

    # ------------------------------------------------------------ what others may call

    @property
    @settled
    def status(self) -> str:
        """The text of the status line."""
        return self._text

    @abstractmethod
    def summary(self) -> str:
        """What is shown, in two short deterministic lines."""

    def resample(self) -> None:
        """Draw everything anew, with the next seed."""
        self.controls["seed"].value = (self.controls["seed"].value + 1) % 2**31

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """The widget; where there is no kernel, its picture; where there are no pictures, text."""
        widget: dict[str, Any] = dict(super()._repr_mimebundle_(**kwargs) or {})
        return {**widget, "text/plain": self.summary(), "image/png": self.live.png}

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.summary()}"

    # ------------------------------------------------------------ reacting

    @property
    def _is_writing(self) -> bool:
        """Whether a change comes from this thread's own writing to the controls."""
        return self._writer == threading.get_ident()

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Write to the controls without reacting; the lock is held.

        Other threads' changes are still heard: they wait for the lock.
        """
        outer, self._writer = self._writer, threading.get_ident()
        try:
            yield
        finally:
            self._writer = outer

    @contextmanager
    def _in_turn(self) -> Iterator[bool]:
        """Hold the lock; False where a later change is waiting, which will show both."""
        self._newest += 1
        mine = self._newest
        with self._lock:
            yield mine == self._newest

    # ------------------------------------------------------------ what takes long

    def _later(self, work: Callable[[], None]) -> None:
        """Do this on another thread; of what waits while that is busy, the newest is done."""
        with self._guard:
            self._waiting = work
            if self._worker is None:
                self._stop.layout.display = None
                self._worker = threading.Thread(target=self._work, daemon=True)
                self._worker.start()

    def _work(self) -> None:
        while True:
            with self._guard:
                work, self._waiting = self._waiting, None
                if work is None:
                    self._worker = None
                    self._stop.layout.display = "none"
                    return
                self._stopped.clear()
            self.live.dimmed = True
            with self._lock, _stopping_at(self._stopped):
                try:
                    work()
                except Stopped:
                    self._give_up()

    @property
    def _is_busy(self) -> bool:
        """Whether another thread than this one is at work."""
        return self._worker not in (None, threading.current_thread())

    def _settle(self) -> None:
        worker = self._worker
        if worker is not None and self._is_busy:
            worker.join()

    def _stop_pressed(self) -> None:
        """Ask for a stop; what runs inside one module cannot be interrupted."""
        with self._guard:
            if self._worker is not None:
                self._stopped.set()
                self._say("Stopping after the operation that is running …")

    def _give_up(self) -> None:
        """Say that the picture is not what the controls ask for."""
        self._fail("Stopped. The picture is of before; change a control to go on.")

    # ------------------------------------------------------------ what is seen

    def _publish(
        self, start: float, moving: Sequence[Any], background: Any, alt: str | None = None
    ) -> None:
        """Refresh the picture, and note how long it took to draw since ``start``."""
        prepared = 1e3 * (time.perf_counter() - start)
        self.live.refresh(moving, background, alt)
        took = self.live.timing
        self.timing |= {"draw": prepared + took["draw"], "encode": took["encode"]}

    def _say(self, text: str) -> None:
        self._text = text
        self._status.value = sentence(text, role="status")

    def _fail(self, text: str) -> None:
        """Say what is wrong, and show the picture as out of date."""
        self._text = text
        self._status.value = sentence(f"⚠ {text}", role="alert")
        self.live.dimmed = True


Shown = TypeVar("Shown")


class ExperimentExplorer(Explorer, Generic[Shown]):
    """An explorer of what one frozen record of plain values describes, as its controls do.

    A subclass says what kind of record that is, loads one into the controls, reads one from them,
    and draws it.
    """

    _kind: type[Shown]
    _start: Shown
    _experiment: Shown

    @property
    def experiment(self) -> Shown:
        """What is shown; assign to it, or replace fields by moving ``controls``."""
        return self._experiment

    @experiment.setter
    def experiment(self, experiment: Shown) -> None:
        if not isinstance(experiment, self._kind):
            raise TypeError(
                f"experiment must be of type {self._kind.__name__}, not {type(experiment).__name__}"
            )
        shown = self._placed(experiment)
        with self._lock:
            self._load(shown)
            self._refresh()

    def reset(self) -> None:
        """Return to where this explorer began."""
        self.experiment = self._start

    def _follow(self) -> None:
        """Show what the controls describe, unless a later change is waiting that will."""
        if self._is_writing:
            return
        with self._in_turn() as newest:
            if not newest:
                return
            try:
                self._experiment = self._read()
            except (ValueError, TypeError) as error:
                self._fail(str(error))
                return
            self._offer()
            self._refresh()

    def _placed(self, experiment: Shown) -> Shown:
        """How this explorer shows an experiment; ValueError where it cannot."""
        return experiment

    @abstractmethod
    def _load(self, experiment: Shown) -> None:
        """Show this experiment in the controls, without reacting to each."""

    @abstractmethod
    def _read(self) -> Shown:
        """The experiment that the controls describe; ValueError or TypeError if there is none."""

    def _offer(self) -> None:
        """Put on the menus what this experiment leaves to choose."""

    @abstractmethod
    def _refresh(self) -> None:
        """Compute and draw."""


class Stopped(BaseException):
    """Somebody has pressed Stop; no ``except Exception`` on the way takes it for an error."""


@contextmanager
def _stopping_at(event: threading.Event) -> Iterator[None]:
    """Raise Stopped on this thread where a module is called, or its gradient arrives, once set.

    Nowhere else: what a trace puts back afterwards is put back whole.
    """
    thread = threading.get_ident()

    def check(*_: Any) -> None:
        if event.is_set() and threading.get_ident() == thread:
            raise Stopped

    def watch(module: nn.Module, args: Any, output: Any) -> None:
        check()
        if isinstance(output, Tensor) and output.grad_fn and threading.get_ident() == thread:
            output.register_hook(check)

    handles = [
        module_hooks.register_module_forward_pre_hook(check),
        module_hooks.register_module_forward_hook(watch),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def sentence(text: str, role: str = "note") -> str:
    return f'<div class="initlab-sentence" role="{role}">{html.escape(text)}</div>'


def button(text: str, tooltip: str, action: Callable[[], None], width: str) -> widgets.Button:
    made = widgets.Button(description=text, tooltip=tooltip, layout=widgets.Layout(width=width))
    made.on_click(lambda _: action())
    return made


def fold(title: str, content: widgets.Widget) -> widgets.Accordion:
    """Content that is closed at first."""
    return widgets.Accordion([content], titles=(title,), selected_index=None)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: on a small network two spend longer waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
