"""`halfbyte train` by several processes: the losses of one, on one machine and on two nodes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

RECIPE = (
    "name: t\nbits: {{weight: 3, activation: 3}}\n"
    "steps: [{first}train: {{batch_size: 8, crops: 2, epochs: {epochs}, lr: 0.0005, save_every: 1, {more}}}]\n"
)
# Sums over two processes round otherwise than over one. Sooner or later a quantized model makes much of it: a weight
# halfway between two levels takes the other one, or Adam gives a gradient that is all rounding a step of full size.
QUANTIZED = {"first": "learned_steps: {images: 16}, ", "epochs": 1, "more": "rule: vvtq, regularizer: 0.01"}
SEARCH = "quantformer: {stage: search, batch_size: 8, lr: 0.0005, save_every: 1, groups: 3}"
GROUPED = "name: q\nbits: {weight: 4, activation: 4}\nsteps: [groupwise: {groups: 1, images: 16}, " + SEARCH + "]\n"
FLOAT = {"first": "", "epochs": 3, "more": "quantize: false"}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def command(tmp_path):
    """The arguments behind `halfbyte`, but for --out."""

    def write(form):
        pixels = np.random.default_rng(0).integers(0, 255, (44, 28, 28), dtype=np.uint8)
        np.savez(tmp_path / "few.npz", x=pixels, y=np.arange(44) % 10)
        (tmp_path / "t.yaml").write_text(RECIPE.format(**form))
        few = ("--calib-images", "16", "--limit", "16", "--workers", "0", "--data", str(tmp_path / "few.npz"))
        return ["train", "fashion_vit", "--recipe", str(tmp_path / "t.yaml"), *few]

    return write


def trace(folder) -> list[float]:
    """The losses of all steps, held-out ones between them."""
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [
        entry[key] for entry in entries for key in ("loss", "held_out") if entry["event"] == "training" and key in entry
    ]


def torchrun(*options):
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", *options, "-m", "halfbyte"]


# 39 images in steps of eight: the last one of an epoch has seven, which two processes share unevenly.
@pytest.mark.parametrize(("form", "losses"), [(QUANTIZED, 5 + 2), pytest.param(FLOAT, 15 + 4, marks=pytest.mark.slow)])
def test_two_processes_have_the_losses_of_one(tmp_path, command, form, losses):
    asked = command(form)
    subprocess.run([sys.executable, "-m", "halfbyte", *asked, "--out", tmp_path / "one"], check=True, env=ENVIRONMENT)
    two = [*torchrun("2", "--standalone"), *asked, "--out", tmp_path / "two"]
    subprocess.run(two, check=True, env=ENVIRONMENT)
    one = trace(tmp_path / "one")
    assert len(one) == losses
    # Before the first weight that takes the other level; when that is depends on how the processor's sums round.
    alike = 3 if form is QUANTIZED else losses
    assert trace(tmp_path / "two")[:alike] == pytest.approx(one[:alike], rel=1e-5, abs=1e-9)
    assert len(trace(tmp_path / "two")) == losses


@pytest.mark.slow
def test_two_processes_search_for_the_same_groups(tmp_path, command):
    asked = command(QUANTIZED)
    (tmp_path / "t.yaml").write_text(GROUPED)
    subprocess.run([sys.executable, "-m", "halfbyte", *asked, "--out", tmp_path / "one"], check=True, env=ENVIRONMENT)
    two = [*torchrun("2", "--standalone"), *asked, "--out", tmp_path / "two"]
    subprocess.run(two, check=True, env=ENVIRONMENT)
    # Adam gives the logits of channels that no range clips, whose gradients are all rounding, steps of full size.
    assert trace(tmp_path / "two")[:2] == pytest.approx(trace(tmp_path / "one")[:2], rel=1e-5)
    sizes = [json.loads((tmp_path / name / "metrics.json").read_text())["steps"][1]["sizes"] for name in ("one", "two")]
    moved = sum(abs(a - b) for site in sizes[0] for a, b in zip(sizes[0][site], sizes[1][site], strict=True)) / 2
    assert moved <= 0.02 * sum(sum(groups) for groups in sizes[0].values())


@pytest.mark.slow
def test_two_nodes_train_and_evaluate(tmp_path, command):
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    meeting = ("1", "--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "t")

    def on_both(*arguments) -> None:
        nodes = [subprocess.Popen([*torchrun(*meeting), *arguments], env=ENVIRONMENT) for _ in range(2)]
        assert [node.wait(300) for node in nodes] == [0, 0]

    asked = command(QUANTIZED)
    on_both(*asked, "--out", tmp_path / "nodes")
    subprocess.run([sys.executable, "-m", "halfbyte", *asked, "--out", tmp_path / "one"], check=True, env=ENVIRONMENT)
    assert trace(tmp_path / "nodes")[:3] == pytest.approx(trace(tmp_path / "one")[:3], rel=1e-5)
    evaluation = (
        "eval",
        str(tmp_path / "nodes"),
        "--limit",
        "16",
        "--workers",
        "0",
        "--json",
        str(tmp_path / "e.json"),
    )
    on_both(*evaluation)
    metrics = json.loads((tmp_path / "nodes" / "metrics.json").read_text())
    assert json.loads((tmp_path / "e.json").read_text())["quantized"]["top1"] == metrics["quantized"]["top1"]
