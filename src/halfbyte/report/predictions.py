"""The part of a report about predictions: classes that gained or lost, and images whose prediction changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halfbyte.report import charts, wording
from halfbyte.report.facts import mapping, number, records
from halfbyte.report.markup import Html, element, escape, lines
from halfbyte.report.page import Column, details, paragraph, picture, section, table

_DRAWN = 12
# Of fewer images one alone changes a class by more than ten points.
LEAST_IMAGES = 10
_MOST_ROWS = 200


@dataclass(frozen=True)
class ClassFacts:
    """A class: its name (its number, where it has none), its images, and the percentages of them that the float and
    the quantized model get right."""

    name: str
    images: int
    before: float
    after: float
    is_named: bool = True

    @property
    def change(self) -> float:
        """In percentage points."""
        return self.after - self.before


def classes(findings: Mapping[str, Any]) -> dict[int, ClassFacts]:
    """The classes of a run by number."""
    found = {}
    for record in records(findings.get("classes")):
        label, *counts = (number(record.get(key)) for key in ("class", "images", "float", "quantized"))
        images, before, after = counts
        if label is not None and images is not None and before is not None and after is not None and images >= 1:
            found[int(label)] = ClassFacts(
                _class_name(record), int(images), 100 * before / images, 100 * after / images,
                isinstance(record.get("name"), str),
            )  # fmt: skip
    return found


def classes_section(findings: Mapping[str, Any]) -> Html:
    """How top-1 changed class by class; nothing where that is not recorded."""
    found = list(classes(findings).values())
    if not found:
        return Html("")
    # Of equal changes the class with more images comes first.
    order = sorted(found, key=lambda entry: (-abs(entry.change), -entry.images))
    drawn = [entry for entry in order if entry.change and entry.images >= LEAST_IMAGES][:_DRAWN]
    listed = order[:_MOST_ROWS] if len(found) > _MOST_ROWS else found
    title = f"All {_classes(found)}" if listed is found else f"The {_MOST_ROWS} classes that changed most"
    listing = details(f"{title} as a table", _table(listed))
    return section("Accuracy by class", _summary(found, len(drawn)), _chart(drawn), listing)


def _summary(found: Sequence[ClassFacts], drawn: int) -> Html:
    worse, better = (sum(sign * entry.change > 0 for entry in found) for sign in (-1, 1))
    those = "The one that changed" if drawn == 1 else f"The {drawn} that changed most"
    if any(entry.images < LEAST_IMAGES for entry in found):
        those = f"Of classes with {LEAST_IMAGES} images or more, {those[0].lower()}{those[1:]}"
    shown = f" {those}, in percentage points of top-1:" if drawn else ""
    few = all(entry.images < LEAST_IMAGES for entry in found)
    shown = f" Each has fewer than {LEAST_IMAGES} images, too few to say more of single classes." if few else shown
    return paragraph(f"Of {_classes(found)} with images, {worse:,} lost accuracy and {better:,} gained.{shown}")


def _classes(found: Sequence[ClassFacts]) -> str:
    return f"{len(found):,} {'class' if len(found) == 1 else 'classes'}"


def _chart(drawn: Sequence[ClassFacts]) -> Html:
    if not drawn:
        return Html("")
    bars = [
        charts.Bar(
            entry.name, entry.change, wording.signed(entry.change, 1), "lowest" if entry.change < 0 else "linear",
            f"{entry.name}: {wording.percent(entry.before)} to {wording.percent(entry.after)}, {entry.images} images",
        )
        for entry in drawn
    ]  # fmt: skip
    axis, margin = charts.scale(bar.value for bar in bars), charts.label_margin(bar.label for bar in bars)
    spoken = "Change of top-1 by class: " + "; ".join(bar.title for bar in bars)
    return element("div", charts.bar_chart(bars, axis, margin, spoken), class_="wide")


def _table(found: Sequence[ClassFacts]) -> Html:
    columns = (
        Column("Class"), Column("Images", "number"), Column("Float", "number"), Column("Quantized", "number"),
        Column("Change", "number"),
    )  # fmt: skip
    rows = (
        (entry.name, wording.count(entry.images), wording.percent(entry.before), wording.percent(entry.after),
         wording.points(entry.before, entry.after))
        for entry in found
    )  # fmt: skip
    return table("Accuracy by class", columns, rows)


def changed_section(findings: Mapping[str, Any]) -> Html:
    """The images whose first class changed; nothing where that is not recorded."""
    changed = mapping(findings.get("changed"))
    count, total = number(changed.get("count")), number(changed.get("of"))
    if count is None or total is None:
        return Html("")
    cards = [_card(record) for record in records(changed.get("shown"))]
    shown = f" Shown are the {len(cards)} of which the float model was surest." if 0 < len(cards) < count else ""
    text = f"{wording.count(count)} of {wording.count(total)} images have another first class than in float.{shown}"
    grid = element("ul", lines(*cards), class_="cards") if cards else Html("")
    return section("Changed predictions", paragraph(text), grid)


def _card(record: Mapping[str, Any]) -> Html:
    label, truth = record.get("class"), _class_name(record)
    facts = [_fact("class", truth, "")]
    for key in ("float", "quantized"):
        said = mapping(record.get(key))
        chance = number(said.get("probability"))
        verdict = "right" if said.get("class") == label else "wrong"
        sure = "" if chance is None else f" {wording.share(100 * chance)}"
        facts.append(_fact(key, f"{_class_name(said)}{sure}", verdict))
    name = wording.anything(record.get("image"))
    return element(
        "li", picture(record.get("picture"), f"Image {name} of class {truth}"), element("dl", *facts)
    )  # fmt: skip


def _fact(term: str, words: str, verdict: str) -> Html:
    judged = element("span", escape(verdict), class_=verdict) if verdict else Html("")
    return element("div", element("dt", escape(term)), element("dd", escape(f"{words} "), judged))


def _class_name(record: Mapping[str, Any]) -> str:
    name = record.get("name")
    return name if isinstance(name, str) else f"class {wording.anything(record.get('class'))}"
