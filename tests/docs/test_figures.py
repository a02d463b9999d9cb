"""The figures of the pages are those of the committed results."""

from __future__ import annotations

import json
import re
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
Row = dict[str, str]


def tables(page: Path) -> list[tuple[list[str], list[Row]]]:
    """Of each table that names its results: their files, and its rows by the names of the columns."""
    found = []
    for files, text in MARK.findall(page.read_text()):
        head, _, *lines = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in text.splitlines()]
        found.append((files.split(), [dict(zip(head, line, strict=True)) for line in lines]))
    return found


def shown(record: dict[str, Any]) -> dict[str, str]:
    """What a table may say of a record, as it is written there."""
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
    }


def agrees(row: Row, known: dict[str, str]) -> bool:
    """Whether every cell of a row is that of a record; an empty one says nothing."""
    recipe = row["recipe"].split("`")[1]
    return recipe == known["recipe"] and all(
        cell in ("", known[column]) for column, cell in row.items() if column != "recipe"
    )


MARKED = [page for page in PAGES if tables(page) and page.name != "deployment.md"]


def test_the_pages_have_tables() -> None:
    assert len(MARKED) > 10
    # A mark that stands at no table would be passed over.
    for page in PAGES:
        assert page.read_text().count("<!-- results:") == len(tables(page)), page


@pytest.mark.parametrize("page", MARKED, ids=lambda page: page.stem)
def test_every_row_is_a_committed_result(page: Path) -> None:
    for files, rows in tables(page):
        records = [shown(record) for name in files for record in json.loads((RESULTS / name).read_text())]
        for row in rows:
            assert any(agrees(row, record) for record in records), row


def test_the_times_are_committed_results() -> None:
    ((files, rows),) = tables(ROOT / "docs" / "deployment.md")
    measured = [
        {"engine": row["engine"], "milliseconds": f"{row['milliseconds']:.1f}"}
        for row in json.loads((RESULTS / files[0]).read_text())["rows"]
        if (row["model"], row["setting"]) == ("artifact, repq w4a4", "default")
    ]
    assert rows == measured


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
    (files, rows), *_ = tables(ROOT / "docs" / "methods" / "repq.md")
    records = [shown(record) for name in files for record in json.loads((RESULTS / name).read_text())]
    wrong = {**rows[0], "top-1": "99.9"}
    assert not any(agrees(wrong, record) for record in records)
