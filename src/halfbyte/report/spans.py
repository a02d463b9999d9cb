"""Charts of ranges as inline SVG: what a quantizer can hold as a bar, what came as a thin line through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from halfbyte.report.charts import AXIS, ROW, VALUE_MARGIN, Scale, grid, percent, shortened
from halfbyte.report.markup import Html, element, escape, lines

_BAR = 9


@dataclass(frozen=True)
class Span:
    """A bar from `low` to `high`, a line with ends from `least` to `largest`, `text` behind them."""

    label: str
    low: float
    high: float
    least: float
    largest: float
    text: str
    tone: str
    title: str


def span_chart(spans: Sequence[Span], axis: Scale, margin: int, description: str) -> Html:
    """The spans from top to bottom, their labels in a column of `margin` pixels."""
    height = len(spans) * ROW
    rows = (_row(span, axis, index) for index, span in enumerate(spans))
    return element(
        "svg",
        lines(*grid(axis, height), *rows),
        role="img",
        aria_label=description,
        class_="bars spans",
        height=height + AXIS,
        style=f"margin-left:{margin}px;width:calc(100% - {margin + VALUE_MARGIN}px)",
    )


def _row(span: Span, axis: Scale, index: int) -> Html:
    middle = index * ROW + 7.5
    low, high, least, largest = (axis.position(value) for value in (span.low, span.high, span.least, span.largest))
    ends = (
        element("line", x1=percent(edge), x2=percent(edge), y1=f"{middle - 4}", y2=f"{middle + 4}", class_="seen")
        for edge in (least, largest)
    )
    return element(
        "g",
        element("title", escape(span.title)),
        element("text", escape(shortened(span.label)), x=-8, y=index * ROW + 12, class_="label"),
        element("rect", x=percent(low), y=f"{middle - _BAR / 2}", width=percent(high - low), height=_BAR),
        element("line", x1=percent(least), x2=percent(largest), y1=f"{middle}", y2=f"{middle}", class_="seen"),
        *ends,
        element("text", escape(span.text), x="100%", dx=6, y=index * ROW + 12, class_="value"),
        class_=span.tone,
    )
