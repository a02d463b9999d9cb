"""The run folder: what it holds, and the same bytes from the same settings."""

from __future__ import annotations

import json
import shutil

from halfbyte.locks import lock


def test_a_run_folder_holds_what_the_design_lists(quantize, out, read_run, contents):
    finished = quantize("--json", out.parent / "facts.json")
    assert finished.code == 0, finished.err
    assert {path.name for path in out.iterdir()} == contents
    assert read_run(out).events == ["start", "percentile", "finished"]
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
        "quantized": {"top1", "top5", "agreement", "kl"}, "bytes": {"float", "artifact", "shipped"},
        "operations": {"macs", "bit_operations"}, "seconds": {"percentile", "evaluate", "total"},
    }  # fmt: skip
    for key, names in inner.items():
        assert names <= metrics[key].keys(), key
    assert metrics["schema"] == 1
    assert metrics["images"] == {"calibration": 32, "evaluation": 16}
    assert metrics["seconds"]["total"] == metrics["seconds"]["percentile"]
    files = ("model.safetensors", "config.json", "quantization.json", "program.bin")
    assert metrics["bytes"]["artifact"] == (out / files[0]).stat().st_size
    assert metrics["bytes"]["shipped"] == sum((out / name).stat().st_size for name in files)
    for site in metrics["sites"]:
        assert {"name", "role", "bits", "sqnr_db"} <= site.keys()
        assert {"weight", "activation"} == site["bits"].keys()
    assert (out / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_the_recipe_in_the_folder_gives_the_same_run(quantize, out, tmp_path, read_run):
    assert quantize("--w-bits", 3, "--set", "percentile.images=7").code == 0
    again = quantize("--recipe", out / "recipe.yaml", "--out", tmp_path / "again")
    assert again.code == 0, again.err
    assert read_run(tmp_path / "again").artifact == read_run(out).artifact


def test_the_same_seed_gives_the_same_bytes(quantize, tmp_path, read_run):
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        assert quantize("--seed", seed, "--out", tmp_path / name).code == 0
    one = read_run(tmp_path / "one").artifact
    assert one == read_run(tmp_path / "two").artifact
    assert one["model.safetensors"] != (tmp_path / "other" / "model.safetensors").read_bytes()


def test_another_process_at_work_in_the_folder_is_told_and_left_alone(quantize, out, finished_run, read_run):
    shutil.copytree(finished_run, out)
    held = lock(out)
    before = read_run(out).results
    for options in (("--force",), ("--resume", "--force"), ()):
        quantize(*options).refused("another process writes into", str(out), "another --out")
    assert quantize("--resume").code == 0
    assert read_run(out).results == before
    held.release()
    assert quantize("--force").code == 0
    # The run is over, and with it its hold on the folder.
    assert lock(out) is not None


def test_an_unfinished_run_that_is_at_work_is_not_continued_by_another(quantize, out):
    out.mkdir()
    held = lock(out)
    quantize().refused("another process writes into")
    (out / "log.jsonl").write_text('{"event": "start", "settings": {}}\n')
    quantize("--resume").refused("another process writes into")
    held.release()
