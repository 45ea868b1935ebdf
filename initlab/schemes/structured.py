"""Schemes that are not random everywhere: a diagonal, a kernel's centre, mirrored blocks, zeros."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from initlab.schemes.entry import KERNEL, MATRIX, Fans, Parameter, Scheme


def orthogonal_(tensor: Tensor, gain: float, generator: Any) -> Tensor:
    """Fill with torch's orthogonal_, in float32 where its QR decomposition knows no other dtype."""
    precise = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    nn.init.orthogonal_(precise, gain, generator=generator)
    return tensor.copy_(precise)


def _fill_identity(tensor: Tensor, fans: Fans, generator: Any) -> None:
    nn.init.eye_(tensor).mul_(fans.gain)


def _fill_dirac(tensor: Tensor, fans: Fans, generator: Any) -> None:
    nn.init.dirac_(tensor).mul_(fans.gain)


def _diagonal_mean(fans: Fans) -> float:
    """min(rows, columns) entries hold the gain, all others 0."""
    return fans.gain / (max(fans.rows, fans.columns) * fans.taps)


def _diagonal_std(fans: Fans) -> float:
    mean = _diagonal_mean(fans)
    return math.sqrt(mean * (fans.gain - mean))


def _fill_delta_orthogonal(tensor: Tensor, fans: Fans, generator: Any) -> None:
    """Zero but for the kernel's centre, which is orthogonal."""
    centre = tuple(size // 2 for size in tensor.shape[2:])
    nn.init.zeros_(tensor)
    orthogonal_(tensor[(slice(None), slice(None), *centre)], fans.gain, generator)


def _delta_orthogonal_std(fans: Fans) -> float:
    return fans.gain / math.sqrt(max(fans.rows, fans.columns) * fans.taps)


def _refuse_fewer_outputs(shape: Sequence[int]) -> str:
    if shape[0] >= shape[1]:
        return ""
    return (
        f"scheme 'delta_orthogonal' keeps norms only with at least as many output channels as "
        f"input channels, got {shape[1]} to {shape[0]} (shape {tuple(shape)})"
    )


def _fill_sparse(
    tensor: Tensor, fans: Fans, generator: Any, *, sparsity: float, std: float
) -> None:
    """As torch's, whose zeros ignore the generator; here they come from it too."""
    rows, columns = tensor.shape
    zeros = math.ceil(sparsity * rows)
    nn.init.normal_(tensor, 0.0, std, generator=generator)
    for column in range(columns):
        chosen = torch.randperm(rows, generator=generator, device=tensor.device)[:zeros]
        tensor[chosen, column] = 0


def _sparse_std(fans: Fans, *, sparsity: float, std: float) -> float:
    """Of each column, ⌈sparsity·rows⌉ entries are 0."""
    return std * math.sqrt(1 - math.ceil(sparsity * fans.rows) / fans.rows)


def _fill_looks_linear(tensor: Tensor, fans: Fans, generator: Any, *, mirror: str) -> None:
    """[[Q, −Q], [−Q, Q]] with Q orthogonal, or one row or column of it."""
    rows, columns = halved(tensor.shape[0], tensor.shape[1], mirror)
    block = orthogonal_(tensor.new_empty(rows, columns), fans.gain, generator)
    if mirror != "outputs":
        block = torch.cat([block, -block], dim=1)
    if mirror != "inputs":
        block = torch.cat([block, -block], dim=0)
    tensor.copy_(block)


def halved(rows: int, columns: int, mirror: str) -> tuple[int, int]:
    """The shape of the block that is mirrored."""
    return (
        rows if mirror == "inputs" else rows // 2,
        columns if mirror == "outputs" else columns // 2,
    )


def _looks_linear_std(fans: Fans, *, mirror: str) -> float:
    return fans.gain / math.sqrt(max(halved(fans.rows, int(fans.columns), mirror)))


def _refuse_odd(shape: Sequence[int], *, mirror: str) -> str:
    mirrored = {"outputs": shape[:1], "inputs": shape[1:2]}.get(mirror, shape[:2])
    if all(size % 2 == 0 for size in mirrored):
        return ""
    return (
        f"scheme 'looks_linear' mirrors pairs of units, which takes even sizes, got shape "
        f"{tuple(shape)}; mirror='outputs' is for a first layer, mirror='inputs' for a last one"
    )


# ---------------------------------------------------------------- the PyTorch lines


def _scaled_call(function: str) -> Callable[..., str]:
    """torch's call, which knows no gain, and the multiplication by one."""

    def call(weight: str, gain: float) -> str:
        line = f"nn.init.{function}({weight})"
        return line if gain == 1 else f"{line}\nwith torch.no_grad():\n    {weight}.mul_({gain!r})"

    return call


def _delta_orthogonal_call(weight: str, gain: float) -> str:
    return (
        f"centre = tuple(size // 2 for size in {weight}.shape[2:])\n"
        f"nn.init.zeros_({weight})\n"
        f"nn.init.orthogonal_({weight}[(slice(None), slice(None), *centre)], gain={gain!r})"
    )


def _looks_linear_call(weight: str, gain: float, *, mirror: str) -> str:
    rows = f"{weight}.shape[0]" + ("" if mirror == "inputs" else " // 2")
    columns = f"{weight}.shape[1]" + ("" if mirror == "outputs" else " // 2")
    lines = [f"block = nn.init.orthogonal_(torch.empty({rows}, {columns}), gain={gain!r})"]
    if mirror != "outputs":
        lines.append("block = torch.cat([block, -block], dim=1)")
    if mirror != "inputs":
        lines.append("block = torch.cat([block, -block], dim=0)")
    return "\n".join([*lines, "with torch.no_grad():", f"    {weight}.copy_(block)"])


# ---------------------------------------------------------------- the entries

STRUCTURED_SCHEMES: tuple[Scheme, ...] = (
    Scheme(
        name="identity",
        title="Identity",
        family="structured",
        formula=r"W = g\,I",
        source="Le et al. 2015 (recurrent ReLU networks); torch.nn.init.eye_",
        suits="Recurrent weights of ReLU networks; layers that should begin by passing on input.",
        fill=_fill_identity,
        std=_diagonal_std,
        mean=_diagonal_mean,
        call=_scaled_call("eye_"),
        ensemble="structured",
        dims=MATRIX,
    ),
    Scheme(
        name="dirac",
        title="Dirac",
        family="structured",
        formula=r"W_{ij,t} = g\,\delta_{ij}\,\delta_{t,\mathrm{centre}}",
        source="Zagoruyko & Komodakis 2017; torch.nn.init.dirac_",
        suits="Convolutions that should begin by passing on their input, channel by channel.",
        fill=_fill_dirac,
        std=_diagonal_std,
        mean=_diagonal_mean,
        call=_scaled_call("dirac_"),
        ensemble="structured",
        dims=KERNEL,
    ),
    Scheme(
        name="delta_orthogonal",
        title="Delta-orthogonal",
        family="structured",
        formula=r"W_{\cdot\cdot,t} = g\,Q\,\delta_{t,\mathrm{centre}},\ Q^\top Q = I",
        source="Xiao et al. 2018, 'Dynamical Isometry and a Mean Field Theory of CNNs'",
        suits="Very deep plain convolutional networks with tanh: all singular values are g.",
        fill=_fill_delta_orthogonal,
        std=_delta_orthogonal_std,
        call=_delta_orthogonal_call,
        ensemble="structured",
        dims=KERNEL,
        shape_refusal=_refuse_fewer_outputs,
    ),
    Scheme(
        name="sparse",
        title="Sparse",
        family="structured",
        formula=r"W_{ij} \sim N(0, \sigma^2),\ \lceil s\,n_\mathrm{out}\rceil\ "
        r"\text{of each column}\ = 0",
        source="Martens 2010 (few inputs of each unit); torch.nn.init.sparse_ (few outputs)",
        suits="Seeing units with few outputs, of a scale that does not depend on the width.",
        fill=_fill_sparse,
        std=_sparse_std,
        call=lambda weight, gain, sparsity, std: (
            f"nn.init.sparse_({weight}, sparsity={sparsity!r}, std={std!r})"
        ),
        ensemble="structured",
        uses_gain=False,
        dims=MATRIX,
        parameters={
            "sparsity": Parameter(
                0.9, 0.0, 0.99, "share of each column that is 0, rounded up", least=0, most=1
            ),
            "std": Parameter(0.01, 0.0, 2.0, "standard deviation of the others", least=0),
        },
    ),
    Scheme(
        name="looks_linear",
        title="Looks linear",
        family="structured",
        formula=r"W = \begin{pmatrix} gQ & -gQ \\ -gQ & gQ \end{pmatrix},\ Q\ \text{orthogonal}",
        source="Balduzzi et al. 2017, 'The Shattered Gradients Problem' (for CReLU's pairs)",
        suits="Deep ReLU networks without normalization: at the start they are exactly linear.",
        fill=_fill_looks_linear,
        std=_looks_linear_std,
        call=_looks_linear_call,
        ensemble="structured",
        dims=MATRIX,
        shape_refusal=_refuse_odd,
        parameters={
            "mirror": Parameter(
                "both", None, None, "which units come in pairs ±u", ("both", "outputs", "inputs")
            )
        },
    ),
)
