"""initlab: see what a weight initialization does to a neural network, live, beside the theory.

Names are imported on first use, so that ``import initlab`` costs little more than ``import torch``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "initlab.activations": ("ACTIVATIONS", "Activation", "activation", "gain",
                            "register_activation"),
    "initlab.data": ("Batch", "digits", "noise"),
    "initlab.diagnosis": ("Diagnosis", "diagnose"),
    "initlab.experiment": ("Experiment",),
    "initlab.explorers.model": ("ModelExplorer",),
    "initlab.explorers.phase": ("PhaseExplorer",),
    "initlab.explorers.scheme": ("SchemeExplorer",),
    "initlab.explorers.signal": ("SignalExplorer",),
    "initlab.initialize": ("InitReport", "init_"),
    "initlab.lessons": ("check",),
    "initlab.networks": ("ARCHITECTURES", "cnn", "mlp"),
    "initlab.plots": ("plot",),
    "initlab.prediction": ("Prediction", "predict"),
    "initlab.schemes": ("SCHEMES", "Scheme", "register_scheme", "scheme"),
    "initlab.tracing": ("Site", "Stats", "Trace", "trace"),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from initlab.activations import (
        ACTIVATIONS,
        Activation,
        activation,
        gain,
        register_activation,
    )
    from initlab.data import Batch, digits, noise
    from initlab.diagnosis import Diagnosis, diagnose
    from initlab.experiment import Experiment
    from initlab.explorers.model import ModelExplorer
    from initlab.explorers.phase import PhaseExplorer
    from initlab.explorers.scheme import SchemeExplorer
    from initlab.explorers.signal import SignalExplorer
    from initlab.initialize import InitReport, init_
    from initlab.lessons import check
    from initlab.networks import ARCHITECTURES, cnn, mlp
    from initlab.plots import plot
    from initlab.prediction import Prediction, predict
    from initlab.schemes import SCHEMES, Scheme, register_scheme, scheme
    from initlab.tracing import Site, Stats, Trace, trace


def __getattr__(name: str) -> Any:
    if name == "theory":
        return importlib.import_module("initlab.theory")
    if name not in _HOME:
        raise AttributeError(f"module 'initlab' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "theory"]
