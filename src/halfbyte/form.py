"""Whether plain values, as a JSON file gives them, have the form on which their reader relies."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

# A type, a list of entries of one form, a dict of keys with a form each, or a test.
Form: TypeAlias = Any
Test: TypeAlias = Callable[[Any], bool]
_ABSENT = object()


def misfit(value: Any, form: Form, where: str) -> str | None:
    """The first place at which `value` has not the `form`, called by its path below `where`; None where all fits.

    A dict asks for its keys and lets others be; a bool is no number, and neither are NaN and infinity.
    """
    parts: Iterable[tuple[Any, Form, str]]
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return where
        parts = ((value.get(key, _ABSENT), part, f"{where}.{key}") for key, part in form.items())
    elif isinstance(form, list):
        if not isinstance(value, list):
            return where
        parts = ((entry, form[0], f"{where}[{number}]") for number, entry in enumerate(value))
    else:
        fits = isinstance(value, form) and not _bool_as_int(value, form) if isinstance(form, type) else form(value)
        return None if fits else where
    found = (misfit(*part) for part in parts)
    return next((place for place in found if place is not None), None)


def nullable(form: Form) -> Test:
    """`form`, or null."""
    return lambda value: value is None or misfit(value, form, "") is None


def optional(form: Form) -> Test:
    """`form`, or null, or absent."""
    return lambda value: value is _ABSENT or nullable(form)(value)


def whole(least: int) -> Test:
    """A whole number from `least` on, of 64 bits."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def number(value: Any) -> bool:
    """A number that is finite, also as a float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _bool_as_int(value: Any, form: type) -> bool:
    return isinstance(value, bool) and form is not bool
