"""Points of cost and value as inline SVG, the best of them joined by their Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from halfbyte.report.charts import Scale, percent
from halfbyte.report.drawing import figure, line, line_across, plain, stretched, text, window
from halfbyte.report.markup import Html, element, escape

_HEIGHT, _TOP, _BELOW = 300, 30, 44
# How near two labels may come, in percent of the width (a phone's is 300 pixels) and in pixels.
_NEAR, _LINE, _EDGE = 5.0, 15, 94.0
_UNITS = 1000


@dataclass(frozen=True)
class Point:
    """A run by its letter, or a reference without one; `best` is on the front."""

    label: str
    cost: float
    value: float
    best: bool
    title: str


def scatter(points: Sequence[Point], reference: float | None, cost: str, value: str, description: str) -> Html:
    """The points over axes named `cost` (less is better, none below 0) and `value` (percent, more is better);
    `reference` is a level line."""
    heights = [point.value for point in points] + ([] if reference is None else [reference])
    across, up = window((point.cost for point in points), 0), window(heights, 0, 100)
    places = [(across.position(point.cost), _level(up, point.value)) for point in points]
    labels = _apart(places)
    drawing = [
        *_grid(across, up),
        *_reference(reference, up),
        *_front(points, places),
        *(_dot(point, place, label) for point, place, label in zip(points, places, labels, strict=True)),
        text(0, 12, value, "name"),
        text(100, _TOP + _HEIGHT + 36, cost, "name end"),
    ]
    return figure(drawing, _TOP + _HEIGHT + _BELOW, description, "scatter")


def _level(axis: Scale, value: float) -> float:
    """Pixels from the top."""
    return _TOP + _HEIGHT * (1 - axis.position(value) / 100)


def _grid(across: Scale, up: Scale) -> list[Html]:
    parts = []
    for tick in across.ticks():
        place = across.position(tick)
        parts += [line(place, _TOP, _TOP + _HEIGHT), text(place, _TOP + _HEIGHT + 17, plain(tick, across.step), "tick")]
    for tick in up.ticks():
        level = _level(up, tick)
        parts += [line_across(level), text(0, level + 4, plain(tick, up.step), "end", dx=-8)]
    return parts


def _reference(value: float | None, up: Scale) -> list[Html]:
    if value is None:
        return []
    # Named above the drawing, where no point's letter can be.
    return [line_across(_level(up, value), "reference"), text(100, 12, f"dashed: float, {value:.2f}", "end")]


def _front(points: Sequence[Point], places: Sequence[tuple[float, float]]) -> list[Html]:
    """Steps from the cheapest of the best to the dearest: between them nothing better was found."""
    best = sorted(place for point, place in zip(points, places, strict=True) if point.best)
    if len(best) < 2:
        return []
    path = "".join(
        f"{f'H{x * _UNITS / 100:.1f}V' if index else f'M{x * _UNITS / 100:.1f} '}{y - _TOP:.1f}"
        for index, (x, y) in enumerate(best)
    )
    shape = element("path", d=path, class_="front", vector_effect="non-scaling-stroke")
    return [stretched([shape], _UNITS, _HEIGHT, _TOP, _HEIGHT)]


def _dot(point: Point, place: tuple[float, float], label: tuple[bool, float]) -> Html:
    x, y = place
    left, height = label
    radius, class_ = (6, "best") if point.best else (5, None)
    return element(
        "g",
        element("title", escape(point.title)),
        element("circle", cx=percent(x), cy=f"{y:.1f}", r=radius, class_=class_),
        text(x, height + 4, point.label, "letter end" if left else "letter", dx=-9 if left else 9),
    )


def _apart(places: Sequence[tuple[float, float]]) -> list[tuple[bool, float]]:
    """Where each point's label stands, left of it or right, and how high: none covers another."""
    taken: dict[int, tuple[bool, float]] = {}
    for index in sorted(range(len(places)), key=lambda index: places[index][1]):
        x, y = places[index]
        near = [label for other, label in taken.items() if abs(places[other][0] - x) < _NEAR]
        # At the right edge the left side is tried first.
        sides = (True, False) if x > _EDGE else (False, True)
        tried = ((left, y + _LINE * below) for below in range(len(places)) for left in sides)
        taken[index] = next(label for label in tried if not any(_cover(label, other) for other in near))
    return [taken[index] for index in range(len(places))]


def _cover(one: tuple[bool, float], other: tuple[bool, float]) -> bool:
    return one[0] == other[0] and abs(one[1] - other[1]) < _LINE
