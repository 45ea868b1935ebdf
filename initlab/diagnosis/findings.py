"""What a diagnosis is: findings, causes first, that print well in a terminal and a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Fault = Literal[
    "non_finite",
    "symmetry",
    "dead_units",
    "bias_dominated",
    "exploding_activations",
    "saturation",
    "vanishing_activations",
    "vanishing_gradients",
    "exploding_gradients",
    "rank_collapse",
    "wrong_initial_loss",
]

FAULTS: tuple[Fault, ...] = Fault.__args__  # type: ignore[attr-defined]
"""Every fault, causes before what they bring about."""


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        fault: one of ``FAULTS``.
        where: the name of the site where it begins.
        evidence: what was measured, in a sentence with its numbers.
        remedy: what to do, in words.
        code: the same as Python that expects the model as ``model``; empty where no
            initialization helps.
        because: the finding that explains this one, as "fault at where"; None for a cause.
    """

    fault: Fault
    where: str
    evidence: str
    remedy: str
    code: str
    because: str | None = None

    def __str__(self) -> str:
        lines = [f"{self.fault} at {self.where}", f"  {self.evidence}"]
        if self.because:
            return "\n".join([*lines, f"  follows from {self.because}"])
        lines.append(f"  {self.remedy}")
        return "\n".join([*lines, *(f"    {line}" for line in self.code.splitlines())])


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a traced model; printed in full in a terminal and in a notebook.

    Attributes:
        findings: causes first, in the order in which faults bring each other about.
        notes: what looks odd and is safe to leave.
        not_checked: what the trace did not say, and how to make it say so.
    """

    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether nothing that was checked is wrong."""
        return not self.findings

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults found, each once."""
        return tuple(dict.fromkeys(finding.fault for finding in self.findings))

    @property
    def causes(self) -> tuple[Finding, ...]:
        """The findings that no other explains: cure these."""
        return tuple(finding for finding in self.findings if finding.because is None)

    @property
    def code(self) -> str:
        """The remedies of all causes, as Python that expects the model as ``model``."""
        return joined(dict.fromkeys(f.code for f in self.causes))

    def __str__(self) -> str:
        lines = [_headline(self), *map(str, self.findings)]
        lines += [f"Safe to leave: {note}" for note in self.notes]
        lines += [f"Not checked: {reason}" for reason in self.not_checked]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(_html(self))


def _headline(diagnosis: Diagnosis) -> str:
    if diagnosis.healthy:
        return "Healthy: nothing that was checked is wrong."
    causes = len(diagnosis.causes)
    others = len(diagnosis.findings) - causes
    title = "1 fault" if causes == 1 else f"{causes} faults"
    return title + (f", and {others} that follow{'s' * (others == 1)}" if others else "")


def _html(diagnosis: Diagnosis) -> Iterator[str]:
    yield f"<p><strong>{_headline(diagnosis)}</strong></p>"
    if diagnosis.findings:
        yield "<ol>"
        for finding in diagnosis.findings:
            title = f"{finding.fault} at {finding.where}"
            yield f"<li><strong>{html.escape(title)}</strong><br>{html.escape(finding.evidence)}"
            if finding.because:
                yield f"<br>follows from {html.escape(finding.because)}</li>"
                continue
            yield f"<br>{html.escape(finding.remedy)}"
            yield f"<pre>{html.escape(finding.code)}</pre></li>" if finding.code else "</li>"
        yield "</ol>"
    asides = {"Safe to leave": diagnosis.notes, "Not checked": diagnosis.not_checked}
    for title, lines in asides.items():
        if lines:
            items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
            yield f"<p>{title}:</p><ul>{items}</ul>"


def joined(codes: Iterable[str]) -> str:
    """Pieces of code one after the other, their imports first.

    >>> print(joined(["import torch\\nx = 1", "import torch\\ny = 2"]))
    import torch
    x = 1
    y = 2
    """
    lines = [line for code in codes for line in code.splitlines()]
    imports = dict.fromkeys(line for line in lines if line.startswith(("import ", "from ")))
    return "\n".join([*imports, *(line for line in lines if line not in imports)])


def figure(number: float) -> str:
    """A number for a sentence.

    >>> figure(0.5314), figure(3.21e-9), figure(12345.6)
    ('0.531', '3.2e-09', '1.2e+04')
    """
    if number == 0 or 0.01 <= abs(number) < 1000:
        return f"{number:.3g}"
    return f"{number:.1e}"
