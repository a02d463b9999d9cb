"""`halfbyte quantize` under torchrun: several processes, one run folder, one print, the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch

from halfbyte import api
from halfbyte.distributed import World
from halfbyte.errors import HalfbyteError, ToldElsewhereError
from halfbyte.inputs import Options
from halfbyte.progress import Progress
from halfbyte.run_folder import RunFolder

RECIPE = "name: pair\nbits: {weight: 3, activation: 3}\nsteps: [{repq: {images: 16}}, {qwt: {images: 64}}]"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
OPTIONS = ("--calib-images", "64", "--limit", "20", "--workers", "0")


@pytest.fixture
def one_thread():
    """Sums in float, as a float model's, may depend on the number of threads; torchrun gives each process one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def pair(tmp_path):
    (tmp_path / "pair.yaml").write_text(RECIPE)
    return tmp_path / "pair.yaml"


def comparable(folder) -> dict:
    """The metrics but for times, memory and the machine."""
    metrics = json.loads((folder / "metrics.json").read_text())
    for key in ("seconds", "peak_rss_bytes", "environment"):
        del metrics[key]
    return metrics


def test_two_processes_give_the_run_of_one(tmp_path, pair, read_run, contents, one_thread):
    command = ["fashion_vit", "--recipe", str(pair), *OPTIONS]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "halfbyte", "quantize"]
    two = subprocess.run(
        [sys.executable, *torchrun, *command, "--out", tmp_path / "two", "--json", tmp_path / "two.json"],
        capture_output=True, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("top-1 %") == two.stdout.count("report:") == 1
    api.quantize(
        model="fashion_vit", recipe=pair, calib_images=64, limit=20, workers=0, out=tmp_path / "one",
        progress=Progress(quiet=True),
    )  # fmt: skip
    assert read_run(tmp_path / "two").artifact == read_run(tmp_path / "one").artifact
    assert read_run(tmp_path / "two").events == ["start", "repq", "qwt", "finished"]
    assert {path.name for path in (tmp_path / "two").iterdir()} == contents
    assert comparable(tmp_path / "two") == comparable(tmp_path / "one")
    assert json.loads((tmp_path / "two.json").read_text()) == json.loads((tmp_path / "two/metrics.json").read_text())


@pytest.mark.parametrize(("kind", "lines"), [(HalfbyteError, ["halfbyte: no images"]), (ToldElsewhereError, [])])
def test_what_another_process_tells_is_not_told_again(halfbyte, monkeypatch, kind, lines):
    def refuse(*_, **__):
        raise kind("no images")

    monkeypatch.setattr(api, "quantize", refuse)
    outcome = halfbyte("quantize")
    assert (outcome.code, outcome.out, outcome.err.splitlines()) == (2, "", lines)


@pytest.mark.slow
def test_a_refusal_is_told_once(tmp_path, finished_run, read_run):
    shutil.copytree(finished_run, tmp_path / "out")
    before = read_run(tmp_path / "out").everything
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "halfbyte", "quantize", "fashion_resnet", *OPTIONS, "--out", tmp_path / "out"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**ENVIRONMENT, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        )
        for rank in range(2)
    ]  # fmt: skip
    printed = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [2, 2]
    assert [out for out, _ in printed] == ["", ""]
    leader, other = ([line for line in errors.splitlines() if "halfbyte" in line] for _, errors in printed)
    assert len(leader) == 1
    assert "holds a finished run" in leader[0]
    assert other == []
    assert read_run(tmp_path / "out").everything == before


@pytest.mark.slow
def test_two_processes_fill_a_table_together(tmp_path, read_run):
    (tmp_path / "mine.yaml").write_text(
        "title: t\nsource: s\nmeasured: m\nrecipes: [percentile]\nmodels: {r: {checkpoint: fashion_resnet, top1: 91}}\n"
        "rows: [{model: r, bits: w8a8, top1: 90}, {model: r, bits: w4a4, top1: 80}, "
        "{model: r, bits: w3a3, top1: 1, recipes: [qla], settings: [qla.images=4000]}]"
    )
    command = ["reproduce", str(tmp_path / "mine.yaml"), "--limit", "20", "--workers", "0", "--out"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "halfbyte"]
    two = subprocess.run(
        [sys.executable, *torchrun, *command, tmp_path / "two"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("r-percentile-w4a4") == two.stderr.count("row 2 of 3") == 1
    one = subprocess.run([sys.executable, "-m", "halfbyte", *command, tmp_path / "one"], capture_output=True)
    assert one.returncode == 0, one.stderr
    tables = [json.loads((tmp_path / name / "table.json").read_text())["rows"] for name in ("one", "two")]
    assert [row["status"] for row in tables[0]] == [row["status"] for row in tables[1]] == ["done", "done", "skipped"]
    for row, same in zip(*tables, strict=True):
        if row["ours"]:
            assert row["ours"]["quantized"] == same["ours"]["quantized"]
            place = f"mine/{row['row']}"
            assert read_run(tmp_path / "one" / place).artifact == read_run(tmp_path / "two" / place).artifact


# The same with threads in the place of processes


def options(folder, **others) -> Options:
    """Those of the fixtures `finished_run` and `stopped_run`."""
    given = {"model": "fashion_resnet", "recipe": "percentile", "calib_images": 32, "limit": 16, "workers": 0}
    return Options(**given | {"out": folder} | others)


def run(folder, **others):
    return lambda world: api._run(options(folder, **others), Progress(quiet=True), world)


def test_all_continue_from_one_saved_state(together, out, stopped_run, finished_run, read_run, contents):
    shutil.copytree(stopped_run, out)
    results = together(2, run(out, resume=True))
    assert read_run(out).events == ["start", "percentile", "finished"]
    assert {path.name for path in out.iterdir()} == contents
    assert read_run(out).artifact == read_run(finished_run).artifact
    assert results[0].metrics == results[1].metrics == json.loads((out / "metrics.json").read_text())


def test_all_return_the_results_of_a_finished_run(together, finished_run, monkeypatch):
    monkeypatch.setattr(api, "read_inputs", None)
    results = together(3, run(finished_run, resume=True))
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert [result.metrics for result in results] == [metrics] * 3


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"recipe": "repqq"}, "repqq"),
        ({"calib_images": 0}, "calib-images"),
        ({"model": "fashion_vitt"}, "fashion_vitt"),
    ],
)
def test_what_is_refused_is_refused_everywhere(together, out, wrong, part):
    first, *others = together(3, run(out, **wrong))
    assert type(first) is HalfbyteError
    assert part in str(first)
    assert [(type(error), str(error)) for error in others] == [(ToldElsewhereError, str(first))] * 2
    assert not out.exists()


def test_what_one_process_refuses_all_refuse(together):
    """Its message is the leader's, so that it is told."""

    def work(world: World) -> None:
        with world.agreed():
            if world.rank == 1:
                raise HalfbyteError("no images here")

    assert [(type(error), str(error)) for error in together(3, work)] == [
        (kind, "no images here") for kind in (HalfbyteError, ToldElsewhereError, ToldElsewhereError)
    ]


def test_a_folder_that_cannot_be_made_is_refused_everywhere(together, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    errors = together(2, run(tmp_path / "file" / "out"))
    assert all(isinstance(error, HalfbyteError) and "cannot use --out" in str(error) for error in errors)


def test_only_the_leader_writes(together, out, finished_run, monkeypatch, read_run):
    written = []
    monkeypatch.setattr(RunFolder, "start", record(written, RunFolder.start))
    monkeypatch.setattr(RunFolder, "finish", record(written, RunFolder.finish))
    results = together(2, run(out))
    assert sorted(written) == [("finish", True), ("start", False), ("start", True)]
    assert [result.folder for result in results] == [out, out]
    assert read_run(out).artifact == read_run(finished_run).artifact


def record(written: list, method):
    def call(folder, *arguments):
        written.append((method.__name__, folder.writes))
        return method(folder, *arguments)

    return call
