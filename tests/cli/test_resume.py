"""`--resume`: a run that was stopped goes on to the same bytes, and only with the same settings."""

from __future__ import annotations

import json
import shutil
import sys
import time

import pytest

from halfbyte import api
from halfbyte.run_folder import RunFolder
from halfbyte.session import Session

TWO_STEPS = "name: two\nbits: {weight: 4, activation: 4}\nsteps: [{percentile: {images: 16}}, {repq: {images: 16}}]"


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


# Finished runs


def test_resume_on_a_finished_run_prints_its_result_and_computes_nothing(quantize, out, monkeypatch, read_run):
    first = quantize()
    before = read_run(out).everything
    monkeypatch.setattr(api, "read_inputs", None)
    start = time.monotonic()
    again = quantize("--resume", "--json", out.parent / "facts.json")
    assert (again.code, again.out) == (0, first.out)
    assert time.monotonic() - start < 2
    assert read_run(out).everything == before
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
def test_resume_with_other_settings_is_refused(
    quantize, out, finished_run, stopped_run, finished, options, setting, read_run
):
    shutil.copytree(finished_run if finished else stopped_run, out)
    before = read_run(out).everything
    quantize("--resume", *options).refused("other settings", setting, "resume with the same")
    assert read_run(out).everything == before


@pytest.mark.parametrize(
    "metrics", [None, b"", b"[]", b"{}", b"{", b"\xff", b'{"schema": 1, "model": 3}', b"[" * 9999],
    ids=lambda content: repr(content)[:12],
)  # fmt: skip
def test_damaged_results_are_told(quantize, out, finished_run, metrics, read_run):
    shutil.copytree(finished_run, out)
    (out / "metrics.json").unlink()
    if metrics is not None:
        (out / "metrics.json").write_bytes(metrics)
    quantize("--resume").refused(str(out / "metrics.json"), "damaged", "--force")
    assert quantize("--force").code == 0
    assert read_run(out).artifact == read_run(finished_run).artifact


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


def test_resume_starts_afresh_where_there_is_nothing(quantize, out, finished_run, read_run):
    assert quantize("--resume").code == 0
    assert read_run(out).artifact == read_run(finished_run).artifact


def test_resume_starts_afresh_where_nothing_was_saved(quantize, out, finished_run, monkeypatch, read_run, interrupt):
    with monkeypatch.context() as patch:
        patch.setattr(Session, "run", interrupt)
        assert quantize().code == 130
    assert read_run(out).events == ["start"]
    quantize().refused("an unfinished run", "--resume", "--force")
    assert quantize("--resume").code == 0
    assert read_run(out).artifact == read_run(finished_run).artifact


def test_a_run_stopped_before_its_evaluation_goes_on(quantize, out, finished_run, stopped_run, read_run, contents):
    shutil.copytree(stopped_run, out)
    assert quantize("--resume").code == 0
    assert read_run(out).events == ["start", "percentile", "finished"]
    assert {path.name for path in out.iterdir()} == contents
    assert read_run(out).artifact == read_run(finished_run).artifact


def test_half_a_line_in_the_log_stops_nothing(quantize, out, finished_run, stopped_run, read_run):
    shutil.copytree(stopped_run, out)
    with (out / "log.jsonl").open("a") as file:
        file.write('{"event": "st')
    assert quantize("--resume").code == 0
    assert read_run(out).artifact == read_run(finished_run).artifact
    assert quantize("--resume").code == 0
    quantize().refused("a finished run")


@pytest.mark.parametrize("step", ["percentile", "repq"])
def test_a_model_that_was_rewritten_goes_on(quantize, out, two_steps, stopped_after, tmp_path, step, read_run):
    options = (*two_steps, "--limit", 4)
    assert quantize(*options, "--out", tmp_path / "whole", model="fashion_vit").code == 0
    stopped_after(step)
    assert quantize(*options, model="fashion_vit").code == 130
    assert quantize(*options, "--resume", model="fashion_vit").code == 0
    assert read_run(out).events == ["start", "percentile", "repq", "finished"]
    assert read_run(out).artifact == read_run(tmp_path / "whole").artifact


def test_a_run_killed_in_its_second_step_goes_on(quantize, out, tmp_path, read_run, kill_when):
    # Enough images in the second step that it is still at work when the first one's line is seen.
    text = TWO_STEPS.replace("repq: {images: 16}", "minmax: {images: 600}")
    (tmp_path / "two.yaml").write_text(text)
    options = ("--recipe", tmp_path / "two.yaml", "--calib-images", 600)
    command = [sys.executable, "-m", "halfbyte", "quantize", "fashion_resnet", *map(str, options), "--limit", "16"]
    log = out / "log.jsonl"
    kill_when([*command, "--workers", "0", "--out", str(out)], lambda: log.exists() and '"step"' in log.read_text())
    assert read_run(out).events == ["start", "percentile"]
    assert not (out / "model.safetensors").exists()
    resumed = quantize(*options, "--resume")
    assert resumed.code == 0, resumed.err
    assert read_run(out).events == ["start", "percentile", "minmax", "finished"]
    assert quantize(*options, "--out", tmp_path / "whole").code == 0
    assert read_run(out).artifact == read_run(tmp_path / "whole").artifact


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_damaged_state_is_told(quantize, out, stopped_run, finished_run, share, read_run):
    shutil.copytree(stopped_run, out)
    whole = (out / "resume.safetensors").read_bytes()
    (out / "resume.safetensors").write_bytes(whole[: int(share * len(whole))])
    before = read_run(out).everything
    quantize("--resume").refused(str(out), "saved state is damaged", "--force")
    assert read_run(out).everything == before
    assert quantize("--force").code == 0
    assert read_run(out).artifact == read_run(finished_run).artifact


@pytest.mark.parametrize(
    ("part", "value", "wrong"),
    [("bytes", {"shipped": "x"}, "bytes.shipped"), ("bits", {"weight": 10**400}, "bits.weight"),
     ("seconds", {"total": None}, "seconds.total")],
)  # fmt: skip
def test_a_damaged_number_is_named(quantize, out, finished_run, part, value, wrong):
    shutil.copytree(finished_run, out)
    metrics = json.loads((out / "metrics.json").read_text())
    metrics[part] |= value
    (out / "metrics.json").unlink()
    (out / "metrics.json").write_text(json.dumps(metrics))
    quantize("--resume").refused(f"metrics.{wrong} is missing or wrong", "--force")


def test_results_of_earlier_versions_are_printed(quantize, out, finished_run):
    shutil.copytree(finished_run, out)
    metrics = json.loads((out / "metrics.json").read_text())
    metrics["bytes"]["shipped"] = None
    (out / "metrics.json").unlink()
    (out / "metrics.json").write_text(json.dumps(metrics))
    outcome = quantize("--resume")
    assert outcome.code == 0
    assert "top-1" in outcome.out
    assert "megabytes of all files" not in outcome.out
