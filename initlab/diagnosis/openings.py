"""How far the gradient's ways are open to the layers that training can do without at first: those
in a residual branch, and those that decide where an attention looks.

*Residual branches* may begin nearly closed. What a layer scale (10⁻⁶, Touvron et al. 2021) takes
from the gradient opens by itself, because its own gradient is not small; and the layers of a branch
that are all a little small grow together (Saxe et al. 2014: of two in a row the time is the
logarithm of their smallness), while the stream trains. A layer below ``SMALL`` is no such choice.

*Queries and keys.* Of logits s = q·k·c, with n keys and p = softmax(s), an output Σ p v passes
∂L/∂sⱼ = pⱼ g·(vⱼ − Σ p v) on. Near p = 1/n its squares sum to |g|²·Var(v)/n, and the gradient of q
has that times c²·|k|²: with the usual c² = 1/d it is Var(v)·E k²/n of what comes to the values. So
it is small where the values are alike (as at the start, or where there is one key), small with the
weights, and smaller with more keys; none of it is lost, since values and output train and the
logits follow. It is a fault of weights only if those of the query, the keys or the values are:
smaller than ``SMALL``, or so large that the softmax has but one key left.

An attention written with ``@`` and ``softmax`` shows where a site reads a softmax beside something
else.
"""

from __future__ import annotations

import math

from initlab.diagnosis.flow import LOST, SMALL, Flow, is_layer, passed_back, weight_gain
from initlab.tracing import Site


def optional(flow: Flow) -> dict[str, bool]:
    """By name, whether every way to the output leads into a residual sum that another operand
    keeps alive, into the logits of an attention, or into a last layer of zeros that is meant."""
    return flow.always_meets(
        lambda user, source: (
            flow.is_kept_alive(user, source)
            or bool(beside(flow, source, user))
            or flow.is_closed_head(user)
        )
    )


def openings(flow: Flow) -> dict[str, float]:
    """By name, the share of the sum of squares of the gradient that is expected to arrive: 1
    where training cannot do without."""
    found: dict[str, float] = {}
    without = optional(flow)
    for site in reversed(flow.sites):
        users = [user for user in flow.users(site) if not _is_dropped(site, user)]
        ways = [
            found[user.name] * (_share(flow, site, user) if without[site.name] else 1.0)
            for user in users
        ]
        found[site.name] = max(ways, default=1.0)
    return found


def _is_dropped(site: Site, norm: Site) -> bool:
    """Whether nothing of a gradient that a normalization passes on is this operand's: of what it
    normalizes, other places are read, such as a class token's. Else it would be that at its output
    over the scale of its input."""
    if norm.kind != "norm" or not norm.forward.second_moment > 0:
        return False
    passed = passed_back(site, norm) * site.forward.second_moment / norm.forward.second_moment
    return passed < LOST


def _share(flow: Flow, site: Site, user: Site) -> float:
    """The share that comes through one user, as far as no fault of weights explains it."""
    operands = beside(flow, site, user)
    if not all(_is_sane(flow, other) for other in operands):
        return 1.0
    if (operands and user.kind == "attention") or user.kind in ("add", "other"):
        return passed_back(site, user)
    if user.kind != "affine" or not is_layer(user):
        return 1.0
    passed = passes(user)
    by_weights = passed if passed >= SMALL else 1.0
    return by_weights * (min(passed_back(site, user) / passed, 1.0) if operands and passed else 1.0)


def passes(layer: Site) -> float:
    """fan_out·E W²: the factor by which a layer's weights multiply a sum of squared gradients."""
    if layer.weight is None or layer.fan_out is None:
        return 1.0
    factor = layer.fan_out * layer.weight.second_moment
    return min(factor, 1.0) if math.isfinite(factor) else 1.0


def _is_sane(flow: Flow, operand: Site) -> bool:
    layer = flow.layer_at(operand)
    gain = weight_gain(layer) if layer is not None else None
    return gain is None or (gain >= SMALL and layer not in flow.overweight)


def beside(flow: Flow, source: Site, user: Site) -> list[Site]:
    """The other operands of an attention in which this one decides where it looks; else none."""
    others = [site for site in flow.sources(user) if site != source]
    if user.kind == "attention":
        return [] if source.name == user.reads[min(2, len(user.reads) - 1)] else others
    if weighs(flow, user):
        return [*others, *(site for end in flow.users(user) for site in beside(flow, user, end))]
    return others if weighs(flow, source) else []


def weighs(flow: Flow, site: Site) -> bool:
    """Whether it is a softmax, perhaps with dropout after it."""
    while site.kind == "other" and site.op.lower() != "softmax" and len(flow.sources(site)) == 1:
        site = flow.sources(site)[0]
    return site.op.lower() == "softmax"


def is_closed_query(flow: Flow, layer: Site) -> bool:
    """Whether it is a query or key of zeros beside operands that are not: all places get the same
    attention at first, and its own gradient tells its units apart (Yang et al. 2022)."""
    users = flow.users(layer)
    others = [beside(flow, layer, user) for user in users]
    is_zero = layer.weight is not None and layer.weight.second_moment == 0
    return (
        bool(users)
        and is_zero
        and all(
            group and all(other.forward.second_moment > 0 for other in group) for group in others
        )
    )
