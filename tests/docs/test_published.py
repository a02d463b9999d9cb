"""The page of published results and the tables that `reproduce` runs say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TABLES = {
    path.stem: yaml.safe_load(path.read_text())
    for path in sorted((ROOT / "src" / "halfbyte" / "reproduce" / "tables").glob("*.yaml"))
}
LINES = [
    [cell.strip() for cell in line[1:-1].split("|")]
    for line in (ROOT / "docs" / "published" / "results.md").read_text().splitlines()
    if line.startswith("| ")
]


def figures(line: list[str]) -> list[float]:
    """The numbers of a line's cells."""
    return [float(cell) for cell in line[1:] if re.fullmatch(r"\d+\.\d+", cell)]


@pytest.mark.parametrize("table", TABLES)
def test_every_row_of_a_table_is_on_the_page(table: str) -> None:
    rows = TABLES[table]["rows"]
    assert rows
    for row in rows:
        lines = [line for line in LINES if f"`{row['model']}`" in line[0]]
        assert any(row["top1"] in figures(line) for line in lines), row


def test_every_figure_of_the_page_is_in_a_table() -> None:
    known: dict[str, set[float]] = {}
    for table in TABLES.values():
        for row in table["rows"]:
            known.setdefault(row["model"], set()).add(row["top1"])
        for name, model in table["models"].items():
            known.setdefault(name, set()).add(model["top1"])
    seen = 0
    for line in LINES:
        model = re.match(r"`(\w+)`", line[0])
        if model is None or "not here" in line[-1]:
            continue
        for figure in figures(line):
            assert figure in known[model[1]], (line[0], figure)
            seen += 1
    assert seen > 100
