"""What a trace costs beside other ways to look at a forward and backward pass.

Run with ``python benchmarks/rivals.py``, on the models of ``benchmarks/tracing.py``. The plain
hooks are what people write by hand: a statistic of the output of every leaf module, and of the
gradient of that output. torchlens and torchexplorer are libraries; ``pip install 'initlab[bench]'``
brings them, and without them their rows say so. Each pass is compared with a bare one beside it;
a rival makes its copy of the model ready first, which is not timed. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tracing import CASES, bare, compare, cpu_seconds  # type: ignore[import-not-found]

Pass = Callable[[Tensor], None]
Measure = Callable[[Tensor], tuple[Tensor, ...]]


def by_hooks(measure: Measure) -> Callable[[nn.Module], Pass]:
    """``measure`` of what every leaf module returns and of its gradient, read at the end."""

    def ready(model: nn.Module) -> Pass:
        seen: list[tuple[Tensor, ...]] = []

        def look(tensor: Tensor) -> None:
            seen.append(measure(tensor.detach()))

        def on_output(module: nn.Module, inputs: Any, output: Tensor) -> None:
            look(output)
            output.register_hook(look)

        for module in model.modules():
            if not list(module.children()):
                module.register_forward_hook(on_output)

        def run(batch: Tensor) -> None:
            bare(model, batch)
            torch.cat([number.reshape(-1) for each in seen for number in each]).tolist()
            seen.clear()

        return run

    return ready


def sum_and_dot(h: Tensor) -> tuple[Tensor, ...]:
    flat = h.reshape(-1)
    return flat.sum(), torch.dot(flat, flat)


def as_fastai(h: Tensor) -> tuple[Tensor, ...]:
    """Mean, standard deviation and histogram of magnitudes, as in its ActivationStats."""
    return h.mean(), h.std(), h.abs().histc(40, 0, 10)


def torchexplorer(model: nn.Module) -> Pass:
    """With its histograms of outputs and gradients; that they are drawn is not timed."""
    import torchexplorer  # pyright: ignore[reportMissingImports]

    torchexplorer.watch(
        model, log=["io", "io_grad"], backend="none", log_freq=1, delay_log_multi_backward=True,
        verbose=False,
    )  # fmt: skip
    is_first = True

    def run(batch: Tensor) -> None:
        nonlocal is_first
        assert is_first  # before a second pass it would draw the first
        is_first = False
        output = model(batch)
        output.backward(torch.randn_like(output))

    return run


def torchlens(model: nn.Module) -> Pass:
    """Every tensor of the pass and its gradient, kept."""
    import torchlens  # pyright: ignore[reportMissingImports]
    from torchlens.options import CaptureOptions  # pyright: ignore[reportMissingImports]

    def run(batch: Tensor) -> None:
        kept = CaptureOptions(save_grads=True, backward_ready=True)
        seen = torchlens.trace(model, batch, capture=kept)
        output = seen[seen.output_layers[0]].out
        seen.log_backward((output * torch.randn_like(output)).sum())

    return run


RIVALS: dict[str, Callable[[nn.Module], Pass]] = {
    "hooks: sum and dot": by_hooks(sum_and_dot),
    "hooks: std and mean": by_hooks(lambda h: (h.std(), h.mean())),
    "hooks: var_mean": by_hooks(torch.var_mean),
    "hooks: as fastai": by_hooks(as_fastai),
    "torchexplorer": torchexplorer,
    "torchlens": torchlens,
}


def is_installed(rival: str) -> bool:
    return rival.startswith("hooks") or importlib.util.find_spec(rival) is not None


# ---------------------------------------------------------------- the comparison

COMPARED = {
    "mlp": "mlp 50×256 relu, batch 256",
    "ResNet": "ResNet, 32×32, batch 32",
    "GPT": "GPT 12×256, 8×128 tokens",
}


def over_bare(rival: str, model: nn.Module, batch: Tensor, repeats: int) -> float:
    """The median ratio of a rival's CPU seconds to those of a bare pass just before."""
    ratios = []
    for _ in range(repeats + 1):
        run = RIVALS[rival](copy.deepcopy(model))
        base = cpu_seconds(lambda: bare(model, batch))
        ratios.append(cpu_seconds(lambda run=run: run(batch)) / base)
    return statistics.median(ratios[1:])


def row(repeats: int, ratio: Callable[[nn.Module, Tensor, int], float]) -> str:
    ratios = []
    for case in COMPARED.values():
        torch.manual_seed(0)
        model, batch, slower = CASES[case]()
        ratios.append(ratio(model, batch, max(3, repeats // slower)))
    return "".join(f"{each:>9.2f}" for each in ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"{'CPU time over bare, one thread':34}" + "".join(f"{name:>9}" for name in COMPARED))
    for rival in RIVALS:
        if is_installed(rival):
            cost = row(repeats, lambda *case, rival=rival: over_bare(rival, *case))
        else:
            cost = "  not installed: pip install 'initlab[bench]'"
        print(f"{rival:34}{cost}", flush=True)
    for title, at in (("initlab.trace, moments", 2), ("initlab.trace, all", 1)):
        print(f"{title:34}{row(repeats, lambda *case, at=at: compare(*case)[at])}", flush=True)


if __name__ == "__main__":
    main()
