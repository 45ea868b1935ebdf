"""diagnose(): ask every rule, and tell the causes from their consequences.

``_EXPLAINED_BY`` says which faults bring which others about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from initlab.diagnosis.faults_of_gradients import exploding_gradients, vanishing_gradients
from initlab.diagnosis.faults_of_scale import (
    bias_dominated,
    exploding_activations,
    non_finite,
    vanishing_activations,
    wrong_initial_loss,
)
from initlab.diagnosis.faults_of_units import dead_units, rank_collapse, saturation, symmetry
from initlab.diagnosis.findings import FAULTS, Diagnosis, Fault, Finding, figure
from initlab.diagnosis.flow import LOST, WILD, Flow, is_clean, is_layer, is_normalized
from initlab.diagnosis.openings import weighs
from initlab.tracing import Site, Trace

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

_OF_SCALE = (
    "exploding_activations", "vanishing_activations", "vanishing_gradients", "exploding_gradients",
    "rank_collapse", "wrong_initial_loss", "bias_dominated", "saturation",
)  # fmt: skip
"""Faults that batch norms may cure or bring about."""

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
        The findings, what is odd but harmless, and what could not be checked.
        ``initlab.diagnosis`` derives the limits.

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
        if found is not None and not _is_of_this_mode(flow, found):
            findings.append(found)
    explained = _explain(flow, findings)
    return Diagnosis(
        tuple(sorted(explained, key=lambda finding: finding.because is not None)),
        tuple(_notes(flow)),
        tuple(_not_checked(flow)),
    )


def _is_of_this_mode(flow: Flow, finding: Finding) -> bool:
    """Whether it is a matter of scale that batch norms will settle in training, and not of weights
    that no choice explains."""
    of_scale = finding.fault in _OF_SCALE and bool(flow.idle_norms)
    return of_scale and not flow.is_far_off(flow.trace[finding.where])


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
    noted = [s for s in flow.small_heads if flow.is_closed_head(s) or not flow.is_zero_head(s)]
    if noted:
        names = ", ".join(site.name for site in noted)
        yield (
            f"{names}: weights that are 0 or this small hold the gradient back until the first "
            "steps have made them larger."
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
        if flow.layers and all(layer.weight_grad is None for layer in flow.layers):
            yield "the steps of the weights: none of them gets a gradient (frozen, or unused)."
    if flow.idle_norms:
        yield (
            "the scale of signal and gradient, but for weights that are far off: batch norms such "
            f"as {flow.idle_norms[0].name} change nothing, for no step has set the statistics that "
            "they use in eval mode. model.train() first."
        )
    if all(site.effective_rank is None for site in sites):
        yield "rank: trace(…, geometry=True) measures it."
    if flow.trace.num_classes is None:
        yield "the initial loss: trace(…, target=…) with integer classes compares it with log C."
    elif any(weighs(flow, site) for site in flow.sources(sites[-1])):
        yield (
            "the initial loss: the output is a softmax already, which keeps it near log C whatever "
            "the logits. Cross-entropy takes the logits themselves: leave the softmax out."
        )
    if all(site.forward.across_samples_var is None for site in sites):
        yield 'dead and saturated units, samples that look alike: statistics="all" measures them.'
    elif flow.samples < 2:
        yield "whether inputs stay apart, and biases: the batch holds one sample."
    elif not flow.inputs_differ:
        yield "whether inputs stay apart, and biases: the samples of this batch are alike."
    inside = [site.name for site in sites if site.kind == "recurrent"]
    if inside:
        yield f"the steps inside {', '.join(inside)}: only the result of a recurrence is seen."
    sines = [s.name for s in sites if s.op == "sin" and _hides_its_frequency(flow, s)]
    if sines:
        yield (
            f"the ω of sin(ω·z) at {', '.join(sines)}: no gradient shows it, and that of other "
            "sines, else 1, is assumed; diagnose again once the layers are drawn."
        )
    weighed = [s.name for s in flow.layers if all(weighs(flow, x) for x in flow.sources(s) or [s])]
    if weighed:
        yield f"the scale of {', '.join(weighed)}: no gain is right for what a softmax gives."
    opaque = [site.name for site in sites if site.note and not is_clean(site)]
    if opaque:
        yield f"{', '.join(opaque)}: not measured."


def _hides_its_frequency(flow: Flow, sine: Site) -> bool:
    sources = flow.sources(sine)
    return len(sources) == 1 and is_layer(sources[0]) and sources[0].name not in flow.seen_omegas
