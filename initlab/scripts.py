"""The stand-alone PyTorch script of an experiment: the same network, weights and numbers."""

from __future__ import annotations

from typing import Protocol

from initlab.activations import Elementwise, activation
from initlab.data import DIGITS
from initlab.prediction import Predictable, prescribed
from initlab.schemes import bias_code


class Scriptable(Predictable, Protocol):
    """The fields of an Experiment that its script depends on."""

    @property
    def weight_seed(self) -> int: ...
    @property
    def probe_seed(self) -> int: ...


def script(experiment: Scriptable) -> str:
    """A script that needs torch alone (and scikit-learn for digits) and prints, for every affine
    layer, E h² and the second moment of its gradient.

    Raises:
        ValueError: the activation was registered from Python, so its code is not known.
    """
    return _TEMPLATE.format(
        activation=activation_class(experiment.activation),
        data=_data(experiment),
        sizes=_sizes(experiment),
        layers=_layers(experiment),
        head=_head(experiment),
        affine="(nn.Conv2d, nn.Linear)" if experiment.architecture == "cnn" else "nn.Linear",
        weight_seed=experiment.weight_seed,
        initialize=_indent(_initialize(experiment), 8),
        masks=f"torch.manual_seed({experiment.probe_seed})\n" if experiment.dropout else "",
        gradient=_gradient(experiment),
    )


_TEMPLATE = """\
import torch
from torch import nn
{activation}
{data}
sizes = {sizes}
layers = []
for n_in, n_out in {layers}{head}
model = nn.Sequential(*layers)

torch.manual_seed({weight_seed})
for layer in model:
    if isinstance(layer, {affine}):
{initialize}

pre_activations = []
signal = inputs
{masks}for layer in model:
    signal = layer(signal)
    if isinstance(layer, {affine}):
        signal.retain_grad()
        pre_activations.append(signal)

{gradient}

for number, h in enumerate(pre_activations, start=1):
    forward = h.double().square().mean().item()
    backward = h.grad.double().square().mean().item()
    print(f"layer {{number}}: E h^2 = {{forward:.6e}}, E (dL/dh)^2 = {{backward:.6e}}")
"""


def _indent(code: str, spaces: int) -> str:
    return "\n".join(" " * spaces + line for line in code.splitlines())


def activation_class(name: str) -> str:
    """The class of an activation that torch has no module for; empty for the others."""
    phi = activation(name)
    if not isinstance(phi.module(), Elementwise):
        return ""
    if not phi.code:
        raise ValueError(
            f"activation {name!r} was registered from Python; a script cannot spell it"
        )
    return (
        f"\n\nclass Activation(nn.Module):\n    def forward(self, z):\n"
        f"        return {phi.code}\n\n"
    )


def module_call(name: str) -> str:
    module = activation(name).module()
    return "Activation()" if isinstance(module, Elementwise) else f"nn.{module!r}"


def _data(experiment: Scriptable) -> str:
    images, batch = experiment.architecture == "cnn", experiment.batch_size
    generator = f"torch.Generator().manual_seed({experiment.data_seed})"
    if experiment.data == "noise":
        shape = f"{batch}, {experiment.sizes[0]}{', 8, 8' if images else ''}"
        return f"\ninputs = torch.randn({shape}, generator={generator})\n"
    return (
        "from sklearn.datasets import load_digits\n\n"
        "pixels, labels = (torch.from_numpy(each) for each in load_digits(return_X_y=True))\n"
        "pixels = ((pixels - pixels.mean()) / pixels.std(correction=0)).float()\n"
        f"chosen = torch.randperm({DIGITS}, generator={generator})[:{batch}]\n"
        f"inputs = pixels[chosen]{'.reshape(-1, 1, 8, 8)' if images else ''}\n"
        "labels = labels[chosen].long()\n"
    )


def _sizes(experiment: Scriptable) -> str:
    sizes = experiment.sizes[:-1] if experiment.has_head else experiment.sizes
    if len(sizes) > 8 and len(set(sizes[1:])) == 1:
        return f"[{sizes[0]}] + [{sizes[1]}] * {len(sizes) - 1}"
    return repr(list(sizes))


def _layers(experiment: Scriptable) -> str:
    padding = "" if experiment.padding == "zeros" else f", padding_mode={experiment.padding!r}"
    affine, norms = {
        "mlp": (
            "nn.Linear(n_in, n_out)",
            {"batch": "nn.BatchNorm1d(n_out)", "layer": "nn.LayerNorm(n_out)"},
        ),
        "cnn": (
            f"nn.Conv2d(n_in, n_out, 3, padding=1{padding})",
            {"batch": "nn.BatchNorm2d(n_out)", "layer": "nn.GroupNorm(1, n_out)"},
        ),
    }[experiment.architecture]
    parts = [affine, norms.get(experiment.norm), module_call(experiment.activation)]
    if experiment.dropout:
        parts.append(f"nn.Dropout({experiment.dropout})")
    stack = ", ".join(part for part in parts if part)
    lines = f"zip(sizes, sizes[1:]):\n    layers += [{stack}]"
    if experiment.dropout and not experiment.has_head:
        lines += "\nlayers.pop()  # the output is read by no further layer"
    return lines


def _head(experiment: Scriptable) -> str:
    if not experiment.has_head:
        return ""
    pooled = "nn.AdaptiveAvgPool2d(1), nn.Flatten(), " if experiment.architecture == "cnn" else ""
    return f"\nlayers += [{pooled}nn.Linear(sizes[-1], {experiment.sizes[-1]})]"


def _initialize(experiment: Scriptable) -> str:
    chosen, gain, bias = prescribed(experiment)
    weight = chosen.weight_code("layer.weight", gain)
    bias_std = chosen.bias_std if experiment.bias is None else experiment.bias_std
    return f"{weight}\n{bias_code('layer', bias, bias_std)}"


def _gradient(experiment: Scriptable) -> str:
    if experiment.has_head:
        return "nn.functional.cross_entropy(signal, labels).backward()"
    return (
        f"cotangent = torch.randn(signal.shape, "
        f"generator=torch.Generator().manual_seed({experiment.probe_seed}))\n"
        "signal.backward(cotangent)"
    )
