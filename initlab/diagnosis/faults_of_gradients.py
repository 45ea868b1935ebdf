"""Rules for gradients that vanish or explode on their way back from the last layer.

Each rule looks at the flow of a trace and yields its findings, the first of them first.
``initlab.diagnosis`` says where the limits come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from initlab.diagnosis.findings import Finding, figure
from initlab.diagnosis.flow import (
    DRIFT,
    GROWTH,
    LOST,
    STEEP,
    TRAINED,
    Flow,
    is_clean,
    is_layer,
    looks_up,
    total,
)
from initlab.diagnosis.openings import openings, optional, passes
from initlab.diagnosis.remedies import correct, redraw, reset, strengthen, weaken
from initlab.tracing import Site


@dataclass(frozen=True)
class _Pull:
    """What of the gradient reaches a layer, relative to the last layer; None where unknown.

    ``arriving`` is the ratio of the sums of all squares of ∂L/∂h, as if all that is expected to
    arrive (``openings``) did; ``step`` that of the mean squares of ∂L/∂W over W; ``grown`` by how
    much batch normalization makes it larger on the way, as far as that trains.
    """

    layer: Site
    arriving: float
    step: float | None
    low: float
    high: float
    grown: float


def _pulls(flow: Flow) -> list[_Pull]:
    head = flow.head
    reference = _positive(total(head.backward)) if head is not None else None
    if head is None or reference is None or flow.is_closed_head(head):
        return []
    pulls, opening = [], openings(flow)
    behind = reference * ((passes(head) or 1.0) if head in flow.small_heads else 1.0)
    for layer in flow.layers:
        through = flow.sources(layer)[:1] if layer.kind == "recurrent" else [layer]
        arriving = total(through[0].backward) if through else None
        known = arriving is not None and math.isfinite(arriving)
        if arriving is None or not known or looks_up(layer) or not flow.is_upstream(layer, head):
            continue
        step = _relative_step(layer, head)
        pulls.append(
            _Pull(
                layer,
                arriving / (reference if layer is head else behind) / opening[layer.name],
                step,
                *flow.chance_between(layer, head),
                GROWTH ** min(flow.centred_between(layer, head), TRAINED),
            )
        )
    return pulls


def _relative_step(layer: Site, head: Site) -> float | None:
    own, last = _step(layer), _positive(_step(head))
    return None if own is None or last is None else own / last


def _step(layer: Site) -> float | None:
    if layer.weight is None or layer.weight_grad is None or not layer.weight.second_moment > 0:
        return None
    ratio = layer.weight_grad.second_moment / layer.weight.second_moment
    return ratio if math.isfinite(ratio) else None


def _positive(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) and number > 0 else None


def vanishing_gradients(flow: Flow) -> Iterator[Finding]:
    """A gradient of exactly 0, or one that is lost on its way back, together with the steps that
    the weights would take or with all that tells the inputs apart."""
    yield from _stopped_gradients(flow)
    pulls = _pulls(flow)
    alike = _inputs_become_alike(flow)
    lost = [
        p for p in pulls
        if 0 < p.arriving < LOST * p.low and (alike or p.step is None or p.step < LOST)
    ]  # fmt: skip
    if not lost:
        return
    least = min(lost, key=lambda p: p.arriving)
    onset = _gradient_onset(pulls, least, lambda p: p.arriving < p.low / DRIFT)
    words, code = correct(flow)
    yield Finding(
        "vanishing_gradients", onset.layer.name,
        f"On its way back from {_head_name(flow)} the gradient leaves the healthy zone here at "
        f"{figure(onset.arriving)} of the sum of squares that started, and falls to "
        f"{figure(least.arriving)} at {least.layer.name}; chance explains down to "
        f"{figure(least.low / DRIFT)}.",
        words + _advice(flow), code,
    )  # fmt: skip


def _inputs_become_alike(flow: Flow) -> bool:
    """Whether what tells the inputs apart is lost by the last layer: in theory the same factor
    takes it away and the gradient (Schoenholz et al. 2017)."""
    head = flow.head
    varied = head.forward.across_samples_var if head is not None else None
    if head is None or varied is None or not flow.inputs_differ:
        return False
    start = flow.bands[head.name].varied
    return bool(start) and varied < LOST * flow.chance(head)[0] * min(start or 1.0, 1.0)


def _advice(flow: Flow) -> str:
    sigmoids = any(site.op in ("sigmoid", "hardsigmoid") for site in flow.sites)
    return " Or use tanh in place of sigmoid." if sigmoids else ""


def exploding_gradients(flow: Flow) -> Iterator[Finding]:
    """A gradient beyond STEEP, together with the steps that the weights would take; nothing can be
    said of it where values are not finite."""
    pulls = _pulls(flow) if all(map(is_clean, flow.sites)) else []
    wild = [
        p for p in pulls
        if p.arriving > max(STEEP, p.grown) * p.high and (p.step is None or p.step > STEEP)
    ]  # fmt: skip
    if not wild:
        return
    most = max(wild, key=lambda p: p.arriving)
    onset = _gradient_onset(pulls, most, lambda p: p.arriving > p.high * DRIFT)
    yield Finding(
        "exploding_gradients", onset.layer.name,
        f"On its way back from {_head_name(flow)} the gradient leaves the healthy zone here at "
        f"{figure(onset.arriving)} times the sum of squares that started, and reaches "
        f"{figure(most.arriving)} at {most.layer.name}; chance explains up to "
        f"{figure(most.high * DRIFT)}.",
        *_calm(flow),
    )  # fmt: skip


def _calm(flow: Flow) -> tuple[str, str]:
    """Words and code against gradients that explode.

    A normalization makes its output independent of the scale of W before it, so that ∂L/∂W goes
    with 1/|W|: weights that it hides must not be too small.
    """
    if flow.overweight:
        return weaken(flow)
    if any(flow.hidden[layer.name] for layer in flow.underweight):
        words, code = strengthen(flow)
        return f"Normalization divides the gradient by the scale of what it reads. {words}", code
    return (
        "No weights are too large: normalization makes gradients grow with depth. Add residual "
        "connections, or take fewer layers.", "",
    )  # fmt: skip


def _gradient_onset(pulls: list[_Pull], last: _Pull, outside: Callable[[_Pull], bool]) -> _Pull:
    """The first layer, as the gradient flows, of the run outside that leads to the last one."""
    onset = last
    for pull in pulls[pulls.index(last) + 1 :]:
        if not outside(pull):
            break
        onset = pull
    return onset


def _head_name(flow: Flow) -> str:
    return flow.head.name if flow.head is not None else "the output"


def _stopped_gradients(flow: Flow) -> Iterator[Finding]:
    """Where a gradient of exactly 0 begins, seen from the output."""
    without = optional(flow)
    for site in reversed(flow.sites):
        if not _gets_nothing(site) or without[site.name]:
            continue
        blocker = next(
            (user for user in reversed(flow.users(site)) if not _gets_nothing(user)), site
        )
        place = blocker if is_layer(blocker) else flow.layer_at(blocker) or blocker
        yield Finding(
            "vanishing_gradients", place.name,
            f"The gradient is exactly 0 at {site.name} and at all that only it depends on.",
            *_reopen(flow, place),
        )  # fmt: skip


def _reopen(flow: Flow, place: Site) -> tuple[str, str]:
    if flow.is_zero_head(place):
        remedy = (
            "Its weights are 0, so nothing passes at the first step; its own gradient is not, so "
            "later steps do pass. Draw it small but not 0, or leave it if it is meant."
        )
        return remedy, redraw(flow, [place])
    if is_layer(place):
        return "Draw this layer anew.", redraw(flow, [place])
    if place.kind == "norm" and place.module:
        return "Reset its scale and shift.", reset(place)
    return "Look at what reads it: a constant function, or a loss that is flat here.", ""


def _gets_nothing(site: Site) -> bool:
    gradient = site.backward
    return gradient is not None and gradient.numel > 0 and gradient.second_moment == 0
