"""The part of a report about bit widths: one column a site, weights above the line and activations below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.report.charts import percent
from halfbyte.report.drawing import figure, line_across, text
from halfbyte.report.facts import mapping, number, records
from halfbyte.report.markup import Html, element, escape
from halfbyte.report.page import paragraph, section
from halfbyte.report.sites import tone
from halfbyte.report.wording import anything

_MOST_BITS = 8
_UNIT = 7  # pixels a bit
_MIDDLE = 14 + _MOST_BITS * _UNIT
_MARKS = (2, 4, 8)


def bits_section(metrics: Mapping[str, Any]) -> Html:
    """The bits of both operands of every site, in the order in which they run; nothing where none are recorded."""
    sites = [(record, *_widths(record)) for record in records(metrics.get("sites"))]
    if not any(weight or activation for _, weight, activation in sites):
        return Html("")
    share = 100 / len(sites)
    columns = [_column(entry, share * index, share) for index, entry in enumerate(sites)]
    marks = [mark for bits in _MARKS for mark in _mark(bits)]
    drawing = [
        *marks, *columns, line_across(_MIDDLE, "zero"),
        text(0, 10, "weights, bits", "note"), text(0, 2 * _MIDDLE + 8, "activations, bits", "note"),
        text(100, 2 * _MIDDLE + 8, "sites, first to last", "note end"),
    ]  # fmt: skip
    return section(
        "Bits per site",
        paragraph(
            "One column a site, in the order in which they run: bits of its weights upwards, of its activations "
            "downwards. A product of two activations has no weight."
        ),
        figure(drawing, 2 * _MIDDLE + 12, f"Bits of {len(sites)} sites: {_spoken(sites)}", "bits"),
    )


def _widths(record: Mapping[str, Any]) -> tuple[float | None, float | None]:
    bits = mapping(record.get("bits"))
    activation = bits.get("activation")
    # Of a pair of activations the wider one is drawn; the table has both.
    pair = activation if isinstance(activation, (list, tuple)) else [activation]
    found = [value for item in pair if (value := number(item)) is not None]
    return _clipped(number(bits.get("weight"))), _clipped(max(found, default=None))


def _clipped(bits: float | None) -> float | None:
    return None if bits is None else min(max(bits, 0.0), float(_MOST_BITS))


def _column(entry: tuple[Mapping[str, Any], float | None, float | None], left: float, width: float) -> Html:
    record, weight, activation = entry
    name, role = anything(record.get("name")), anything(record.get("role"))
    parts = [element("title", escape(f"{name}: weights {_said(weight)}, activations {_said(activation)}"))]
    for bits, upwards in ((weight, True), (activation, False)):
        if bits:
            height = bits * _UNIT
            top = _MIDDLE - height if upwards else _MIDDLE
            side = {"x": percent(left + 0.1 * width), "width": percent(0.8 * width)}
            parts.append(element("rect", y=f"{top:g}", height=f"{height:g}", **side))
    return element("g", *parts, class_=tone(role))


def _mark(bits: int) -> list[Html]:
    """Thin lines at so many bits above and below, with their number at the right end."""
    places = (_MIDDLE - bits * _UNIT, _MIDDLE + bits * _UNIT)
    return [part for y in places for part in (line_across(y), text(100, y + 4, str(bits), "tick", dx=10))]


def _said(bits: float | None) -> str:
    return "none" if bits is None else f"{bits:g} bits"


def _spoken(sites: Sequence[tuple[Mapping[str, Any], float | None, float | None]]) -> str:
    counts: dict[str, int] = {}
    for _, weight, activation in sites:
        words = f"weights {_said(weight)} and activations {_said(activation)}"
        counts[words] = counts.get(words, 0) + 1
    return ", ".join(f"{words} at {count}" for words, count in counts.items())
