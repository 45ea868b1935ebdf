"""How numbers are written: in sentences, in read-outs and tables, beside axes."""

from __future__ import annotations

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power(value: float) -> str:
    """A number for a sentence: two digits near 1, a power of ten far from it.

    >>> power(0.534), power(3.2e-9), power(12.4), power(0.0)
    ('0.53', '3·10⁻⁹', '12', '0')
    """
    if value == 0 or 0.01 <= value < 1000:
        return f"{value:.2g}" if value < 100 else f"{value:.0f}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}·{power_of_ten(int(exponent))}"


def power_of_ten(exponent: int) -> str:
    """A tick of a log axis.

    >>> power_of_ten(-12)
    '10⁻¹²'
    """
    return f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def digits(value: float) -> str:
    """A number to be read off exactly, under the pointer or in a table.

    >>> digits(0.53149), digits(3.21e-9), digits(-0.0)
    ('0.5315', '3.21e-09', '0')
    """
    return f"{value or 0.0:.4g}"


def tick(value: float) -> str:
    """A number beside a linear axis.

    >>> tick(-0.25)
    '−0.25'
    """
    return f"{value:.3g}".replace("-", "−")


def size(shape: tuple[int, ...]) -> str:
    """
    >>> size((3, 64, 64))
    '3 × 64 × 64'
    """
    return " × ".join(map(str, shape))
