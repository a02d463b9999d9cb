"""The part of a report about the whole model: accuracy, size and operations before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbyte.report import charts, wording
from halfbyte.report.facts import mapping, number
from halfbyte.report.markup import Html, element
from halfbyte.report.page import Column, Tile, paragraph, section, table, tiles
from halfbyte.report.speed import speed_tile


def summary(metrics: Mapping[str, Any], bench: Mapping[str, Any]) -> Html:
    """The four numbers that a reader came for."""
    total = number(mapping(metrics.get("seconds")).get("total"))
    time = Tile("Time", wording.duration(total), "all steps, without evaluation")
    return tiles((_top1_tile(metrics), _agreement_tile(metrics), _size_tile(metrics), speed_tile(bench) or time))


def accuracy_section(metrics: Mapping[str, Any]) -> Html:
    """Every measure of the whole model, float against quantized."""
    columns = (Column("Measure"), Column("Float", "number"), Column("Quantized", "number"), Column("Change", "number"))
    rows = [*_accuracy_rows(metrics), *_cost_rows(metrics)]
    return section(
        "Accuracy and size",
        paragraph(_evaluation(metrics)),
        table("Accuracy and size", columns, rows),
        _size_chart(metrics),
    )


def _top1_tile(metrics: Mapping[str, Any]) -> Tile:
    before = number(mapping(metrics.get("float")).get("top1"))
    after = number(mapping(metrics.get("quantized")).get("top1"))
    change = "" if before is None or after is None else f", {wording.points(before, after)}"
    return Tile("Top-1 accuracy", wording.percent(after), f"float {wording.percent(before)}{change}")


def _agreement_tile(metrics: Mapping[str, Any]) -> Tile:
    agreement = number(mapping(metrics.get("quantized")).get("agreement"))
    return Tile("Agreement", wording.percent(agreement), "of images: same class as the float model")


def _size_tile(metrics: Mapping[str, Any]) -> Tile:
    size = mapping(metrics.get("bytes"))
    before, after = number(size.get("float")), number(size.get("artifact"))
    change = f", {wording.shrinkage(before, after)}" if before and after else ""
    return Tile("Size", wording.size(after), f"float {wording.size(before)}{change}")


def _evaluation(metrics: Mapping[str, Any]) -> str:
    if number(mapping(metrics.get("quantized")).get("top1")) is None:
        return "The quantized model was not evaluated; the last section tells how to."
    images = number(mapping(metrics.get("images")).get("evaluation"))
    return f"Evaluation images: {wording.count(images)}."


def _accuracy_rows(metrics: Mapping[str, Any]) -> list[tuple[str, ...]]:
    before, after = mapping(metrics.get("float")), mapping(metrics.get("quantized"))
    rows: list[tuple[str, ...]] = []
    for key, name in (("top1", "Top-1 accuracy"), ("top5", "Top-5 accuracy")):
        old, new = number(before.get(key)), number(after.get(key))
        rows.append((name, wording.percent(old), wording.percent(new), wording.points(old, new)))
    none = wording.NOT_APPLICABLE
    rows.append(("Agreement with float", none, wording.percent(number(after.get("agreement"))), none))
    rows.append(("KL divergence from float", none, wording.divergence(number(after.get("kl"))), none))
    return rows


def _cost_rows(metrics: Mapping[str, Any]) -> list[tuple[str, ...]]:
    size, operations = mapping(metrics.get("bytes")), mapping(metrics.get("operations"))
    old, new = number(size.get("float")), number(size.get("artifact"))
    macs, bit_operations = number(operations.get("macs")), number(operations.get("bit_operations"))
    # Runs of earlier versions lack it.
    shipped = number(size.get("shipped"))
    beside = number(operations.get("side_macs")) or 0.0
    plain = None if macs is None else macs - beside
    none = wording.NOT_APPLICABLE
    rows: list[tuple[str, ...]] = [
        ("Size", wording.size(old), wording.size(new), wording.shrinkage(old, new)),
        *([("Size of all files", none, wording.size(shipped), none)] if shipped is not None else []),
        ("MACs per image", wording.magnitude(plain), wording.magnitude(macs), none),
        ("Bit operations per image", none, wording.magnitude(bit_operations), none),
    ]
    if beside:
        bits = number(operations.get("side_bit_operations"))
        rows += [
            ("Size of compensation", none, wording.size(number(size.get("side"))), none),
            ("MACs of compensation", none, wording.magnitude(beside), none),
            ("Bit operations of compensation", none, wording.magnitude(bits), none),
        ]
    return rows


def _size_chart(metrics: Mapping[str, Any]) -> Html:
    size = mapping(metrics.get("bytes"))
    measures = (("float", "other"), ("artifact", "linear"))
    bars = []
    for name, tone in measures:
        value = number(size.get(name))
        if value is None or value < 0:
            return Html("")
        bars.append(charts.Bar(name, value, wording.size(value), tone, f"{name}: {wording.size(value)}"))
    axis = charts.scale(bar.value for bar in bars)
    spoken = "Size: " + ", ".join(bar.title for bar in bars)
    drawing = charts.bar_chart(bars, axis, charts.label_margin(bar.label for bar in bars), spoken, ticks=False)
    return element("div", drawing, class_="sizes")
