"""The part of a report about attention: maps of the float model and of the quantized one, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.report import wording
from halfbyte.report.facts import number, numbers, records
from halfbyte.report.markup import Html, element, escape, lines
from halfbyte.report.page import paragraph, picture, section

_SHADES = 10
_MOST_CELLS = 64
_KIND = {
    "class token": "where the class token looks, over the patches of the image",
    "all tokens": "what all tokens look at, over the patches of the image",
    "queries and keys": "queries downwards, keys to the right",
}

Map = Sequence[Sequence[float]]


def attention_section(findings: Mapping[str, Any]) -> Html:
    """Maps of a few images at a few sites; nothing where none are recorded."""
    sites = [drawn for record in records(findings.get("attention")) if (drawn := _site(record))]
    if not sites:
        return Html("")
    return section(
        "Attention",
        paragraph(
            "Attention weights as they are multiplied with the values, the mean over heads. The strongest shade is the "
            "largest weight of a pair of maps, shades are square roots of weights. Similarity is the cosine between "
            "the two maps; zeros are the weights that quantizing makes exactly zero."
        ),
        *sites,
    )


def _site(record: Mapping[str, Any]) -> Html:
    rows = [drawn for image in records(record.get("images")) if (drawn := _image(image, record))]
    if not rows:
        return Html("")
    kind = wording.anything(record.get("kind"))
    heading = element(
        "h3",
        element("code", escape(wording.anything(record.get("site")))),
        element("span", escape(f" {_KIND.get(kind, kind)}")),
    )
    return element("div", heading, element("div", lines(*rows), class_="attention"))


def _image(image: Mapping[str, Any], record: Mapping[str, Any]) -> Html:
    before, after = _map(image.get("float")), _map(image.get("quantized"))
    if not before or not after:
        return Html("")
    most = max(max(map(max, before)), max(map(max, after)))
    likeness, zeros = number(image.get("similarity")), number(image.get("zeros"))
    measured = f"similarity {wording.figures(likeness)}, zeros {wording.share(zeros)}"
    site = wording.anything(record.get("site"))
    maps = (
        heat_map(cells, most, f"Attention of the {which} model at {site}, largest cell {_largest(cells)}")
        for which, cells in (("float", before), ("quantized", after))
    )
    seen = picture(image.get("picture"), "The image that the model sees")
    columns = zip((seen, *maps), ("image", "float", "quantized"), strict=True)
    shown = (element("div", drawing, element("small", escape(words))) for drawing, words in columns if drawing)
    return element(
        "figure", element("div", *shown, class_="maps"), element("figcaption", escape(f"{measured}"))
    )  # fmt: skip


def heat_map(cells: Map, most: float, description: str) -> Html:
    """Cells of values from 0 to `most` in ten shades, one path a shade."""
    rows, columns = len(cells), len(cells[0])
    shades: dict[int, list[str]] = {}
    for y, row in enumerate(cells):
        x = 0
        while x < columns:
            shade, start = _shade(row[x], most), x
            while x < columns and _shade(row[x], most) == shade:
                x += 1
            if shade:
                shades.setdefault(shade, []).append(f"M{start} {y}h{x - start}v1h{start - x}z")
    paths = (
        element("path", d="".join(parts), fill_opacity=f"{shade / _SHADES:g}")
        for shade, parts in sorted(shades.items())
    )
    return element(
        "svg", *paths, role="img", aria_label=description, class_="map", viewBox=f"0 0 {columns} {rows}"
    )  # fmt: skip


def _shade(value: float, most: float) -> int:
    return round(_SHADES * math.sqrt(min(max(value / most, 0.0), 1.0))) if most > 0 else 0


def _map(value: object) -> list[list[float]]:
    """Rows of equal length; empty where it is no map."""
    rows = [numbers(row) for row in value] if isinstance(value, list) else []
    fits = 0 < len(rows) <= _MOST_CELLS and 0 < len(rows[0]) <= _MOST_CELLS
    return rows if fits and all(len(row) == len(rows[0]) for row in rows) else []


def _largest(cells: Map) -> str:
    value, row, column = max((value, y, x) for y, row in enumerate(cells) for x, value in enumerate(row))
    return f"{wording.figures(value)} in row {row + 1}, column {column + 1}"
