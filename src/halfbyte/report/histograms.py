"""The part of a report about distributions: the values of single operands, and the levels that they get."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halfbyte.report import charts, wording
from halfbyte.report.drawing import figure, line, line_across, plain, stretched, text
from halfbyte.report.facts import number, numbers, records
from halfbyte.report.markup import Html, element, escape, lines
from halfbyte.report.page import paragraph, section
from halfbyte.report.ranges import OPERANDS
from halfbyte.report.sites import MEANING, tone

_HEIGHT, _RUG = 96, 9
# More levels than these hide what they are drawn over.
_MOST_LINES = 33
# Percent of the values.
_WORTH_TELLING = 0.01
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Distribution:
    """An operand's values: shares in percent of equal bars from `low` to `high`, and beyond; the levels among them.

    Where `logarithmic`, places are octaves; where `codes`, they are codes, the channels having scales of their own.
    """

    operand: str
    kind: str
    bits: str
    low: float
    high: float
    shares: Sequence[float]
    levels: Sequence[float]
    below: float
    above: float
    codes: bool
    logarithmic: bool
    shift: float

    def place(self, value: float) -> float:
        """In percent of the width."""
        return 100 * (value - self.low) / (self.high - self.low)


def histograms_section(findings: Mapping[str, Any]) -> Html:
    """Both operands of a choice of sites; nothing where none are recorded."""
    sites: dict[tuple[str, str], list[Distribution]] = {}
    for record in records(findings.get("histograms")):
        if (found := _distribution(record)) is not None:
            key = (wording.anything(record.get("site")), wording.anything(record.get("role")))
            sites.setdefault(key, []).append(found)
    if not sites:
        return Html("")
    return section(
        "Values and levels",
        paragraph(
            "Of every role the site of lowest SQNR: how its values are distributed, and the levels of its quantizers "
            "as upright lines (many of them as ticks below the axis alone). Heights are square roots of shares, so "
            "that tails can be seen. Where channels have scales of their own, values are drawn in codes; a logarithmic "
            "quantizer has a logarithmic axis."
        ),
        *(_site(name, role, drawn) for (name, role), drawn in sites.items()),
    )


def _distribution(record: Mapping[str, Any]) -> Distribution | None:
    low, high = number(record.get("low")), number(record.get("high"))
    shares, levels = numbers(record.get("shares")), numbers(record.get("levels"))
    if low is None or high is None or not low < high or not shares or min(shares) < -1 or not levels:
        return None
    return Distribution(
        wording.anything(record.get("operand")), wording.anything(record.get("kind")).replace("_", " "),
        wording.anything(record.get("bits")), low, high, shares, levels, number(record.get("below")) or 0.0,
        number(record.get("above")) or 0.0, record.get("codes") is True, record.get("logarithmic") is True,
        number(record.get("shift")) or 0.0,
    )  # fmt: skip


def _site(name: str, role: str, drawn: Sequence[Distribution]) -> Html:
    meaning = f"{role}: {MEANING[role]}" if role in MEANING else role
    heading = element("h3", element("code", escape(name)), element("span", escape(f" {meaning}")))
    figures = (_figure(name, role, entry) for entry in drawn)
    return element("div", heading, element("div", lines(*figures), class_="pair"))


def _figure(name: str, role: str, drawn: Distribution) -> Html:
    caption = ", ".join(_caption(drawn))
    drawing = [
        stretched([element("path", d=_outline(drawn.shares))], len(drawn.shares), 1, 0, _HEIGHT),
        line_across(_HEIGHT, "zero"),
        *(_levels(drawn)),
        *(_axis(drawn)),
    ]
    plot = figure(drawing, _HEIGHT + _RUG + 20, f"Values of {name}, {caption}", f"histogram {tone(role)}")
    return element("figure", plot, element("figcaption", escape(f"{caption}.")))


def _caption(drawn: Distribution) -> Iterator[str]:
    count = len(drawn.levels)
    yield f"{OPERANDS.get(drawn.operand, drawn.operand)}: {drawn.bits} bits, {drawn.kind}"
    if drawn.codes:
        yield "in codes"
    if drawn.shift:
        yield f"each value + {drawn.shift:.3g}"
    yield f"{count} level{'s' * (count != 1)}"
    if drawn.below >= _WORTH_TELLING:
        small = "nearer to zero than the least level" if drawn.logarithmic else "left of the drawing"
        yield f"{wording.share(drawn.below)} {small}"
    if drawn.above >= _WORTH_TELLING:
        yield f"{wording.share(drawn.above)} right of the drawing"


def _outline(shares: Sequence[float]) -> str:
    """The bars' common outline, in a field of one unit a bar and one unit of height."""
    most = max(shares) or 1.0
    steps = "".join(f"V{1 - math.sqrt(max(share, 0.0) / most):.3f}h1" for share in shares)
    return f"M0 1{steps}V1z"


def _levels(drawn: Distribution) -> Iterator[Html]:
    lines_wanted = len(drawn.levels) <= _MOST_LINES
    for level in drawn.levels:
        place = drawn.place(level)
        if 0 <= place <= 100:
            yield line(place, 0 if lines_wanted else _HEIGHT, _HEIGHT + _RUG, "level")


def _axis(drawn: Distribution) -> Iterator[Html]:
    baseline = _HEIGHT + _RUG + 14
    if drawn.logarithmic:
        first, last = math.ceil(drawn.low), math.floor(drawn.high)
        stride = max(1, math.ceil((last - first + 1) / 5))
        marks = [(float(octave), _power(octave)) for octave in range(last, first - 1, -stride)]
    else:
        step = charts.round_step((drawn.high - drawn.low) / 5)
        numbered = range(math.ceil(drawn.low / step), math.floor(drawn.high / step) + 1)
        marks = [(index * step, plain(index * step, step)) for index in numbered]
    for value, words in marks:
        place = drawn.place(value)
        # The outer numbers would hang over the drawing's edges.
        if 3 <= place <= 97:
            yield text(place, baseline, words, "tick")


def _power(octave: int) -> str:
    return "1" if octave == 0 else "2" + str(octave).translate(_SUPERSCRIPTS)
