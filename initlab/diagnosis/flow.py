"""How signal and gradient flow through the sites of a trace, and how far each may stray.

Every site gets a band that its mean squares must lie in. The band is as wide as what training can
make good, and wider still by what chance does to a network of this width and depth: it is counted
from the last place that sets the scale anew (an input, an embedding, a normalization layer).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch

from initlab.activations import Activation
from initlab.diagnosis.draws import (
    LOGITS,
    PLAIN,
    Draw,
    draw_after,
    draw_before_sine,
    right_gains,
)
from initlab.theory import relu_length_law
from initlab.tracing import Site, Stats, Trace

LOST = 1e-6
"""Factor in a mean square below which training does not start.

The gradient of a weight is proportional to the RMS signal g that it reads (or, with the gradient,
to the RMS g that reaches it), so escaping takes about 1/(η·g) steps. With the largest learning
rates in use, η = 1, and a thousand steps of patience that is g = 10⁻³, g² = 10⁻⁶.
"""

WILD = 1e3
"""Factor in the mean square of a signal above which the usual learning rates are unstable.

A layer that reads n units of mean square q has a loss of curvature up to n·q (the trace of E aaᵀ,
reached as the samples become alike), and SGD is stable below 2/(n·q). At q = 10³ as few as twenty
units put that at 10⁻⁴, where the rates in customary use end.
"""

STEEP = 1e4
"""Factor in a sum of squared gradients above which the usual learning rates are unstable.

The curvature grows with the square of the gradient, and the largest stable learning rate falls with
its inverse; the rates in use span four decades, from 1 to 10⁻⁴. A branch that outweighs its
residual stream by as much shrinks the gradient of all other branches likewise.
"""

GROWTH = math.pi / (math.pi - 1)
"""Factor by which a layer with batch normalization and ReLU makes the mean square of a gradient
larger in a wide network, whatever its weights (Yang et al. 2019)."""

TRAINED = 40
"""How many such layers in a row train all the same, of the 50 at most that Yang et al. find: a step
too large for weights in front of a normalization makes them larger, and the next one smaller."""

SMALL = math.sqrt(LOST)
"""Factor in a mean square below which a layer is no longer small on purpose.

Weights in front of a normalization or at the end of a residual branch may be, and so may be all of
a branch whose layers are N(0, 0.02²) whatever their width. A branch has two layers in a row (in and
out of an MLP, values and output of an attention): below √LOST each, the two lose the signal.
A normalization makes what follows independent of the scale of W before it: ∂L/∂W goes with 1/|W|,
and the mean square of the relative step with the inverse square of that of W. So beyond 1/√LOST
that is lost too, and below √LOST it is beyond STEEP.
"""

DRIFT = 10.0
"""Factor in a mean square, up or down, that is no more than drift: the healthy zone of the plots.

It decides nothing alone; it says where a fault that goes beyond the limits above has begun.
"""

OFF = 1.5
"""A weight variance is off where it differs from the right one by more than this factor, a decade
of drift in six layers, and by more than sampling so many weights explains."""

CHANCE = 3.0
"""Standard deviations, of the logarithm, that chance is granted: one healthy layer in 700 is
outside, and those of one network are outside together or not at all."""

SIGNALS = ("affine", "activation", "add", "recurrent", "attention")
"""The kinds of sites at which a signal is judged: a softmax or a mask is no signal."""

CENTRES = ("batch_norm", "instance_norm", "BatchNorm", "InstanceNorm")
"""Normalizations that take away what is common to all samples, such as a bias."""

_RESETS = ("input", "norm")
_PASSED = ("other", "norm")
_WIDEST = 1024


@dataclass(frozen=True)
class Band:
    """Where the scale of a site comes from, and how far chance may have carried it since.

    ``low`` and ``high`` enclose the scales that count as natural: 1, at which biases, losses and
    the bends of activations live, and the scale of what set it last. ``varied`` is the variance
    across samples there. ``layers`` and ``inverse_widths`` are summed since then.
    """

    low: float
    high: float
    varied: float | None
    layers: int = 0
    inverse_widths: float = 0.0

    @classmethod
    def of(cls, site: Site) -> Band:
        """The band of a site that sets the scale; of an input that is small, for one that is large
        is as wild as any signal."""
        stats = site.forward
        scale = stats.second_moment if math.isfinite(stats.second_moment) else 1.0
        high = 1.0 if site.kind == "input" else max(scale, 1.0)
        return cls(min(scale, 1.0), high, stats.across_samples_var)

    def joined(self, other: Band) -> Band:
        """The band of a tensor made of two: the wider of everything."""
        varied = [v for v in (self.varied, other.varied) if v is not None]
        return Band(
            min(self.low, other.low),
            max(self.high, other.high),
            min(varied) if varied else None,
            max(self.layers, other.layers),
            max(self.inverse_widths, other.inverse_widths),
        )

    def after(self, width: int) -> Band:
        """One layer of this width on."""
        return replace(self, layers=self.layers + 1, inverse_widths=self.inverse_widths + 1 / width)


def chance(layers: int, inverse_widths: float) -> tuple[float, float]:
    """The factors within which finite width alone scatters a mean square over these layers.

    Of a ReLU network, in closed form (``theory.relu_length_law``), with the harmonic mean of
    the widths: the other activations in use scatter less or about as much.

    >>> [round(math.log10(factor), 1) for factor in chance(50, 50 / 64)]
    [-3.5, 1.8]
    """
    if layers < 1:
        return 1.0, 1.0
    return _relu_chance(min(max(round(layers / inverse_widths), 1), _WIDEST), layers)


@lru_cache(maxsize=4096)
def _relu_chance(width: int, layers: int) -> tuple[float, float]:
    low, high = relu_length_law(width, layers).interval(CHANCE)
    return min(low, 1.0), max(high, 1.0)


class Flow:
    """The sites of a trace as a graph, and the band of each."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.sites = trace.sites
        self._by_name = {site.name: site for site in self.sites}
        self._at = {site.name: position for position, site in enumerate(self.sites)}
        self._users: dict[str, list[Site]] = {site.name: [] for site in self.sites}
        for site in self.sites:
            for source in self.sources(site):
                self._users[source.name].append(site)

    # ------------------------------------------------------------ the graph

    def sources(self, site: Site) -> list[Site]:
        """The sites that it reads."""
        return [self._by_name[name] for name in site.reads if name in self._by_name]

    def users(self, site: Site) -> list[Site]:
        """The sites that read it."""
        return self._users[site.name]

    def is_upstream(self, first: Site, second: Site) -> bool:
        """Whether the second is computed from the first (or is it)."""
        return bool(self._upstream[second.name] >> self._at[first.name] & 1)

    @cached_property
    def _upstream(self) -> dict[str, int]:
        """By name, the sites that it is computed from, as bits: a deep model has many pairs."""
        found: dict[str, int] = {}
        for site in self.sites:
            bits = 1 << self._at[site.name]
            for source in self.sources(site):
                bits |= found[source.name]
            found[site.name] = bits
        return found

    def always_meets(self, stops: Callable[[Site, Site], bool]) -> dict[str, bool]:
        """By name, whether every way to the output passes a site where ``stops(user, source)``.

        True as well of what nothing reads and is not the output: it does no harm.
        """
        known: dict[str, bool] = {}
        for site in reversed(self.sites):
            known[site.name] = site.kind != "output" and all(
                stops(user, site) or known[user.name] for user in self.users(site)
            )
        return known

    # ------------------------------------------------------------ layers

    @cached_property
    def layers(self) -> list[Site]:
        """Sites with a weight of the model, in execution order, each weight once."""
        found: dict[str, Site] = {}
        for site in self.sites:
            if is_layer(site):
                found.setdefault(str(site.parameter), site)
        return list(found.values())

    @cached_property
    def head(self) -> Site | None:
        """The last layer that the output depends on; its weight may be tied to an earlier one."""
        output = self.sites[-1]
        layers = (site for site in reversed(self.sites) if is_layer(site))
        return next((layer for layer in layers if self.is_upstream(layer, output)), None)

    def layer_at(self, site: Site) -> Site | None:
        """The site itself if it is a layer, else the nearest layer on the way that leads to it."""
        while not is_layer(site):
            sources = self.sources(site)
            if not sources or site.kind in _RESETS or site.kind == "add":
                return None
            site = sources[0]
        return site

    def activation_read(self, layer: Site) -> Activation | None:
        """The activation whose output a layer reads, past pooling, dropout and the like."""
        site = next(iter(self.sources(layer)), None)
        while site is not None and site.kind == "other":
            site = next(iter(self.sources(site)), None)
        if site is None or site.kind != "activation":
            return None
        return site.activation

    def branch_end(self, add: Site) -> Site | None:
        """The last layer of the residual branch that an addition closes."""
        sums = self.stream_and_branch(add)
        if sums is None:
            return None
        _, branch = sums
        while branch.kind in ("activation", *_PASSED) and self.sources(branch):
            branch = self.sources(branch)[0]
        counts = is_layer(branch) and not looks_up(branch) and self.reads_input[branch.name]
        return branch if counts else None

    def stream_and_branch(self, add: Site) -> tuple[Site, Site] | None:
        """The two operands of a residual sum, the one first from which the other is computed, be
        it through a module that passes it on, as a shortcut does."""
        sources = self.sources(add)
        if add.kind != "add" or len(sources) != 2:
            return None
        first, second = sources
        start = second
        while start.kind == "other" and len(self.sources(start)) == 1:
            start = self.sources(start)[0]
        return (second, first) if self.is_upstream(start, first) else (first, second)

    @cached_property
    def looked_up(self) -> frozenset[str | None]:
        """The names of the parameters that serve as embeddings, whatever else they do."""
        return frozenset(site.parameter for site in self.sites if looks_up(site))

    @cached_property
    def branch_ends(self) -> list[Site]:
        """The last layer of every residual branch."""
        ends = [self.branch_end(site) for site in self.sites if site.kind == "add"]
        return [end for end in ends if end is not None]

    @cached_property
    def closing(self) -> frozenset[str]:
        """The names of these layers."""
        return frozenset(end.name for end in self.branch_ends)

    @cached_property
    def in_branch(self) -> dict[str, bool]:
        """By name, whether every way to the output leads into a residual sum that another operand
        keeps alive."""
        return self.always_meets(self.is_kept_alive)

    def is_kept_alive(self, user: Site, source: Site) -> bool:
        """Whether this is a residual sum that is not 0 without this operand, and knows the input
        if this operand does: embedded positions do not."""
        return any(
            other.forward.second_moment > 0
            and self.reads_input[other.name] >= self.reads_input[source.name]
            for other in self.beside(source, user)
        )

    def beside(self, source: Site, user: Site) -> list[Site]:
        """The other operands of a residual sum: where no layer follows, as in a loss, only a stream
        that has layers of its own and that this operand reads."""
        if user.kind != "add":
            return []
        others = [other for other in self.sources(user) if other.name != source.name]
        if self.feeds_layer[user.name]:
            return others
        return [s for s in others if self.is_upstream(s, source) and self._has_layers[s.name]]

    @cached_property
    def let_in(self) -> dict[str, float]:
        """By name, the share of what other places know that attention lets into a place: all that a
        class token learns of its input. Below 1 where the residual branches begin nearly closed, as
        by a layer scale; 1 as well where nothing joins the places."""
        found: dict[str, float] = {}
        for site in self.sites:
            above = (found[s.name] * self._let_in_by(site, s) for s in self.sources(site))
            joins = site.kind in ("attention", "recurrent") or site.op.lower() == "softmax"
            found[site.name] = 1.0 if joins else max(above, default=0.0)
        return {name: share or 1.0 for name, share in found.items()}

    def _let_in_by(self, site: Site, source: Site) -> float:
        scales = site.kind == "add" or (site.kind == "other" and self.in_branch[site.name])
        return passed_back(source, site) if scales else 1.0  # a factor scales both directions

    @cached_property
    def feeds_layer(self) -> dict[str, bool]:
        """By name, whether a layer is computed from a site: not from the last layers' outputs."""
        found: dict[str, bool] = {}
        for site in reversed(self.sites):
            found[site.name] = any(is_layer(u) or found[u.name] for u in self.users(site))
        return found

    @cached_property
    def _has_layers(self) -> dict[str, bool]:
        """By name, whether a site is a layer or is computed from one."""
        found: dict[str, bool] = {}
        for site in self.sites:
            found[site.name] = is_layer(site) or any(found[s.name] for s in self.sources(site))
        return found

    @cached_property
    def idle_norms(self) -> list[Site]:
        """The batch norms, if all that return something return what they read: their running
        statistics are still 0 and 1. ε, at most 10⁻³ in use, takes less than a per cent of it."""
        norms = [s for s in self.sites if s.op in CENTRES and s.forward.second_moment > 0]
        return norms if all(self._returns_what_it_reads(norm) for norm in norms) else []

    def _returns_what_it_reads(self, norm: Site) -> bool:
        own, read = norm.forward, [source.forward for source in self.sources(norm)]
        if len(read) != 1:
            return False
        before, after = read[0].second_moment, own.second_moment
        most, most_after = read[0].abs_max or 0.0, own.abs_max or 0.0  # of all statistics
        return 0.99 * before <= after <= before and 0.99 * most <= most_after <= most

    @cached_property
    def reads_input(self) -> dict[str, bool]:
        """By name, whether a site is computed from an input: embedded positions are not."""
        found: dict[str, bool] = {}
        for site in self.sites:
            above = any(found[source.name] for source in self.sources(site))
            found[site.name] = site.kind == "input" or above
        return found

    @cached_property
    def passes_zero(self) -> dict[str, bool]:
        """By name, whether every activation on the way since the scale was set has φ(0) = 0."""
        found: dict[str, bool] = {}
        for site in self.sites:
            above = all(found[source.name] for source in self.sources(site))
            found[site.name] = site.kind in _RESETS or (above and _is_zero_at_zero(site))
        return found

    def place(self, site: Site) -> str:
        """The layer to blame for what is seen at a site; the site itself where there is none."""
        layer = self.layer_at(site)
        return site.name if layer is None else layer.name

    def is_closed(self, site: Site) -> bool:
        """Whether it adds exactly 0 to a residual stream that others keep alive, and will open.

        It opens if it reads something and gets a gradient: at the end of the branch, where a last
        layer of zeros may yet hold it back, or wherever it is seen to. Of two layers of zeros in a
        row (such as all of an attention) neither ever moves.
        """
        sources = self.sources(site)
        reads_nothing = not sources or any(s.forward.second_moment == 0 for s in sources)
        if site.forward.second_moment != 0 or not self.in_branch[site.name] or reads_nothing:
            return False
        if site.weight is None or site.weight.second_moment > 0:
            return True
        moves = site.weight_grad is not None and site.weight_grad.second_moment > 0
        return moves or (site.name in self.closing and site.kind == "affine")

    def is_zero_head(self, layer: Site) -> bool:
        """Whether it is a last layer of zeros: its own gradient, which is not 0, opens it."""
        zero = layer.weight is not None and layer.weight.second_moment == 0
        return zero and self._is_moving_head(layer)

    def is_closed_head(self, layer: Site) -> bool:
        """Whether it is a last layer of zeros beside residual branches that start closed, as in
        Fixup: all of it meant."""
        return bool(self.starts_closed) and self.is_zero_head(layer)

    def _is_moving_head(self, layer: Site) -> bool:
        return (
            is_layer(layer)
            and not self.feeds_layer[layer.name]
            and (total(layer.weight_grad) or 0) > 0
        )

    @cached_property
    def small_heads(self) -> list[Site]:
        """Last layers of zeros, and those whose weights alone are below ``SMALL``: their outputs
        are near 0, as logits should be, and their own gradient makes them larger before the others
        need theirs."""
        zero = [s for s in self.layers if self.is_zero_head(s)]
        small = [
            s for s in self.layers if 0 < (weight_gain(s) or 0) < SMALL * self.draw(s).gain ** 2
        ]
        return zero + (small if all(map(self._is_moving_head, small)) else [])

    @cached_property
    def starts_closed(self) -> list[Site]:
        """Layers and norms that are 0 so that their residual branch starts closed."""
        return [s for s in self.sites if self.is_closed(s) and (is_layer(s) or s.kind == "norm")]

    # ------------------------------------------------------------ weights

    def draw(self, layer: Site) -> Draw:
        """How this layer should be drawn; one that reads a raw input also undoes its scale."""
        if layer is self.head:
            return LOGITS if self.trace.num_classes else PLAIN
        sources = self.sources(layer)
        omega = self.omega(layer)
        if omega is not None and abs(math.log(omega)) > math.log(OFF):
            is_first = any(source.kind == "input" for source in sources)
            return draw_before_sine(omega, layer.fan_in or 1, is_first=is_first)
        scale = self.raw_scale(layer)
        if scale is not None:
            return Draw("lecun_normal", 1 / math.sqrt(scale))
        return draw_after(self.activation_read(layer))

    def raw_scale(self, layer: Site) -> float | None:
        """The mean square of the raw input that a layer reads, if that is large; what it makes of
        it shows whether the model divides the input first."""
        sources = self.sources(layer)
        if len(sources) != 1 or sources[0].kind != "input":
            return None
        gain, scale = weight_gain(layer) or 0.0, sources[0].forward.second_moment
        if layer.kind == "affine" and is_clean(layer) and 0 < gain < math.inf:
            scale = min(scale, layer.forward.second_moment / gain)
        return scale if DRIFT < scale < math.inf else None

    def omega(self, layer: Site) -> float | None:
        """The ω of the sin(ω·z) that reads this layer; None where there is none, or none is seen.

        To two digits, of the mean over all sines that agree within ``OFF``, as sampling allows.
        Where no gradient shows it, that of the others, if they all agree.
        """
        seen = self.seen_omegas
        own = seen.get(layer.name)
        if own is None and seen and [user.op for user in self.users(layer)] == ["sin"]:
            least, most = min(seen.values()), max(seen.values())
            own = least if most < OFF * least else None
        if own is None:
            return None
        logs = [math.log(each) for each in seen.values()]
        alike = [each for each in logs if abs(each - math.log(own)) < math.log(OFF)]
        return float(f"{math.exp(sum(alike) / len(alike)):.2g}")

    @cached_property
    def seen_omegas(self) -> dict[str, float]:
        """By the names of the layers that sines read. The factor itself is not seen, but what it
        does to the gradient is: ω² times the mean of cos², which is one minus that of sin²."""
        found: dict[str, float] = {}
        for sine in self.sites:
            layer = next(iter(self.sources(sine)), sine)
            own, above = total(layer.backward), total(sine.backward)
            slope = 1 - sine.forward.second_moment
            is_read = sine.op == "sin" and is_layer(layer) and len(self.users(layer)) == 1
            if is_read and own and above and math.isfinite(own / above) and slope > 0:
                found[layer.name] = math.sqrt(own / above / slope)
        return found

    @cached_property
    def overweight(self) -> list[Site]:
        """The layers whose weights have a larger variance than what they read calls for."""
        return [layer for layer in self.layers if self._deviation(layer) > 0]

    @cached_property
    def underweight(self) -> list[Site]:
        """The layers whose weights have a smaller one."""
        return [layer for layer in self.layers if self._deviation(layer) < 0]

    def _deviation(self, layer: Site) -> int:
        """1 where the weights of a layer are too large, −1 where they are too small, else 0."""
        gain = weight_gain(layer)
        if gain is None:
            return 0
        if layer.kind == "recurrent":  # its gates have other laws; torch's own draw gives it 1/3
            return (gain > DRIFT) - (gain < SMALL)
        draw = self.draw(layer)
        own = draw.gain
        least, most = right_gains(self.activation_read(layer))
        if draw.omega is not None:
            least, most = own, most if draw.position == "first" else own
        elif self.raw_scale(layer) is not None:
            least, most = own, own * most
        numel = math.prod(layer.weight_shape or (1,))
        slack = OFF * (1 + CHANCE * math.sqrt(2 / numel))
        hidden = self.hidden[layer.name]
        if gain < min(own, least) ** 2 / slack:
            may_be_small = hidden or layer.name in self.closing
            on_purpose = gain == 0 or gain >= SMALL * min(own, least) ** 2
            return 0 if may_be_small and on_purpose else -1
        return int(gain > max(own, most) ** 2 * (1 / SMALL if hidden else slack))

    def is_far_off(self, layer: Site) -> bool:
        """Whether weights are beyond ``SMALL`` of what they should be, which no choice explains."""
        gain, own = weight_gain(layer), self.draw(layer).gain ** 2
        return gain is not None and not SMALL * own <= gain <= max(own, 1.0) / SMALL

    @cached_property
    def _overweight_bits(self) -> int:
        return sum(1 << self._at[layer.name] for layer in self.overweight)

    @cached_property
    def hidden(self) -> dict[str, bool]:
        """By name, whether a normalization layer follows at once, to which scale means nothing."""
        found: dict[str, bool] = {}
        for site in reversed(self.sites):
            users = self.users(site)
            found[site.name] = bool(users) and all(
                is_normalized(user) or (user.kind in ("other", "activation") and found[user.name])
                for user in users
            )
        return found

    # ------------------------------------------------------------ bands

    @cached_property
    def bands(self) -> dict[str, Band]:
        """By name, where the forward signal of each site may lie."""
        found: dict[str, Band] = {}
        for site in self.sites:
            sources = self.sources(site)
            if site.kind in _RESETS or not sources or looks_up(site):
                found[site.name] = Band.of(site)
                continue
            band = found[sources[0].name]
            for source in sources[1:]:
                band = band.joined(found[source.name])
            found[site.name] = band.after(width(site)) if site.weight_shape else band
        return found

    @cached_property
    def steps(self) -> dict[str, tuple[int, float]]:
        """By name, how many layers lie before a site, and the sum of their inverse widths."""
        found: dict[str, tuple[int, float]] = {}
        for site in self.sites:
            above = [found[source.name] for source in self.sources(site)]
            layers, inverse = max(above, default=(0, 0.0))
            counts = site.weight_shape is not None
            found[site.name] = (layers + counts, inverse + counts / width(site))
        return found

    def chance(self, site: Site) -> tuple[float, float]:
        """The factors of chance for the signal at a site.

        Upwards it is granted only where no weights are too large: what those do is no accident.
        Downwards always, because a log-normal quantity lies below its mean as a rule.
        """
        band = self.bands[site.name]
        low, high = chance(band.layers, band.inverse_widths)
        return low, 1.0 if self._upstream[site.name] & self._overweight_bits else high

    def chance_between(self, first: Site, second: Site) -> tuple[float, float]:
        """The same for a gradient that flows from the second site to the first."""
        (below, narrow), (above, total) = self.steps[first.name], self.steps[second.name]
        low, high = chance(abs(above - below), max(abs(total - narrow), 1e-9))
        between = self._upstream[second.name] >> self._at[first.name]
        no_accident = between & (self._overweight_bits >> self._at[first.name])
        return low, 1.0 if no_accident else high

    def centred_between(self, first: Site, second: Site) -> int:
        """How many batch normalizations lie on the way from one site to the other."""
        return abs(self._centred[second.name] - self._centred[first.name])

    @cached_property
    def _centred(self) -> dict[str, int]:
        """By name, how many batch normalizations lie before a site, on the way with most."""
        found: dict[str, int] = {}
        for site in self.sites:
            above = max((found[source.name] for source in self.sources(site)), default=0)
            found[site.name] = above + (site.op in CENTRES)
        return found

    def too_large(self, site: Site, factor: float) -> bool:
        """Whether a mean square is above this factor of all natural scales, beyond chance."""
        limit = self.bands[site.name].high * factor * self.chance(site)[1]
        return site.forward.second_moment > limit

    def too_small(self, site: Site, factor: float) -> bool:
        """Whether a mean square is below this factor of all natural scales, beyond chance."""
        limit = self.bands[site.name].low * factor * self.chance(site)[0]
        return site.forward.second_moment < limit

    # ------------------------------------------------------------ samples

    @property
    def samples(self) -> int:
        """How many samples the batch holds, as far as can be told."""
        first = next((s for s in self.sites if s.kind == "input"), self.sites[0])
        return first.shape[0] if first.shape else 1

    @cached_property
    def inputs_differ(self) -> bool:
        """Whether the samples of the batch can be told apart at all."""
        starts = [s for s in self.sites if s.kind == "input" or looks_up(s)]
        return self.samples > 1 and any((shared(s.forward) or 0) > 1e-3 for s in starts)


def is_normalized(site: Site) -> bool:
    """Whether a site is a normalization layer that did bring its input to a natural scale."""
    return site.kind == "norm" and LOST < site.forward.second_moment < WILD


def weight_gain(layer: Site) -> float | None:
    """fan_in·E W²: the factor by which a layer's weights multiply a mean square."""
    if layer.weight is None or layer.fan_in is None or looks_up(layer):
        return None
    return layer.fan_in * layer.weight.second_moment


def shared(stats: Stats) -> float | None:
    """The share of a mean square that differs from sample to sample; None where unknown."""
    if stats.across_samples_var is None or not stats.second_moment > 0:
        return None
    return stats.across_samples_var / stats.second_moment


def total(stats: Stats | None) -> float | None:
    """The sum of all squares: unlike the mean it does not depend on how wide a layer is.

    Weights of variance 1/fan_in keep it on the way back, whatever the widths.
    """
    return None if stats is None else stats.second_moment * stats.numel


def passed_back(source: Site, user: Site) -> float:
    """The share of the sum of squares of a site's gradient that this operand gets; 1 if unknown."""
    own, whole = total(source.backward), total(user.backward)
    if not own or not whole or not math.isfinite(own / whole):
        return 1.0
    return min(own / whole, 1.0)


def is_clean(site: Site) -> bool:
    """Whether a site's forward numbers can be reckoned with."""
    return not site.forward.nonfinite and math.isfinite(site.forward.second_moment)


def is_layer(site: Site) -> bool:
    """Whether a site has a weight that is a parameter of the model."""
    return site.weight_shape is not None and site.parameter is not None


def looks_up(site: Site) -> bool:
    """Whether a layer is an embedding: its output is its weights."""
    return site.op.startswith("embedding")


@lru_cache(maxsize=256)
def _value_at_zero(phi: Activation) -> float:
    return float(phi.function(torch.zeros(1, dtype=torch.float64)))


def _is_zero_at_zero(site: Site) -> bool:
    return site.activation is None or _value_at_zero(site.activation) == 0


def width(site: Site) -> int:
    """The units, or channels, of a site."""
    return site.units or 1
