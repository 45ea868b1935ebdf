"""The words of ModelExplorer: the tree of sites, one site's numbers, and the verdict."""

from __future__ import annotations

import html
from collections.abc import Iterator

from initlab.diagnosis import Diagnosis
from initlab.plots import digits, size
from initlab.tracing import Site, Stats, Trace

_INDENT = "\u00a0\u00a0"  # an option of a menu drops ordinary spaces
_TENSORS = (
    ("h", "forward"),
    ("∂L/∂h", "backward"),
    ("W", "weight"),
    ("∂L/∂W", "weight_grad"),
)
_COLUMNS = (
    ("E[·²]", "second_moment"),
    ("mean", "mean"),
    ("variance", "var"),
    ("across samples", "across_samples_var"),
    ("largest |·|", "abs_max"),
)


def tree(trace: Trace, diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """One (label, name) per site, indented by module path; ⚠ where a cause lies.

    >>> from initlab import diagnose, trace; import torch; from torch import nn
    >>> seen = trace(nn.Sequential(nn.Sequential(nn.Linear(2, 2))), torch.eye(2))
    >>> [label.replace("\\u00a0", "_") for label, _ in tree(seen, Diagnosis())]
    ['input', '__0.0 · linear', 'output']
    """
    ill = {finding.where for finding in diagnosis.causes}
    return [(_label(site, site.name in ill), site.name) for site in trace]


def _label(site: Site, ill: bool) -> str:
    indent = _INDENT * site.module.count(".")
    op = f" · {site.op}" if site.op and not site.name.endswith(site.op) else ""
    return f"{indent}{'⚠ ' if ill else ''}{site.name}{op}"


def verdict(diagnosis: Diagnosis) -> str:
    """What is wrong first, and where; or that nothing is.

    >>> verdict(Diagnosis())
    'healthy, as far as was checked'
    """
    if diagnosis.healthy:
        return "healthy, as far as was checked"
    first, *others = diagnosis.findings
    return f"{first.fault} at {first.where}" + (f" ({len(others)} more)" if others else "")


def advice(diagnosis: Diagnosis) -> str:
    """The evidence for the first fault, and what to do about it; nothing where there is none."""
    return "".join(f" {each.evidence} {each.remedy}" for each in diagnosis.findings[:1])


def numbers(site: Site, before: Site | None) -> str:
    """One site's numbers as HTML; ``before`` adds what E[·²] was beside it."""
    first, *others = (title for title, _ in _COLUMNS)
    columns = [first, *(["E[·²] as it is"] if before else []), *others, "not finite"]
    head = "".join(f'<th scope="col">{title}</th>' for title in ("", *columns))
    body = "".join(f"<tr>{row}</tr>" for row in _rows(site, before))
    facts = html.escape("; ".join(_facts(site)))
    return (
        '<div tabindex="0" role="region" aria-label="numbers of the selected layer" '
        'style="line-height: 1.4; overflow: auto">'
        f"<div><strong>{html.escape(site.name)}</strong>: {facts}</div>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _rows(site: Site, before: Site | None) -> Iterator[str]:
    for title, field in _TENSORS:
        stats: Stats | None = getattr(site, field)
        if stats is None:
            continue
        cells = [_number(getattr(stats, quantity)) for _, quantity in _COLUMNS]
        cells.append(f"{stats.nonfinite or 0:,}")
        if before:
            old: Stats | None = getattr(before, field)
            cells.insert(1, _number(old and old.second_moment))
        yield f'<th scope="row">{title}</th>' + "".join(f"<td>{cell}</td>" for cell in cells)


def _number(value: float | None) -> str:
    return "" if value is None else digits(value)


def _facts(site: Site) -> Iterator[str]:
    """What is to be said of a site in words."""
    shape = size(site.shape) or "a scalar"
    yield f"{site.op or site.kind}, {shape}"
    if site.weight_shape is not None:
        yield f"weight {size(site.weight_shape)}"
    if site.fan_in is not None and site.fan_out is not None:
        yield f"fan_in {site.fan_in:g}, fan_out {site.fan_out:g}"
    for field, words in (
        ("zero_fraction", "zeros"),
        ("dead_fraction", "dead units"),
        ("saturated_fraction", "saturated"),
    ):
        share = getattr(site, field)
        if share is not None and (share or field != "zero_fraction"):
            yield f"{words} {share:.0%}"
    if site.reached is False:
        yield "not reached by the gradient"
    if site.note:
        yield site.note
