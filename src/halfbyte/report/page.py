"""The parts of a report's page: the document around it, sections, tables, tiles and blocks of code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from halfbyte.report.markup import Html, element, escape, lines
from halfbyte.report.style import STYLE

# The page needs nothing but its own style sheet, and what it shows came from users' files: let the browser hold it
# to that. Its small pictures are part of it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_HEADING = re.compile(r'<h2 id="([^"]+)">([^<]*)</h2>')
_PICTURE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]{1,40000}={0,2}")


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Column:
    """A table's column; `style` is a class of the style sheet: `number`, `code`, `whole` (on one line) or none."""

    heading: str
    style: str | None = None


def document(title: str, header: Html, *sections: Html) -> str:
    """A complete page in one file, its text the same for the same facts."""
    head = lines(
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", escape(title)),
        element("style", Html(STYLE)),
    )
    body = lines(element("header", header), element("main", lines(*sections)))
    return "<!DOCTYPE html>\n" + element("html", element("head", head), element("body", body), lang="en") + "\n"


def section(heading: str, *content: Html) -> Html:
    """A part of the page under a heading of the second level."""
    return element("section", lines(element("h2", escape(heading), id=_anchor(heading)), *content))


def contents(*sections: Html) -> Html:
    """Links to the sections, by their headings."""
    found = [pair for part in sections for pair in _HEADING.findall(part)]
    items = (element("li", element("a", Html(heading), href=f"#{anchor}")) for anchor, heading in found)
    return element("nav", element("ul", *items), aria_label="Contents")


def picture(address: object, description: str) -> Html:
    """A picture that is part of the page, given as a `data:` address; nothing where it is none."""
    if not isinstance(address, str) or not _PICTURE.fullmatch(address):
        return Html("")
    return element("img", src=address, alt=description)


def paragraph(text: str) -> Html:
    """Running text."""
    return element("p", escape(text))


def tiles(items: Iterable[Tile]) -> Html:
    """The headline numbers side by side."""
    return element("dl", lines(*(_tile(item) for item in items)), class_="tiles")


def table(label: str, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> Html:
    """A table that scrolls in its own frame; `label` names the frame, and each row's first cell names the row."""
    head = element("tr", *(_heading(column) for column in columns))
    body = lines(*(_row(columns, row) for row in rows))
    content = element("table", lines(element("thead", head), element("tbody", body)))
    return element("div", content, class_="scroll", role="region", aria_label=label, tabindex=0)


def code_block(label: str, text: str) -> Html:
    """Text to be read or copied as it stands."""
    return element("pre", element("code", escape(text)), role="region", aria_label=label, tabindex=0)


def details(summary: str, *content: Html) -> Html:
    """Content that is folded away until it is asked for."""
    return element("details", lines(element("summary", escape(summary)), *content))


def _anchor(heading: str) -> str:
    return re.sub(r"\W+", "-", heading.lower())


def _tile(item: Tile) -> Html:
    return element(
        "div",
        element("dt", escape(item.label)),
        element("dd", escape(item.value), class_="value"),
        element("dd", escape(item.note)),
    )


def _heading(column: Column) -> Html:
    aligned = column.style if column.style == "number" else None
    return element("th", escape(column.heading), scope="col", class_=aligned)


def _row(columns: Sequence[Column], cells: Sequence[str]) -> Html:
    first, *others = zip(columns, cells, strict=True)
    return element(
        "tr",
        element("th", escape(first[1]), scope="row", class_=first[0].style),
        *(element("td", escape(cell), class_=column.style) for column, cell in others),
    )
