"""`halfbyte reproduce` that goes on where it stopped, and what it refuses."""

from __future__ import annotations

import json
import sys

import pytest
from tests.cli.reproducing import RUNS, TABLE

from halfbyte import api
from halfbyte.run_folder import RunFolder


def test_finished_rows_are_not_run_again(reproduce, filled, out, monkeypatch):
    assert reproduce().code == 0
    before = (out / "table.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(api, "read_inputs", None)
        assert reproduce("--resume").code == 0
    assert (out / "table.json").read_bytes() == before
    # A damaged row is told; the others stay.
    (out / "mine" / RUNS[1] / "metrics.json").write_text("{")
    assert reproduce("--resume").code == 1
    assert [row["status"] for row in filled()["rows"]] == ["done", "failed", "done"]
    assert "damaged" in filled()["rows"][1]["reason"]


def test_only_the_same_command_goes_on(reproduce, filled, out, read_run):
    assert reproduce("--rows", "resnet-*w8a8").code == 0
    before = (out / "table.json").read_bytes()
    reproduce("--rows", "resnet-*w8a8").refused("a finished run", "--force")
    reproduce("--resume", "--seed", 1).refused("other settings (seed)", "resume with the same")
    reproduce("--resume", "--limit", 8).refused("other settings (limit)")
    assert (out / "table.json").read_bytes() == before
    first = read_run(out / "mine" / RUNS[0]).artifact
    # More rows of the same kind join those that are there.
    assert reproduce("--rows", "resnet-percentile-*", "--resume").code == 0
    assert [row["status"] for row in filled()["rows"]] == ["done", "done"]
    assert read_run(out / "mine" / RUNS[0]).artifact == first
    assert reproduce("--rows", "resnet-*w8a8", "--seed", 1, "--force").code == 0
    assert filled()["rows"][0]["seed"] == 1


def test_finished_rows_stay_in_the_table_whatever_joins_them(reproduce, filled, out, tmp_path, monkeypatch, interrupt):
    assert reproduce("--rows", "resnet-percentile-w4a4").code == 0
    first = filled()["rows"]
    with monkeypatch.context() as patch:
        patch.setattr(api, "finish", interrupt)
        assert reproduce("--rows", "resnet-percentile-w8a8", "--resume").code == 130
    assert filled()["rows"] == first
    assert reproduce("--rows", "resnet-percentile-w8a8", "--resume").code == 0
    assert filled()["rows"][1:] == first
    assert reproduce("--resume").code == 0
    assert reproduce("--out", tmp_path / "whole").code == 0
    assert filled() == filled(tmp_path / "whole")


def test_a_finished_row_is_kept_when_it_is_asked_for_with_other_settings(reproduce, filled, out):
    rows = ("--rows", "resnet-percentile-*", "--rows", "resnet-minmax-*")
    assert reproduce("--rows", "resnet-percentile-w8a8").code == 0
    first = filled()["rows"][0]
    done = reproduce(*rows, "--set", "percentile.images=8", "--resume")
    assert done.code == 0, done.err
    kept, *others = filled()["rows"]
    reason = kept.pop("reason")
    assert reason.startswith("run with other settings (calib_images, recipe.steps)")
    assert kept | {"reason": None} == first
    assert [row["changed"] for row in others] == [["percentile.images=8"], []]
    assert f"kept: {RUNS[0]}: {reason}" in done.out
    assert f"- kept: {RUNS[0]}: {reason}" in (out / "table.md").read_text()
    assert reproduce(*rows[:2], "--resume").code == 0
    assert filled()["rows"][0] == first


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 1, "tables": {}, "rows": [{"table": "mine"}]}', "[" * 10**5]
)
def test_a_damaged_table_is_written_anew(reproduce, filled, out, text):
    assert reproduce("--rows", "resnet-*w8a8").code == 0
    first = filled()
    (out / "table.json").write_text(text)
    assert reproduce("--rows", "resnet-*w8a8", "--resume").code == 0
    assert filled() == first


def test_a_killed_forced_run_does_not_take_up_what_was_there_before(reproduce, filled, out, monkeypatch, interrupt):
    assert reproduce("--rows", "resnet-percentile-*").code == 0
    first = (out / "mine" / RUNS[1] / "log.jsonl").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(api, "finish", interrupt)
        stopped = reproduce("--rows", "resnet-percentile-*", "--force")
    assert stopped.code == 130
    assert "--resume continues" in stopped.err
    assert reproduce("--rows", "resnet-percentile-*", "--resume").code == 0
    assert (out / "mine" / RUNS[1] / "log.jsonl").stat().st_mtime_ns > first


def test_a_killed_command_goes_on_to_the_same_table(reproduce, filled, out, tmp_path, table, kill_when, read_run):
    second = out / "mine" / RUNS[1] / "log.jsonl"
    command = [sys.executable, "-m", "halfbyte", "reproduce", str(table), "--limit", "16", "--workers", "0", "--out"]
    kill_when([*command, str(out)], second.exists)
    states = [row["status"] for row in filled()["rows"]]
    assert states == ["done", "open", "open"]
    first = read_run(out / "mine" / RUNS[0]).everything
    done = reproduce("--resume")
    assert done.code == 0, done.err
    assert read_run(out / "mine" / RUNS[0]).everything == first
    assert reproduce("--out", tmp_path / "whole").code == 0
    assert filled() == filled(tmp_path / "whole")
    for name in RUNS:
        assert read_run(out / "mine" / name).artifact == read_run(tmp_path / "whole" / "mine" / name).artifact


# What is refused


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--rows", "resnt-percentile-w8a8"), ("--rows", "did you mean resnet-percentile-w8a8")),
        (("--set", "qwt.images=8"), ("--set qwt.images=8", "no row's recipe has such a step")),
        (("--set", "percentile.imagse=8"), ("percentile has no parameter 'imagse'", "did you mean images")),
        (("--limit", 0), ("--limit must be at least 1",)),
        (("--seed", -1), ("--seed must be at least 0",)),
        (("--crop-pct", 3), ("--crop-pct 3",)),
        (("--device", "tpu"), ("--device", "tpu")),
        (("--weights-dir", "gone"), ("--weights-dir gone", "no such folder")),
        (("--data", "gone"), ("--data gone holds neither train and val nor imagenet_calib and imagenet_val",)),
        (("--calib", "gone"), ("images gone: does not exist",)),
        (("--val", "gone"), ("images gone: does not exist",)),
        (("--json", "gone/facts.json"), ("--json", "a folder that exists")),
    ],
    ids=lambda value: str(value[0]),
)  # fmt: skip
def test_what_is_wrong_for_all_rows_is_refused_before_anything_is_written(reproduce, out, options, parts):
    reproduce(*options).refused(*parts)
    assert not out.exists()


def test_a_bound_that_no_step_has_is_told(reproduce, out, table, halfbyte):
    table.write_text(TABLE.replace("w8a8, top1: 91.0", "w8a8, top1: 91.0, long: a week, bounded_by: [qla.images]"))
    halfbyte("reproduce", table, "--out", out).refused("bounded_by names no parameter", RUNS[0])


def test_models_without_images_of_their_own_need_a_folder(reproduce, out):
    reproduce(added=("weights",)).refused("the rows need images", "--data DIR")
    assert not out.exists()


def test_a_folder_of_imagenet_is_found_in_two_layouts(reproduce, filled, tmp_path, pictures, out):
    for number, (train, val) in enumerate((("train", "val"), ("imagenet_calib", "imagenet_val"))):
        data = tmp_path / f"data{number}"
        data.mkdir()
        (data / train).symlink_to(pictures)
        (data / val).symlink_to(pictures)
        assert reproduce("--rows", "resnet-*w8a8", "--data", data, "--force").code == 0
        settings = json.loads((out / "mine" / RUNS[0] / "log.jsonl").read_text().splitlines()[0])["settings"]
        assert (settings["calib"], settings["val"]) == (str(data / train), str(data / val))


def test_what_is_no_run_is_left_alone(reproduce, out):
    (out / "mine" / RUNS[0]).mkdir(parents=True)
    (out / "mine" / RUNS[0] / "precious.txt").write_text("keep")
    reproduce().refused("it is not a run", "--force")
    assert reproduce("--force", "--rows", "resnet-*w8a8").code == 1
    assert (out / "mine" / RUNS[0] / "precious.txt").read_text() == "keep"
    assert not RunFolder(out / "mine" / RUNS[0], {}).found().value.endswith("run")
