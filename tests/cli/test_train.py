"""`halfbyte train`: images, a teacher and labels of its own, and what it refuses before anything is written."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RECIPE = (
    "name: t\nbits: {weight: 3, activation: 3}\n"
    "steps: [learned_steps: {images: 16}, train: {batch_size: 8, crops: 2, steps: 2, lr: 0.0005}]\n"
)


@pytest.fixture
def few(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (24, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "few.npz", x=pixels, y=np.arange(24) % 10)
    return tmp_path / "few.npz"


@pytest.fixture
def train(halfbyte, tmp_path):
    (tmp_path / "t.yaml").write_text(RECIPE)

    def run(*arguments):
        few = ("--calib-images", 16, "--limit", 16, "--workers", 0)
        return halfbyte(
            "train", "fashion_vit", "--recipe", tmp_path / "t.yaml", *few, "--out", tmp_path / "out", *arguments
        )

    return run


def figures(tmp_path):
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    return next(step for step in metrics["steps"] if step["step"] == "train")


def test_images_and_a_teacher_of_its_own(train, few, tmp_path):
    done = train("--data", few, "--teacher", "fashion_resnet")
    assert done.code == 0, done.err
    assert figures(tmp_path)["images"] == {"training": 21, "held_out": 3}
    assert figures(tmp_path)["optimizer_steps"] == 2
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    stage = metrics["stages"]["train"]
    assert (stage["steps"], stage["top1"]) == (2, metrics["quantized"]["top1"])
    train("--data", few, "--resume").refused("holds a run with other settings (teacher)")


def test_soft_labels(train, halfbyte, few, tmp_path):
    labels = tmp_path / "labels"
    assert halfbyte("labels", "--teacher", "fashion_resnet", "--data", few, "--out", labels, "--crops", 4).code == 0
    done = train("--data", few, "--labels", labels)
    assert done.code == 0, done.err
    # Without --data the images would be others than those that were labelled.
    train("--labels", labels, "--force").refused("have none for")


def test_what_happens_is_written_down(train, few, tmp_path):
    done = train("--data", few, "--tensorboard", "--set", "train.save_every=1")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    first, *steps = [line for line in lines if line["event"] == "training"]
    assert (first["step"], sorted(first)) == (0, ["event", "held_out", "step"])
    assert [line["step"] for line in steps] == [1, 2]
    assert all(line["images_per_second"] > 0 and line["lr"] > 0 and line["loss"] > 0 for line in steps)
    curves = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    assert [event.step for event in curves.Scalars("training/loss")] == [1, 2]
    assert [event.value for event in curves.Scalars("training/loss")] == pytest.approx([line["loss"] for line in steps])
    assert [event.step for event in curves.Scalars("training/held_out")] == [0, 2]


def test_tensorboard_that_is_missing_is_told_before_anything_is_written(train, few, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train("--data", few, "--tensorboard").refused("pip install 'halfbyte[tensorboard]'")
    assert not (tmp_path / "out").exists()


def test_a_float_model_leaves_its_weights(train, halfbyte, few, tmp_path):
    settings = ("--data", few, "--recipe", "float", "--set", "train.steps=2", "--set", "train.batch_size=8")
    done = train(*settings)
    assert done.code == 0, done.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "weights.safetensors", "metrics.json", "report.json", "recipe.yaml", "report.html", "log.jsonl"
    }  # fmt: skip
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["bits"] == {"weight": 32, "activation": 32}
    assert metrics["stages"]["train"]["steps"] == 2
    facts = tmp_path / "facts.json"
    again = (
        "eval",
        "fashion_vit",
        "--weights",
        tmp_path / "out" / "weights.safetensors",
        "--limit",
        16,
        "--json",
        facts,
    )
    assert halfbyte(*again).code == 0
    assert json.loads(facts.read_text())["float"]["top1"] == metrics["quantized"]["top1"]
    assert train(*settings, "--resume").code == 0


def test_of_a_model_and_of_floats_only_the_last_is_left(train, halfbyte, few, tmp_path):
    floats = ("--data", few, "--recipe", "float", "--set", "train.steps=2", "--set", "train.batch_size=8", "--force")
    files = {"model.safetensors", "config.json", "quantization.json", "program.bin"}
    for options, here, gone in ((("--data", few), files, set()), (floats, {"weights.safetensors"}, files),
                                (("--data", few, "--force"), files, {"weights.safetensors"})):  # fmt: skip
        done = train(*options)
        assert done.code == 0, done.err
        found = {path.name for path in (tmp_path / "out").iterdir()}
        assert here <= found
        assert not gone & found


def test_what_cannot_be_is_refused_and_leaves_nothing(train, few, tmp_path):
    train("--data", "nowhere").refused("images nowhere: does not exist")
    train("--labels", "nowhere").refused("--labels nowhere: no such folder; make some with `halfbyte labels`")
    (tmp_path / "empty").mkdir()
    train("--labels", tmp_path / "empty").refused("lie as the images do; give these with --data DIR")
    train("--teacher", "fashion_vt").refused("fashion_vit")
    train("--set", "train.rule=best").refused("rule must be one of")
    train("--set", "train.quantize=false").refused("train changes the trained weights and cannot follow learned_steps")
    (tmp_path / "only.yaml").write_text("name: only\nsteps: [train]\n")
    train("--recipe", tmp_path / "only.yaml").refused("no step calibrates; begin with one such as repq")
    train("--set", "train.regularizer=0.01", "--set", "learned_steps.scheme=none").refused("scheme must be one of")
    assert not (tmp_path / "out").exists()
