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


def recipes(line: list[str]) -> set[str]:
    """The names in a line's last cell, without what is set of them."""
    return {name.split()[0] for name in re.findall(r"`([^`]+)`", line[-1])}


@pytest.mark.parametrize("table", TABLES)
def test_every_row_of_a_table_is_on_the_page(table: str) -> None:
    rows = TABLES[table]["rows"]
    assert rows
    for row in rows:
        lines = [line for line in LINES if f"`{row['model']}`" in line[0] and row["top1"] in figures(line)]
        run = set(row.get("recipes", TABLES[table]["recipes"]))
        assert any(run <= recipes(line) for line in lines), (row, run, lines)


def test_every_recipe_of_the_page_is_run_by_a_table_or_is_its_deployed_form() -> None:
    run = {name for table in TABLES.values() for row in table["rows"] for name in row.get("recipes", table["recipes"])}
    for line in LINES:
        if re.match(r"`\w+`", line[0]) and "not here" not in line[-1]:
            measured = line[-1].split("deployed")[0]
            assert {name for name in recipes([measured]) if "=" not in name and not name.startswith("--")} <= run, line


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
