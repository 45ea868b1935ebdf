"""What can be drawn: the quantities of a tensor, and the pictures of a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Quantity = Literal["second_moment", "var", "across_samples_var"]

QUANTITIES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "second_moment": (
            "second moment",
            "E h² over samples and units: how large the signal is; "
            "σ_w² E φ² + σ_b² carries it from layer to layer.",
        ),
        "var": (
            "variance",
            "Over samples and units together: the second moment without the square of the mean.",
        ),
        "across_samples_var": (
            "variance across samples",
            "Over samples at each unit, averaged over units: what still tells one input "
            "from another.",
        ),
    }
)
"""What can be drawn of a tensor: its name in words, and a sentence on what it says."""


@dataclass(frozen=True)
class View:
    """One kind of picture of a trace; an entry of ``VIEWS`` is all that a new one takes.

    Attributes:
        name: what menus call it.
        title: what stands above it; ``{}`` is the quantity.
        field: of a site, what is drawn.
        kinds: of the sites that are drawn.
        parts: for several curves of one site, the field and the name of each.
        log: on a log axis; the field holds statistics, of which one is the quantity. Else it is a
            fraction.
        over_depth: False of a ridgeline, one density above the other.
        relative: to the output's, so that a loss and a probe can be compared.
        from_output: read from the output down: what cuts it short is the flaw nearest the output.
        healthy: a factor of 10 around 1 is shaded.
        sampled: False of weights, which do not vary across samples.
        needs: the option of ``trace`` without which there is nothing to draw.
        no_theory: why theory has no line here; "" where it has.
    """

    name: str
    title: str
    field: str
    kinds: tuple[str, ...] = ("affine", "recurrent", "attention")
    parts: tuple[tuple[str, str], ...] = ()
    log: bool = True
    over_depth: bool = True
    relative: bool = False
    from_output: bool = False
    healthy: bool = False
    sampled: bool = True
    needs: Literal["", "backward", "geometry", "histogram"] = ""
    no_theory: str = ""

    @property
    def stands_alone(self) -> bool:
        """Whether it draws one trace, with nothing beside it."""
        return bool(self.parts) or not self.over_depth

    @property
    def options(self) -> dict[str, bool]:
        """Those that ``trace`` must be given."""
        return {self.needs: True} if self.needs else {}


VIEWS: Mapping[str, View] = MappingProxyType(
    {
        "forward": View(
            "signal",
            "Forward: {} of the pre-activations",
            "forward",
            healthy=True,
        ),
        "backward": View(
            "gradients",
            "Backward: {} of the gradients",
            "backward",
            relative=True,
            from_output=True,
            healthy=True,
            needs="backward",
        ),
        "weight_grad": View(
            "weight gradients",
            "Weight gradients: {}",
            "weight_grad",
            from_output=True,
            sampled=False,
            needs="backward",
            no_theory="No theory is drawn of weight gradients: they join the signal and its "
            "gradient, which it follows one by one.",
        ),
        "weights": View(
            "weights",
            "Weights: {}",
            "weight",
            sampled=False,
            no_theory="No theory is drawn of weights: SchemeExplorer shows what is intended.",
        ),
        "units": View(
            "dead and saturated units",
            "Dead and saturated",
            "dead_fraction",
            kinds=("activation",),
            parts=(
                ("dead_fraction", "dead units"),
                ("saturated_fraction", "saturated"),
                ("zero_fraction", "zeros"),
            ),
            log=False,
            no_theory="No theory is drawn of units: it follows means over them.",
        ),
        "cosine": View(
            "cosine between inputs",
            "Cosine between inputs",
            "cosine",
            log=False,
            needs="geometry",
        ),
        "histograms": View(
            "histograms",
            "Pre-activations, layer by layer",
            "histogram",
            log=False,
            over_depth=False,
            needs="histogram",
            no_theory="No theory is drawn of histograms: it follows their spread alone.",
        ),
    }
)
"""Every ``what`` that ``plot`` draws."""

BESIDE_FORWARD = tuple((view.name, what) for what, view in VIEWS.items() if what != "forward")
"""The menu of what is drawn beside the forward signal: (name, what)."""
