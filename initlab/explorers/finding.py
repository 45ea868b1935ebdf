"""The sentence under the picture: what became of the signal and of its gradient, and what helps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from initlab.experiment import Experiment
from initlab.plots import HEALTHY, VIEWS, Curve, curve, power, theory_curve
from initlab.prediction import Prediction, predict
from initlab.tracing import Trace

_CURES = ("kaiming_normal", "xavier_normal", "lecun_normal", "orthogonal")
_SUBJECTS = {
    "second_moment": "The signal",
    "var": "The variance of the signal",
    "across_samples_var": "What tells the inputs apart",
}
_ROUNDED = (
    "What theory says of it is not drawn where float32's rounding is larger, below 10⁻¹² of E h²."
)
_ZERO = "In theory too it is 0 there, which no line shows."
_BOUNDLESS = (
    "Theory's line ends where one draw of the weights, or one sample of the batch, may outweigh "
    "all others: what they are on average says nothing of a single network."
)
_NO_ANGLE = "What is 0 has no angle to other inputs."
_ALONE = "A single sample has nothing to vary across."


def finding(
    experiment: Experiment,
    trace: Trace,
    prediction: Prediction,
    quantity: str = "second_moment",
    views: Sequence[str] = ("forward", "backward"),
) -> str:
    """A few sentences on what the pictures show, and why theory is silent where it is."""
    subject = _SUBJECTS[quantity]
    forward = curve(trace, "forward", quantity)
    backward = curve(trace, "backward")
    ahead = theory_curve(prediction, "forward", quantity)
    back = theory_curve(prediction, "backward")
    top = experiment.depth if experiment.loss == "cross_entropy" else None
    parts = [_forward(subject, forward, ahead), _backward(backward, back, top)]
    if not (_holds(forward, ahead) and _holds(backward, back)):
        parts.append(_cure(experiment, quantity))
    parts += [silence(prediction, what, quantity) for what in views]
    return " ".join(dict.fromkeys(part for part in parts if part))


def silence(prediction: Prediction, what: str, quantity: str = "second_moment") -> str:
    """Why theory draws no line, no band, or less than all of them, or where not to trust it;
    "" where there is nothing to say.

    Cosines have no band, and what is 0 in theory none around it.
    """
    if prediction.reason:
        return prediction.reason
    view = VIEWS[what]
    if view.no_theory:
        return view.no_theory
    if view.log and quantity == "across_samples_var" and prediction.batch_size == 1:
        return _ALONE
    key = quantity if view.log else what
    theory, bare = theory_curve(prediction, what, quantity), curve(prediction, what, quantity)
    if what != "backward" and theory is None and key in prediction.unsaid:
        return prediction.unsaid[key]
    sites = [site for site in prediction if site.kind in view.kinds]
    unknown = [site for site in sites if getattr(site, view.field) is None]
    if unknown and (reason := next((site.reason for site in unknown if site.reason), "")):
        return reason
    if np.isinf(curve(prediction, what, "high").values).any():
        return _BOUNDLESS
    if theory is None or not np.isfinite(theory.values).all():
        return _NO_ANGLE if what == "cosine" else _ZERO if bare.note else _ROUNDED
    if not view.log or _has_band(theory):
        return prediction.unsaid.get("backward", "") if what == "backward" else ""
    said = prediction.unsaid
    return said.get("band") or said.get(f"{key} band", "")


def _has_band(theory: Curve) -> bool:
    if theory.low is None or theory.high is None:
        return False
    return bool(np.isfinite(theory.low).all() and np.isfinite(theory.high).all())


def _forward(subject: str, signal: Curve, theory: Curve | None) -> str:
    if signal.note.startswith("overflow"):
        return f"{subject} explodes: {signal.note}."
    if signal.note:
        return f"{subject} is exactly {signal.note}."
    last, layer = float(signal.values[-1]), int(signal.layers[-1])
    if _is_chance(signal, -1, theory):
        return f"{subject} holds: {power(last)} at layer {layer}, {_BY_CHANCE}."
    if last > HEALTHY[1]:
        return f"{subject} explodes: {power(last)} at layer {layer}."
    if last < HEALTHY[0]:
        return f"{subject} vanishes: {power(last)} at layer {layer}."
    return f"{subject} holds: {power(last)} at layer {layer}."


def _backward(gradients: Curve, theory: Curve | None, top: int | None = None) -> str:
    """``top`` is the layer below a head, which scales the gradient once whatever the depth."""
    if gradients.note.startswith("overflow"):
        return f"Gradients explode: {gradients.note}."
    if gradients.note:
        return f"Gradients are exactly {gradients.note}."
    first = float(gradients.values[0])
    if not math.isfinite(first):
        return "Gradients are lost with it."
    where = f"{power(first)} of the output's at layer {int(gradients.layers[0])}"
    if _is_chance(gradients, 0, theory):
        return f"Gradients hold: {where}, {_BY_CHANCE}."
    below = float(gradients.values[gradients.layers == top][0]) if top else 1.0
    if not _is_healthy(first) and _is_healthy(first / below):
        also = f", and {power(below)} at layer {top}" if top != gradients.layers[0] else ""
        return f"Gradients hold: {where}{also}."
    if first > HEALTHY[1]:
        return f"Gradients explode: {where}."
    if first < HEALTHY[0]:
        return f"Gradients vanish: {where}."
    return f"Gradients hold: {where}."


def _cure(experiment: Experiment, quantity: str) -> str:
    """The first published scheme that theory expects to keep both within the healthy zone."""
    for name in _CURES:
        if name == experiment.scheme and experiment.gain is None:
            continue
        prediction = predict(experiment.replace(scheme=name, gain=None, bias=None), band=False)
        if all(
            _healthy(theory_curve(prediction, *each))
            for each in (("forward", quantity), ("backward",))
        ):
            return f"In theory {name} keeps both within a factor of 10 of 1."
    return ""


def _healthy(each: Curve | None) -> bool:
    return each is not None and not each.note and all(map(_is_healthy, each.values))


def _is_healthy(value: float) -> bool:
    return bool(HEALTHY[0] <= value <= HEALTHY[1])


_BY_CHANCE = "within what one draw of this width scatters"


def _is_chance(measured: Curve, at: int, theory: Curve | None) -> bool:
    """Whether a value lies outside the healthy zone, but inside the band of a theory that does not.

    One He network of width 64 is a decade off at layer 50 as a rule; another draw is off likewise,
    perhaps to the other side, and neither explodes or vanishes with depth.
    """
    value = float(measured.values[at])
    if theory is None or theory.low is None or theory.high is None or _is_healthy(value):
        return False
    spots = np.flatnonzero(theory.layers == measured.layers[at])
    if not len(spots) or not _is_healthy(float(theory.values[spots[0]])):
        return False
    return bool(theory.low[spots[0]] <= value <= theory.high[spots[0]])


def _holds(measured: Curve, theory: Curve | None) -> bool:
    """Whether every layer is in the healthy zone, or strays from it by chance."""
    return not measured.note and all(
        _is_healthy(value) or _is_chance(measured, at, theory)
        for at, value in enumerate(measured.values)
    )
