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

_ROW = 17
_BAR = 11
_AXIS = 20
_CHARACTER_WIDTH = 7.3  # of the 12 px monospace labels
_LONGEST_LABEL = 26
_VALUE_MARGIN = 62
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
    step = _round_step((high - low or 1.0) / _INTERVALS)
    return Scale(math.floor(low / step) * step, max(math.ceil(high / step), 1) * step, step)


def label_margin(labels: Iterable[str]) -> int:
    """The width in pixels of the column for `labels`; charts to be compared share one."""
    longest = max((len(_shortened(label)) for label in labels), default=0)
    return math.ceil(longest * _CHARACTER_WIDTH) + 8


def bar_chart(bars: Sequence[Bar], axis: Scale, margin: int, description: str, *, ticks: bool = True) -> Html:
    """The bars from top to bottom; `description` is what a reader who cannot see the chart is told."""
    height = len(bars) * _ROW
    return element(
        "svg",
        lines(*(_grid(axis, height) if ticks else ()), *(_row(bar, axis, index) for index, bar in enumerate(bars))),
        role="img",
        aria_label=description,
        class_="bars",
        height=height + (_AXIS if ticks else 0),
        style=f"margin-left:{margin}px;width:calc(100% - {margin + _VALUE_MARGIN}px)",
    )


def _grid(axis: Scale, height: int) -> list[Html]:
    parts = []
    for value in axis.ticks():
        x = _percent(axis.position(value))
        parts.append(element("line", x1=x, x2=x, y1=0, y2=height, class_="zero" if value == 0 else "grid"))
        parts.append(element("text", escape(f"{value:g}".replace("-", "−")), x=x, y=height + 15, class_="tick"))
    return parts


def _row(bar: Bar, axis: Scale, index: int) -> Html:
    top = index * _ROW
    tip = 0.0 if bar.value is None else bar.value
    start, end = sorted((axis.position(0), axis.position(tip)))
    baseline = top + 12
    return element(
        "g",
        element("title", escape(bar.title)),
        element("text", escape(_shortened(bar.label)), x=-8, y=baseline, class_="label"),
        element("rect", x=_percent(start), y=top + 2, width=_percent(end - start), height=_BAR),
        element("text", escape(bar.text), x=_percent(end), dx=5, y=baseline, class_="value"),
        class_=bar.tone,
    )


def _shortened(label: str) -> str:
    """Cut in the middle: a module path tells its stage at the front and its layer at the end."""
    if len(label) <= _LONGEST_LABEL:
        return label
    return f"{label[:10]}…{label[-(_LONGEST_LABEL - 11) :]}"


def _round_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is no less than `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= rough), 10 * power)


def _percent(value: float) -> str:
    return f"{value:.2f}%"
