"""What charts share: positions in percent of the width, shapes that stretch with the page, and axes that do not cover
zero.

Text, line widths and heights are CSS pixels; only what is drawn inside `stretched` changes its shape with the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from halfbyte.report.charts import Scale, percent, round_step
from halfbyte.report.markup import Html, element, escape, lines

_MINUS = "\u2212"


def figure(drawing: Sequence[Html], height: int, description: str, class_: str) -> Html:
    """A drawing as wide as its place; `description` is what a reader who cannot see it is told."""
    return element(
        "svg", lines(*drawing), role="img", aria_label=description, class_=class_, width="100%", height=height
    )


def stretched(shapes: Iterable[Html], width: float, height: float, top: int, pixels: int) -> Html:
    """Shapes in a field of `width` x `height` units, spread over the whole width and `pixels` below `top`."""
    return element(
        "svg",
        lines(*shapes),
        x="0", y=top, width="100%", height=pixels, viewBox=f"0 0 {width:g} {height:g}", preserveAspectRatio="none",
    )  # fmt: skip


def line(place: float, top: float, bottom: float, class_: str | None = None) -> Html:
    """An upright line at `place` percent."""
    x = percent(place)
    return element("line", x1=x, x2=x, y1=f"{top:g}", y2=f"{bottom:g}", class_=class_)


def line_across(place: float, class_: str | None = None) -> Html:
    """A level line over the whole width, `place` pixels from the top."""
    return element("line", x1="0%", x2="100%", y1=f"{place:g}", y2=f"{place:g}", class_=class_)


def text(place: float, baseline: float, words: str, class_: str | None = None, dx: int | None = None) -> Html:
    """Words at `place` percent."""
    return element("text", escape(words), x=percent(place), y=f"{baseline:g}", dx=dx, class_=class_)


def window(values: Iterable[float], least: float = -math.inf, most: float = math.inf, intervals: int = 4) -> Scale:
    """A scale with round ticks that holds these finite values with a little room, whether or not zero is near.

    It does not go beyond `least` and `most`, between which its quantity lies, unless values do; both are multiples of
    every step (0, 100).
    """
    found = list(values)
    low, high = min(found), max(found)
    reach = high - low
    # What differs in the last of a float's digits is the same.
    reach = reach if reach > 1e-9 * abs(high) else abs(high) or 1.0
    step = round_step(1.1 * reach / intervals)
    start, end = math.floor((low - 0.04 * reach) / step) * step, math.ceil((high + 0.04 * reach) / step) * step
    return Scale(max(start, least) if low >= least else start, min(end, most) if high <= most else end, step)


def plain(value: float, step: float) -> str:
    """The number at a tick of a scale, with the digits that tell it from its neighbours."""
    if abs(value) >= 1e9 or 0 < step < 1e-9:
        return f"{value:.10g}".replace("-", _MINUS)
    text = f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
    return (text[1:] if float(text.replace(",", "")) == 0 and text[0] == "-" else text).replace("-", _MINUS)
