"""Facts read from a metrics file that may lack any of them, or hold something else in their place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halfbyte.report import wording

# Nothing real is larger, or smaller and not zero; quotients and differences of what lies between are finite.
_LARGEST, _SMALLEST = 1e100, 1e-100
_EXACT_DB = 200.0  # what a metrics file, which has no infinity, says of a site without any error


def mapping(value: object) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def records(value: object) -> list[Mapping[str, Any]]:
    """The mappings in a list; empty where `value` is no list."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, (list, tuple)) else []


def number(value: object) -> float | None:
    """`value` as a float; None for anything that is not one, is not finite or too large to be real."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    if not abs(converted) <= _LARGEST:
        return None
    return converted if abs(converted) >= _SMALLEST else 0.0


def numbers(value: object) -> list[float]:
    """The finite numbers of a list; empty where one of them is none, or `value` no list."""
    found = [number(item) for item in value] if isinstance(value, (list, tuple)) else []
    return [item for item in found if item is not None] if None not in found else []


@dataclass(frozen=True)
class SiteFacts:
    """One place of quantized arithmetic. `sqnr_db` is infinite where nothing was lost and None where not measured.

    `rank` counts the lowest ratios of the run from 1; it is None for all other sites.
    """

    name: str
    role: str
    weight_bits: str
    activation_bits: str
    sqnr_db: float | None
    rank: int | None = None


def site(record: Mapping[str, Any]) -> SiteFacts:
    """One entry of a metrics file's `sites`."""
    bits = mapping(record.get("bits"))
    return SiteFacts(
        name=wording.anything(record.get("name")),
        role=wording.anything(record.get("role")),
        weight_bits=_operand_bits(bits.get("weight")),
        activation_bits=_operand_bits(bits.get("activation")),
        sqnr_db=sqnr(record.get("sqnr_db")),
    )


def _operand_bits(value: object) -> str:
    """A site that multiplies two activations has a pair of widths, and no weight."""
    if value is None:
        return wording.NOT_APPLICABLE
    if isinstance(value, (list, tuple)):
        return " × ".join(wording.anything(item) for item in value)
    return wording.anything(value)


def sqnr(value: object) -> float | None:
    """A signal-to-quantization-noise ratio in dB; infinite where nothing was lost, None where not measured."""
    if isinstance(value, float) and value == math.inf:
        return value
    ratio = number(value)
    return math.inf if ratio is not None and ratio >= _EXACT_DB else ratio
