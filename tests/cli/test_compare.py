"""`halfbyte compare`: a table, a page and facts of finished runs; anything else is one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Command


@pytest.fixture
def other_run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that says it came out worse."""
    copy = tmp_path / "other run"
    shutil.copytree(finished_run, copy)
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["quantized"]["top1"] -= 10
    metrics["bytes"]["artifact"] += 1000
    (copy / "metrics.json").write_text(json.dumps(metrics))
    return copy


def test_runs_are_compared(halfbyte: Command, finished_run, other_run, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    page, facts = tmp_path / "compare.html", tmp_path / "compare.json"
    outcome = halfbyte("compare", finished_run, other_run, "--out", page, "--json", facts)
    assert outcome.code == 0, outcome.err
    for part in ("other run", "fashion_resnet, percentile", "fashion_resnet in float", "size"):
        assert part in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80
    found = json.loads(facts.read_text())
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert [run["name"] for run in found["runs"]] == [finished_run.name, "other run"]
    assert found["runs"][0]["quantized"]["top1"] == metrics["quantized"]["top1"]
    assert [run["front"]["size"] for run in found["runs"]] == [True, False]
    assert len(found["sites"]) == len(metrics["sites"])
    assert sum(entry["images"][0] for entry in found["classes"]) == 16
    assert page.read_text().startswith("<!DOCTYPE html>\n")
    assert found["warnings"] == []


def test_a_run_that_cannot_be_read_ends_in_one_line(halfbyte: Command, finished_run, other_run, tmp_path) -> None:
    halfbyte("compare", finished_run, tmp_path / "nothing").refused("nothing does not exist", "--out folder")
    (tmp_path / "empty").mkdir()
    halfbyte("compare", tmp_path / "empty", finished_run).refused("empty holds no finished run: it has no metrics.json")
    halfbyte("compare", finished_run / "metrics.json", other_run).refused("holds no finished run")
    metrics = (other_run / "metrics.json").read_bytes()
    for damaged in (b"", metrics[:200], b"[" * 100_000, b"\xff" + metrics, b"[]", b'{"model": 3}'):
        (other_run / "metrics.json").write_bytes(damaged)
        halfbyte("compare", finished_run, other_run).refused(f"{other_run}/metrics.json is damaged")
    (other_run / "metrics.json").write_bytes(metrics)
    for name in ("report.json", "bench.json"):
        (other_run / name).write_text('{"rows": 1')
        halfbyte("compare", finished_run, other_run).refused(f"{other_run}/{name} is damaged", "remove it")
        (other_run / name).unlink()


def test_an_unfinished_run_has_nothing_to_compare(halfbyte: Command, finished_run, stopped_run) -> None:
    halfbyte("compare", finished_run, stopped_run).refused("holds no finished run")


def test_one_run_is_refused_and_one_given_twice(halfbyte: Command, finished_run) -> None:
    halfbyte("compare", finished_run).refused("two runs or more", "report.html")
    again = finished_run.parent / "." / finished_run.name
    halfbyte("compare", finished_run, f"{again}/").refused("is given twice")
    assert halfbyte("compare").code == 2


@pytest.mark.parametrize("option", ["--out", "--json"])
def test_a_place_that_cannot_be_written_is_refused_at_once(
    halfbyte: Command, finished_run, other_run, tmp_path, option
) -> None:
    halfbyte("compare", finished_run, other_run, option, tmp_path).refused(option, "give a file")
    halfbyte("compare", finished_run, other_run, option, tmp_path / "no" / "x").refused(option, "give a file")


def test_runs_of_one_name_are_told_apart_by_their_paths(halfbyte: Command, finished_run, tmp_path) -> None:
    for place in ("one", "two"):
        shutil.copytree(finished_run, tmp_path / place / "run")
    facts = tmp_path / "facts.json"
    assert halfbyte("compare", tmp_path / "one/run", tmp_path / "two/run", "--json", facts).code == 0
    names = [run["name"] for run in json.loads(facts.read_text())["runs"]]
    assert names == [str(tmp_path / "one/run"), str(tmp_path / "two/run")]


def test_comparing_loads_neither_torch_nor_timm(finished_run, other_run) -> None:
    script = (
        "import sys; from halfbyte.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\nprint({'torch', 'timm'} & set(sys.modules))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script, "compare", finished_run, other_run], check=True, capture_output=True, text=True
    ).stdout
    assert printed.endswith("set()\n")


def test_names_of_others_do_not_reach_the_terminal_as_orders(halfbyte: Command, finished_run, tmp_path) -> None:
    copy = tmp_path / "evil\x1b[31mred"
    shutil.copytree(finished_run, copy)
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["recipe"] = "\x1b]0;title\x07[bold]"
    (copy / "metrics.json").write_text(json.dumps(metrics))
    outcome = halfbyte("compare", finished_run, copy)
    assert outcome.code == 0, outcome.err
    assert "evil\ufffd[31mred" in outcome.out
    assert "\ufffd]0;title\ufffd[bold]" in outcome.out
    refused = halfbyte("compare", finished_run, tmp_path / "gone\x1b[31m")
    assert "gone\ufffd[31m" in refused.err
    for text in (outcome.out, refused.err):
        assert not any(letter in text for letter in "\x1b\x07")


def test_the_page_and_the_facts_are_two_files(halfbyte: Command, finished_run, other_run, tmp_path) -> None:
    file = tmp_path / "both"
    halfbyte("compare", finished_run, other_run, "--out", file, "--json", file).refused("--out and --json", "two files")
    assert not file.exists()
