"""diagnose(): what is wrong with a traced model, where it begins, and what to do about it.

**What counts as a fault** follows from what training can make good, not from what is usual.

- *Signal and gradient.* A mean square below 10⁻⁶ of where it started is lost to SGD; above 10³ (of
  signals; 10⁴ of gradients) the usual learning rates are unstable: ``initlab.flow`` derives the
  three (``LOST``, ``WILD``, ``STEEP``). The start is whatever last set the scale, an input, an
  embedding or a normalization layer; scales between it and 1 are natural. Where biases may be all
  that is left, the signal is what differs from sample to sample. Finite width alone moves a deep
  ReLU network by decades, so the limits are widened by three standard deviations of the exact
  log-normal law of this width and depth.
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
  argument above; or, with ``geometry``, when a single layer brings their effective rank down to
  that of a line.
- *The initial loss*: logits within the drift of the healthy zone, a mean square of 10, cost at most
  what the random energy model gives for them (Derrida 1981): log C + σ²/2, or σ·√(2 log C) where σ
  is larger than √(2 log C).

**Cause and consequence.** ``_EXPLAINED_BY`` says which faults bring which others about. A finding
with a ``because`` is a consequence; those without one are the causes, and come first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from initlab.faults_of_gradients import exploding_gradients, vanishing_gradients
from initlab.faults_of_scale import (
    bias_dominated,
    exploding_activations,
    non_finite,
    vanishing_activations,
    wrong_initial_loss,
)
from initlab.faults_of_units import dead_units, rank_collapse, saturation, symmetry
from initlab.findings import FAULTS, Diagnosis, Fault, Finding, figure
from initlab.flow import LOST, WILD, Flow, is_clean, is_normalized
from initlab.sites import Trace

__all__ = ["FAULTS", "Diagnosis", "Fault", "Finding", "diagnose"]


_EXPLAINED_BY: Mapping[Fault, tuple[Fault, ...]] = {
    "non_finite": ("exploding_activations", "exploding_gradients"),
    "symmetry": (),
    "dead_units": ("symmetry", "bias_dominated", "exploding_activations"),
    "bias_dominated": ("symmetry", "dead_units"),
    "exploding_activations": ("symmetry", "bias_dominated"),
    "saturation": ("symmetry", "exploding_activations", "bias_dominated"),
    "vanishing_activations": ("symmetry", "dead_units"),
    "vanishing_gradients": (
        "non_finite", "symmetry", "dead_units", "exploding_activations", "bias_dominated",
        "saturation", "vanishing_activations",
    ),
    "exploding_gradients": (
        "symmetry", "dead_units", "exploding_activations", "bias_dominated",
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

_ANYWHERE = ("vanishing_gradients", "exploding_gradients", "wrong_initial_loss", "non_finite")
"""Faults that have and are causes wherever these are; of the others the cause is upstream."""

_RULES: Mapping[Fault, Callable[[Flow], Iterator[Finding]]] = {
    "non_finite": non_finite,
    "symmetry": symmetry,
    "dead_units": dead_units,
    "bias_dominated": bias_dominated,
    "exploding_activations": exploding_activations,
    "saturation": saturation,
    "vanishing_activations": vanishing_activations,
    "vanishing_gradients": vanishing_gradients,
    "exploding_gradients": exploding_gradients,
    "rank_collapse": rank_collapse,
    "wrong_initial_loss": wrong_initial_loss,
}


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


def _explain(flow: Flow, findings: list[Finding]) -> list[Finding]:
    """Mark each finding that another one brings about."""
    faults: dict[Fault, Finding] = {finding.fault: finding for finding in findings}
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
        anywhere = finding.fault in _ANYWHERE or fault in _ANYWHERE
        if anywhere or flow.is_upstream(flow.trace[cause.where], here):
            return cause
    return None


def _ties(finding: Finding, cause: Finding) -> bool:
    """Whether two faults begin at one place, and the supposed cause is named after the other."""
    later = FAULTS.index(cause.fault) > FAULTS.index(finding.fault)
    return later and cause.where == finding.where


def _notes(flow: Flow) -> Iterator[str]:
    for norm in flow.sites:
        if not is_normalized(norm):
            continue
        for source in flow.sources(norm):
            if source.kind == "input" or not is_clean(source):
                continue
            off = flow.too_large(source, WILD) or flow.too_small(source, LOST)
            if off and source.forward.second_moment > 0:
                yield (
                    f"{norm.op} {norm.name!r} hides that {source.name} has a mean square of "
                    f"{figure(source.forward.second_moment)}."
                )
    if flow.starts_closed:
        names = ", ".join(site.name for site in flow.starts_closed)
        yield f"{names}: zeros that close a residual branch open with the first steps."


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
    opaque = [site.name for site in sites if site.note and not is_clean(site)]
    if opaque:
        yield f"{', '.join(opaque)}: not measured."
