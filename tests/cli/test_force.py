"""A run is run over with `--force` alone, and its results stay until there are new ones."""

from __future__ import annotations

import json
import shutil

from halfbyte import api
from halfbyte.session import Session


def test_a_finished_run_is_not_run_over(quantize, out, read_run):
    assert quantize().code == 0
    before = read_run(out).everything
    quantize().refused(f"--out {out} holds a finished run", "--force", "another --out")
    assert read_run(out).everything == before


def test_force_replaces_a_run_and_leaves_other_files(quantize, out, finished_run, read_run, contents):
    shutil.copytree(finished_run, out)
    (out / "notes.txt").write_text("mine")
    (out / "below").mkdir()
    (out / "below" / "model.safetensors").write_text("mine too")
    assert quantize("--w-bits", 3, "--force").code == 0
    assert {path.name for path in out.iterdir()} == {*contents, "notes.txt", "below"}
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "below" / "model.safetensors").read_text() == "mine too"
    assert json.loads((out / "metrics.json").read_text())["bits"]["weight"] == 3
    assert read_run(out).artifact != read_run(finished_run).artifact


def test_force_never_continues_from_another_runs_state(
    quantize, out, stopped_run, finished_run, tmp_path, monkeypatch, read_run, interrupt
):
    shutil.copytree(stopped_run, out)
    with monkeypatch.context() as patch:
        patch.setattr(Session, "run", interrupt)
        assert quantize("--seed", 5, "--force").code == 130
    assert quantize("--seed", 5, "--resume").code == 0
    assert read_run(out).events == ["start", "percentile", "finished"]
    assert quantize("--seed", 5, "--out", tmp_path / "other").code == 0
    assert read_run(out).artifact == read_run(tmp_path / "other").artifact
    assert read_run(out).artifact != read_run(finished_run).artifact


def test_the_old_results_stay_until_there_are_new_ones(quantize, out, finished_run, monkeypatch, read_run, interrupt):
    shutil.copytree(finished_run, out)
    with monkeypatch.context() as patch:
        patch.setattr(api, "finish", interrupt)
        assert quantize("--w-bits", 3, "--force").code == 130
    assert read_run(out).results == read_run(finished_run).results
    quantize("--w-bits", 3).refused("an unfinished run")
    assert quantize("--w-bits", 3, "--resume").code == 0
    assert json.loads((out / "metrics.json").read_text())["bits"]["weight"] == 3
