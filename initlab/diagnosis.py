"""diagnose(): what is wrong with a traced model, where it begins, and what to do about it.

**What counts as a fault** follows from what training can make good, not from what is usual.

- *Signal and gradient.* A mean square below 10⁻⁶ of where it started is lost to SGD; above 10³ (of
  signals; 10⁴ of gradients) no learning rate in use is stable: ``initlab.flow`` derives the three
  (``LOST``, ``WILD``, ``STEEP``). The start is
  whatever last set the scale, an input, an embedding or a normalization layer; scales between it
  and 1 are natural. Finite width alone moves a deep ReLU network by decades, so the limits are
  widened by three standard deviations of the exact log-normal law of this width and depth.
- *Gradients* must be out of bounds twice: as the sum of all squares of ∂L/∂h, relative to the last
  layer's (weights of variance 1/fan_in keep that sum, whatever the widths), and as the mean square
  of ∂L/∂W over that of W, the relative size of an SGD step, again relative to the last layer's.
  Average pooling lowers the first without harm, and the second not at all.
- *Dead and saturated* units: more than half of those that should be alive. Of units that are flat
  on one side (relu, gelu) up to one half is inactive on a whole batch, the more the more alike its
  inputs have become (``finite_width.inactive_fraction``): 75 % and three standard deviations of a
  binomial are the limit, or all of them. Of units with declared tails P(z in the tails), z ~ N(0,
  1), is saturated (hardtanh 32 %, tanh 3 %): every activation has a limit of its own. A unit is
  saturated where its slope is below 5 %, dead where it is 0 on the whole batch.
- *Symmetry*: weights that are all equal, or units that all do the same, to float precision.
- *Biases* dominate where they are three times what the weights contribute: a Gaussian
  pre-activation further than three standard deviations from a kink crosses it for one sample in a
  thousand, and the layer has become linear (or dead).
- *Rank*: all inputs have become alike when what differs is below 10⁻⁶ of the mean square, by the
  argument above; or, with ``geometry``, when a single layer brings their effective rank down to that
  of a line.
- *The initial loss*: logits within the drift of the healthy zone, a mean square of 10, cost at most
  what the random energy model gives for them (Derrida 1981): log C + σ²/2, or σ·√(2 log C) where σ
  is larger than √(2 log C).

**Cause and consequence.** ``_EXPLAINED_BY`` says which faults bring which others about. A finding
with a ``because`` is a consequence; those without one are the causes, and come first.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import torch

from initlab.activations import ACTIVATIONS, SATURATED_SLOPE
from initlab.finite_width import inactive_fraction
from initlab.flow import (
    CHANCE,
    DRIFT,
    LOST,
    STEEP,
    WILD,
    Flow,
    is_layer,
    is_normalized,
    shared,
    total,
    weight_gain,
    width,
)
from initlab.measuring import Stats
from initlab.remedies import redraw, rescale, reset
from initlab.sites import Site, Trace

Fault = Literal[
    "non_finite",
    "symmetry",
    "dead_units",
    "bias_dominated",
    "exploding_activations",
    "saturation",
    "vanishing_activations",
    "vanishing_gradients",
    "exploding_gradients",
    "rank_collapse",
    "wrong_initial_loss",
]
FAULTS: tuple[Fault, ...] = Fault.__args__  # type: ignore[attr-defined]
"""Every fault, causes before what they bring about."""

_EXPLAINED_BY: Mapping[Fault, tuple[Fault, ...]] = {
    "non_finite": ("exploding_activations", "exploding_gradients"),
    "symmetry": ("non_finite",),
    "dead_units": ("non_finite", "symmetry", "bias_dominated", "exploding_activations"),
    "bias_dominated": ("symmetry", "dead_units"),
    "exploding_activations": ("symmetry", "bias_dominated"),
    "saturation": ("symmetry", "exploding_activations", "bias_dominated"),
    "vanishing_activations": ("symmetry", "dead_units"),
    "vanishing_gradients": (
        "non_finite", "symmetry", "dead_units", "exploding_activations", "bias_dominated",
        "saturation", "vanishing_activations",
    ),
    "exploding_gradients": (
        "non_finite", "symmetry", "dead_units", "exploding_activations", "bias_dominated",
        "saturation", "vanishing_activations", "wrong_initial_loss",
    ),
    "rank_collapse": (
        "symmetry", "dead_units", "exploding_activations", "bias_dominated", "saturation",
        "vanishing_activations", "vanishing_gradients",
    ),
    "wrong_initial_loss": (
        "non_finite", "symmetry", "exploding_activations", "bias_dominated",
    ),
}  # fmt: skip

_EQUAL = 1e-12
"""A relative variance below which numbers are equal: float32 resolves 6·10⁻⁸, squared 4·10⁻¹⁵,
and sums of a thousand terms lose a few digits more."""

_BIAS_SHARE = 9.0
"""Mean square of the biases over that of what the weights contribute: three standard deviations."""

_A_LINE = 2.0
"""The effective rank of samples on a line beside the origin is at most that: one direction along
the line, one towards it (a rank-one weight and a bias)."""

_SUDDEN = 4.0
"""Random weights keep the angles between samples, up to 1/√width; no layer of them divides the
effective rank by this, where its units have room for more."""

_CENTRES = ("batch_norm", "instance_norm", "BatchNorm", "InstanceNorm")
_BOUNDED_RECURRENT = ("lstm", "gru", "rnn_tanh", "lstm_cell", "gru_cell", "rnn_tanh_cell")
_SIGNALS = ("affine", "activation", "add", "recurrent", "attention")


# ---------------------------------------------------------------- the result


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        fault: one of ``FAULTS``.
        where: the name of the site where it begins.
        evidence: what was measured, in a sentence with its numbers.
        remedy: what to do, in words.
        code: the same as Python that expects the model as ``model``; empty where no
            initialization helps.
        because: the finding that explains this one, as "fault at where"; None for a cause.
    """

    fault: Fault
    where: str
    evidence: str
    remedy: str
    code: str
    because: str | None = None

    def __str__(self) -> str:
        lines = [f"{self.fault} at {self.where}", f"  {self.evidence}"]
        if self.because:
            return "\n".join([*lines, f"  follows from {self.because}"])
        lines.append(f"  {self.remedy}")
        return "\n".join([*lines, *(f"    {line}" for line in self.code.splitlines())])


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a traced model; printed in full in a terminal and in a notebook.

    Attributes:
        findings: causes first, in the order in which faults bring each other about.
        notes: what looks odd and is safe to leave.
        not_checked: what the trace did not say, and how to make it say so.
    """

    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether nothing that was checked is wrong."""
        return not self.findings

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults found, each once."""
        return tuple(dict.fromkeys(finding.fault for finding in self.findings))

    @property
    def causes(self) -> tuple[Finding, ...]:
        """The findings that no other explains: cure these."""
        return tuple(finding for finding in self.findings if finding.because is None)

    @property
    def code(self) -> str:
        """The remedies of all causes, as Python that expects the model as ``model``."""
        return "\n".join(dict.fromkeys(f.code for f in self.causes if f.code))

    def __str__(self) -> str:
        lines = [_headline(self), *map(str, self.findings)]
        lines += [f"Safe to leave: {note}" for note in self.notes]
        lines += [f"Not checked: {reason}" for reason in self.not_checked]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(_html(self))


def _headline(diagnosis: Diagnosis) -> str:
    if diagnosis.healthy:
        return "Healthy: nothing that was checked is wrong."
    causes = len(diagnosis.causes)
    others = len(diagnosis.findings) - causes
    title = "1 fault" if causes == 1 else f"{causes} faults"
    return title + (f", and {others} that follow{'s' * (others == 1)}" if others else "")


def _html(diagnosis: Diagnosis) -> Iterator[str]:
    yield f"<p><strong>{_headline(diagnosis)}</strong></p>"
    if diagnosis.findings:
        yield "<ol>"
        for finding in diagnosis.findings:
            title = f"{finding.fault} at {finding.where}"
            yield f"<li><strong>{html.escape(title)}</strong><br>{html.escape(finding.evidence)}"
            if finding.because:
                yield f"<br>follows from {html.escape(finding.because)}</li>"
                continue
            yield f"<br>{html.escape(finding.remedy)}"
            yield f"<pre>{html.escape(finding.code)}</pre></li>" if finding.code else "</li>"
        yield "</ol>"
    for title, lines in (("Safe to leave", diagnosis.notes), ("Not checked",
                                                              diagnosis.not_checked)):  # fmt: skip
        if lines:
            items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
            yield f"<p>{title}:</p><ul>{items}</ul>"


# ---------------------------------------------------------------- diagnose


def diagnose(trace: Trace) -> Diagnosis:
    """Say what is wrong with a traced model, where it begins, and what to do.

    Args:
        trace: of one forward and backward pass, best with ``target=…`` (for the initial loss) and
            ``geometry=True`` (for the rank).

    Returns:
        The findings, what is odd but harmless, and what could not be checked. The module's
        docstring derives the limits.

    Raises:
        TypeError: not a Trace.

    >>> import torch; from torch import nn; from initlab.tracing import trace as observe
    >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> _ = nn.init.constant_(model[0].weight, 0.5)
    >>> diagnosis = diagnose(observe(model, torch.randn(32, 16)))
    >>> diagnosis.findings[0].fault, diagnosis.findings[0].where
    ('symmetry', '0')
    >>> print(diagnosis.code)
    from initlab import init_
    init_(model, "lecun_normal", only=["0"])
    >>> exec(diagnosis.code, {"model": model})
    >>> diagnose(observe(model, torch.randn(32, 16))).healthy
    True
    """
    if not isinstance(trace, Trace):
        hint = "; trace(model, batch) makes one" if callable(trace) else ""
        raise TypeError(f"trace={type(trace).__name__} must be a Trace{hint}")
    if not trace.sites:
        return Diagnosis(not_checked=("everything: the trace has no sites",))
    flow = Flow(trace)
    findings: list[Finding] = []
    for fault in FAULTS:
        found = next(_RULES[fault](flow), None)
        if found is not None:
            findings.append(found)
    explained = _explain(flow, findings)
    return Diagnosis(
        tuple(sorted(explained, key=lambda finding: finding.because is not None)),
        tuple(_notes(flow)),
        tuple(_not_checked(flow)),
    )


_ANYWHERE = ("vanishing_gradients", "exploding_gradients", "wrong_initial_loss", "non_finite")
"""Faults that a cause explains wherever it is; it explains the others only downstream of it."""


def _explain(flow: Flow, findings: list[Finding]) -> list[Finding]:
    """Mark each finding that another one brings about."""
    faults = {finding.fault: finding for finding in findings}
    return [
        replace(finding, because=f"{cause.fault} at {cause.where}") if cause else finding
        for finding in findings
        for cause in [_cause(flow, finding, faults)]
    ]


def _cause(flow: Flow, finding: Finding, faults: Mapping[Fault, Finding]) -> Finding | None:
    here = flow.trace[finding.where]
    for fault in _EXPLAINED_BY[finding.fault]:
        cause = faults.get(fault)
        if cause is None or _ties(finding, cause):
            continue
        if finding.fault in _ANYWHERE or flow.is_upstream(flow.trace[cause.where], here):
            return cause
    return None


def _ties(finding: Finding, cause: Finding) -> bool:
    """Whether two faults begin at one place, and the supposed cause is named after the other."""
    later = FAULTS.index(cause.fault) > FAULTS.index(finding.fault)
    return later and cause.where == finding.where


def _figure(number: float) -> str:
    """A number for a sentence.

    >>> _figure(0.5314), _figure(3.21e-9), _figure(12345.6)
    ('0.531', '3.2e-09', '1.2e+04')
    """
    if number == 0 or 0.01 <= abs(number) < 1000:
        return f"{number:.3g}"
    return f"{number:.1e}"


# ---------------------------------------------------------------- non-finite numbers


def _clean(site: Site) -> bool:
    """Whether a site's forward numbers can be reckoned with."""
    forward = site.forward
    return not forward.nonfinite and math.isfinite(forward.second_moment)


def _non_finite(flow: Flow) -> Iterator[Finding]:
    for site in flow.sites:
        if site.weight is not None and site.weight.nonfinite:
            count, numel = site.weight.nonfinite, site.weight.numel
            yield Finding(
                "non_finite", site.name, f"{count:,} of its {numel:,} weights are not finite.",
                "Draw this layer anew, and find out what wrote them (a diverged step, a division "
                "by 0).", redraw(flow, [site]),
            )  # fmt: skip
        elif site.forward.nonfinite and all(map(_clean, flow.sources(site))):
            yield _not_finite_here(flow, site)
    for site in reversed(flow.sites):
        if site.backward is not None and site.backward.nonfinite and _clean(site):
            yield Finding(
                "non_finite", site.name,
                f"{site.backward.nonfinite:,} of {site.backward.numel:,} entries of its gradient "
                "are not finite, though its values are.",
                "Look at what reads it: a square root or a norm at 0, a logarithm, a division, or "
                "numbers too large for this precision.", "",
            )  # fmt: skip
    loss = flow.trace.loss
    if loss is not None and not math.isfinite(loss) and _clean(flow.sites[-1]):
        yield Finding(
            "non_finite", flow.sites[-1].name, f"The loss is {loss}, though the output is finite.",
            "Look at the loss function: a logarithm of 0, a division by an empty batch.", "",
        )  # fmt: skip


def _not_finite_here(flow: Flow, site: Site) -> Finding:
    evidence = (
        f"{site.forward.nonfinite:,} of its {site.forward.numel:,} values are not finite, though "
        "all that it reads is."
    )
    if site.kind == "input":
        evidence = f"{site.forward.nonfinite:,} of {site.forward.numel:,} inputs are not finite."
        return Finding("non_finite", site.name, evidence, "Clean the data.", "")
    if is_layer(site):
        remedy = (
            "Its weights are finite: draw it anew, bias included, unless a function that is not "
            "listed comes in between (a logarithm, a division)."
        )
        return Finding("non_finite", site.name, evidence, remedy, redraw(flow, [site]))
    if site.kind == "norm" and site.module:
        remedy = "Reset its scale, shift and running statistics."
        return Finding("non_finite", site.name, evidence, remedy, reset(site))
    remedy = "Keep its argument inside its domain: a logarithm of 0, a division by 0, an overflow."
    return Finding("non_finite", site.name, evidence, remedy, "")


# ---------------------------------------------------------------- symmetry


def _symmetry(flow: Flow) -> Iterator[Finding]:
    for layer in flow.layers:
        if _is_constant(layer) and not _is_closed(flow, layer) and not _is_zero_head(flow, layer):
            assert layer.weight is not None
            value = _figure(layer.weight.mean)
            yield _symmetric(
                flow, layer,
                f"All {layer.weight.numel:,} weights are {value}: every unit computes the same.",
            )  # fmt: skip
        elif _is_uniform(layer):
            yield _symmetric(
                flow, layer,
                f"Its units differ by a variance of {_figure(layer.forward.across_units_var or 0)} "
                f"only, at a mean square of {_figure(layer.forward.second_moment)}: all do the "
                "same.",
            )  # fmt: skip


def _symmetric(flow: Flow, layer: Site, evidence: str) -> Finding:
    alike = [other for other in flow.layers if _is_constant(other) and not _is_closed(flow, other)]
    alike = alike if layer in alike else [layer, *alike]
    remedy = "Equal units get equal gradients and stay equal: draw the weights at random."
    return Finding("symmetry", layer.name, evidence, remedy, redraw(flow, alike))


def _is_constant(layer: Site) -> bool:
    """Whether all weights of a layer are equal, and there are several units to be equal."""
    weight = layer.weight
    if weight is None or weight.numel < 2 or not math.isfinite(weight.second_moment):
        return False
    several = (layer.weight_shape or (1,))[0] > 1 or weight.second_moment == 0
    return several and weight.var <= _EQUAL * weight.second_moment


def _is_uniform(layer: Site) -> bool:
    spread = layer.forward.across_units_var
    if spread is None or layer.kind != "affine" or len(layer.shape) != 2 or layer.shape[-1] < 2:
        return False
    return _clean(layer) and spread < _EQUAL * layer.forward.second_moment


def _is_closed(flow: Flow, site: Site) -> bool:
    """Whether it adds exactly 0 to a residual stream that others keep alive."""
    return site.forward.second_moment == 0 and flow.in_branch[site.name]


def _is_zero_head(flow: Flow, layer: Site) -> bool:
    """Whether it is a last layer of zeros, which gets a gradient of its own all the same."""
    moving = layer.weight_grad is not None and layer.weight_grad.second_moment > 0
    return layer is flow.head and moving and _weighs_nothing(layer)


def _weighs_nothing(layer: Site) -> bool:
    return layer.weight is not None and layer.weight.second_moment == 0


# ---------------------------------------------------------------- dead and saturated units


def _dead_units(flow: Flow) -> Iterator[Finding]:
    for site in flow.sites:
        if not _is_dead(flow, site):
            continue
        saturated = site.saturated_fraction or 0
        if saturated > _saturation_limit(site.op):
            continue  # so far out in a tail that float has no slope left
        normal = _inactive_by_chance(flow, site)
        dead = [s for s in flow.sites if _is_dead(flow, s)]
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


def _is_dead(flow: Flow, site: Site) -> bool:
    """Whether more units are dead than inputs that have become all alike explain, or all are."""
    dead = site.dead_fraction
    if dead is None or dead <= 0.5 or not _clean(site):
        return False
    normal = 0.5 if _is_flat_below(site.op) else 0.0
    by_chance = CHANCE * math.sqrt(normal * (1 - normal) / width(site))
    return dead == 1 or dead > max((1 + normal) / 2, normal + by_chance)


def _inactive_by_chance(flow: Flow, site: Site) -> float:
    """The share of units that mean-field theory expects at slope 0 on this batch."""
    sources = flow.sources(site)
    if not _is_flat_below(site.op) or not sources:
        return 0.0
    apart = shared(sources[0].forward)
    if flow.samples < 2 or apart is None:
        return 0.5
    unbiased = apart * flow.samples / (flow.samples - 1)
    return inactive_fraction(min(unbiased, 1.0), flow.samples)


@lru_cache(maxsize=256)
def _is_flat_below(op: str) -> bool:
    """Whether a unit far on the negative side has no slope: relu, gelu, sigmoid, …"""
    phi = ACTIVATIONS.get(op)
    if phi is None:
        return False
    far = torch.tensor([-40.0], dtype=torch.float64)
    return abs(float(phi.derivative(far))) < SATURATED_SLOPE


def _saturation(flow: Flow) -> Iterator[Finding]:
    found = [site for site in flow.sites if _is_saturated(site)]
    for site in found[:1]:
        place, code = _feeding(flow, found)
        others = f"; {len(found)} layers are saturated in all." if len(found) > 1 else "."
        if site.kind == "recurrent":
            evidence = f"Its states have a mean square of {_figure(site.forward.second_moment)} of "
            evidence += (
                f"at most 1: Gaussian pre-activations are half saturated from 0.78 on{others}"
            )
        else:
            limit = _saturation_limit(site.op)
            evidence = (
                f"{site.saturated_fraction:.0%} of {site.name} lies in the tails of {site.op}, "
                f"where its slope is below 5 % (limit: {limit:.0%}){others}"
            )
        yield Finding(
            "saturation", place, evidence,
            "Its pre-activations are too large: draw the weights smaller, with biases of 0.", code,
        )  # fmt: skip


def _is_saturated(site: Site) -> bool:
    if not _clean(site):
        return False
    if site.op in _BOUNDED_RECURRENT:
        return site.forward.second_moment > _saturated_square()
    share = site.saturated_fraction
    return share is not None and share > _saturation_limit(site.op)


def _saturation_limit(op: str) -> float:
    """Half of what is unsaturated under N(0, 1) may be lost.

    >>> round(_saturation_limit("tanh"), 3), round(_saturation_limit("hardtanh"), 3)
    (0.515, 0.659)
    """
    phi = ACTIVATIONS.get(op)
    if phi is None or phi.tails is None:
        return 0.5
    normal = sum(math.erfc(abs(tail) / math.sqrt(2)) / 2 for tail in phi.tails)
    return (1 + normal) / 2


@lru_cache(maxsize=1)
def _saturated_square() -> float:
    """E tanh² of Gaussian pre-activations that are saturated to the limit.

    >>> round(_saturated_square(), 2)
    0.78
    """
    tanh = ACTIVATIONS["tanh"]
    assert tanh.tails is not None
    inside = NormalDist().inv_cdf(1 - _saturation_limit("tanh") / 2)
    return tanh.moments((tanh.tails[1] / inside) ** 2).second_moment


def _feeding(flow: Flow, activations: list[Site]) -> tuple[str, str]:
    """The name of what feeds the first of these activations, and code that redraws all feeders."""
    feeders = [source for site in activations for source in _feeder(flow, site)]
    layers = [feeder for feeder in feeders if is_layer(feeder)]
    norms = [feeder for feeder in feeders if feeder.kind == "norm" and feeder.module]
    code = redraw(flow, dict.fromkeys(layers)) if layers else ""
    resets = dict.fromkeys(reset(norm) for norm in norms)
    name = feeders[0].name if feeders else activations[0].name
    return name, "\n".join(filter(None, [code, *resets]))


def _feeder(flow: Flow, site: Site) -> list[Site]:
    if is_layer(site):
        return [site]
    source = next(iter(flow.sources(site)), None)
    while source is not None and source.kind == "other":
        source = next(iter(flow.sources(source)), None)
    return [] if source is None or source.kind in ("input", "activation") else [source]


# ---------------------------------------------------------------- the scale of the signal


def _too_large(flow: Flow, site: Site, factor: float) -> bool:
    band = flow.bands[site.name]
    return site.forward.second_moment > band.high * factor * flow.chance(site)[1]


def _too_small(flow: Flow, site: Site, factor: float) -> bool:
    band = flow.bands[site.name]
    return site.forward.second_moment < band.low * factor * flow.chance(site)[0]


def _is_bounded(site: Site) -> bool:
    """Whether nothing large comes out, however large what goes in."""
    phi = ACTIVATIONS.get(site.op)
    bounded = phi is not None and phi.tails is not None and all(map(math.isfinite, phi.tails))
    return site.kind == "activation" and bounded


def _exploding_activations(flow: Flow) -> Iterator[Finding]:
    held = flow.always_meets(lambda user, _: is_normalized(user) or _is_bounded(user))
    for site in flow.sites:
        drowned = _drowned(flow, site)
        if drowned is not None:
            yield _drowning(flow, site, drowned)
        logits = site is flow.head and flow.trace.num_classes is not None  # for the loss to judge
        if site.kind not in _SIGNALS or held[site.name] or logits:
            continue
        if _overflows(flow, site) or (_clean(site) and _too_large(flow, site, WILD)):
            yield _explosion(flow, site)
    before_head = _before_head(flow)
    if before_head is not None and _loss_limit_exceeded(flow) and not held[before_head.name]:
        yield _explosion(flow, before_head)


def _overflows(flow: Flow, site: Site) -> bool:
    """Whether a layer's weights are finite but so large that its values are not."""
    gain = weight_gain(site) if is_layer(site) else None
    sources = flow.sources(site)
    if not site.forward.nonfinite or gain is None or not math.isfinite(gain) or not sources:
        return False
    return _clean(sources[0]) and gain > WILD


def _before_head(flow: Flow) -> Site | None:
    """What the last layer reads, if it is beyond the healthy zone already."""
    head = flow.head
    source = next(iter(flow.sources(head)), None) if head is not None else None
    if source is None or source.kind == "input" or not _clean(source):
        return None
    return source if _too_large(flow, source, DRIFT) else None


def _explosion(flow: Flow, site: Site) -> Finding:
    onset = _onset(flow, site, lambda s: not _clean(s) or _too_large(flow, s, DRIFT))
    last = _last_clean(flow, onset)
    evidence = (
        f"The mean square of the signal leaves the healthy zone here at "
        f"{_figure(onset.forward.second_moment)} and reaches {_figure(last.forward.second_moment)} "
        f"at {last.name}; chance explains up to {_figure(_ceiling(flow, last))}."
    )
    remedy, code = _smaller(flow, onset)
    return Finding("exploding_activations", _place(flow, onset), evidence, remedy, code)


def _ceiling(flow: Flow, site: Site) -> float:
    band = flow.bands[site.name]
    return band.high * DRIFT * flow.chance(site)[1]


def _last_clean(flow: Flow, onset: Site) -> Site:
    """The site with the largest signal downstream."""
    below = [s for s in flow.sites if flow.is_upstream(onset, s) and _clean(s)]
    return max(below, key=lambda s: s.forward.second_moment, default=onset)


def _onset(flow: Flow, site: Site, outside: Callable[[Site], bool]) -> Site:
    """The first of the unbroken run of layers and sums outside that leads to this site."""
    onset = site
    while True:
        before = next(iter(flow.sources(site)), None)
        if before is None or before.kind in ("input", "norm"):
            return onset
        if before.kind not in ("activation", "other"):  # relu halves a mean square: no judgement
            if not outside(before):
                return onset
            onset = before
        site = before


def _place(flow: Flow, site: Site) -> str:
    """The layer to blame for what is seen at a site; the site itself where there is none."""
    layer = flow.layer_at(site)
    return site.name if layer is None else layer.name


def _smaller(flow: Flow, onset: Site) -> tuple[str, str]:
    """Weights that are off are drawn anew; branches that add up are divided by √L."""
    off = [*flow.off, onset] if onset.kind == "recurrent" else flow.off
    branches = _growing_branches(flow)
    words, code = [], []
    if off or not branches:
        words.append(_redraw_words(off or flow.layers))
        code.append(redraw(flow, off or flow.layers))
    untouched = [end for end in branches if end not in off]
    if untouched:
        factor = 1 / math.sqrt(len(branches))
        words.append(
            f"Each of {len(branches)} residual sums adds to the stream: divide the residual "
            f"branch by √{len(branches)}, as by scaling its last layer by {factor:.3g}."
        )
        code.append(rescale(untouched, factor))
    return " ".join(words), "\n".join(code)


def _growing_branches(flow: Flow) -> list[Site]:
    """The last layers of the residual branches, if their sums alone grow beyond drift."""
    growth = 0.0
    for site in flow.sites:
        sources = flow.sources(site)
        if site.kind == "add" and all(map(_clean, [site, *sources])) and sources:
            stream = min(s.forward.second_moment for s in sources)
            if stream > 0:
                growth += math.log(site.forward.second_moment / stream)
    return flow.branch_ends if growth > math.log(DRIFT) else []


def _redraw_words(layers: list[Site]) -> str:
    names = ", ".join(layer.name for layer in layers[:3])
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    return (
        f"The weights of {names}{more} have another variance than gain²/fan_in: draw them for "
        "what they read."
    )


def _drowned(flow: Flow, site: Site) -> Site | None:
    """The branch that outweighs the residual stream it is added to, if any does."""
    sources = flow.sources(site)
    if site.kind != "add" or len(sources) != 2 or not all(map(_clean, sources)):
        return None
    first, second = sources
    stream, branch = (second, first) if flow.is_upstream(second, first) else (first, second)
    scales = branch.forward.second_moment, stream.forward.second_moment
    low, high = flow.chance(branch)
    return branch if scales[1] > 0 and scales[0] > STEEP * scales[1] * high / low else None


def _drowning(flow: Flow, add: Site, branch: Site) -> Finding:
    onset = _onset(flow, branch, lambda s: _clean(s) and _too_large(flow, s, DRIFT))
    stream = min(flow.sources(add), key=lambda s: s.forward.second_moment)
    ratio = branch.forward.second_moment / stream.forward.second_moment
    evidence = (
        f"At {add.name} this branch has {_figure(ratio)} times the mean square of the residual "
        "stream that it is added to: the stream drowns."
    )
    off = flow.off or [layer for layer in [flow.branch_end(add)] if layer is not None]
    return Finding(
        "exploding_activations", _place(flow, onset), evidence, _redraw_words(off),
        redraw(flow, off),
    )  # fmt: skip


def _vanishing_activations(flow: Flow) -> Iterator[Finding]:
    kept = _kept_alive(flow)
    for site in flow.sites:
        if site.kind not in _SIGNALS or kept[site.name] or not _clean(site):
            continue
        if not _fades(flow, site, LOST) or _is_zero_head(flow, site):
            continue
        onset = _onset(flow, site, lambda s: _clean(s) and _fades(flow, s, 1 / DRIFT))
        floor = flow.chance(site)[0] / DRIFT
        off = flow.off or flow.layers
        yield Finding(
            "vanishing_activations", _place(flow, onset),
            f"The {_signal_name(flow, site)} leaves the healthy zone here at "
            f"{_figure(_signal(flow, onset))} and falls to {_figure(_signal(flow, site))} at "
            f"{site.name}; chance explains down to {_figure(floor)} of what it was.",
            _redraw_words(off), redraw(flow, off),
        )  # fmt: skip


def _fades(flow: Flow, site: Site, factor: float) -> bool:
    """Whether the signal has fallen below this factor of what it was, and chance does not explain
    it: the mean square, and where that may be all bias, what differs from sample to sample."""
    if not flow.reads_input[site.name]:
        return False
    varied = site.forward.across_samples_var
    if varied is None or not _is_told_by_samples(flow, site):
        return _too_small(flow, site, factor)
    band = flow.bands[site.name]
    return varied < min(band.varied or 1.0, 1.0) * factor * flow.chance(site)[0]


def _is_told_by_samples(flow: Flow, site: Site) -> bool:
    """Whether all that is constant across samples comes from biases: where every φ(0) is 0."""
    return flow.inputs_differ and flow.passes_zero[site.name] and bool(flow.bands[site.name].varied)


def _signal(flow: Flow, site: Site) -> float:
    varied = site.forward.across_samples_var
    told = varied is not None and _is_told_by_samples(flow, site)
    return varied if told and varied is not None else site.forward.second_moment


def _signal_name(flow: Flow, site: Site) -> str:
    told = _is_told_by_samples(flow, site)
    return "variance of the signal across samples" if told else "mean square of the signal"


def _kept_alive(flow: Flow) -> dict[str, bool]:
    """By name, whether a normalization or a residual stream makes up for a small signal."""

    def makes_up(user: Site, source: Site) -> bool:
        others = [s for s in flow.sources(user) if s.name != source.name]
        stream = user.kind == "add" and any(not _too_small(flow, s, LOST) for s in others)
        return stream or is_normalized(user)

    return flow.always_meets(makes_up)


# ---------------------------------------------------------------- biases


def _bias_dominated(flow: Flow) -> Iterator[Finding]:
    if not flow.inputs_differ:
        return
    centred = flow.always_meets(lambda user, _: user.op in _CENTRES)
    found = [s for s in flow.layers if not centred[s.name] and _bias_ratio(flow, s) > _BIAS_SHARE]
    for layer in found[:1]:
        ratio = _bias_ratio(flow, layer)
        yield Finding(
            "bias_dominated", layer.name,
            f"Its biases have {_figure(ratio)} times the mean square of what its weights "
            f"contribute, and only {_figure(shared(_with_bias(flow, layer)) or 0)} of the result "
            "differs from sample to sample.",
            "Set the biases to 0.", redraw(flow, found),
        )  # fmt: skip


def _bias_ratio(flow: Flow, layer: Site) -> float:
    """Mean square of a layer's biases over that of W·a, where the biases hide the samples.

    E(Wa)² is fan_in·Var W·E a², and (fan_in·E W·E a)² on top where the weights have a mean. Where
    weights or signal are smaller than they should be, the biases are not to blame: they are held
    against what the right weights would make of a signal of natural size.
    """
    sources = flow.sources(layer)
    measured = layer.kind == "affine" and layer.weight is not None and layer.fan_in is not None
    if not measured or layer is flow.head or len(sources) != 1 or not _clean(layer):
        return 0.0
    assert layer.weight is not None and layer.fan_in is not None
    read, weight = sources[0].forward, layer.weight
    scattered = layer.fan_in * weight.var * read.second_moment
    contributed = scattered + (layer.fan_in * weight.mean * read.mean) ** 2
    natural = max(read.second_moment, flow.bands[layer.name].low)
    right = flow.draw(layer).gain ** 2 * natural
    values = _with_bias(flow, layer)
    before, after = shared(read), shared(values)
    if not contributed > 0 or before is None or after is None or after > before / (1 + _BIAS_SHARE):
        return 0.0
    return values.second_moment / max(contributed, right) - 1


def _with_bias(flow: Flow, layer: Site) -> Stats:
    """A layer's values, or those of the activation that reads it where they are larger.

    |φ(z)| ≤ |z| where φ(0) = 0, for all activations in use: something was added in between, as by
    ``x @ weight + bias``.
    """
    readers = [u.forward for u in flow.users(layer) if u.kind == "activation" and _clean(u)]
    if len(readers) != 1 or readers[0].second_moment <= layer.forward.second_moment:
        return layer.forward
    return readers[0] if flow.passes_zero[flow.users(layer)[0].name] else layer.forward


# ---------------------------------------------------------------- gradients


@dataclass(frozen=True)
class _Pull:
    """What of the gradient reaches a layer, relative to the last layer; None where unknown.

    ``arriving`` is the ratio of the sums of all squares of ∂L/∂h, ``step`` that of the mean squares
    of ∂L/∂W over W.
    """

    layer: Site
    arriving: float
    step: float | None
    low: float
    high: float


def _pulls(flow: Flow) -> list[_Pull]:
    head = flow.head
    reference = _positive(total(head.backward)) if head is not None else None
    if head is None or reference is None:
        return []
    pulls = []
    for layer in flow.layers:
        through = flow.sources(layer)[:1] if layer.kind == "recurrent" else [layer]
        arriving = total(through[0].backward) if through else None
        lookup = layer.op.startswith("embedding")
        if arriving is None or not math.isfinite(arriving) or lookup or not flow.is_upstream(
            layer, head
        ):  # fmt: skip
            continue
        low, high = flow.chance_between(layer, head)
        pulls.append(
            _Pull(layer, arriving / reference, _relative_step(layer, head), low, high)
        )  # fmt: skip
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


def _vanishing_gradients(flow: Flow) -> Iterator[Finding]:
    yield from _stopped_gradients(flow)
    pulls = _pulls(flow)
    lost = [p for p in pulls if 0 < p.arriving < LOST * p.low and _is_corroborated(flow, p)]
    if not lost:
        return
    least = min(lost, key=lambda p: p.arriving)
    onset = _gradient_onset(pulls, least, lambda p: p.arriving < p.low / DRIFT)
    off = flow.off or flow.layers
    yield Finding(
        "vanishing_gradients", onset.layer.name,
        f"On its way back from {_head_name(flow)} the gradient leaves the healthy zone here at "
        f"{_figure(onset.arriving)} of the sum of squares that started, and falls to "
        f"{_figure(least.arriving)} at {least.layer.name}; chance explains down to "
        f"{_figure(least.low / DRIFT)}.",
        _redraw_words(off) + _advice(flow), redraw(flow, off),
    )  # fmt: skip


def _is_corroborated(flow: Flow, pull: _Pull) -> bool:
    """Whether the layer's own steps are lost too, or the inputs can no longer be told apart."""
    if pull.step is None or pull.step < LOST:
        return True
    band = flow.bands[pull.layer.name]
    start = band.varied
    below = [
        s.forward.across_samples_var
        for s in flow.sites
        if s.kind in _SIGNALS and flow.is_upstream(pull.layer, s)
    ]
    varied = [v for v in below if v is not None]
    return bool(start and varied) and min(varied) < LOST * pull.low * min(start or 1.0, 1.0)


def _advice(flow: Flow) -> str:
    sigmoids = any(site.op in ("sigmoid", "hardsigmoid") for site in flow.sites)
    return " Or use tanh in place of sigmoid." if sigmoids else ""


def _exploding_gradients(flow: Flow) -> Iterator[Finding]:
    pulls = _pulls(flow)
    wild = [
        p for p in pulls
        if p.arriving > STEEP * p.high and (p.step is None or p.step > STEEP)
    ]  # fmt: skip
    if not wild:
        return
    most = max(wild, key=lambda p: p.arriving)
    onset = _gradient_onset(pulls, most, lambda p: p.arriving > p.high * DRIFT)
    off = flow.off
    remedy = (
        _redraw_words(off) if off else
        "The weights are right: normalization makes gradients grow with depth. Add residual "
        "connections, or fewer layers."
    )  # fmt: skip
    yield Finding(
        "exploding_gradients", onset.layer.name,
        f"On its way back from {_head_name(flow)} the gradient leaves the healthy zone here at "
        f"{_figure(onset.arriving)} times the sum of squares that started, and reaches "
        f"{_figure(most.arriving)} at {most.layer.name}; chance explains up to "
        f"{_figure(most.high * DRIFT)}.",
        remedy, redraw(flow, off) if off else "",
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
    for site in reversed(flow.sites):
        if not _gets_nothing(site) or flow.in_branch[site.name]:
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
    if _is_zero_head(flow, place):
        remedy = (
            "Its weights are 0, so nothing passes at the first step; its own gradient is not, so "
            "later steps do pass. Draw it small but not 0, or leave it if it is meant."
        )
        return remedy, redraw(flow, [place])
    if is_layer(place):
        return "Draw this layer anew.", redraw(flow, [place])
    return "Look at what reads it: a constant function, or a loss that is flat here.", ""


def _gets_nothing(site: Site) -> bool:
    gradient = site.backward
    return gradient is not None and gradient.numel > 0 and gradient.second_moment == 0


# ---------------------------------------------------------------- rank


def _rank_collapse(flow: Flow) -> Iterator[Finding]:
    if not flow.inputs_differ:
        return
    restored = flow.always_meets(lambda user, _: user.op in _CENTRES)
    for site in flow.sites:
        alive = site.kind in _SIGNALS and _clean(site) and site.forward.second_moment > 0
        offset = (
            site.kind == "output" or site is flow.head
        )  # biases there are for the loss to judge
        if not alive or offset or restored[site.name] or not flow.reads_input[site.name]:
            continue
        apart = shared(site.forward)
        if apart is not None and apart < LOST:
            yield _collapse(
                flow, site,
                f"Only {_figure(apart)} of the mean square of {site.name} differs from sample to "
                "sample: all inputs look alike.",
            )  # fmt: skip
        before, after = _ranks(flow, site)
        if after <= _A_LINE and after * _SUDDEN < before:
            yield _collapse(
                flow, site,
                f"The effective rank falls from {before:.1f} to {after:.2f} in this one layer: all "
                "samples come to lie on a line.",
            )  # fmt: skip


def _ranks(flow: Flow, layer: Site) -> tuple[float, float]:
    """The effective ranks before and after a layer, as far as its units have room; 0 if unknown."""
    sources = flow.sources(layer)
    before = sources[0].effective_rank if len(sources) == 1 and is_layer(layer) else None
    if before is None or layer.effective_rank is None:
        return 0.0, 0.0
    return min(before, _units(layer)), layer.effective_rank


def _units(site: Site) -> int:
    return math.prod(site.shape[1:])


def _collapse(flow: Flow, site: Site, evidence: str) -> Finding:
    layer = flow.layer_at(site)
    off = flow.off
    layers = off if layer is None or layer in off else [*off, layer]
    return Finding(
        "rank_collapse", _place(flow, site), evidence,
        "Draw the weights as independent random numbers, at the edge of chaos.",
        redraw(flow, layers) if layers else "",
    )  # fmt: skip


# ---------------------------------------------------------------- the initial loss


def _wrong_initial_loss(flow: Flow) -> Iterator[Finding]:
    if not _loss_limit_exceeded(flow):
        return
    loss, classes = flow.trace.loss, flow.trace.num_classes
    assert loss is not None and classes is not None
    head, logits = flow.head, flow.sites[-1].forward
    scale = 1 / math.sqrt(logits.second_moment)
    yield Finding(
        "wrong_initial_loss", head.name if head else flow.sites[-1].name,
        f"The loss starts at {_figure(loss)}, where −log(1/{classes}) = {math.log(classes):.3g}; "
        f"the logits have a mean square of {_figure(logits.second_moment)}.",
        f"Scale the last layer by {scale:.2g}, so that the logits have a mean square of 1.",
        rescale([head], scale) if head else "",
    )  # fmt: skip


def _loss_limit_exceeded(flow: Flow) -> bool:
    loss, classes, output = flow.trace.loss, flow.trace.num_classes, flow.sites[-1]
    if loss is None or classes is None or not math.isfinite(loss) or not _clean(output):
        return False
    return loss > loss_of(classes, DRIFT)


def loss_of(classes: int, variance: float) -> float:
    """The cross-entropy that Gaussian logits of this variance cost, at most.

    E log Σ exp of C independent logits: log C + σ²/2 while many of them matter, and σ·√(2 log C)
    once the largest alone does (the random energy model, Derrida 1981).

    >>> round(loss_of(10, 0.0), 3), round(loss_of(10, 10.0), 2)
    (2.303, 6.79)
    """
    start, sigma = math.log(classes), math.sqrt(variance)
    many = sigma < math.sqrt(2 * start)
    return start + variance / 2 if many else sigma * math.sqrt(2 * start)


# ---------------------------------------------------------------- what is left


def _notes(flow: Flow) -> Iterator[str]:
    for norm in flow.sites:
        if not is_normalized(norm):
            continue
        for source in flow.sources(norm):
            if source.kind == "input" or not _clean(source):
                continue
            off = _too_large(flow, source, WILD) or _too_small(flow, source, LOST)
            if off and source.forward.second_moment > 0:
                yield (
                    f"{norm.op} {norm.name!r} hides that {source.name} has a mean square of "
                    f"{_figure(source.forward.second_moment)}."
                )
    closed = [layer.name for layer in flow.layers if _is_closed(flow, layer)]
    closed += [s.name for s in flow.sites if s.kind == "norm" and _is_closed(flow, s)]
    if closed:
        yield f"residual branches that start at 0 open with the first step: {', '.join(closed)}."


def _not_checked(flow: Flow) -> Iterator[str]:
    sites = flow.sites
    if all(site.backward is None for site in sites):
        yield "gradients: trace(…, backward=True) measures them."
    else:
        missed = [layer.name for layer in flow.layers if layer.reached is False]
        if missed:
            yield f"gradients of {', '.join(missed)}: not reached (detached, frozen or unused)."
    if all(site.effective_rank is None for site in sites):
        yield "rank: trace(…, geometry=True) measures it."
    if flow.trace.num_classes is None:
        yield "the initial loss: trace(…, target=…) with integer classes compares it with log C."
    if all(site.forward.across_samples_var is None for site in sites):
        yield 'dead and saturated units, samples that look alike: statistics="all" measures them.'
    elif flow.samples < 2:
        yield "whether inputs stay apart, and biases: the batch holds one sample."
    elif not flow.inputs_differ:
        yield "whether inputs stay apart, and biases: the samples of this batch are alike."
    inside = [site.name for site in sites if site.kind == "recurrent"]
    if inside:
        yield f"the steps inside {', '.join(inside)}: only the result of a recurrence is seen."
    opaque = [site.name for site in sites if site.note and not _clean(site)]
    if opaque:
        yield f"{', '.join(opaque)}: not measured."


_RULES: Mapping[Fault, Callable[[Flow], Iterator[Finding]]] = {
    "non_finite": _non_finite,
    "symmetry": _symmetry,
    "dead_units": _dead_units,
    "bias_dominated": _bias_dominated,
    "exploding_activations": _exploding_activations,
    "saturation": _saturation,
    "vanishing_activations": _vanishing_activations,
    "vanishing_gradients": _vanishing_gradients,
    "exploding_gradients": _exploding_gradients,
    "rank_collapse": _rank_collapse,
    "wrong_initial_loss": _wrong_initial_loss,
}
