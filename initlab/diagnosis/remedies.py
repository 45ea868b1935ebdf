"""What to do about a fault, as code that runs on the traced model.

A trace says which activation each layer reads, so that every layer can be drawn for the signal it
gets. Layers that are recognizably torch's own go through ``init_``; a weight that a module of yours
holds itself is filled by the scheme directly, with its true fan_in.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence

from initlab.diagnosis.draws import PLAIN, Draw
from initlab.diagnosis.flow import Flow, is_layer
from initlab.tracing import Site

_THROUGH_INIT = ("linear", "conv1d", "conv2d", "conv3d")
_RESET = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_LINE = 88


def strengthen(flow: Flow, also: Sequence[Site] = ()) -> tuple[str, str]:
    """Words and code that draw the layers whose weights are too small, and these, or else all."""
    return _correct(flow, _with(flow.underweight, also), "smaller")


def weaken(flow: Flow, also: Sequence[Site] = ()) -> tuple[str, str]:
    """Words and code that draw the layers whose weights are too large, and these, or else all."""
    return _correct(flow, _with(flow.overweight, also), "larger")


def correct(flow: Flow) -> tuple[str, str]:
    """Words and code that draw the layers whose weights are too small or too large; or all, where
    none is too small: what takes the gradient may be what a normalization hides."""
    if not flow.underweight:
        return _correct(flow, [], "smaller")
    if not flow.overweight:
        return strengthen(flow)
    return _correct(flow, _with(flow.underweight, flow.overweight), "different")


def _with(off: Sequence[Site], also: Sequence[Site]) -> list[Site]:
    return [*off, *(layer for layer in also if layer not in off)]


def _correct(flow: Flow, off: list[Site], how: str) -> tuple[str, str]:
    if not off:
        words = f"No weights by themselves have a {how} variance than they should: draw all anew."
        return words, redraw(flow, flow.layers)
    names = ", ".join(layer.name for layer in off[:3])
    more = f" and {len(off) - 3} more" if len(off) > 3 else ""
    words = (
        f"The weights of {names}{more} have a {how} variance than gain²/fan_in: draw them for "
        "what they read."
    )
    return words, redraw(flow, off)


def redraw(flow: Flow, layers: Iterable[Site]) -> str:
    """Code that draws these layers anew, each for what it reads."""
    chosen = [layer for layer in layers if is_layer(layer)]
    usual = [layer for layer in chosen if _is_usual(flow, layer)]
    draws = {layer.name: flow.draw(layer) for layer in usual}
    lines = []
    for draw in dict.fromkeys(draws.values()):
        names = [str(layer.module) for layer in usual if draws[layer.name] == draw]
        lines.append(_init_call(draw, names))
    lines += [line for layer in chosen if not _is_usual(flow, layer) for line in _fill(flow, layer)]
    centred = [layer for layer in usual if draws[layer.name].centred]
    if centred:
        lines += _centre([str(layer.parameter) for layer in centred])
    ends = [layer for layer in chosen if layer.name in flow.closing]
    if len(flow.branch_ends) > 1 and ends:  # their sums would grow with the depth
        lines += _scaled(flow, ends, 1 / math.sqrt(len(flow.branch_ends)))
    return "\n".join([*_imports(lines), *lines])


def rescale(flow: Flow, layers: Sequence[Site], factor: float) -> str:
    """Code that multiplies the weights of these layers, and biases that torch adds to them."""
    lines = _scaled(flow, layers, factor)
    return "\n".join([*_imports(lines), *lines])


def zero_biases(layers: Sequence[Site]) -> str:
    """Code that sets the biases of these layers to 0."""
    lines = _zeroed(layers)
    return "\n".join([*_imports(lines), *lines])


def _zeroed(layers: Sequence[Site]) -> list[str]:
    return [
        *_listed("for layer in ", [layer.module for layer in layers], ":"),
        "    for name, bias in model.get_submodule(layer).named_parameters(recurse=False):",
        '        if "bias" in name or name == "b":',
        "            torch.nn.init.zeros_(bias)",
    ]


def _scaled(flow: Flow, layers: Sequence[Site], factor: float) -> list[str]:
    modules = [layer.module for layer in layers if _is_usual(flow, layer)]
    others = [str(layer.parameter) for layer in layers if not _is_usual(flow, layer)]
    lines = ["with torch.no_grad():"]
    if modules:
        lines += [
            *_listed("    for name in ", modules, ":"),
            "        for parameter in model.get_submodule(name).parameters():",
            f"            parameter.mul_({factor:.4g})",
        ]
    if others:
        lines += [
            *_listed("    for name in ", others, ":"),
            f"        model.get_parameter(name).mul_({factor:.4g})",
        ]
    return lines


def reset(site: Site) -> str:
    """Code that gives a module of torch its own initialization back."""
    return f"{_submodule(site.module)}.reset_parameters()"


def _is_usual(flow: Flow, layer: Site) -> bool:
    """Whether ``init_`` finds it under its module's name."""
    own = layer.parameter == f"{layer.module}.weight" and layer.module != ""
    return own and layer.op in _THROUGH_INIT and layer.parameter not in flow.looked_up


def _init_call(draw: Draw, names: list[str]) -> str:
    return "\n".join(_listed(f'init_(model, "{draw.scheme}", {_how(draw)}only=', names, ")"))


def _how(draw: Draw) -> str:
    if draw == PLAIN or draw.position == "first":
        return 'position="first", ' if draw.position == "first" else ""
    if draw.omega is not None:
        return f"omega={draw.omega:g}, "
    return f'activation="{draw.activation}", ' if draw.activation else f"gain={draw.gain:.6g}, "


def _fill(flow: Flow, layer: Site) -> list[str]:
    """Lines for a layer that ``init_`` does not find."""
    if layer.op in _RESET:
        scale = flow.raw_scale(layer)
        return [reset(layer), *([] if scale is None else _quiet(layer, scale))]
    parameter = f'model.get_parameter("{layer.parameter}")'
    if layer.op.startswith("embedding"):
        return [f"torch.nn.init.normal_({parameter})"]
    draw = flow.draw(layer)
    scheme = "lecun_normal" if draw.omega is not None else draw.scheme  # by hand, for its gain
    how = f"gain={draw.gain:.6g}, fan_in={layer.fan_in or 1:g}"
    if ".parametrizations." in str(layer.parameter):
        return _assign(layer, f'scheme("{scheme}")(torch.empty_like(old), {how})')
    lines = [f'scheme("{scheme}")({parameter}, {how})', *_zeroed([layer])]
    if layer.op == "multi_head_attention" and layer.module:
        lines.append(_init_call(PLAIN, [f"{layer.module}.out_proj"]))
    return lines + (_centre([str(layer.parameter)], _rows(layer)) if draw.centred else [])


def _quiet(layer: Site, scale: float) -> list[str]:
    """Lines that undo the scale of the raw input that a recurrent layer reads."""
    return [
        "with torch.no_grad():",
        f"    for name, weight in {_submodule(layer.module)}.named_parameters():",
        '        if name.startswith("weight_ih_l0"):',
        f"            weight.mul_({1 / math.sqrt(scale):.4g})",
    ]


def _assign(layer: Site, values: str) -> list[str]:
    """Lines that give a parametrized weight new values, which its parametrization takes apart."""
    path, _, rest = f".{layer.parameter}".partition(".parametrizations.")
    owner, leaf = _submodule(path[1:]), rest.partition(".")[0]
    return [
        "with torch.no_grad():",
        f"    old = {owner}.{leaf}",
        f"    {owner}.{leaf} = {values}",
    ]


def _rows(layer: Site) -> str:
    """The dimensions over which one output sums: of ``x @ W`` the first, else all but the first."""
    shape = layer.weight_shape or ()
    sums_first = layer.op in ("matmul", "einsum") and len(shape) > 1 and shape[0] == layer.fan_in
    return "0" if sums_first else "tuple(range(1, weight.ndim))"


def _centre(parameters: list[str], over: str = "tuple(range(1, weight.ndim))") -> list[str]:
    return [
        "with torch.no_grad():",
        *_listed("    for name in ", parameters, ":"),
        "        weight = model.get_parameter(name)",
        f"        weight.sub_(weight.mean(dim={over}, keepdim=True))",
    ]


def _submodule(path: str) -> str:
    return f'model.get_submodule("{path}")' if path else "model"


def _imports(lines: Sequence[str]) -> list[str]:
    code = "\n".join(lines)
    found = ["import torch"] if "torch." in code else []
    names = [name for name in ("init_", "scheme") if f"{name}(" in code]
    return found + ([f"from initlab import {', '.join(names)}"] if names else [])


def _listed(before: str, names: Sequence[str], after: str) -> list[str]:
    """A line with a list of names in it, wrapped where it grows long."""
    items = ", ".join(f'"{name}"' for name in names)
    if len(before) + len(items) + len(after) + 2 <= _LINE:
        return [f"{before}[{items}]{after}"]
    indent = " " * (len(before) - len(before.lstrip()) + 4)
    wrapper = textwrap.TextWrapper(
        _LINE, initial_indent=indent, subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    body = wrapper.wrap(items + ",")
    return [f"{before}[", *body, f"{indent[4:]}]{after}"]
