"""The part of a report about ranges: what the operands of each site hold, and what their levels can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halfbyte.report import charts, wording
from halfbyte.report.facts import number, records
from halfbyte.report.markup import Html, element, escape, lines
from halfbyte.report.page import Column, details, paragraph, section, table
from halfbyte.report.sites import MEANING, tone
from halfbyte.report.spans import Span, span_chart

_PANEL_ROWS = 24
OPERANDS = {"left": "left operand", "right": "right operand", "input": "input", "weight": "weight"}


@dataclass(frozen=True)
class RangeFacts:
    """An operand: the extremes of its values and of its levels, and the percentage of values that is clipped."""

    site: str
    role: str
    operand: str
    low: float
    high: float
    least: float
    largest: float
    clipped: float


def ranges_section(findings: Mapping[str, Any]) -> Html:
    """Ranges of activations by role, those of weights folded away, and all as a table; nothing where none are
    recorded."""
    ranges = [found for record in records(findings.get("ranges")) if (found := _range(record)) is not None]
    if not ranges:
        return Html("")
    activations = [entry for entry in ranges if entry.operand != "weight"]
    weights = [entry for entry in ranges if entry.operand == "weight"]
    return section(
        "Ranges per site",
        paragraph(
            "The bar is what the levels span, the thin line what a few calibration images bring, from the least to the "
            "largest value. The number is the share of values beyond the levels, which are clipped."
        ),
        _panels(activations),
        details("Ranges of weights", _panels(weights)) if weights else Html(""),
        details(f"All {len(ranges):,} ranges as a table", _table(ranges)),
    )


def _range(record: Mapping[str, Any]) -> RangeFacts | None:
    site, role, operand = (wording.anything(record.get(key)) for key in ("site", "role", "operand"))
    values = [number(record.get(key)) for key in ("low", "high", "least", "largest", "clipped")]
    found = [value for value in values if value is not None]
    return RangeFacts(site, role, operand, *found) if len(found) == len(values) else None


def _panels(ranges: Sequence[RangeFacts]) -> Html:
    margin = charts.label_margin(entry.site for entry in ranges)
    groups: dict[tuple[str, str], list[RangeFacts]] = {}
    for entry in ranges:
        groups.setdefault((entry.role, entry.operand), []).append(entry)
    panels = (panel for (role, operand), group in groups.items() for panel in _panel(role, operand, group, margin))
    return element("div", lines(*panels), class_="panels")


def _panel(role: str, operand: str, group: Sequence[RangeFacts], margin: int) -> Iterator[Html]:
    axis = charts.scale(edge for entry in group for edge in (entry.low, entry.high, entry.least, entry.largest))
    meaning = f"{MEANING[role]}, " if role in MEANING else ""
    heading = element("h3", escape(f"{role} "), element("span", escape(f"{meaning}{OPERANDS.get(operand, operand)}")))
    for start in range(0, len(group), _PANEL_ROWS):
        part = group[start : start + _PANEL_ROWS]
        spans = [_span(entry) for entry in part]
        spoken = f"Ranges of {role} {operand}: " + "; ".join(span.title for span in spans)
        drawing = span_chart(spans, axis, margin, spoken)
        yield element("div", *([heading] if start == 0 else []), drawing, class_="panel")


def _span(entry: RangeFacts) -> Span:
    clipped = wording.share(entry.clipped)
    title = (
        f"{entry.site}: levels {_ends(entry.low, entry.high)}, values {_ends(entry.least, entry.largest)}, "
        f"{clipped} clipped"
    )
    ends = (entry.low, entry.high, entry.least, entry.largest)
    return Span(entry.site, *ends, clipped, tone(entry.role), title)


def _table(ranges: Sequence[RangeFacts]) -> Html:
    columns = (
        Column("Site", "code"), Column("Operand"), Column("Least value", "number"), Column("Lowest level", "number"),
        Column("Highest level", "number"), Column("Largest value", "number"), Column("Clipped", "number"),
    )  # fmt: skip
    rows = (
        (
            entry.site,
            OPERANDS.get(entry.operand, entry.operand),
            *(wording.figures(value) for value in (entry.least, entry.low, entry.high, entry.largest)),
            wording.share(entry.clipped),
        )
        for entry in ranges
    )
    return table("Ranges", columns, rows)


def _ends(low: float, high: float) -> str:
    return f"{wording.figures(low)} to {wording.figures(high)}"
