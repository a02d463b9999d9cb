"""Places to write to and paths that cannot be used: what lies there is not touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from halfbyte import api

pytestmark = pytest.mark.usefixtures("no_folder_left")


def test_out_that_is_a_file_is_told(quantize, tmp_path):
    (tmp_path / "out").write_text("mine")
    for force in ((), ("--force",), ("--resume",)):
        quantize(*force).refused(f"--out {tmp_path / 'out'} is a file")
    quantize("--out", tmp_path / "out" / "below").refused(str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "mine"


def test_out_with_other_files_is_not_touched(quantize, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.json").write_text("mine")
    quantize().refused(str(tmp_path / "out"), "--force", "another --out")
    quantize("--resume").refused(str(tmp_path / "out"), "no run to resume")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["metrics.json"]
    assert (tmp_path / "out" / "metrics.json").read_text() == "mine"


@pytest.mark.parametrize("log", ["", "\n", "[]", "{}", '{"event": "step"}', "[" * 9999, "\x00", "{", '{"event": [1]}'])
def test_a_log_of_something_else_makes_no_run(quantize, tmp_path, log):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.jsonl").write_text(log)
    quantize().refused("not a run", "--force")
    quantize("--resume").refused("no run to resume")
    assert (tmp_path / "out" / "log.jsonl").read_text() == log


def test_force_with_wrong_input_harms_nothing(quantize, tmp_path):
    assert quantize().code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    quantize("--force", "--weights", tmp_path / "none.pth").refused("none.pth")
    quantize("--force", "--calib-images", 8).refused("percentile asks for 32")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_path_too_long_is_told(quantize, halfbyte, tmp_path):
    quantize("--out", tmp_path / ("x" * 300)).refused("File name too long")
    quantize("--recipe", "x" * 300).refused("x" * 300)
    quantize("--weights", "x" * 300 + ".pth").refused("x" * 300)
    quantize("--calib", "x" * 300).refused("x" * 300)
    halfbyte("eval", "x" * 300).refused("x" * 300)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read and write everything")
def test_what_may_not_be_read_or_written_is_told(quantize, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    quantize("--out", tmp_path / "closed" / "run").refused("Permission denied")
    (tmp_path / "mine.yaml").write_text("name: x")
    (tmp_path / "mine.yaml").chmod(0)
    quantize("--recipe", tmp_path / "mine.yaml").refused("mine.yaml", "Permission denied")


@pytest.mark.parametrize(
    "command",
    [("quantize", "fashion_resnet"), ("eval", "fashion_resnet"), ("inspect", "fashion_resnet"), ("recipes",)],
    ids=lambda command: command[0],
)
def test_json_without_a_folder_is_told_before_any_work(halfbyte, tmp_path, command, monkeypatch):
    monkeypatch.setattr(api, "load_model", None)
    for place in (tmp_path / "none" / "facts.json", tmp_path):
        halfbyte(*command, "--json", place).refused(f"--json {place}", "folder that exists")


@pytest.mark.skipif(os.name != "posix", reason="there is no /dev")
@pytest.mark.parametrize("place", ["/dev/stdout", "/dev/fd/1", "log.txt"])
def test_facts_go_behind_what_is_printed_into_the_same_file(tmp_path, place):
    log = tmp_path / "log.txt"
    log.write_text("precious\n")
    command = [sys.executable, "-m", "halfbyte", "recipes", "repq", "--json", place]
    with log.open("a") as file:
        assert subprocess.run(command, stdout=file, stderr=subprocess.DEVNULL, cwd=tmp_path).returncode == 0
    first, printed, facts = log.read_text().partition("name: repq")[0], *log.read_text().split("\n{", 1)
    assert first == "precious\n"
    assert "steps:" in printed
    assert json.loads("{" + facts)["name"] == "repq"


@pytest.fixture
def mine(tmp_path, finished_run):
    """A copy of a finished run, and a file of somebody's beside it."""
    shutil.copytree(finished_run, tmp_path / "mine")
    with (tmp_path / "images.npz").open("wb") as file:
        np.savez(file, x=np.zeros((4, 28, 28), np.uint8), y=np.arange(4))
    return tmp_path / "mine"


def test_facts_replace_nothing_but_earlier_facts(halfbyte, quantize, mine, read_run, finished_run):
    before, images = read_run(mine).everything, (mine.parent / "images.npz").read_bytes()
    for name in ("metrics.json", "quantization.json", "program.bin", "bench.json", "log.jsonl", "recipe.yaml"):
        said = halfbyte("eval", mine, "--limit", 4, "--json", mine / name).refused("one of Halfbyte's own files")
        assert str(mine / name) in said
    for name in ("metrics.json", "report.html"):
        halfbyte("compare", mine, finished_run, "--out", mine / name).refused("one of Halfbyte's own files")
    halfbyte("inspect", mine, "--json", mine.parent / "images.npz").refused("images.npz is there and is something else")
    for command in (("export", mine), ("quantize", "fashion_resnet")):
        both = ("--out", mine.parent / "both.onnx", "--json", mine.parent / "both.onnx")
        halfbyte(*command, *both).refused("--out and --json are both")
    assert read_run(mine).everything == before
    assert (mine.parent / "images.npz").read_bytes() == images
    for _ in range(2):
        assert halfbyte("inspect", mine, "--json", mine.parent / "facts.json").code == 0
    halfbyte("compare", mine, finished_run, "--out", mine.parent / "facts.json").refused("is something else")
    (mine.parent / "graph.html").write_text('<?xml version="1.0"?>')
    halfbyte("compare", mine, finished_run, "--out", mine.parent / "graph.html").refused("is something else")


def test_facts_are_written_to_no_name_that_the_command_writes_itself(halfbyte, tmp_path, finished_run):
    before = sorted(tmp_path.iterdir())
    for name in ("quantization.json", "metrics.json", "log.jsonl"):
        out = ("--out", tmp_path, "--json", tmp_path / name)
        halfbyte("quantize", "fashion_resnet", *out).refused(str(tmp_path / name), "one of Halfbyte's own files")
    halfbyte("reproduce", "--out", tmp_path, "--json", tmp_path / "table.json").refused("one of Halfbyte's own files")
    labels = ("labels", "--teacher", "fashion_resnet", "--data", tmp_path)
    halfbyte(*labels, "--out", tmp_path, "--json", tmp_path / "labels.json").refused("one of Halfbyte's own files")
    for verb in (("reproduce",), ("pull", "a/b"), labels):
        halfbyte(*verb, "--out", tmp_path / "new", "--json", tmp_path / "new").refused("--out and --json are both")
    for to, given, made in (
        ("onnx", (), finished_run / "model.onnx"),
        ("openvino", ("--out", tmp_path / "model.xml"), tmp_path / "model.bin"),
    ):
        said = halfbyte("export", finished_run, "--to", to, *given, "--json", made).refused("the command writes a file")
        assert str(made) in said
    assert sorted(tmp_path.iterdir()) == before


def test_facts_do_not_replace_what_an_unfinished_command_needs(halfbyte, tmp_path, finished_run):
    for name, content in (("log.jsonl", "{}\n"), ("labels.json", "{}")):
        place = tmp_path / name.partition(".")[0] / name
        place.parent.mkdir()
        place.write_text(content)
        halfbyte("inspect", finished_run, "--json", place).refused(str(place), "one of Halfbyte's own files")
        assert place.read_text() == content


def test_what_does_not_exist_is_said_so(halfbyte, tmp_path):
    for verb in ("export", "bench"):
        halfbyte(verb, tmp_path / "nothing").refused("nothing does not exist; give an artifact's folder")


def test_a_working_directory_that_is_gone_is_told(halfbyte, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    halfbyte("recipes", "repq").refused("the working directory is gone; change to one that exists")
