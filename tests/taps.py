"""An independent instrument: taps placed by hand in a model's own code.

``Tapped.tap`` does nothing in a trace. In the reference run it keeps the tensor and adds a zero to
it, whose gradient is that of the tensor: nothing of it is shared with the tracer.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from initlab.tracing import Site, Trace, trace

SEED = 0


class Tapped(nn.Module):
    """A model whose own code says what each site should have seen."""

    taps: dict[str, Tensor] | None = None
    probes: dict[str, Tensor]

    def tap(self, name: str, tensor: Tensor) -> Tensor:
        if self.taps is None:
            return tensor
        self.taps[name] = tensor.detach().clone()
        self.probes[name] = torch.zeros_like(tensor, requires_grad=True)
        return tensor + self.probes[name]


def reference(model: Tapped, *inputs, pick=lambda output: output, **kwargs):
    """Values and gradients at the taps, under the cotangent that trace draws (1 for a scalar)."""
    model.taps, model.probes = {}, {}
    try:
        torch.manual_seed(SEED)
        output = pick(model(*inputs, **kwargs))
        cotangent = torch.ones_like(output)
        if output.ndim:
            generator = torch.Generator().manual_seed(SEED)
            cotangent = torch.randn(output.shape, generator=generator).to(output)
        names = list(model.probes)
        found = torch.autograd.grad(
            output, [model.probes[name] for name in names], cotangent, allow_unused=True
        )
        return model.taps, dict(zip(names, found, strict=True))
    finally:
        model.taps = None


def agree(site: Site, value: Tensor, gradient: Tensor | None, rel: float = 1e-4) -> None:
    assert site.shape == tuple(value.shape)
    for stats, tensor in ((site.forward, value), (site.backward, gradient)):
        if tensor is None:
            assert stats is None
            assert site.reached is False
            continue
        assert stats is not None, site.name
        h = tensor.double()
        second = float(h.square().mean())
        assert stats.second_moment == pytest.approx(second, rel=rel), site.name
        assert stats.mean == pytest.approx(float(h.mean()), abs=1e-4 * second**0.5)
        assert stats.abs_max == pytest.approx(float(h.abs().max()), rel=1e-5)


def check(model: Tapped, *inputs, rel: float = 1e-4, pick=lambda output: output, **kwargs) -> Trace:
    """Trace a model and compare every tapped site with its tap."""
    taps, gradients = reference(model, *inputs, pick=pick, **kwargs)
    traced = trace(model, *inputs, model_kwargs=kwargs, seed=SEED, output=pick)
    for name, value in taps.items():
        agree(traced[name], value, gradients[name], rel)
    return traced


def batch(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
