"""Rules for units that are all alike, dead or saturated, and for samples that have become alike.

Each rule looks at the flow of a trace and yields its findings, the first of them first.
``initlab.diagnosis`` says where the limits come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from statistics import NormalDist

import torch

from initlab.activations import ACTIVATIONS, SATURATED_SLOPE, Activation
from initlab.diagnosis.findings import Finding, figure, joined
from initlab.diagnosis.flow import (
    CENTRES,
    CHANCE,
    LOST,
    SIGNALS,
    Flow,
    is_clean,
    is_layer,
    shared,
    weight_gain,
    width,
)
from initlab.diagnosis.openings import beside, is_closed_query
from initlab.diagnosis.remedies import redraw, reset, strengthen
from initlab.theory import inactive_fraction
from initlab.tracing import Site

_EQUAL = 1e-12
"""A relative variance below which numbers are equal: float32 resolves 6·10⁻⁸, squared 4·10⁻¹⁵,
and sums of a thousand terms lose a few digits more."""

_A_LINE = 2.0
"""The effective rank of samples on a line beside the origin is at most that: one direction along
the line, one towards it (a rank-one weight and a bias)."""

_SUDDEN = 4.0
"""Random weights keep the angles between samples, up to 1/√width; no layer of them divides the
effective rank by this, where its units have room for more."""

_BOUNDED_RECURRENT = ("lstm", "gru", "rnn_tanh", "lstm_cell", "gru_cell", "rnn_tanh_cell")


def symmetry(flow: Flow) -> Iterator[Finding]:
    """Units that all do the same. Branches that start at 0 on purpose, and a last layer of zeros,
    break it by themselves."""
    for layer in flow.layers:
        if _is_constant(layer) and not _is_meant(flow, layer) and not flow.is_zero_head(layer):
            assert layer.weight is not None
            value = figure(layer.weight.mean)
            yield _symmetric(
                flow, layer,
                f"All {layer.weight.numel:,} weights are {value}: every unit computes the same.",
            )  # fmt: skip
        elif _is_uniform(layer) and any(s.forward.second_moment > 0 for s in flow.sources(layer)):
            yield _symmetric(
                flow, layer,
                f"Its units differ by a variance of {figure(layer.forward.across_units_var or 0)} "
                f"only, at a mean square of {figure(layer.forward.second_moment)}: all do the "
                "same.",
            )  # fmt: skip


def _symmetric(flow: Flow, layer: Site, evidence: str) -> Finding:
    alike = [other for other in flow.layers if _is_constant(other) and not _is_meant(flow, other)]
    alike = alike if layer in alike else [layer, *alike]
    remedy = "Equal units get equal gradients and stay equal: draw the weights at random."
    return Finding("symmetry", layer.name, evidence, remedy, redraw(flow, alike))


def _is_meant(flow: Flow, layer: Site) -> bool:
    return flow.is_closed(layer) or is_closed_query(flow, layer)


def _is_constant(layer: Site) -> bool:
    """Whether all weights of a layer are equal, and there are several units to be equal.

    Not of what is added to the logits of an attention, such as a table of relative positions, which
    starts at 0: each logit has a gradient of its own.
    """
    weight = layer.weight
    if (
        layer.op == "attention"
        or weight is None
        or weight.numel < 2
        or not math.isfinite(weight.second_moment)
    ):
        return False
    several = (layer.weight_shape or (1,))[0] > 1 or weight.second_moment == 0
    return several and weight.var <= _EQUAL * weight.second_moment


def _is_uniform(layer: Site) -> bool:
    spread = layer.forward.across_units_var
    if spread is None or layer.kind != "affine" or len(layer.shape) != 2 or layer.shape[-1] < 2:
        return False
    return is_clean(layer) and spread < _EQUAL * layer.forward.second_moment


def dead_units(flow: Flow) -> Iterator[Finding]:
    """Units whose slope is 0 on the whole batch, more of them than chance explains."""
    dead = [s for s in flow.sites if _is_dead(s) and not _waits(flow, s)]
    for site in dead:
        saturated = site.saturated_fraction or 0
        if saturated > _saturation_limit(site.activation):
            continue  # so far out in a tail that float has no slope left
        normal = _inactive_by_chance(flow, site)
        evidence = (
            f"{site.dead_fraction:.0%} of the units of {site.name} have slope 0 on the whole "
            f"batch, where {normal:.0%} are expected and half of them at most"
            + (f"; {len(dead)} layers are dead in all." if len(dead) > 1 else ".")
        )
        place, code = _feeding(flow, dead)
        yield Finding(
            "dead_units", place, evidence,
            "Their pre-activations never reach the active side: draw the layer before them anew, "
            "with biases of 0.", code,
        )  # fmt: skip


def _waits(flow: Flow, site: Site) -> bool:
    """Whether all that its layer reads is 0 because a residual branch begins closed: it opens with
    the branch."""
    read = [source for feeder in _feeder(flow, site) for source in flow.sources(feeder)]
    return bool(read) and all(
        source.forward.second_moment == 0
        and any(flow.is_upstream(closed, source) for closed in flow.starts_closed)
        for source in read
    )


def _is_dead(site: Site) -> bool:
    """Whether more units are dead than inputs that have become all alike explain, or all are."""
    dead = site.dead_fraction
    has_units = len(site.shape) > 1  # not a hinge in a loss, with one number a sample
    if dead is None or dead <= 0.5 or not has_units or not is_clean(site):
        return False
    normal = 0.5 if _is_flat_below(site.activation) else 0.0
    by_chance = CHANCE * math.sqrt(normal * (1 - normal) / width(site))
    return dead == 1 or dead > max((1 + normal) / 2, normal + by_chance)


def _inactive_by_chance(flow: Flow, site: Site) -> float:
    """The share of units that mean-field theory expects at slope 0 on this batch."""
    sources = flow.sources(site)
    if not _is_flat_below(site.activation) or not sources:
        return 0.0
    apart = shared(sources[0].forward)
    if flow.samples < 2 or apart is None:
        return 0.5
    unbiased = apart * flow.samples / (flow.samples - 1)
    return inactive_fraction(min(unbiased, 1.0), flow.samples)


@lru_cache(maxsize=256)
def _is_flat_below(phi: Activation | None) -> bool:
    """Whether a unit far on the negative side has no slope: relu, gelu, sigmoid, …"""
    if phi is None:
        return False
    far = torch.tensor([-40.0], dtype=torch.float64)
    return abs(float(phi.derivative(far))) < SATURATED_SLOPE


def saturation(flow: Flow) -> Iterator[Finding]:
    """Activations, or states of a recurrent layer, that lie in the flat tails."""
    found = [site for site in flow.sites if _is_saturated(site)]
    for site in found[:1]:
        place, code = _feeding(flow, found, flow.overweight)
        others = f"; {len(found)} layers are saturated in all." if len(found) > 1 else "."
        if site.kind == "recurrent" and _gates(site) > _saturated_gates():
            evidence = (
                f"Its hidden weights alone give its gates a mean square of {figure(_gates(site))}: "
                f"half of them are saturated from {_saturated_gates():.0f} on{others}"
            )
        elif site.kind == "recurrent":
            evidence = (
                f"Its states have a mean square of {figure(site.forward.second_moment)}: Gaussian "
                f"pre-activations are half saturated from {_saturated_square():.2f} on{others}"
            )
        else:
            limit = _saturation_limit(site.activation)
            evidence = (
                f"{site.saturated_fraction:.0%} of {site.name} lies in the tails of {site.op}, "
                f"where its slope is below 5 % (limit: {limit:.0%}){others}"
            )
        yield Finding(
            "saturation", place, evidence,
            "Its pre-activations are too large: draw the weights smaller, with biases of 0.", code,
        )  # fmt: skip


def _is_saturated(site: Site) -> bool:
    if not is_clean(site):
        return False
    if site.op in _BOUNDED_RECURRENT:
        too_large = site.forward.second_moment > _saturated_square()
        return too_large or _gates(site) > _saturated_gates()
    share = site.saturated_fraction
    return share is not None and share > _saturation_limit(site.activation)


def _saturation_limit(phi: Activation | None) -> float:
    """Half of what is unsaturated under N(0, 1) may be lost.

    >>> [round(_saturation_limit(ACTIVATIONS[name]), 3) for name in ("tanh", "hardtanh")]
    [0.515, 0.659]
    """
    if phi is None or phi.tails is None:
        return 0.5
    low, high = phi.tails
    normal = NormalDist().cdf(low) + 1 - NormalDist().cdf(high)
    return (1 + normal) / 2


@lru_cache(maxsize=1)
def _saturated_square() -> float:
    """E tanh² of Gaussian pre-activations that are saturated to the limit.

    >>> round(_saturated_square(), 2)
    0.77
    """
    tanh = ACTIVATIONS["tanh"]
    assert tanh.tails is not None
    inside = NormalDist().inv_cdf(1 - _saturation_limit(tanh) / 2)
    return tanh.moments((tanh.tails[1] / inside) ** 2).second_moment


def _gates(site: Site) -> float:
    """The mean square that the weights from state to state give the gates of an LSTM or a GRU."""
    has_gates = site.op.startswith(("lstm", "gru"))
    return (weight_gain(site) or 0.0) * site.forward.second_moment if has_gates else 0.0


@lru_cache(maxsize=1)
def _saturated_gates() -> float:
    """E z² of Gaussian z that saturate a sigmoid to the limit.

    >>> round(_saturated_gates())
    18
    """
    sigmoid = ACTIVATIONS["sigmoid"]
    assert sigmoid.tails is not None
    return (sigmoid.tails[1] / NormalDist().inv_cdf(1 - _saturation_limit(sigmoid) / 2)) ** 2


def _feeding(flow: Flow, activations: list[Site], guilty: Sequence[Site] = ()) -> tuple[str, str]:
    """The name of what feeds the first of these activations, and code that redraws all feeders.

    Of ``guilty`` layers those upstream are redrawn too; where the feeder is none, but such a layer
    lies before it, that is the place.
    """
    feeders = [source for site in activations for source in _feeder(flow, site)]
    before = [x for x in guilty if any(flow.is_upstream(x, site) for site in activations)]
    layers = dict.fromkeys([*(feeder for feeder in feeders if is_layer(feeder)), *before])
    norms = [feeder for feeder in feeders if feeder.kind == "norm" and feeder.module]
    code = joined([redraw(flow, layers), *dict.fromkeys(reset(norm) for norm in norms)])
    first = feeders[0] if feeders else activations[0]
    earlier = [layer for layer in before if flow.is_upstream(layer, first)]
    place = first if not earlier or first in before else earlier[-1]
    return place.name, code


def _feeder(flow: Flow, site: Site) -> list[Site]:
    if is_layer(site):
        return [site]
    source = next(iter(flow.sources(site)), None)
    while source is not None and source.kind == "other":
        source = next(iter(flow.sources(source)), None)
    return [] if source is None or source.kind in ("input", "activation") else [source]


def rank_collapse(flow: Flow) -> Iterator[Finding]:
    """Samples that have become alike, or come to lie on a line."""
    if not flow.inputs_differ:
        return
    restored = flow.always_meets(lambda user, _: user.op in CENTRES)
    told_apart = flow.always_meets(partial(_is_told_apart, flow))
    for site in flow.sites:
        alive = site.kind in SIGNALS and is_clean(site) and site.forward.second_moment > 0
        is_last = not flow.feeds_layer[site.name]  # whose bias the loss may judge
        if not alive or is_last or restored[site.name] or not flow.reads_input[site.name]:
            continue
        apart = shared(site.forward)
        lost = apart is not None and apart < LOST * flow.let_in[site.name]
        if apart is not None and lost and not told_apart[site.name]:
            yield Finding(
                "rank_collapse", flow.place(site),
                f"Only {figure(apart)} of the mean square of {site.name} differs from sample to "
                "sample: all inputs look alike.",
                *strengthen(flow),
            )  # fmt: skip
        harmless = told_apart[site.name] and (apart or 0) < 0.5  # a branch that is mostly bias
        if _falls_on_a_line(flow, site) and not harmless:
            before, after = _ranks(flow, site)
            fallen = [s for s in flow.layers if s is site or _falls_on_a_line(flow, s)]
            yield Finding(
                "rank_collapse", site.name,
                f"The effective rank falls from {before:.1f} to {after:.2f} in this one layer: all "
                "samples come to lie on a line.",
                "Draw its weights as independent random numbers.", redraw(flow, fallen),
            )  # fmt: skip


def _is_told_apart(flow: Flow, user: Site, source: Site) -> bool:
    """Whether what this is added to tells the inputs apart, or what this query or key looks at."""
    others = [s for s in flow.sources(user) if s.name != source.name]
    others = others if user.kind == "add" else beside(flow, source, user)
    return any((shared(other.forward) or 0) >= LOST for other in others)


def _falls_on_a_line(flow: Flow, site: Site) -> bool:
    before, after = _ranks(flow, site)
    apart = shared(site.forward)
    expected = before if apart is None else min(before, _rank_beside_a_mean(before, apart))
    return after <= _A_LINE and after * _SUDDEN < expected


def _rank_beside_a_mean(rank: float, apart: float) -> float:
    """The effective rank of samples that vary in so many directions around a mean, of whose mean
    square this share varies: one singular value √(1 − apart), the others √(apart/rank).

    >>> round(_rank_beside_a_mean(16.0, 1.0), 1), round(_rank_beside_a_mean(16.0, 1e-3), 1)
    (16.0, 1.9)
    """
    if rank <= 0 or not 0 < apart <= 1:
        return rank
    mean, others = math.sqrt(1 - apart), math.sqrt(apart * rank)  # their sum, not one of them
    total = mean + others
    shares = [(mean / total, 1.0), (others / total, rank)]  # each spread over so many values
    return math.exp(sum(share * math.log(many / share) for share, many in shares if share > 0))


def _ranks(flow: Flow, layer: Site) -> tuple[float, float]:
    """The effective ranks before and after a layer, as far as its units have room; 0 if unknown."""
    sources = flow.sources(layer)
    before = sources[0].effective_rank if len(sources) == 1 and is_layer(layer) else None
    if before is None or layer.effective_rank is None:
        return 0.0, 0.0
    return min(before, _units(layer)), layer.effective_rank


def _units(site: Site) -> int:
    return math.prod(site.shape[1:])
