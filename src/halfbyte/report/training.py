"""The part of a report about training: what each stage took, and how a search for groups settled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbyte.report import charts, wording
from halfbyte.report.facts import mapping, number, records
from halfbyte.report.markup import Html, lines
from halfbyte.report.page import Column, paragraph, section, table

_CURVE_ROWS = 24


def training_section(metrics: Mapping[str, Any]) -> Html:
    """The stages as a table, and for those that searched a curve; nothing where nothing was trained."""
    curves = [_assignments(points) for record in records(metrics.get("steps")) if (points := _curve(record))]
    return lines(_stages(metrics), *curves)


def _stages(metrics: Mapping[str, Any]) -> Html:
    stages = mapping(metrics.get("stages"))
    if not stages:
        return Html("")
    columns = (Column("Stage"), Column("Steps", "number"), Column("Top-1", "number"), Column("Time", "number"))
    rows = []
    for name, value in stages.items():
        stage = mapping(value)
        steps, top1, seconds = (number(stage.get(key)) for key in ("steps", "top1", "seconds"))
        rows.append((str(name), wording.count(steps), wording.percent(top1), wording.duration(seconds)))
    return section("Training stages", table("Training stages", columns, rows))


def _curve(record: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Steps and the entropy of the assignments behind them: some of them, the last one always."""
    pairs = record.get("entropy")
    points = []
    for pair in pairs if isinstance(pairs, list) else []:
        if isinstance(pair, (list, tuple)) and len(pair) == 2:
            step, value = number(pair[0]), number(pair[1])
            if step is not None and value is not None:
                points.append((step, value))
    stride = -(-len(points) // _CURVE_ROWS) or 1
    return points[::-1][::stride][::-1]


def _assignments(points: list[tuple[float, float]]) -> Html:
    bars = [
        charts.Bar(f"step {step:,.0f}", value, f"{value:.3f}", "linear", f"step {step:,.0f}: {value:.4f}")
        for step, value in points
    ]
    axis, margin = charts.scale(bar.value for bar in bars), charts.label_margin(bar.label for bar in bars)
    return section(
        "Search for groups of channels",
        paragraph(
            "Entropy of the assignments, the mean of −w log w over groups and channels: largest where no group "
            "is preferred, zero where each channel has one."
        ),
        charts.bar_chart(bars, axis, margin, "Entropy by step: " + ", ".join(bar.title for bar in bars)),
    )
