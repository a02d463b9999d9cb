"""`halfbyte report`, and the times of engines that a report shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.cli.conftest import Command

from halfbyte.run_files import keep_bench, read_run

BENCH = {
    "schema": 1, "model": "fashion_resnet", "isa": "avx2", "cpu": "A processor", "rounds": 2,
    "rows": [
        {"engine": name, "threads": 1, "batch_size": 1, "milliseconds": spent, "images_per_second": 1000 / spent}
        for name, spent in (("torch eager", 5.0), ("native", 2.0))
    ],
}  # fmt: skip


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_a_report_is_made_again_of_the_files_alone(halfbyte: Command, run, tmp_path) -> None:
    page = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    outcome = halfbyte("report", run, "--json", tmp_path / "facts.json")
    assert outcome.code == 0, outcome.err
    assert (run / "report.html").read_bytes() == page
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["metrics"] == json.loads((run / "metrics.json").read_text())
    assert facts["findings"]["classes"]
    assert b"Changed predictions" in page
    assert b"Values and levels" in page


def test_a_run_of_an_earlier_version_has_a_plainer_report(halfbyte: Command, run) -> None:
    (run / "report.json").unlink()
    assert halfbyte("report", run).code == 0
    page = (run / "report.html").read_text()
    assert "Error per site" in page
    assert "Values and levels" not in page


def test_what_is_no_run_ends_in_one_line(halfbyte: Command, run, tmp_path) -> None:
    halfbyte("report", tmp_path / "nothing").refused("nothing does not exist")
    page = (run / "report.html").read_bytes()
    (run / "report.json").write_text("{")
    halfbyte("report", run).refused("report.json is damaged", "remove it")
    assert (run / "report.html").read_bytes() == page


def test_times_are_kept_with_the_run_and_shown(run) -> None:
    assert keep_bench(run, BENCH)
    assert read_run(run).bench == BENCH
    page = (run / "report.html").read_text()
    assert "2.50×" in page
    assert "A processor" in page


def test_times_of_what_is_no_run_are_not_kept(run, tmp_path) -> None:
    (run / "metrics.json").unlink()
    assert not keep_bench(run, BENCH)
    assert not (run / "bench.json").exists()


def test_a_new_run_gives_up_the_times_of_the_old_one(quantize, run) -> None:
    assert keep_bench(run, BENCH)
    assert quantize("--out", run, "--force").code == 0
    assert not (run / "bench.json").exists()
    assert "A processor" not in (run / "report.html").read_text()
