"""How facts are written: numbers with their units, and words for the facts that are missing."""

from __future__ import annotations

import json
import math

NOT_MEASURED = "not measured"
NOT_RECORDED = "not recorded"
NOT_APPLICABLE = "–"

_NBSP = "\u00a0"
_MINUS = "\u2212"


def percent(value: float | None) -> str:
    """72.214 as `72.21 %`."""
    return NOT_MEASURED if value is None else f"{_fixed(value, 2)}{_NBSP}%"


def share(value: float | None) -> str:
    """A percentage that may be tiny: two digits, and never 0 or 100 for what is more or less."""
    if value is None:
        return NOT_MEASURED
    if value <= 0 or value >= 100:
        return f"{_fixed(min(max(value, 0.0), 100.0), 0)}{_NBSP}%"
    if value < 0.01:
        return f"< 0.01{_NBSP}%"
    digits = 2 if value < 1 else 1
    return f"{_fixed(min(value, 100 - 10.0**-digits), digits)}{_NBSP}%"


def signed(value: float, digits: int) -> str:
    """A change with its sign."""
    return f"{'+' if round(value, digits) > 0 else ''}{_fixed(round(value, digits) + 0.0, digits)}"


def milliseconds(value: float) -> str:
    """A time too short for seconds."""
    return f"{_fixed(value, 1 if value >= 100 else 2)}{_NBSP}ms"


def times(factor: float, word: str) -> str:
    """A factor and what it says: `2.3× faster`."""
    return f"{_fixed(factor, 2 if factor < 10 else 1)}×{_NBSP}{word}"


def figures(value: float | None) -> str:
    """A number of unknown size with three digits."""
    if value is None:
        return NOT_MEASURED
    # In plain figures while they are few: 1176.8 is 1,180.
    rounded = float(f"{value:.3g}")
    return (f"{rounded:,.0f}" if 1000 <= abs(rounded) < 1e7 else f"{value:.3g}").replace("-", _MINUS)


def points(before: float | None, after: float | None) -> str:
    """The change between two percentages, in percentage points with its sign."""
    if before is None or after is None:
        return NOT_APPLICABLE
    # Both are rounded first: the difference then agrees with the two numbers printed beside it.
    change = round(round(after, 2) - round(before, 2), 2)
    return f"{'+' if change > 0 else ''}{_fixed(change + 0.0, 2)}{_NBSP}points"


def divergence(value: float | None) -> str:
    """A Kullback-Leibler divergence, four decimals."""
    return NOT_MEASURED if value is None else _fixed(value, 4)


def decibels(value: float | None) -> str:
    """One decimal without a unit; an infinite ratio is an exact site."""
    if value is None:
        return NOT_MEASURED
    return "exact" if math.isinf(value) else _fixed(value, 1)


def size(value: float | None) -> str:
    """A number of bytes in decimal units. MB down to 0.01 MB, so that a model and its artifact share a unit."""
    if value is None:
        return NOT_RECORDED
    for unit, worth in (("GB", 1e9), ("MB", 1e6)):
        if value >= worth or (unit == "MB" and value >= 1e4):
            return f"{_fixed(value / worth, 2)}{_NBSP}{unit}"
    return f"{_fixed(value, 0)}{_NBSP}bytes"


def shrinkage(before: float | None, after: float | None) -> str:
    """How much smaller or larger `after` is, as a factor."""
    if before is None or after is None or before <= 0 or after <= 0:
        return NOT_APPLICABLE
    factor, word = (before / after, "smaller") if before >= after else (after / before, "larger")
    return f"{_fixed(factor, 1)}×{_NBSP}{word}"


def duration(seconds: float | None) -> str:
    """Seconds as a person would say them."""
    if seconds is None:
        return NOT_RECORDED
    if seconds < 60:
        return f"{_fixed(seconds, 1 if seconds >= 1 else 2)}{_NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{_NBSP}min {rest:02d}{_NBSP}s"
    return f"{minutes // 60:,}{_NBSP}h {minutes % 60:02d}{_NBSP}min"


def count(value: float | None) -> str:
    """A number of things, exact, with its thousands apart."""
    if value is None:
        return NOT_RECORDED
    return _fixed(value, 0 if value == int(value) else 1)


def magnitude(value: float | None) -> str:
    """A large number of operations with three or four digits and a decimal prefix: 1.25 G."""
    if value is None:
        return NOT_RECORDED
    for prefix, worth in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= worth:
            return f"{_fixed(value / worth, 2)}{_NBSP}{prefix}"
    return count(value)


def bit_widths(weight: float | None, activation: float | None, budget: str | None = None) -> str:
    """`W4A4`, the literature's name for a pair of bit widths; an operand without one stayed in float. With a budget,
    such as 3.5bits, sites have widths of their own."""
    if budget is not None:
        return f"mixed precision, {budget}"
    if weight is None and activation is None:
        return "bits " + NOT_RECORDED
    if activation is None:
        return f"W{weight:g}, float activations"
    return f"float weights, A{activation:g}" if weight is None else f"W{weight:g}A{activation:g}"


def anything(value: object) -> str:
    """A fact of unknown type from a user's file, on one line."""
    if value is None:
        return NOT_RECORDED
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False, skipkeys=True, default=str)


def _fixed(value: float, digits: int) -> str:
    # Nothing real is this large; a damaged file's number should not print three hundred digits.
    text = f"{value:,.{digits}f}" if abs(value) < 1e12 else f"{value:.3g}"
    return text.replace("-", _MINUS)
