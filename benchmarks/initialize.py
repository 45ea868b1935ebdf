"""What init_ costs: its CPU time over that of filling the same tensors with ``tensor.normal_()``.

Run with ``python benchmarks/initialize.py``. Both alternate in one run; each figure is the ratio of
their medians. Nothing is asserted; the aim is at most 1.1 at 100 million parameters.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from initlab.initialize import init_


def square_mlp() -> nn.Module:
    """100.7 million parameters in 6 layers."""
    return nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(6)))


def transformer() -> nn.Module:
    """99 million parameters in 14 layers, as in a small language model."""
    layer = nn.TransformerEncoderLayer(768, 12, 3072, batch_first=True)
    return nn.TransformerEncoder(layer, 14, enable_nested_tensor=False)


def small_mlp() -> nn.Module:
    """0.8 million parameters in 50 layers: what an explorer draws at every move."""
    return nn.Sequential(*(nn.Linear(128, 128) for _ in range(50)))


def seconds(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """normal_() for the weights; what init_ leaves at 0 is zeroed here too."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.02)
        else:
            parameter.zero_()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    for make in (square_mlp, transformer, small_mlp):
        model = make()
        count = sum(parameter.numel() for parameter in model.parameters())
        bare, ours = [], []
        for _ in range(repeats):
            bare.append(seconds(lambda model=model: fill(model)))
            ours.append(seconds(lambda model=model: init_(model, "xavier_normal")))
        before, after = statistics.median(bare), statistics.median(ours)
        print(
            f"{make.__name__}: {count / 1e6:.1f} M parameters, normal_() {before:.3f} s, "
            f"init_ {after:.3f} s, ratio {after / before:.3f}"
        )


if __name__ == "__main__":
    main()
