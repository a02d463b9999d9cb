"""The run folder: what it holds, who may write into it, and how a run that was stopped goes on."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from halfbyte import api, outcome
from halfbyte.run_folder import RunFolder

ARTIFACT = ("model.safetensors", "config.json", "quantization.json")
CONTENTS = {"recipe.yaml", "metrics.json", "report.html", "log.jsonl", *ARTIFACT}
TWO_STEPS = "name: two\nbits: {weight: 4, activation: 4}\nsteps: [{percentile: {images: 16}}, {repq: {images: 16}}]"


def _bytes(folder: Path, names=ARTIFACT) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def _everything(folder: Path) -> dict[str, bytes]:
    return _bytes(folder, sorted(path.name for path in folder.iterdir()))


def _events(folder: Path) -> list[str]:
    entries = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [entry.get("step", entry["event"]) for entry in entries]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def two_steps(tmp_path):
    (tmp_path / "two.yaml").write_text(TWO_STEPS)
    return ("--recipe", tmp_path / "two.yaml")


@pytest.fixture
def stopped_after(monkeypatch):
    """Lets a run be stopped, as by Ctrl-C, right after a step was saved and logged."""

    def stop(step: str) -> None:
        log = RunFolder.log

        def log_and_stop(folder, event, **facts):
            log(folder, event, **facts)
            if facts.get("step") == step:
                monkeypatch.setattr(RunFolder, "log", log)
                raise KeyboardInterrupt

        monkeypatch.setattr(RunFolder, "log", log_and_stop)

    return stop


# Contents


def test_a_run_folder_holds_what_the_design_lists(quantize, out):
    finished = quantize("--json", out.parent / "facts.json")
    assert finished.code == 0, finished.err
    assert {path.name for path in out.iterdir()} == CONTENTS
    assert _events(out) == ["start", "percentile", "finished"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == json.loads((out.parent / "facts.json").read_text())
    keys = {
        "schema", "model", "weights", "recipe", "bits", "images", "float", "quantized", "bytes", "operations",
        "seconds", "peak_rss_bytes", "sites", "coverage", "environment",
    }  # fmt: skip
    assert keys <= metrics.keys()
    inner = {
        "weights": {"source", "tag", "sha256"}, "bits": {"weight", "activation"},
        "images": {"calibration", "evaluation"}, "float": {"top1", "top5"},
        "quantized": {"top1", "top5", "agreement", "kl"}, "bytes": {"float", "artifact"},
        "operations": {"macs", "bit_operations"}, "seconds": {"percentile", "evaluate", "total"},
    }  # fmt: skip
    for key, names in inner.items():
        assert names <= metrics[key].keys(), key
    assert metrics["schema"] == 1
    assert metrics["images"] == {"calibration": 32, "evaluation": 16}
    assert metrics["seconds"]["total"] == metrics["seconds"]["percentile"]
    assert metrics["bytes"]["artifact"] == (out / "model.safetensors").stat().st_size
    for site in metrics["sites"]:
        assert {"name", "role", "bits", "sqnr_db"} <= site.keys()
        assert {"weight", "activation"} == site["bits"].keys()
    assert (out / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_the_recipe_in_the_folder_gives_the_same_run(quantize, out, tmp_path):
    assert quantize("--w-bits", 3, "--set", "percentile.images=7").code == 0
    again = quantize("--recipe", out / "recipe.yaml", "--out", tmp_path / "again")
    assert again.code == 0, again.err
    assert _bytes(tmp_path / "again") == _bytes(out)


def test_the_same_seed_gives_the_same_bytes(quantize, tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        assert quantize("--seed", seed, "--out", tmp_path / name).code == 0
    one = _bytes(tmp_path / "one")
    assert one == _bytes(tmp_path / "two")
    assert one["model.safetensors"] != (tmp_path / "other" / "model.safetensors").read_bytes()


# Finished runs


def test_a_finished_run_is_not_run_over(quantize, out):
    assert quantize().code == 0
    before = _everything(out)
    quantize().refused(f"--out {out} holds a finished run", "--force", "another --out")
    assert _everything(out) == before


def test_resume_on_a_finished_run_prints_its_result_and_computes_nothing(quantize, out, monkeypatch):
    first = quantize()
    before = _everything(out)
    monkeypatch.setattr(api, "read_inputs", None)
    start = time.monotonic()
    again = quantize("--resume", "--json", out.parent / "facts.json")
    assert (again.code, again.out) == (0, first.out)
    assert time.monotonic() - start < 2
    assert _everything(out) == before
    assert json.loads((out.parent / "facts.json").read_text()) == json.loads(before["metrics.json"])


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        (("--seed", 1), "seed"),
        (("--w-bits", 3), "recipe.bits.weight"),
        (("--set", "percentile.images=16"), "recipe.steps"),
        (("--recipe", "minmax"), "recipe.name"),
        (("--limit", 8), "limit"),
        (("--calib-images", 40), "calib_images"),
        (("--batch-size", 8), "batch_size"),
        (("--crop-pct", 0.5), "crop_pct"),
        (("--weights", "other.pth"), "weights"),
        (("--val", "other"), "val"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
def test_resume_with_other_settings_is_refused(quantize, out, finished_run, stopped_run, finished, options, setting):
    shutil.copytree(finished_run if finished else stopped_run, out)
    before = _everything(out)
    quantize("--resume", *options).refused("other settings", setting, "resume with the same")
    assert _everything(out) == before


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A finished run of the command that the fixture `quantize` gives."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    api.quantize(_options(folder))
    return folder


@pytest.fixture(scope="session")
def stopped_run(tmp_path_factory):
    """The same, stopped before it was evaluated."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "finish", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            api.quantize(_options(folder))
    return folder


def _options(folder: Path) -> api.Options:
    return api.Options(
        "fashion_resnet", recipe="percentile", calib_images=32, limit=16, workers=0, out=folder
    )  # fmt: skip


def _interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "metrics", [None, b"", b"[]", b"{}", b"{", b"\xff", b'{"schema": 1, "model": 3}', b"[" * 9999],
    ids=lambda content: repr(content)[:12],
)  # fmt: skip
def test_damaged_results_are_told(quantize, out, finished_run, metrics):
    shutil.copytree(finished_run, out)
    (out / "metrics.json").unlink()
    if metrics is not None:
        (out / "metrics.json").write_bytes(metrics)
    quantize("--resume").refused(str(out / "metrics.json"), "damaged", "--force")
    assert quantize("--force").code == 0
    assert _bytes(out) == _bytes(finished_run)


def test_any_part_missing_in_the_results_is_told(quantize, out, finished_run):
    shutil.copytree(finished_run, out)
    whole = json.loads((out / "metrics.json").read_text())
    wrong = 0
    for key in whole:
        for value in (None, "x", {}):
            (out / "metrics.json").write_text(json.dumps({**whole, key: value}))
            again = quantize("--resume")
            if again.code:
                again.refused("damaged", "--force")
                wrong += 1
    assert wrong > 20


# Unfinished runs


def test_resume_starts_afresh_where_there_is_nothing(quantize, out, finished_run):
    assert quantize("--resume").code == 0
    assert _bytes(out) == _bytes(finished_run)


def test_resume_starts_afresh_where_nothing_was_saved(quantize, out, finished_run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(api, "resolve", _interrupt)
        assert quantize().code == 130
    assert _events(out) == ["start"]
    quantize().refused("an unfinished run", "--resume", "--force")
    assert quantize("--resume").code == 0
    assert _bytes(out) == _bytes(finished_run)


def test_a_run_stopped_before_its_evaluation_goes_on(quantize, out, finished_run, stopped_run):
    shutil.copytree(stopped_run, out)
    assert quantize("--resume").code == 0
    assert _events(out) == ["start", "percentile", "finished"]
    assert {path.name for path in out.iterdir()} == CONTENTS
    assert _bytes(out) == _bytes(finished_run)


def test_half_a_line_in_the_log_stops_nothing(quantize, out, finished_run, stopped_run):
    shutil.copytree(stopped_run, out)
    with (out / "log.jsonl").open("a") as file:
        file.write('{"event": "st')
    assert quantize("--resume").code == 0
    assert _bytes(out) == _bytes(finished_run)
    assert quantize("--resume").code == 0
    quantize().refused("a finished run")


@pytest.mark.parametrize("step", ["percentile", "repq"])
def test_a_model_that_was_rewritten_goes_on(quantize, out, two_steps, stopped_after, tmp_path, step):
    options = (*two_steps, "--limit", 4)
    assert quantize(*options, "--out", tmp_path / "whole", model="fashion_vit").code == 0
    stopped_after(step)
    assert quantize(*options, model="fashion_vit").code == 130
    assert quantize(*options, "--resume", model="fashion_vit").code == 0
    assert _events(out) == ["start", "percentile", "repq", "finished"]
    assert _bytes(out) == _bytes(tmp_path / "whole")


def test_a_run_killed_in_its_second_step_goes_on(quantize, out, tmp_path):
    # Enough images in the second step that it is still at work when the first one's line is seen.
    text = TWO_STEPS.replace("repq: {images: 16}", "minmax: {images: 600}")
    (tmp_path / "two.yaml").write_text(text)
    options = ("--recipe", tmp_path / "two.yaml", "--calib-images", 600)
    command = ["fashion_resnet", *map(str, options), "--limit", "16", "--workers", "0", "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "halfbyte", "quantize", *command], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 100
        while '"step"' not in ((out / "log.jsonl").read_text() if (out / "log.jsonl").exists() else ""):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert _events(out) == ["start", "percentile"]
    assert not (out / "model.safetensors").exists()
    resumed = quantize(*options, "--resume")
    assert resumed.code == 0, resumed.err
    assert _events(out) == ["start", "percentile", "minmax", "finished"]
    assert quantize(*options, "--out", tmp_path / "whole").code == 0
    assert _bytes(out) == _bytes(tmp_path / "whole")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_damaged_state_is_told(quantize, out, stopped_run, finished_run, share):
    shutil.copytree(stopped_run, out)
    whole = (out / "resume.safetensors").read_bytes()
    (out / "resume.safetensors").write_bytes(whole[: int(share * len(whole))])
    before = _everything(out)
    quantize("--resume").refused(str(out), "saved state is damaged", "--force")
    assert _everything(out) == before
    assert quantize("--force").code == 0
    assert _bytes(out) == _bytes(finished_run)


# --force


def test_force_replaces_a_run_and_leaves_other_files(quantize, out, finished_run):
    shutil.copytree(finished_run, out)
    (out / "notes.txt").write_text("mine")
    (out / "below").mkdir()
    (out / "below" / "model.safetensors").write_text("mine too")
    assert quantize("--w-bits", 3, "--force").code == 0
    assert {path.name for path in out.iterdir()} == {*CONTENTS, "notes.txt", "below"}
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "below" / "model.safetensors").read_text() == "mine too"
    assert json.loads((out / "metrics.json").read_text())["bits"]["weight"] == 3
    assert _bytes(out) != _bytes(finished_run)


def test_force_never_continues_from_another_runs_state(quantize, out, stopped_run, finished_run, tmp_path, monkeypatch):
    shutil.copytree(stopped_run, out)
    with monkeypatch.context() as patch:
        patch.setattr(api, "resolve", _interrupt)
        assert quantize("--seed", 5, "--force").code == 130
    assert quantize("--seed", 5, "--resume").code == 0
    assert _events(out) == ["start", "percentile", "finished"]
    assert quantize("--seed", 5, "--out", tmp_path / "other").code == 0
    assert _bytes(out) == _bytes(tmp_path / "other")
    assert _bytes(out) != _bytes(finished_run)


def test_the_old_results_stay_until_there_are_new_ones(quantize, out, finished_run, monkeypatch):
    shutil.copytree(finished_run, out)
    names = CONTENTS - {"log.jsonl"}
    with monkeypatch.context() as patch:
        patch.setattr(api, "finish", _interrupt)
        assert quantize("--w-bits", 3, "--force").code == 130
    assert _bytes(out, names) == _bytes(finished_run, names)
    quantize("--w-bits", 3).refused("an unfinished run")
    assert quantize("--w-bits", 3, "--resume").code == 0
    assert json.loads((out / "metrics.json").read_text())["bits"]["weight"] == 3


# A full disk


@pytest.fixture
def file_size_limit():
    """Sets the most bytes that this process may write into one file; real writes fail with EFBIG beyond."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_for_the_artifact_leaves_the_one_before(quantize, out, finished_run, monkeypatch, file_size_limit):
    shutil.copytree(finished_run, out)
    save = outcome.save_artifact

    def save_on_a_full_disk(*arguments):
        file_size_limit(100_000)
        return save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(outcome, "save_artifact", save_on_a_full_disk)
        quantize("--w-bits", 3, "--force").refused(f"cannot write to {out}", "File too large", "free some space")
    file_size_limit(resource.RLIM_INFINITY)
    names = CONTENTS - {"log.jsonl"}
    assert _bytes(out, names) == _bytes(finished_run, names)
    assert not list(out.glob("*.part"))
    assert quantize("--w-bits", 3, "--resume").code == 0
    assert _events(out) == ["start", "percentile", "finished"]


def test_no_room_for_the_state_is_told(quantize, out, finished_run, file_size_limit):
    shutil.copytree(finished_run, out)
    file_size_limit(100_000)
    quantize("--w-bits", 3, "--force").refused(f"state to {out}", "too large", "--resume")
    file_size_limit(resource.RLIM_INFINITY)
    names = CONTENTS - {"log.jsonl"}
    assert _bytes(out, names) == _bytes(finished_run, names)
    assert not list(out.glob("*.part"))
    assert quantize("--w-bits", 3, "--resume").code == 0


@pytest.mark.parametrize(
    ("room", "failed"), [(0, "cannot write"), (1_000_000, "cannot save the run's state"), (2_700_000, "cannot write")]
)
def test_a_full_file_system_leaves_the_artifact_that_was_there(quantize, tmp_path, finished_run, room, failed):
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in finished_run.iterdir()) + 8 * 4096
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", f"size={(size + room) // 4096 * 4096}", "tmpfs", str(disk)]
    if mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("a file system of a few megabytes can only be mounted by root")
    try:
        shutil.copytree(finished_run, disk / "run")
        names = CONTENTS - {"log.jsonl"}
        with (disk / "filler").open("wb") as file:
            free = os.statvfs(disk)
            file.write(bytes(max(free.f_bavail * free.f_frsize - room, 0) // 4096 * 4096))
        forced = quantize("--out", disk / "run", "--a-bits", 7, "--force")
        forced.refused(failed, str(disk / "run"), "No space", "free some space")
        assert _bytes(disk / "run", names) == _bytes(finished_run, names)
        assert not list((disk / "run").glob("*.part"))
        (disk / "filler").unlink()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
