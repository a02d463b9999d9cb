"""`halfbyte reproduce` on a table of embedded models: what it leaves and what it skips."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.cli.reproducing import RUNS

from halfbyte import api
from halfbyte.models.load import create_architecture
from halfbyte.reproduce import run as reproduce_run


@pytest.fixture
def own_images(tmp_path) -> Path:
    """Pictures in colour for a model that comes without any."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "own.npz", x=pixels, y=np.arange(40) % 10)
    return tmp_path / "own.npz"


# What it leaves


def test_published_figures_stand_beside_ours(reproduce, filled, out, monkeypatch, contents):
    monkeypatch.setenv("COLUMNS", "200")
    done = reproduce("--json", out.parent / "facts.json", "--seed", 3)
    assert done.code == 0, done.err
    facts = filled()
    assert json.loads((out.parent / "facts.json").read_text()) == json.loads((out / "table.json").read_text())
    assert {path.name for path in out.iterdir()} == {"table.json", "table.md", "log.jsonl", "mine"}
    assert [(row["row"], row["status"], row["seed"]) for row in facts["rows"]] == [(name, "done", 3) for name in RUNS]
    for row in facts["rows"]:
        folder = out / "mine" / row["row"]
        assert {path.name for path in folder.iterdir()} >= contents - {"program.bin"}
        metrics = json.loads((folder / "metrics.json").read_text())
        assert row["ours"]["quantized"] == metrics["quantized"]
        assert row["ours"]["weights"]["sha256"] == metrics["weights"]["sha256"]
        assert row["ours"]["images"] == {"calibration": 32, "evaluation": 16}
        assert metrics["bits"] == row["bits"]
        assert f"{row['published']['top1']:.2f}" in done.out
    assert facts["rows"][1]["published"] == {
        "top1": 85.5, "float": 91.3, "source": "a paper", "measured": "something else",
    }  # fmt: skip
    markdown = (out / "table.md").read_text()
    ours = facts["rows"][1]["ours"]
    loss = ours["float"]["top1"] - ours["quantized"]["top1"]
    assert f"| resnet | 4/4 | percentile | 85.50 | 91.30 | 5.80 | {ours['quantized']['top1']:.2f} |" in markdown
    assert f"| {loss:.2f} | {ours['quantized']['agreement']:.2f} | 32, 16 | 3 |" in markdown
    assert "1. a paper. Measured with: something else." in markdown
    assert f"- {', '.join(RUNS)}: trained here" in markdown


def test_listing_loads_neither_torch_nor_timm(table):
    program = (
        "import sys\nfrom halfbyte.cli import app\n"
        "app(['reproduce', *sys.argv[1:]], standalone_mode=False)\n"
        "assert not {'torch', 'timm', 'torchvision', 'numpy'} & {name.partition('.')[0] for name in sys.modules}\n"
    )
    for options in (("--list",), (str(table), "--list"), ("--help",)):
        listed = subprocess.run(
            [sys.executable, "-c", program, *options],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert listed.returncode == 0, listed.stderr
        if "--list" in options:
            known = "fashion_resnet" if str(table) in options else "deit_tiny_patch16_224.fb_in1k"
            assert known in listed.stdout


def test_rows_are_listed(halfbyte, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    listed = halfbyte("reproduce", "repq", "--list", "--rows", "deit_tiny*", "--json", tmp_path / "rows.json")
    assert listed.code == 0
    assert "deit_tiny-repq-paper-w4a4" in listed.out
    assert "57.43" in listed.out
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["top1"] for row in rows] == [57.43, 57.43, 70.76, 70.76]
    assert all(row["checkpoint"] == "deit_tiny_patch16_224.fb_in1k" for row in rows)


# What it skips, and what fails


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        ("long", "a week: too long without a GPU; bound it by --set, of qla.images"),
        ("labels", "needs a teacher's; give --labels DIR"),
        ("images", "needs 4000 calibration images, and there are 1024; bound it by --set qla.images=1024"),
    ],
)
def test_rows_that_lack_something_are_skipped(reproduce, filled, added, reason, out, no_cuda):
    done = reproduce("--rows", "resnet-*w8a8", "--rows", "resnet-*w3a3", added=(added,))
    assert done.code == 0, done.err
    first, second = filled()["rows"]
    assert (first["status"], second["status"], second["reason"], second["ours"]) == ("done", "skipped", reason, None)
    assert reason in " ".join(done.out.split())
    assert f"- skipped: {second['row']}: {reason}" in (out / "table.md").read_text()
    assert not (out / "mine" / second["row"]).exists()


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_bounded_row_is_run_and_told(reproduce, filled, out, no_cuda):
    options = ("--rows", "resnet-*w3a3", "--limit", 4)
    # Other settings, or more of what takes long, do not make it shorter.
    for setting in ((), ("--set", "qla.lr=0.01"), ("--set", "qla.images=1001"), ("--set", "repq.images=8")):
        assert reproduce(*options, *setting, "--resume", added=("long",)).code == 0
        assert filled()["rows"][0]["status"] == "skipped"
        assert "bound it by --set, of qla.images" in filled()["rows"][0]["reason"]
    # It was not finished: what is missing now goes on with a bound.
    bounds = ("--set", "qla.images=32", "--set", "repq.images=8")
    done = reproduce(*options, *bounds, "--resume", added=("long",))
    assert done.code == 0, done.err
    row = filled()["rows"][0]
    assert (row["status"], row["changed"]) == ("done", ["qla.images=32", "repq.images=8"])
    assert row["ours"]["images"] == {"calibration": 32, "evaluation": 4}
    assert "| qla; changed: qla.images=32, repq.images=8 |" in (out / "table.md").read_text()
    assert "changed: resnet-qla-w3a3: qla.images=32, repq.images=8" in done.out


def test_weights_come_from_the_folder_by_checkpoint_name_or_architecture(
    reproduce, filled, tmp_path, own_images, no_network, empty_hub
):
    options = ("--rows", "own-*", "--calib", own_images, "--val", own_images, "--weights-dir", tmp_path / "weights")
    (tmp_path / "weights").mkdir()
    done = reproduce(*options, added=("weights",))
    assert done.code == 0, done.err
    row = filled()["rows"][0]
    assert row["reason"] == "--weights-dir has no cifar_resnet20.safetensors or .pth, and none can be fetched"
    torch.manual_seed(0)
    save_file(create_architecture("cifar_resnet20").state_dict(), tmp_path / "weights" / "cifar_resnet20.safetensors")
    done = reproduce(*options, "--resume", added=("weights",))
    assert done.code == 0, done.err
    row = filled()["rows"][0]
    assert (row["status"], row["ours"]["weights"]["source"]) == ("done", "cifar_resnet20.safetensors")


def test_a_hub_out_of_reach_skips_its_rows(halfbyte, out, own_images, no_network, empty_hub, filled):
    done = halfbyte(
        "reproduce", "repq", "--rows", "deit_tiny*", "--calib", own_images, "--val", own_images, "--out", out
    )
    assert done.code == 0, done.err
    # All rows of a checkpoint ask once.
    assert len(no_network) <= 2
    reason = "give --weights-dir with deit_tiny_patch16_224.fb_in1k.safetensors or .pth, and the hub cannot be reached"
    assert [row["reason"] for row in filled()["rows"]] == [reason] * 4


def test_a_row_that_fails_is_told_and_the_others_go_on(reproduce, filled, out):
    done = reproduce("--rows", "resnet-percentile-*", "--rows", "*rotated*", added=("step",))
    assert done.code == 1
    rows = {row["row"]: row for row in filled()["rows"]}
    assert [row["status"] for row in rows.values()] == ["done", "done", "failed"]
    reason = rows["resnet-rotated-w3a3"]["reason"]
    assert "nothing in the model can be rotated" in reason
    assert f"failed: resnet-rotated-w3a3: {reason}" in done.out.replace("\n", "")
    assert "Traceback" not in done.err
    assert reproduce("--rows", "*rotated*", "--resume", added=("step",)).code == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            "out of memory; give fewer images at a time (--batch-size)",
        ),
        (ZeroDivisionError("by nothing\nat all"), "ZeroDivisionError: by nothing"),
    ],
)
def test_a_row_may_even_crash(reproduce, filled, out, monkeypatch, error, reason):
    def crash(options, **keywords):
        if options.w_bits == 8:
            raise error
        return api.quantize(options, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(reproduce_run, "quantize", crash)
        done = reproduce("--rows", "resnet-percentile-*")
    assert done.code == 1
    assert [row["status"] for row in filled()["rows"]] == ["failed", "done"]
    assert filled()["rows"][0]["reason"].startswith(reason)
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert "in crash" in next(event["traceback"] for event in events if event["event"] == "failed")
    # Once it can be done, it is.
    assert reproduce("--rows", "resnet-percentile-*", "--resume").code == 0
    assert [row["status"] for row in filled()["rows"]] == ["done", "done"]
