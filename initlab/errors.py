"""The sentences that refuse bad input: what was wrong, what is accepted, what is nearest."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


def unknown_name(
    argument: str, value: object, accepted: Iterable[str], *, like: str = ""
) -> ValueError:
    """A ValueError for a name that is not among the accepted ones, with the nearest of them: to
    the value, or to what it is ``like``.

    >>> print(unknown_name("scheme", "kaimin_normal", ["kaiming_normal", "zeros"]))
    unknown scheme 'kaimin_normal'; did you mean 'kaiming_normal'? Accepted: kaiming_normal, zeros
    """
    names = list(accepted)
    near = difflib.get_close_matches(like or str(value).lower(), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return ValueError(f"unknown {argument} {value!r}{hint} Accepted: {', '.join(names)}")


def positive_int(argument: str, value: Any, *, at_most: int | None = None) -> int:
    """Return value as an int, or raise: it must be a whole number of at least 1.

    >>> positive_int("depth", 3)
    3
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument}={value!r} must be a whole number (an int of at least 1)")
    number = int(value)
    if number < 1 or (at_most is not None and number > at_most):
        span = "at least 1" if at_most is None else f"between 1 and {at_most:,}"
        raise ValueError(f"{argument}={value} must be {span}")
    return number


def finite_number(argument: str, value: Any, *, positive: bool = False) -> float:
    """Return value as a float, or raise: it must be finite (and above 0 where positive is set).

    >>> finite_number("gain", 2)
    2.0
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument}={value!r} must be a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{argument}={value} must be a finite number")
    if positive and number <= 0:
        raise ValueError(f"{argument}={value} must be greater than 0")
    return number


def seed_number(value: Any, *, least: int = -(2**63), below: int = 2**63, others: str = "") -> int:
    """Return value as an int that can seed torch's generators, or raise.

    ``others`` completes the sentence with what else is accepted there.

    >>> seed_number(3)
    3
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"seed={value!r} must be a whole number{others}")
    seed = int(value)
    if not least <= seed < below:
        raise ValueError(f"seed={seed} must be between {least} and {below - 1}")
    return seed
