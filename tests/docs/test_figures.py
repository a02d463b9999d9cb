"""The figures of the pages are those of the committed results."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
MARK = re.compile(r"<!-- results: ([\w. ]+) -->\n\n((?:\|.*\n)+)")
# Of running text: accuracies (also in a list of several, before its %), KL and megabytes.
FIGURE = re.compile(r"(\d+\.\d)(?= %| of \d+\.\d %|, \d+\.\d %| and \d+\.\d %)|KL (\d\.\d+)|(\d+\.\d+) MB")
# Their figures come from elsewhere: from the papers, from the commands beside them, from sources that they name.
OTHERS = ("published/results.md", "start.md", "reproduce.md", "design.md", "report.md", "training.md", "serving.md")
HEADING = re.compile(r"^#+ .*\n", re.MULTILINE)
# A paragraph behind a table that speaks of the rows with its mark.
NOTE = re.compile(r"^([¹²³⁴]) (.+(?:\n.+)*)", re.MULTILINE)
SETTING = re.compile(r"([a-z_]+\.[a-z_]+=[\w.]+)`")
Row = dict[str, str]


@dataclass(frozen=True)
class Table:
    """A table that names its results: their files, its rows by the names of the columns, what is said before it of all
    rows, and behind it of those with a mark."""

    files: list[str]
    rows: list[Row]
    lead: str
    notes: dict[str, str]

    def records(self) -> list[dict[str, Any]]:
        """What a row may be."""
        return [shown(record) for name in self.files for record in json.loads((RESULTS / name).read_text())]

    def of(self, row: Row) -> str:
        """What is said of one row alone: in its first cell, and in the notes whose marks stand there."""
        cell = row["recipe"]
        return "\n".join([cell, *(self.notes[mark] for mark in cell if mark in "¹²³⁴")])


def tables(page: Path) -> list[Table]:
    """Those of a page, in order."""
    # In turn: the text before a table, its files, the table, the text between it and the next one.
    text, *parts = MARK.split(page.read_text())
    found = []
    for files, table, behind in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        head, _, *lines = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in table.splitlines()]
        rows = [dict(zip(head, line, strict=True)) for line in lines]
        found.append(Table(files.split(), rows, HEADING.split(text)[-1], dict(NOTE.findall(HEADING.split(behind)[0]))))
        text = behind
    return found


def shown(record: dict[str, Any]) -> dict[str, Any]:
    """What a table may say of a record, as it is written there, and what must be said of it."""
    run, quantized = record["run"], record["quantized"]
    widths = run.get("bits")
    return {
        "recipe": run["recipe"],
        "bits": "W{}A{}".format(*widths) if widths and "budget" not in run else "",
        "budget": run.get("budget", ""),
        "stage": run.get("stage", ""),
        "seed": str(run["seed"]),
        "model": f"`{run['model'] if 'model' in run else record['model']}`",
        "top-1": f"{quantized['top1']:.1f}",
        "agreement": f"{quantized['agreement']:.1f}",
        "KL": f"{quantized['kl']:.3f}",
        "MB": f"{record['bytes']['artifact'] / 1e6:.2f}" if "bytes" in record else "",
        "seconds": f"{record['seconds']['total']:.0f}",
        "settings": set(run.get("settings", [])),
        "from": run["from"].split(", ") if "from" in run else [],
    }


def agrees(row: Row, known: dict[str, Any], table: Table) -> bool:
    """Whether every cell of a row is that of a record, an empty one saying nothing, and the page says how it was run.

    What a run set otherwise than its recipe must be named, as `step.parameter=value`, in the row, in a note whose mark
    the row has, or before the table; the row and its notes may name nothing else. Of a run that went on from an
    artifact the recipes of that must be named, since its seconds are those of the last steps alone.
    """
    own, said = set(SETTING.findall(table.of(row))), table.lead + table.of(row)
    return (
        row["recipe"].split("`")[1] == known["recipe"]
        and all(cell in ("", known[column]) for column, cell in row.items() if column != "recipe")
        and own <= known["settings"] <= own | set(SETTING.findall(table.lead))
        and all(f"`{recipe}`" in said for recipe in known["from"])
    )


def disagreeing(table: Table) -> list[Row]:
    """The rows that are those of no record."""
    records = table.records()
    return [row for row in table.rows if not any(agrees(row, record, table) for record in records)]


MARKED = [page for page in PAGES if tables(page) and page.name != "deployment.md"]


def test_the_pages_have_tables() -> None:
    assert len(MARKED) > 10
    # A mark that stands at no table would be passed over.
    for page in PAGES:
        assert page.read_text().count("<!-- results:") == len(tables(page)), page


@pytest.mark.parametrize("page", MARKED, ids=lambda page: page.stem)
def test_every_row_is_a_committed_result(page: Path) -> None:
    for table in tables(page):
        assert not disagreeing(table)


def test_the_times_are_committed_results() -> None:
    (table,) = tables(ROOT / "docs" / "deployment.md")
    measured = [
        {"engine": row["engine"], "milliseconds": f"{row['milliseconds']:.1f}"}
        for row in json.loads((RESULTS / table.files[0]).read_text())["rows"]
        if (row["model"], row["setting"]) == ("artifact, repq w4a4", "default")
    ]
    assert table.rows == measured


def spoken() -> list[tuple[str, tuple[str, str, str]]]:
    """Figures outside of the marked tables: the page and accuracy, KL or megabytes, the other two empty."""
    found = []
    for page in PAGES:
        name = str(page.relative_to(ROOT / "docs"))
        text = re.sub(r"```.*?```", "", MARK.sub("", page.read_text()), flags=re.DOTALL)
        found += [(name, figure) for figure in FIGURE.findall(text) if name not in OTHERS]
    return found


def test_figures_in_running_text_are_committed_results() -> None:
    accuracies, divergences, sizes = set(), set(), set()
    for path in RESULTS.glob("*.json"):
        facts = json.loads(path.read_text())
        for record in facts if isinstance(facts, list) else []:
            if "quantized" in record:
                quantized = record["quantized"]
                accuracies |= {record["float"]["top1"], quantized["top1"], quantized["agreement"]}
                divergences.add(f"{quantized['kl']:.3f}")
                sizes |= {f"{size / 1e6:.2f}" for size in record.get("bytes", {}).values()}
    accuracies |= {row["top1"] for row in json.loads((RESULTS / "engine_agreement.json").read_text())["rows"]}
    known = {f"{accuracy:.1f}" for accuracy in accuracies} | divergences | sizes
    figures = spoken()
    assert len(figures) > 40
    assert not [figure for figure in figures if not set(figure[1]) <= known | {""}]


def test_a_wrong_figure_is_noticed() -> None:
    table, *_ = tables(ROOT / "docs" / "methods" / "repq.md")
    wrong = {**table.rows[0], "top-1": "99.9"}
    assert disagreeing(replace(table, rows=[wrong])) == [wrong]


def test_a_setting_that_is_not_named_is_noticed() -> None:
    table, *_ = tables(ROOT / "docs" / "methods" / "lsq-vvtq.md")
    assert disagreeing(replace(table, lead="")) == [row for row in table.rows if "repq" not in row["recipe"]]
    own = {**table.rows[0], "recipe": table.rows[0]["recipe"] + ", `train.crops=1`"}
    assert disagreeing(replace(table, rows=[own])) == [own]


def test_a_run_from_an_artifact_that_is_not_named_is_noticed() -> None:
    table, *_ = tables(ROOT / "docs" / "methods" / "refit.md")
    (row,) = [row for row in table.rows if "refit-only" in row["recipe"]]
    assert disagreeing(replace(table, rows=[{**row, "recipe": "`refit-only`"}]))
