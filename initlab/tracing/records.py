"""A site while it is being measured."""

from __future__ import annotations

from initlab.tracing.measuring import Histogram, Stats
from initlab.tracing.operations import Kind


class Record:
    """What is known of a site so far; what it has in common with ``Site`` has the same name.

    What is not found out is not set on the instance: ``vars`` gives what is.
    """

    name: str = ""
    shape: tuple[int, ...] = ()
    reads: tuple[str, ...] = ()
    forward: Stats | None = None
    backward: Stats | None = None
    zero_fraction: float | None = None
    dead_fraction: float | None = None
    saturated_fraction: float | None = None
    parameter: str | None = None
    weight: Stats | None = None
    weight_grad: Stats | None = None
    weight_shape: tuple[int, ...] | None = None
    fan_in: float | None = None
    fan_out: float | None = None
    histogram: Histogram | None = None
    cosine: float | None = None
    effective_rank: float | None = None
    note: str | None = None
    arguments: tuple[float, ...] = ()

    def __init__(self, kind: Kind, op: str, module: str, depth: int) -> None:
        self.kind: Kind = kind
        self.op = op
        self.module = module
        self.depth = depth
        self.unit_axis = -1

    def receive_forward(self, stats: Stats, zeros: float | None) -> None:
        self.forward, self.zero_fraction = stats, zeros

    def receive_weight(self, stats: Stats, zeros: float | None) -> None:
        self.weight = stats

    def receive_weight_grad(self, stats: Stats, zeros: float | None) -> None:
        self.weight_grad = stats

    def receive_units(self, dead: float, saturated: float | None) -> None:
        self.dead_fraction, self.saturated_fraction = dead, saturated
