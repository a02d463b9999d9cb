"""The page of a comparison: runs side by side, accuracy over size and speed, and where sites and classes differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from halfbyte.report import charts, wording
from halfbyte.report.facts import number, sqnr
from halfbyte.report.markup import Html, element, escape, lines
from halfbyte.report.page import Column, contents, details, document, paragraph, section, table
from halfbyte.report.predictions import LEAST_IMAGES
from halfbyte.report.scatter import Point, scatter
from halfbyte.report.sites import MEANING

# Of more runs the charts of sites and classes draw the first ones; the tables have all.
_TONES = ("linear", "other", "product", "convolution")
_DRAWN_RUNS = len(_TONES)
_DRAWN_ROWS = 16
_MOST_ROWS = 400
_NONE = wording.NOT_APPLICABLE


def render_comparison(facts: Mapping[str, Any]) -> str:
    """One complete HTML page from what `compare_runs` gave.

    It refers to nothing outside itself, and the same facts give the same text.
    """
    runs = facts["runs"]
    sections = (
        section("Runs", _warnings(facts["warnings"]), _runs(runs)),
        _trade_off(facts, "Accuracy and size", ("artifact, MB", "MB"), _megabytes),
        _speed(facts),
        _sites(runs, facts["sites"]),
        _classes(runs, facts["classes"]),
    )
    models = ", ".join(dict.fromkeys(run["model"] for run in runs))
    heading = element("h1", escape(f"{len(runs)} runs "), element("span", escape(models)))
    return document(f"{len(runs)} runs, {models}: Halfbyte", lines(heading, contents(*sections)), *sections)


def _warnings(warnings: Sequence[str]) -> Html:
    if not warnings:
        return Html("")
    items = (element("li", escape(f"{text[0].upper()}{text[1:]}.")) for text in warnings)
    return element("ul", lines(*items), class_="warnings", aria_label="What to know before comparing")


def _runs(runs: Sequence[Mapping[str, Any]]) -> Html:
    columns = (
        Column("Run"), Column("Name", "code"), Column("Top-1", "number"), Column("Change", "number"),
        Column("Size", "number"), Column("Time an image", "number"), Column("Agreement", "number"),
        Column("KL", "number"), Column("Method", "whole"), Column("Images", "number"), Column("Pareto front", "whole"),
    )  # fmt: skip
    alike = len({run["model"] for run in runs}) == 1
    rows = [
        (run["label"], run["name"], wording.percent(run["quantized"]["top1"]),
         wording.points(run["float"]["top1"], run["quantized"]["top1"]), wording.size(run["bytes"]["artifact"]),
         _milliseconds(run), wording.percent(run["quantized"]["agreement"]), wording.divergence(run["quantized"]["kl"]),
         run["method"] if alike else f"{run['model']}, {run['method']}", wording.count(run["images"]),
         ", ".join(axis for axis, best in run["front"].items() if best) or _NONE)
        for run in runs
    ]  # fmt: skip
    text = "The change is that of top-1 from the run's own float model."
    return lines(paragraph(text), element("div", table("Runs", columns, rows), class_="dense"))


def _trade_off(facts: Mapping[str, Any], heading: str, names: tuple[str, str], cost: Any) -> Html:
    """Accuracy over what it costs, by the names of axis and unit; nothing where fewer than two runs have both."""
    runs, (axis, unit) = facts["runs"], names
    best = "size" if "size" in heading else "speed"
    known = [run for run in runs
             if None not in (cost(run), run["quantized"]["top1"]) and not run["simulation"]]  # fmt: skip
    if len(known) < 2:
        return Html("")
    points = [
        Point(run["label"], cost(run), run["quantized"]["top1"], run["front"][best],
              f"{run['label']} {run['name']}: {wording.percent(run['quantized']['top1'])}, {cost(run):.3g} {unit}")
        for run in known
    ]  # fmt: skip
    floats = {run["float"]["top1"] for run in known}
    reference = floats.pop() if len(floats) == 1 else None
    left = [run["label"] for run in runs if run not in known]
    text = "Up and to the left is better."
    if facts["same_images"]:
        text += " Runs on the Pareto front are filled and joined: no other is as good for less."
    missing = f" Not drawn, as simulations or not all is known of them: {', '.join(left)}." if left else ""
    spoken = f"{heading}: " + "; ".join(point.title + (", on the front" if point.best else "") for point in points)
    return section(heading, paragraph(text + missing), scatter(points, reference, axis, "top-1, %", spoken))


def _speed(facts: Mapping[str, Any]) -> Html:
    if not facts["same_timing"]:
        return Html("")
    return _trade_off(
        facts, "Accuracy and speed", ("ms an image, native engine", "ms"), lambda run: run["milliseconds"]
    )


def _sites(runs: Sequence[Mapping[str, Any]], sites: Sequence[Mapping[str, Any]]) -> Html:
    """The ratios of signal to noise: by role, where they differ most, and all; nothing where no site is common."""
    common = [site for site in sites if _shared(site)]
    if not common:
        return Html("")
    # Sites of one run alone differ in nothing, and come last.
    order = sorted(sites, key=lambda site: (not _shared(site), -_spread(_ratios(site))))
    differing = [site for site in order if _spread(_ratios(site)) > 0][:_DRAWN_ROWS]
    chosen = sorted(differing, key=common.index)
    listed = sites if len(sites) <= _MOST_ROWS else order[:_MOST_ROWS]
    return section(
        "Error per site",
        paragraph(
            "Signal-to-quantization-noise ratio (SQNR) in dB of the sites that several runs have: longer is better."
            + _drawn_note(runs)
        ),
        _legend(runs),
        _grouped("Median by role", _by_role(common), runs, wording.decibels),
        _grouped("Where runs differ most", [(site["name"], _ratios(site)) for site in chosen], runs, wording.decibels),
        details(f"{_title(sites, listed, 'sites')} as a table", _site_table(runs, listed)),
    )


def _by_role(sites: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[float | None]]]:
    groups: dict[str, list[list[float | None]]] = {}
    for site in sites:
        groups.setdefault(site["role"], []).append(_ratios(site))
    medians = []
    for role, ratios in groups.items():
        columns = [[value for value in column if value is not None] for column in zip(*ratios, strict=True)]
        medians.append((role, [statistics.median_low(column) if column else None for column in columns]))
    return [(role, values) for role, values in medians if any(value is not None for value in values)]


def _ratios(site: Mapping[str, Any]) -> list[float | None]:
    return [None if found is None else sqnr(found["sqnr_db"]) for found in site["runs"]]


def _site_table(runs: Sequence[Mapping[str, Any]], sites: Sequence[Mapping[str, Any]]) -> Html:
    columns = [Column("Site", "code"), Column("Role")]
    for run in runs:
        columns += [Column(f"{run['label']}: bits", "number"), Column(f"{run['label']}: dB", "number")]
    if len(runs) == 2:
        columns.append(Column("B − A, dB", "number"))
    rows = []
    for site in sites:
        cells = [site["name"], MEANING.get(site["role"], site["role"])]
        for found in site["runs"]:
            cells += [_NONE, _NONE] if found is None else [_bits(found), wording.decibels(sqnr(found["sqnr_db"]))]
        if len(runs) == 2:
            cells.append(_difference(_ratios(site)))
        rows.append(cells)
    return table("Sites", columns, rows)


def _bits(found: Mapping[str, Any]) -> str:
    weight, activation = number(found["weight"]), number(found["activation"])
    parts = (f"{letter}{value:g}" for letter, value in (("W", weight), ("A", activation)) if value is not None)
    return "".join(parts) or _NONE


def _classes(runs: Sequence[Mapping[str, Any]], classes: Sequence[Mapping[str, Any]]) -> Html:
    """Top-1 by class: where it differs most, and all; nothing where no class is common."""
    common = [entry for entry in classes if sum(value is not None for value in entry["top1"]) > 1]
    if not common:
        return Html("")
    order = sorted(common, key=lambda entry: -_spread(entry["top1"]))
    enough = [entry for entry in order if _spread(entry["top1"]) > 0 and _least_images(entry) >= LEAST_IMAGES]
    chosen = sorted(enough[:_DRAWN_ROWS], key=common.index)
    few = f" No class that differs has {LEAST_IMAGES} images, so that only the table is given."
    few = few if any(_spread(entry["top1"]) > 0 for entry in common) else " No class differs."
    note = _drawn_note(runs) if chosen else few
    listed = order[:_MOST_ROWS] if len(common) > _MOST_ROWS else common
    return section(
        "Accuracy by class",
        paragraph(f"Top-1 in percent of each class's images.{note}"),
        _legend(runs) if chosen else Html(""),
        _grouped(
            "Where runs differ most", [(entry["name"], entry["top1"]) for entry in chosen], runs, lambda v: f"{v:.1f}"
        ),
        details(f"{_title(common, listed, 'classes')} as a table", _class_table(runs, listed)),
    )


def _title(all_of: Sequence[Any], listed: Sequence[Any], things: str) -> str:
    if listed is all_of:
        return f"All {len(all_of):,} {things}"
    return f"{len(listed):,} of {len(all_of):,} {things}, those that differ most first,"


def _least_images(entry: Mapping[str, Any]) -> int:
    return min(int(count) for count in entry["images"] if count is not None)


def _class_table(runs: Sequence[Mapping[str, Any]], classes: Sequence[Mapping[str, Any]]) -> Html:
    columns = [Column("Class"), Column("Images", "number"), *(Column(run["label"], "number") for run in runs)]
    if len(runs) == 2:
        columns.append(Column("B − A", "number"))
    rows = []
    for entry in classes:
        images = ", ".join(dict.fromkeys(wording.count(count) for count in entry["images"] if count is not None))
        values = [_NONE if value is None else wording.percent(value) for value in entry["top1"]]
        change = [wording.points(*entry["top1"])] if len(runs) == 2 else []
        rows.append([entry["name"], images, *values, *change])
    return table("Accuracy by class", columns, rows)


def _grouped(
    heading: str,
    rows: Iterable[tuple[str, Sequence[float | None]]],
    runs: Sequence[Mapping[str, Any]],
    say: Any,
) -> Html:
    """Bars of the first runs under each other, row by row, in two columns on one scale."""
    groups = [[_bar(name, index, value, runs, say) for index, value in enumerate(values[:_DRAWN_RUNS])]
              for name, values in rows]  # fmt: skip
    if not groups:
        return Html("")
    bars = [bar for group in groups for bar in group]
    axis, margin = charts.scale(bar.value for bar in bars), charts.label_margin(bar.label for bar in bars)
    half = -(-len(groups) // 2)
    panels = []
    for part in (groups[:half], groups[half:]):
        drawn = [bar for group in part for bar in group]
        if drawn:
            spoken = f"{heading}: " + "; ".join(bar.title for bar in drawn)
            chart = charts.bar_chart(drawn, axis, margin, spoken, group=len(part[0]))
            panels.append(element("div", chart, class_="panel"))
    return lines(element("h3", escape(heading)), element("div", lines(*panels), class_="panels"))


def _bar(name: str, index: int, value: float | None, runs: Sequence[Mapping[str, Any]], say: Any) -> charts.Bar:
    letter = runs[index]["label"]
    words = wording.NOT_MEASURED if value is None else say(value)
    return charts.Bar(
        f"{name} {letter}" if index == 0 else letter, value, words, _TONES[index],
        f"{name}, {letter} {runs[index]['name']}: {words}",
    )  # fmt: skip


def _legend(runs: Sequence[Mapping[str, Any]]) -> Html:
    entries = zip(_TONES, runs, strict=False)
    items = (
        element("li", element("span", escape(f"{run['label']} {run['name']}")), class_=tone) for tone, run in entries
    )
    return element("ul", *items, class_="legend")


def _drawn_note(runs: Sequence[Mapping[str, Any]]) -> str:
    if len(runs) <= _DRAWN_RUNS:
        return ""
    return f" Drawn are the first {_DRAWN_RUNS} runs; the table has all."


def _shared(site: Mapping[str, Any]) -> bool:
    return sum(found is not None for found in site["runs"]) > 1


def _spread(values: Sequence[float | None]) -> float:
    # Next to a site without any error every other is infinitely worse.
    known = [value for value in values if value is not None and math.isfinite(value)]
    return max(known) - min(known) if len(known) > 1 else 0.0


def _difference(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None and math.isfinite(value)]
    # Both are rounded first: the difference then agrees with the two numbers printed beside it.
    return wording.signed(round(known[1], 1) - round(known[0], 1), 1) if len(known) == 2 else _NONE


def _megabytes(run: Mapping[str, Any]) -> float | None:
    size = run["bytes"]["artifact"]
    return None if size is None else size / 1e6


def _milliseconds(run: Mapping[str, Any]) -> str:
    return _NONE if run["milliseconds"] is None else wording.milliseconds(run["milliseconds"])
