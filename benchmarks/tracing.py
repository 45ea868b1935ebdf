"""What a trace costs: CPU time and peak memory over those of the bare forward and backward pass.

Run with ``python benchmarks/tracing.py``. Bare and traced passes alternate in one run; each figure
is the median of the ratios of neighbours, so that what else the machine does weighs on both, as
does the state of the caches: a pass of either kind is some 5 % slower after a traced one. Peak
memory is that of a process of its own, beyond what the model and the batch take. Nothing is
asserted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initlab.tracing import trace


def mlp(depth: int, width: int, phi: Callable[[], nn.Module]) -> nn.Module:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), phi())]
    if depth <= 100:  # deeper, Kaiming's gradients overflow; PyTorch's default stays
        for layer in layers[::2]:
            nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]
    return nn.Sequential(*layers)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + x)


class ResNet(nn.Module):
    """A small residual network for 32×32 images."""

    def __init__(self, width: int = 32, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        stages = []
        for stage in range(3):
            if stage:
                stages.append(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1))
                width *= 2
            stages += [Block(width) for _ in range(blocks)]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(F.relu(self.stem(x))).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(h.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, 4)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def gpt(layers: int = 12, width: int = 256, vocabulary: int = 256) -> nn.Module:
    return nn.Sequential(
        nn.Embedding(vocabulary, width),
        *(Layer(width) for _ in range(layers)),
        nn.LayerNorm(width),
        nn.Linear(width, vocabulary),
    )


def bare(model: nn.Module, batch: Tensor) -> None:
    """The pass that trace observes: forward, and backward of a random cotangent."""
    output = model(batch)
    torch.autograd.grad(output, list(model.parameters()), torch.randn_like(output))


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(model: nn.Module, batch: Tensor, repeats: int) -> tuple[float, float, float]:
    """Bare CPU seconds, and the ratios of a full and of a moments-only trace to them."""
    works = [
        lambda: bare(model, batch),
        lambda: trace(model, batch),
        lambda: bare(model, batch),
        lambda: trace(model, batch, statistics="moments"),
    ]
    rounds = [[cpu_seconds(work) for work in works] for _ in range(repeats + 1)][1:]
    full = statistics.median(traced / base for base, traced, *_ in rounds)
    moments = statistics.median(traced / base for *_, base, traced in rounds)
    return statistics.median(base for base, *_ in rounds), full, moments


def peak_megabytes(name: str, traced: bool) -> float:
    """How far one pass drives the memory of this process up; to be run in a fresh one."""
    torch.set_num_threads(1)
    model, batch, _ = CASES[name]()
    small = nn.Sequential(nn.Linear(4, 4), nn.ReLU())  # what a first pass of any model loads
    bare(small, torch.randn(2, 4))
    trace(small, torch.randn(2, 4))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        trace(model, batch) if traced else bare(model, batch)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def memory_ratio(name: str) -> float:
    """Peak memory of a trace over that of a bare pass; medians of processes of their own."""
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(1, maxtasksperchild=1) as pool:
        base, full = (
            statistics.median(pool.apply(peak_megabytes, (name, traced)) for _ in range(5))
            for traced in (False, True)
        )
    return full / base


Case = tuple[nn.Module, Tensor, int]
CASES: dict[str, Callable[[], Case]] = {
    "mlp 50×256 relu, batch 256": lambda: (mlp(50, 256, nn.ReLU), torch.randn(256, 256), 1),
    "mlp 50×256 tanh, batch 256": lambda: (mlp(50, 256, nn.Tanh), torch.randn(256, 256), 1),
    "ResNet, 32×32, batch 32": lambda: (ResNet(), torch.randn(32, 3, 32, 32), 3),
    "GPT 12×256, 8×128 tokens": lambda: (gpt(), torch.randint(0, 256, (8, 128)), 3),
    "mlp 10,000×64 tanh, batch 256": lambda: (mlp(10_000, 64, nn.Tanh), torch.randn(256, 64), 5),
}
"""Name to model, batch, and by how much fewer repeats will do."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    heads = f"{'threads':>8}{'bare ms':>9}{'all':>7}{'moments':>9}{'memory':>8}"
    print(f"{'over bare':32}{heads}")
    memory = {name: memory_ratio(name) for name in CASES}
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name, make in CASES.items():
            torch.manual_seed(0)
            model, batch, slower = make()
            base, full, moments = compare(model, batch, max(3, options.repeats // slower))
            numbers = f"{threads:8}{base * 1e3:9.1f}{full:7.2f}{moments:9.2f}{memory[name]:8.2f}"
            print(f"{name:32}{numbers}", flush=True)


if __name__ == "__main__":
    main()
