"""Horizontal bar charts as inline SVG.

Only the bars stretch with the page: positions along the axis are percentages, while text and bar thickness are in
CSS pixels, so that a chart is as legible on a phone as on a desk. Labels and values hang over the drawing's left and
right edge, into margins that the style sheet's `.bars` leaves free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from halfbyte.report.markup import Html, element, escape, lines

ROW = 17
_BAR = 11
_GAP = 9
AXIS = 20
_CHARACTER_WIDTH = 7.3  # of the 12 px monospace labels
_LONGEST_LABEL = 26
VALUE_MARGIN = 62
_INTERVALS = 4


@dataclass(frozen=True)
class Bar:
    """A bar from zero to `value`, `text` written behind it; None draws no bar, infinity fills the scale.

    `tone` is a class of the style sheet: `linear`, `convolution`, `product`, `other` or `lowest`.
    """

    label: str
    value: float | None
    text: str
    tone: str
    title: str


@dataclass(frozen=True)
class Scale:
    """A linear axis with round ticks that covers zero; charts to be compared share one."""

    low: float
    high: float
    step: float

    def position(self, value: float) -> float:
        """Where `value` lies, in percent of the drawing's width; values outside are drawn at the edge."""
        return 100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """The marked values, ascending."""
        return [self.low + index * self.step for index in range(round((self.high - self.low) / self.step) + 1)]


def scale(values: Iterable[float | None]) -> Scale:
    """The scale for these values. Infinite and missing ones have no say."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    step = round_step((high - low or 1.0) / _INTERVALS)
    return Scale(math.floor(low / step) * step, max(math.ceil(high / step), 1) * step, step)


def label_margin(labels: Iterable[str]) -> int:
    """The width in pixels of the column for `labels`; charts to be compared share one."""
    longest = max((len(shortened(label)) for label in labels), default=0)
    return math.ceil(longest * _CHARACTER_WIDTH) + 8


def bar_chart(
    bars: Sequence[Bar], axis: Scale, margin: int, description: str, *, ticks: bool = True, group: int = 0
) -> Html:
    """The bars from top to bottom; `description` is what a reader who cannot see the chart is told.

    Behind every `group` bars there is a gap.
    """
    tops = [index * ROW + (_GAP * (index // group) if group else 0) for index in range(len(bars))]
    height = tops[-1] + ROW if bars else 0
    return element(
        "svg",
        lines(
            *(grid(axis, height) if ticks else ()), *(_row(bar, axis, top) for bar, top in zip(bars, tops, strict=True))
        ),
        role="img",
        aria_label=description,
        class_="bars",
        height=height + (AXIS if ticks else 0),
        style=f"margin-left:{margin}px;width:calc(100% - {margin + VALUE_MARGIN}px)",
    )


def grid(axis: Scale, height: int) -> list[Html]:
    """Lines at the ticks of an axis that is as high, and their numbers below."""
    parts = []
    for value in axis.ticks():
        x = percent(axis.position(value))
        parts.append(element("line", x1=x, x2=x, y1=0, y2=height, class_="zero" if value == 0 else "grid"))
        parts.append(element("text", escape(f"{value:g}".replace("-", "−")), x=x, y=height + 15, class_="tick"))
    return parts


def _row(bar: Bar, axis: Scale, top: int) -> Html:
    tip = 0.0 if bar.value is None else bar.value
    start, end = sorted((axis.position(0), axis.position(tip)))
    baseline = top + 12
    return element(
        "g",
        element("title", escape(bar.title)),
        element("text", escape(shortened(bar.label)), x=-8, y=baseline, class_="label"),
        element("rect", x=percent(start), y=top + 2, width=percent(end - start), height=_BAR),
        element("text", escape(bar.text), x=percent(end), dx=5, y=baseline, class_="value"),
        class_=bar.tone,
    )


def shortened(label: str) -> str:
    """A label, cut in the middle: a module path tells its stage at the front and its layer at the end."""
    if len(label) <= _LONGEST_LABEL:
        return label
    return f"{label[:10]}…{label[-(_LONGEST_LABEL - 11) :]}"


def round_step(rough: float) -> float:
    """A distance of ticks: the smallest of 1, 2, 5 times a power of ten that is no less than `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= rough), 10 * power)


def percent(value: float) -> str:
    """A position or a width, of the drawing's width."""
    return f"{value:.2f}%"
