"""Bars: round scales that cover zero, and bars that start there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from halfbyte.report.charts import Bar, bar_chart, label_margin, scale


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([12.0, 38.4], [0, 10, 20, 30, 40]),
        ([-3.0, 9.0], [-5, 0, 5, 10]),
        ([-7.0, -2.0], [-8, -6, -4, -2, 0, 2]),
        ([0.03], [0, 0.01, 0.02, 0.03]),
        ([None, math.inf], [0, 0.5]),
        ([], [0, 0.5]),
    ],
)
def test_scale_is_round_and_covers_zero(values: list[float | None], ticks: list[float]) -> None:
    assert scale(values).ticks() == pytest.approx(ticks)


def test_bars_start_at_zero(read_page: Callable[..., Any]) -> None:
    bars = [Bar("a", 10.0, "10", "linear", "a"), Bar("b", -5.0, "-5", "linear", "b"), Bar("c", None, "?", "other", "c")]
    page = read_page(bar_chart(bars, scale([-5.0, 10.0]), 50, "three bars"))
    assert [(bar["x"], bar["width"]) for bar in page.all("rect")] == [
        ("33.33%", "66.67%"),
        ("0.00%", "33.33%"),
        ("33.33%", "0.00%"),
    ]
    assert page.all("svg")[0]["aria-label"] == "three bars"


def test_an_infinite_bar_fills_the_scale(read_page: Callable[..., Any]) -> None:
    page = read_page(bar_chart([Bar("a", math.inf, "exact", "linear", "a")], scale([20.0]), 50, "one bar"))
    assert page.all("rect")[0]["width"] == "100.00%"


def test_long_labels_lose_their_middle(read_page: Callable[..., Any]) -> None:
    name = "stages.3.blocks.11.token_mixer.attention.qkv"
    page = read_page(bar_chart([Bar(name, 1.0, "1", "linear", name)], scale([1.0]), 50, "one bar"))
    label = next(text for tag, text in page.texts if tag == "text" and "…" in text)
    assert len(label) == 26
    assert name.startswith(label.split("…")[0])
    assert name.endswith(label.split("…")[1])
    assert label_margin([name]) == label_margin(["x" * 26]) > label_margin(["short"])
