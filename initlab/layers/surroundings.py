"""What surrounds a layer: the activation that it reads or feeds, and the residual branch it is in.

Known from a trace of one batch; inside ``nn.Sequential``, from the order of the modules; and for
branches, from the names of their last layers.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from initlab.activations import Activation
from initlab.activations import activation as resolve_activation
from initlab.errors import unknown_name
from initlab.layers.slots import is_layer
from initlab.tracing import Site, Trace

Found = nn.Module | Activation | str
"""An activation, in any form that ``initlab.activation`` takes."""

Branch = tuple[str, ...]
"""The names of the layers of one residual branch, in order of execution."""

_PASSED_OVER = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.dropout._DropoutNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.padding._ConstantPadNd,
    nn.modules.padding._CircularPadNd,
    nn.modules.padding._ReflectionPadNd,
    nn.modules.padding._ReplicationPadNd,
    nn.Flatten,
    nn.Unflatten,
    nn.Upsample,
    nn.PixelShuffle,
    nn.Identity,  # it stands where a norm or dropout was left out
)


@dataclass(frozen=True)
class Surroundings:
    """What is known of the layers' neighbours, by the layers' names.

    Attributes:
        before: the activation whose output the layer reads; "identity" for the input, for another
            layer's output and for a residual sum; no entry where it reads a softmax, to whose
            output no gain is right.
        after: the activation that follows it, likewise.
        branches: the residual branches.
        order: the layers in order of execution.
    """

    before: Mapping[str, Found] = field(default_factory=dict)
    after: Mapping[str, Found] = field(default_factory=dict)
    branches: tuple[Branch, ...] = ()
    order: tuple[str, ...] = ()


# ---------------------------------------------------------------- from the order of modules


def in_sequential(model: nn.Module) -> Surroundings:
    """What ``nn.Sequential``s tell, looking through norm, dropout, pooling and flatten.

    Of one inside another module only activations count: nobody knows what it reads, who reads it,
    and whether it is called as a whole.
    """
    before: dict[str, Found] = {}
    after: dict[str, Found] = {}
    order: tuple[str, ...] = ()
    alone = [("", model)] if is_layer(model) else []
    for path, sequential in (*alone, *_sequentials(model, "")):
        chain = list(_in_a_row(sequential, path))
        whole = sequential is model
        before |= dict(_neighbours(chain[::-1], whole))
        after |= dict(_neighbours(chain, whole))
        if whole and all(is_layer(each) or not list(each.children()) for _, each in chain):
            order = tuple(name for name, each in chain if is_layer(each))
    return Surroundings(before=before, after=after, order=order)


def _sequentials(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Sequential]]:
    """The outermost Sequentials, and those inside what these hold."""
    if isinstance(module, nn.Sequential):
        yield path, module
        inside = list(_in_a_row(module, path))
    else:
        inside = list(_children(module, path))
    for name, child in inside:
        yield from _sequentials(child, name)


def _in_a_row(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules of nested Sequentials in their order."""
    if not isinstance(module, nn.Sequential):
        yield path, module
        return
    for name, child in _children(module, path):
        yield from _in_a_row(child, name)


def _children(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """With their dotted names; those that are in it twice, as one ReLU for all, come twice."""
    for key, child in module._modules.items():
        if child is not None:
            yield f"{path}.{key}" if path else key, child


def _neighbours(chain: Sequence[tuple[str, nn.Module]], whole: bool) -> Iterator[tuple[str, Found]]:
    """The next activation in the chain after each layer; in a whole model, identity before another
    layer or none."""
    for position, (name, module) in enumerate(chain):
        if is_layer(module):
            rest = (each for _, each in chain[position + 1 :] if not isinstance(each, _PASSED_OVER))
            following = next(rest, None)
            found = "identity" if following is None else _as_activation(following)
            if found is not None and (whole or found != "identity"):
                yield name, found


def _as_activation(module: nn.Module) -> Found | None:
    """The module where it is an activation, identity where it is a layer, else None."""
    if is_layer(module):
        return "identity"
    return module if _is_activation(module) else None


def _is_activation(module: nn.Module) -> bool:
    """Whether it computes an elementwise function.

    To find out takes calling it, which only modules without a state of their own can bear.
    """
    stateless = not any((module._modules, module._parameters, module._buffers))
    if not stateless and not isinstance(module, nn.PReLU):
        return False
    try:
        resolve_activation(module)
    except TypeError:
        return False
    return True


# ---------------------------------------------------------------- from a trace


def in_trace(model: nn.Module, trace: Trace) -> Surroundings:
    """What one observed batch tells."""
    graph = _Graph(model, trace)
    before: dict[str, Found | None] = {}
    after: dict[str, Found | None] = {}
    order: list[str] = []
    for site in graph.weighted:
        if site.module not in before:  # of a layer that is called twice, the first call counts
            order += _layers_of(model, site)
            for layer in _layers_of(model, site):
                before[layer], after[layer] = "identity", "identity"
            before[site.module] = graph.before(site)
            after[order[-1]] = graph.after(site)
    return Surroundings(_known(before), _known(after), tuple(graph.branches()), tuple(order))


def _known(found: Mapping[str, Found | None]) -> Mapping[str, Found]:
    return {layer: phi for layer, phi in found.items() if phi is not None}


def _layers_of(model: nn.Module, site: Site) -> list[str]:
    """The layers behind one site: attention holds a second one, which is called unseen."""
    attends = isinstance(model.get_submodule(site.module), nn.MultiheadAttention)
    return [site.module, f"{site.module}.out_proj"] if attends else [site.module]


_SOFTMAX = ("softmax", "log_softmax")


class _Graph:
    """The sites of a trace and how they read each other."""

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self.model = model
        self.sites = {site.name: site for site in trace}
        self.weighted = [site for site in trace if site.parameter is not None]
        self.readers: dict[str, list[Site]] = {}
        self.ancestors: dict[str, set[str]] = {}
        for site in trace:
            above = [self.ancestors[name] | {name} for name in site.reads]
            self.ancestors[site.name] = set().union(*above)
            for name in site.reads:
                self.readers.setdefault(name, []).append(site)

    def before(self, site: Site) -> Found | None:
        """The activation on the way from the input to this site."""
        return self._first([self.sites[name] for name in site.reads], backwards=True)

    def after(self, site: Site) -> Found | None:
        """The activation on the way from this site to the output."""
        return self._first(self.readers.get(site.name, []), backwards=False)

    def _first(self, sites: Sequence[Site], *, backwards: bool) -> Found | None:
        """The first activation on the way, through norms and modules without weights; None if
        that is a softmax, unless what it gives only weighs something else."""
        for site in sites:
            if site.op in _SOFTMAX:
                if len(sites) > 1 or len(site.reads) > 1:
                    continue
                return None
            if site.kind == "activation":
                return self._activation(site)
            if site.kind in ("norm", "other"):
                return self.before(site) if backwards else self.after(site)
        return "identity"

    def _activation(self, site: Site) -> Found:
        """The module; of a function call, the activation that it computed."""
        module = self.model.get_submodule(site.module)
        return module if _is_activation(module) else site.activation or "identity"

    def branches(self) -> Iterator[Branch]:
        """What each residual sum adds to its shortcut: the layers between the fork and the sum."""
        taken: set[str] = set()
        for add in self.sites.values():
            if add.kind != "add" or len(add.reads) != 2:
                continue
            sides = [self._since_fork(end, other) for end, other in _both_ways(add.reads)]
            fresh = [[site for site in side if site.name not in taken] for side in sides]
            branch = max(fresh, key=len)  # a projection on the shortcut is the shorter side
            if branch:
                taken |= {site.name for site in branch}
                yield tuple(n for site in branch for n in _layers_of(self.model, site))

    def _since_fork(self, end: str, other: str) -> list[Site]:
        """The layers on the way to ``end`` that ``other`` does not pass; none without a fork."""
        mine, others = self.ancestors[end] | {end}, self.ancestors[other] | {other}
        if not mine & others:
            return []
        return [site for site in self.weighted if site.name in mine - others]


def _both_ways(reads: Sequence[str]) -> Iterator[tuple[str, str]]:
    first, second = reads
    yield first, second
    yield second, first


# ---------------------------------------------------------------- from names


def branches_ending(
    patterns: Sequence[str], layers: Sequence[str], known: Sequence[Branch] = ()
) -> tuple[Branch, ...]:
    """The residual branches whose last layers fit the name patterns.

    Where a branch is not among the known ones, the layers beside its last one are taken: those in
    the same module before it.

    Raises:
        ValueError: a pattern that fits no layer.

    >>> branches_ending(["*.fc2"], ["stem", "0.fc1", "0.fc2", "1.fc1", "1.fc2"])
    (('0.fc1', '0.fc2'), ('1.fc1', '1.fc2'))
    """
    lasts: dict[str, None] = {}
    for pattern in patterns:
        found = [layer for layer in layers if fnmatch.fnmatchcase(layer, pattern)]
        if not found:
            raise unknown_name("branches pattern", pattern, layers)
        lasts |= dict.fromkeys(found)
    seen = {branch[-1]: branch for branch in known}
    return tuple(seen.get(last) or _siblings(last, layers, lasts) for last in lasts)


def _siblings(last: str, layers: Sequence[str], lasts: Mapping[str, None]) -> Branch:
    """The last layer and those in the same module before it, back to the end of another branch."""
    parent = last.rpartition(".")[0]
    branch = [last]
    for layer in layers[: layers.index(last)][::-1]:
        if layer.rpartition(".")[0] != parent or layer in lasts:
            break
        branch.insert(0, layer)
    return tuple(branch)
