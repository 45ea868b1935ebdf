"""Rules for numbers that are not finite, biases and signals that are too large or too small.

Each rule looks at the flow of a trace and yields its findings, the first of them first.
``initlab.diagnosis`` says where the limits come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

from initlab.diagnosis.findings import Finding, figure, joined
from initlab.diagnosis.flow import (
    CENTRES,
    DRIFT,
    LOST,
    SIGNALS,
    STEEP,
    WILD,
    Flow,
    is_clean,
    is_layer,
    is_normalized,
    shared,
    weight_gain,
)
from initlab.diagnosis.openings import weighs
from initlab.diagnosis.remedies import redraw, rescale, reset, strengthen, weaken, zero_biases
from initlab.tracing import Site, Stats

_BIAS_SHARE = 9.0
"""Mean square of the biases over that of what the weights contribute: three standard deviations."""

_TINY = 1e-300


def non_finite(flow: Flow) -> Iterator[Finding]:
    """Weights, values, gradients or a loss that are infinite or not a number."""
    broken = [s for s in flow.layers if s.weight is not None and s.weight.nonfinite]
    for site in flow.sites:
        if site.weight is not None and site.weight.nonfinite:
            count, numel = site.weight.nonfinite, site.weight.numel
            yield Finding(
                "non_finite", site.name, f"{count:,} of its {numel:,} weights are not finite.",
                "Draw this layer anew, and find out what wrote them (a diverged step, a division "
                "by 0).", redraw(flow, broken or [site]),
            )  # fmt: skip
        elif site.forward.nonfinite and all(map(is_clean, flow.sources(site))):
            yield _not_finite_here(flow, site)
    loss = flow.trace.loss
    if loss is not None and not math.isfinite(loss) and is_clean(flow.sites[-1]):
        yield Finding(
            "non_finite", flow.sites[-1].name, f"The loss is {loss}, though the output is finite.",
            "Look at the target for numbers that are not finite, and at the loss function: a "
            "logarithm of 0, a division by an empty batch.", "",
        )  # fmt: skip
    for site in reversed(flow.sites):
        if site.backward is not None and site.backward.nonfinite and is_clean(site):
            yield _gradient_not_finite(flow, site)


def _gradient_not_finite(flow: Flow, site: Site) -> Finding:
    assert site.backward is not None
    evidence = (
        f"{site.backward.nonfinite:,} of {site.backward.numel:,} entries of the gradient of "
        f"{site.name} are not finite, though its values are."
    )
    readers = [u for u in flow.users(site) if u.kind in ("recurrent", "attention") and is_layer(u)]
    if readers:
        remedy = "It has weights that a trace does not see: draw all of them anew."
        return Finding("non_finite", readers[0].name, evidence, remedy, redraw(flow, readers[:1]))
    remedy = (
        "Look at what reads it: a square root or a norm at 0, a logarithm, a division, or numbers "
        "too large for this precision."
    )
    return Finding("non_finite", site.name, evidence, remedy, "")


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
    layer = flow.layer_at(site)
    remedy = "Keep its argument inside its domain: a logarithm of 0, a division by 0, an overflow."
    if layer is None or not is_clean(layer):
        return Finding("non_finite", site.name, evidence, remedy, "")
    remedy = "What is added to the layer before it, a bias, may not be finite. " + remedy
    return Finding("non_finite", site.name, evidence, remedy, zero_biases([layer]))


def bias_dominated(flow: Flow) -> Iterator[Finding]:
    """Biases so large that the inputs hardly matter; those of the last layer are left out, where
    they may well be meant, and those that a normalization takes away."""
    if not flow.inputs_differ:
        return
    centred = flow.always_meets(lambda user, _: user.op in CENTRES)
    judged = [s for s in flow.layers if not centred[s.name] and flow.feeds_layer[s.name]]
    found = [s for s in judged if _bias_ratio(flow, s) > _BIAS_SHARE]
    for layer in found[:1]:
        behind = [s for s in judged if s not in found and _may_hide_a_bias(flow, layer, s)]
        ratio = _bias_ratio(flow, layer)
        yield Finding(
            "bias_dominated", layer.name,
            f"Its biases have {figure(ratio)} times the mean square of what its weights "
            f"contribute, and only {figure(shared(_with_bias(flow, layer)) or 0)} of the result "
            "differs from sample to sample.",
            "Set the biases to 0.", zero_biases([*found, *behind]),
        )  # fmt: skip


def _may_hide_a_bias(flow: Flow, biased: Site, layer: Site) -> bool:
    """Whether a layer reads so much of another's biases that its own cannot be told from them."""
    large = _BIAS_SHARE * flow.bands[layer.name].high
    below = layer.kind == "affine" and flow.is_upstream(biased, layer)
    return below and layer.forward.second_moment > large


def _bias_ratio(flow: Flow, layer: Site) -> float:
    """Mean square of a layer's biases over that of W·a, where the biases hide the samples.

    Where weights or signal are smaller than they should be, the biases are not to blame: they are
    held against what the right weights would make of a signal of natural size, which is 1, and
    E φ² after an activation.
    """
    contributed = _contributed(flow, layer)
    values = _with_bias(flow, layer)
    after = shared(values)
    before = max((shared(source.forward) or 0.0 for source in flow.sources(layer)), default=0.0)
    if not contributed > 0 or after is None or after > before / (1 + _BIAS_SHARE):
        return 0.0
    phi = flow.activation_read(layer)
    natural = 1.0 if phi is None else phi.moments(1.0).second_moment
    right = flow.draw(layer).gain ** 2 * natural
    return values.second_moment / max(contributed, right) - 1


def _contributed(flow: Flow, layer: Site) -> float:
    """E(Wa)², 0 where it is not known: fan_in·Var W·E a², and (fan_in·E W·E a)² on top where the
    weights have a mean. Of several operands, at most: a may be their sum, or all of them."""
    read, weight = [source.forward for source in flow.sources(layer)], layer.weight
    if layer.kind != "affine" or weight is None or layer.fan_in is None or not is_clean(layer):
        return 0.0
    scattered = layer.fan_in * weight.var * sum(stats.second_moment for stats in read)
    return scattered + (layer.fan_in * weight.mean * sum(abs(stats.mean) for stats in read)) ** 2


def _with_bias(flow: Flow, layer: Site) -> Stats:
    """A layer's values, or those of the activation that reads it where they are larger.

    |φ(z)| ≤ |z| where φ(0) = 0, for all activations in use: something was added in between, as by
    ``x @ weight + bias``. But for sin(ω·z), whose ω stands in between as well.
    """
    if flow.omega(layer) is not None:
        return layer.forward
    readers = [u.forward for u in flow.users(layer) if u.kind == "activation" and is_clean(u)]
    if len(readers) != 1 or readers[0].second_moment <= layer.forward.second_moment:
        return layer.forward
    return readers[0] if flow.passes_zero[flow.users(layer)[0].name] else layer.forward


def exploding_activations(flow: Flow) -> Iterator[Finding]:
    """A signal beyond WILD that neither normalization nor a bounded activation holds; one in which
    the residual stream drowns; or one beyond the healthy zone that makes the initial loss wrong."""
    held = flow.always_meets(
        lambda user, _: is_normalized(user) or _is_bounded(user) or weighs(flow, user)
    )
    for site in flow.sites:
        drowned = _drowned(flow, site)
        if drowned is not None:
            yield _drowning(flow, site, drowned)
        is_last = not flow.feeds_layer[site.name]
        logits = is_last and flow.trace.num_classes is not None  # for the loss to judge
        if site.kind not in SIGNALS or held[site.name] or logits:
            continue
        if _overflows(flow, site) or (is_clean(site) and flow.too_large(site, WILD)):
            yield _explosion(flow, site)
    before_head = _before_head(flow) if _loss_is_high(flow) and not _biased_head(flow) else None
    if before_head is not None and not held[before_head.name]:
        yield _explosion(flow, before_head)


def _overflows(flow: Flow, site: Site) -> bool:
    """Whether a layer's weights are finite but so large that its values are not."""
    gain = weight_gain(site) if is_layer(site) else None
    sources = flow.sources(site)
    if not site.forward.nonfinite or gain is None or not math.isfinite(gain) or not sources:
        return False
    return is_clean(sources[0]) and gain > WILD


def _before_head(flow: Flow) -> Site | None:
    """What the last layer reads, if it is beyond the healthy zone already."""
    head = flow.head
    source = next(iter(flow.sources(head)), None) if head is not None else None
    if source is None or source.kind == "input" or not is_clean(source):
        return None
    return source if flow.too_large(source, DRIFT) else None


def _is_bounded(site: Site) -> bool:
    """Whether nothing large comes out, however large what goes in."""
    phi = site.activation
    return phi is not None and phi.tails is not None and all(map(math.isfinite, phi.tails))


def _explosion(flow: Flow, site: Site) -> Finding:
    onset = _onset(flow, site, lambda s: not is_clean(s) or flow.too_large(s, DRIFT), _square)
    last = _loudest(flow, onset)
    evidence = (
        f"The mean square of the signal leaves the healthy zone here at "
        f"{figure(onset.forward.second_moment)} and reaches {figure(last.forward.second_moment)} "
        f"at {last.name}; chance explains up to {figure(_ceiling(flow, last))}."
    )
    remedy, code = _smaller(flow, onset)
    return Finding("exploding_activations", flow.place(onset), evidence, remedy, code)


def _ceiling(flow: Flow, site: Site) -> float:
    band = flow.bands[site.name]
    return band.high * DRIFT * flow.chance(site)[1]


def _loudest(flow: Flow, onset: Site) -> Site:
    """The site with the largest signal downstream."""
    below = [s for s in flow.sites if flow.is_upstream(onset, s) and is_clean(s)]
    return max(below, key=lambda s: s.forward.second_moment, default=onset)


def _onset(
    flow: Flow, site: Site, outside: Callable[[Site], bool], measure: Callable[[Site], float]
) -> Site:
    """Where it began to go wrong: the first of the unbroken run of layers and sums outside that
    leads to this site; or the one of them that did twice as much as all others together."""
    run, at = [site], site
    while True:
        before = next(iter(flow.sources(at)), None)
        if before is None or before.kind in ("input", "norm"):
            break
        if before.kind not in ("activation", "other"):  # relu halves a mean square: no judgement
            if not outside(before):
                break
            run.append(before)
        at = before
    run.reverse()
    values = [measure(each) for each in (before or at, *run)]
    if not all(map(math.isfinite, values)):
        return run[0]
    logs = [math.log(max(value, _TINY)) for value in values]
    steps = [abs(b - a) for a, b in pairwise(logs)]
    largest = max(steps)
    return run[steps.index(largest)] if largest > 2 * (sum(steps) - largest) else run[0]


def _smaller(flow: Flow, onset: Site) -> tuple[str, str]:
    """Weights that are too large are drawn anew; branches that add up are divided by √L."""
    also = [onset] if onset.kind == "recurrent" else []
    branches = _growing_branches(flow)
    words, code = [], []
    if flow.overweight or also or not branches:
        redrawn = weaken(flow, also)
        words.append(redrawn[0])
        code.append(redrawn[1])
    untouched = [end for end in branches if end not in flow.overweight]
    if untouched:
        factor = 1 / math.sqrt(len(branches))
        words.append(
            f"Each of {len(branches)} residual sums adds to the stream: divide the residual "
            f"branch by √{len(branches)}, as by scaling its last layer by {factor:.3g}."
        )
        code.append(rescale(flow, untouched, factor))
    return " ".join(words), joined(code)


def _growing_branches(flow: Flow) -> list[Site]:
    """The last layers of the residual branches, if their sums alone grow beyond drift."""
    growth = 0.0
    for site in flow.sites:
        sources = flow.sources(site)
        if site.kind == "add" and all(map(is_clean, [site, *sources])) and sources:
            stream = min(s.forward.second_moment for s in sources)
            if stream > 0 and site.forward.second_moment > 0:
                growth += math.log(site.forward.second_moment / stream)
    return flow.branch_ends if growth > math.log(DRIFT) else []


def _drowned(flow: Flow, site: Site) -> Site | None:
    """The branch that outweighs the residual stream it is added to, if any does."""
    sums = flow.stream_and_branch(site)
    if sums is None or not all(map(is_clean, sums)):
        return None
    stream, branch = sums
    scales = branch.forward.second_moment, stream.forward.second_moment
    low, high = flow.chance(branch)
    return branch if scales[1] > 0 and scales[0] > STEEP * scales[1] * high / low else None


def _drowning(flow: Flow, add: Site, branch: Site) -> Finding:
    onset = _onset(flow, branch, lambda s: is_clean(s) and flow.too_large(s, DRIFT), _square)
    stream = min(flow.sources(add), key=lambda s: s.forward.second_moment)
    ratio = branch.forward.second_moment / stream.forward.second_moment
    evidence = (
        f"At {add.name} this branch has {figure(ratio)} times the mean square of the residual "
        "stream that it is added to: the stream drowns."
    )
    end = flow.branch_end(add)
    cure = weaken(flow, [] if flow.overweight or end is None else [end])
    return Finding("exploding_activations", flow.place(onset), evidence, *cure)


def vanishing_activations(flow: Flow) -> Iterator[Finding]:
    """A signal below LOST that neither normalization nor a residual stream makes up for."""
    kept = _kept_alive(flow)
    shut = [s for s in flow.sites if s.kind == "norm" and s.forward.second_moment == 0]
    shut = [site for site in shut if not kept[site.name]]
    for site in flow.sites:
        if site in shut:
            yield Finding(
                "vanishing_activations", site.name, "All that this normalization returns is 0.",
                "Reset its scale and shift.",
                joined(dict.fromkeys(reset(norm) for norm in shut if norm.module)),
            )  # fmt: skip
        if site.kind not in SIGNALS or kept[site.name] or not is_clean(site):
            continue
        small = any(flow.is_upstream(head, site) for head in flow.small_heads)
        if small or not _fades(flow, site, LOST):
            continue
        onset = _onset(
            flow, site, lambda s: is_clean(s) and _fades(flow, s, 1 / DRIFT), partial(_signal, flow)
        )
        floor = flow.chance(site)[0] / DRIFT
        place = flow.layer_at(onset) or onset
        has_more = is_layer(place) and place.kind in ("recurrent", "attention")
        yield Finding(
            "vanishing_activations", place.name,
            f"The {_signal_name(flow, site)} leaves the healthy zone here at "
            f"{figure(_signal(flow, onset))} and falls to {figure(_signal(flow, site))} at "
            f"{site.name}; chance explains down to {figure(floor)} of what it was.",
            *strengthen(flow, [place] if has_more else []),
        )  # fmt: skip


def _fades(flow: Flow, site: Site, factor: float) -> bool:
    """Whether the signal has fallen below this factor of what it was, and chance does not explain
    it: the mean square, and where that may be all bias, what differs from sample to sample."""
    if not flow.reads_input[site.name]:
        return False
    varied = site.forward.across_samples_var
    if varied is None or not _is_told_by_samples(flow, site):
        return flow.too_small(site, factor)
    start = min(flow.bands[site.name].varied or 1.0, 1.0) * flow.let_in[site.name]
    return varied < start * factor * flow.chance(site)[0]


def _is_told_by_samples(flow: Flow, site: Site) -> bool:
    """Whether all that is constant across samples comes from biases: where every φ(0) is 0."""
    return flow.inputs_differ and flow.passes_zero[site.name] and bool(flow.bands[site.name].varied)


def _square(site: Site) -> float:
    return site.forward.second_moment


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
        stream = any(not flow.too_small(s, LOST) for s in flow.beside(source, user))
        return stream or is_normalized(user)

    return flow.always_meets(makes_up)


def wrong_initial_loss(flow: Flow) -> Iterator[Finding]:
    """A cross-entropy above that of logits within the healthy zone."""
    if not _loss_is_high(flow):
        return
    loss, classes = flow.trace.loss, flow.trace.num_classes
    assert loss is not None
    assert classes is not None
    head, logits = flow.head, flow.sites[-1].forward
    yield Finding(
        "wrong_initial_loss", head.name if head else flow.sites[-1].name,
        f"The loss starts at {figure(loss)}, where −log(1/{classes}) = {math.log(classes):.3g}; "
        f"the logits have a mean square of {figure(logits.second_moment)}.",
        *_smaller_logits(flow, head, logits.second_moment),
    )  # fmt: skip


def _smaller_logits(flow: Flow, head: Site | None, square: float) -> tuple[str, str]:
    if head in flow.overweight and len(flow.overweight) > 1:
        return weaken(flow)
    if head is not None and _biased_head(flow):
        return "Most of that is the bias of the last layer: set it to 0.", zero_biases([head])
    scale = 1 / math.sqrt(square)
    words = f"Scale the last layer by {scale:.2g}, so that the logits have a mean square of 1."
    return words, rescale(flow, [head], scale) if head is not None else ""


def _biased_head(flow: Flow) -> bool:
    """Whether the last layer's biases make most of the logits; of weights tied to an embedding that
    is not known, for their logits repeat the token."""
    head = flow.head
    if head is None or head.parameter in flow.looked_up:
        return False
    return 0 < (1 + _BIAS_SHARE) * _contributed(flow, head) < head.forward.second_moment


def _loss_is_high(flow: Flow) -> bool:
    loss, classes, output = flow.trace.loss, flow.trace.num_classes, flow.sites[-1]
    if loss is None or classes is None or not math.isfinite(loss) or not is_clean(output):
        return False
    head = flow.head
    by_chance = 1.0 if head is None or _biased_head(flow) else flow.chance(head)[1]
    return loss > loss_of(classes, DRIFT * by_chance)


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
