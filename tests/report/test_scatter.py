"""Points stand where their figures say, and labels do not cover each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from halfbyte.report.drawing import plain, window
from halfbyte.report.scatter import Point, scatter


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([81.1, 92.6], [80, 85, 90, 95]),
        ([0.36, 0.78], [0.2, 0.4, 0.6, 0.8]),
        ([5.0], [4, 6]),
        ([0.0], [-0.5, 0, 0.5]),
        ([-3.0, -2.0], [-3.5, -3, -2.5, -2, -1.5]),
    ],
)
def test_a_window_is_round_and_holds_its_values(values: list[float], ticks: list[float]) -> None:
    found = window(values)
    assert found.ticks() == pytest.approx(ticks)
    assert all(0 < found.position(value) < 100 for value in values)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.1, 79.2], [0, 50, 100]),
        ([97.0, 100.0], [96, 97, 98, 99, 100]),
        ([0.48, 43.9], [0, 20, 40, 60]),
        ([0.0], [0, 0.5]),
        ([-1.0, 101.0], [-50, 0, 50, 100, 150]),
    ],
)
def test_a_window_does_not_go_beyond_what_can_be(values: list[float], ticks: list[float]) -> None:
    found = window(values, 0, 100)
    assert found.ticks() == pytest.approx(ticks)
    assert all(0 <= found.position(value) <= 100 for value in values)


@pytest.mark.parametrize(
    ("values", "first", "second"),
    [
        ([22.05123, 22.05131], "22.05120", "22.05125"),
        ([43.9, 43.9001], "43.89995", "43.90000"),
        ([81.1, 92.6], "80", "85"),
        ([0.36, 0.78], "0.2", "0.4"),
        ([-0.3, 0.4], "−0.4", "−0.2"),
        ([1500.0, 3500.0], "1,000", "2,000"),
        ([7.0, 7.0 + 1e-15], "6", "8"),
    ],
)
def test_ticks_are_told_apart(values: list[float], first: str, second: str) -> None:
    found = window(values)
    words = [plain(tick, found.step) for tick in found.ticks()]
    assert words[:2] == [first, second]
    assert len(set(words)) == len(words)


def points(*places: tuple[float, float]) -> list[Point]:
    return [Point(chr(65 + index), x, y, index % 2 == 0, "run") for index, (x, y) in enumerate(places)]


def test_less_cost_is_left_and_more_value_is_up(read_page: Callable[..., Any]) -> None:
    page = read_page(scatter(points((1.0, 50.0), (2.0, 60.0)), 62.0, "MB", "top-1, %", "two runs"))
    (left, low), (right, high) = [
        (float(dot["cx"].rstrip("%")), float(dot["cy"])) for dot in page.all("circle")
    ]  # fmt: skip
    assert left < right
    assert low > high
    assert any(line.get("class") == "reference" for line in page.all("line"))
    assert page.all("svg")[0]["aria-label"] == "two runs"


def test_labels_of_points_at_one_place_stand_beside_and_below_each_other(read_page: Callable[..., Any]) -> None:
    crowd = points(*((1.0 + 0.001 * index, 50.0 + 0.01 * index) for index in range(6)), (9.0, 90.0))
    page = read_page(scatter(crowd, None, "MB", "top-1, %", "crowded"))
    sides: dict[str, list[float]] = {"letter": [], "letter end": []}
    for attributes in page.all("text"):
        if attributes.get("class") in sides and float(attributes["x"].rstrip("%")) < 50:
            sides[attributes["class"]].append(float(attributes["y"]))
    assert [len(heights) for heights in sides.values()] == [3, 3]
    for heights in sides.values():
        assert all(lower - upper >= 15 for upper, lower in itertools.pairwise(sorted(heights)))


def test_the_front_goes_in_steps_through_its_points(read_page: Callable[..., Any]) -> None:
    page = read_page(scatter(points((1, 50), (2, 40), (3, 60)), None, "MB", "top-1, %", "front"))
    (path,) = page.all("path")
    # Horizontal to the next cost, then up: what lies between costs as much as the dearer one.
    assert path["d"].count("H") == path["d"].count("V") == 1
    alone = read_page(scatter(points((1, 50), (2, 40)), None, "MB", "top-1, %", "front"))
    assert alone.all("path") == []
