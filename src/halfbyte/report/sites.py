"""The part of a report about single sites: what quantization cost at each place of the model."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from halfbyte.report import charts, wording
from halfbyte.report.facts import SiteFacts, records, site
from halfbyte.report.markup import Html, element, escape, lines
from halfbyte.report.page import Column, details, paragraph, section, table

_MOST_HIGHLIGHTED = 5
_PANEL_ROWS = 24
# Beyond these no measurement is meant: a damaged file must not squeeze all the other bars to nothing.
_DRAWN_DB = (-40.0, 160.0)

MEANING = {
    "stem": "first layer",
    "qkv": "queries, keys, values",
    "qk": "queries × keys",
    "pv": "attention × values",
    "proj": "attention output",
    "fc1": "MLP, first linear",
    "fc2": "MLP, second linear",
    "gate": "gate",
    "reduction": "downsampling",
    "conv": "convolutions",
    "depthwise": "depthwise convolutions",
    "head": "classifier",
    "side": "compensation beside the blocks",
}
_LEGEND = {
    "linear": "linear",
    "convolution": "convolution",
    "product": "product of two activations",
    "other": "other",
}
_TONE = {
    **dict.fromkeys(("qkv", "proj", "fc1", "fc2", "gate", "reduction", "head"), "linear"),
    **dict.fromkeys(("stem", "conv", "depthwise"), "convolution"),
    **dict.fromkeys(("qk", "pv"), "product"),
}


def tone(role: str) -> str:
    """The class of the style sheet in which the sites of a role are drawn."""
    return _TONE.get(role, "other")


def sites_section(metrics: Mapping[str, Any]) -> Html:
    """The ratio of signal to quantization noise per site: the lowest named, all drawn by role, all listed."""
    sites = rank_lowest([site(record) for record in records(metrics.get("sites"))])
    heading = "Error per site"
    if not sites:
        return section(heading, paragraph("No quantized site was recorded."))
    listing = details(f"All {len(sites):,} sites as a table", _table(sites))
    if all(entry.sqnr_db is None for entry in sites):
        return section(heading, paragraph("The error of single sites was not measured."), listing)
    return section(heading, *_explanation(sites), _legend(sites), _panels(sites), listing)


def rank_lowest(sites: Sequence[SiteFacts]) -> list[SiteFacts]:
    """The sites in their order, those of lowest ratio numbered from 1: five, or a quarter where there are few."""
    measured = [(entry.sqnr_db, index) for index, entry in enumerate(sites) if entry.sqnr_db is not None]
    highlighted = min(_MOST_HIGHLIGHTED, (len(measured) + 2) // 4)
    ranks = {index: rank for rank, (_, index) in enumerate(sorted(measured)[:highlighted], start=1)}
    return [replace(entry, rank=ranks.get(index)) for index, entry in enumerate(sites)]


def _ranked(sites: Sequence[SiteFacts]) -> list[SiteFacts]:
    return sorted((entry for entry in sites if entry.rank), key=lambda entry: entry.rank or 0)


def _explanation(sites: Sequence[SiteFacts]) -> list[Html]:
    text = (
        "Signal-to-quantization-noise ratio (SQNR) of each site's output against the float model, in dB: longer is "
        "better, and at 20 dB the error is a tenth of the signal. All sites are quantized at once, so that a site's "
        "error includes what earlier sites hand on."
    )
    lowest = ", ".join(f"{entry.name} ({wording.decibels(entry.sqnr_db)})" for entry in _ranked(sites))
    return [paragraph(text), *([paragraph(f"Lowest: {lowest}.")] if lowest else [])]


def _legend(sites: Sequence[SiteFacts]) -> Html:
    used = {tone(entry.role) for entry in sites}
    entries = [(tone, text) for tone, text in _LEGEND.items() if tone in used]
    highlighted = len(_ranked(sites))
    if highlighted:
        entries.append(("lowest", "lowest" if highlighted == 1 else f"the {highlighted} lowest, #1 the worst"))
    items = (element("li", element("span", escape(text)), class_=tone) for tone, text in entries)
    return element("ul", *items, class_="legend")


def _panels(sites: Sequence[SiteFacts]) -> Html:
    """One small chart a role, on one scale, so that a column of bars shows how a role fares with depth."""
    axis = charts.scale(_drawn(entry.sqnr_db) for entry in sites)
    margin = charts.label_margin(entry.name for entry in sites)
    groups: dict[str, list[SiteFacts]] = {}
    for entry in sites:
        groups.setdefault(entry.role, []).append(entry)
    groups.pop("side", None)  # runs in no float model: nothing to draw
    panels = (_panel(role, group, axis, margin) for role, group in groups.items())
    return element("div", lines(*panels), class_="panels")


def _panel(role: str, group: Sequence[SiteFacts], axis: charts.Scale, margin: int) -> Html:
    facts = ", ".join(_role_facts(role, group))
    heading = element("h3", escape(f"{role} "), element("span", escape(facts)))
    parts = [
        charts.bar_chart([_bar(entry) for entry in part], axis, margin, f"SQNR in dB of role {role}: {_spoken(part)}")
        for part in _parts(group)
    ]
    # The heading stays with its first chart; a long role continues in the next column.
    first = element("div", heading, parts[0], class_="panel")
    return lines(first, *(element("div", part, class_="panel") for part in parts[1:]))


def _role_facts(role: str, group: Sequence[SiteFacts]) -> Iterator[str]:
    if role in MEANING:
        yield MEANING[role]
    measured = [entry.sqnr_db for entry in group if entry.sqnr_db is not None]
    if len(group) > 1:
        yield f"{len(group)} sites"
        if measured:
            yield f"median {wording.decibels(statistics.median_low(measured))}"


def _parts(group: Sequence[SiteFacts]) -> list[Sequence[SiteFacts]]:
    return [group[start : start + _PANEL_ROWS] for start in range(0, len(group), _PANEL_ROWS)]


def _bar(entry: SiteFacts) -> charts.Bar:
    ratio = wording.decibels(entry.sqnr_db)
    unit = " dB" if entry.sqnr_db is not None and math.isfinite(entry.sqnr_db) else ""
    return charts.Bar(
        label=entry.name,
        value=_drawn(entry.sqnr_db),
        text=f"{ratio} #{entry.rank}" if entry.rank else ratio,
        tone="lowest" if entry.rank else tone(entry.role),
        title=f"{entry.name}: {ratio}{unit}, weight {entry.weight_bits}, activation {entry.activation_bits} bits",
    )


def _drawn(value: float | None) -> float | None:
    low, high = _DRAWN_DB
    return value if value is None or math.isinf(value) else min(max(value, low), high)


def _spoken(group: Sequence[SiteFacts]) -> str:
    return ", ".join(f"{entry.name} {wording.decibels(entry.sqnr_db)}" for entry in group)


def _table(sites: Sequence[SiteFacts]) -> Html:
    columns = (
        Column("Site", "code"),
        Column("Role"),
        Column("Weight bits", "number"),
        Column("Activation bits", "number"),
        Column("SQNR, dB", "number"),
        Column("Lowest", "number"),
    )
    rows = (
        (
            entry.name,
            entry.role,
            entry.weight_bits,
            entry.activation_bits,
            wording.decibels(entry.sqnr_db),
            f"#{entry.rank}" if entry.rank else "",
        )
        for entry in sites
    )
    return table("Sites", columns, rows)
