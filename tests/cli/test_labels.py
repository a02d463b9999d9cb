"""`halfbyte labels`: what it writes and says, that it survives a kill, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfbyte.data.soft_labels import SHARD, ShardedLabels
from halfbyte.locks import lock


@pytest.fixture
def few(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "few.npz", x=pixels, y=np.arange(6))
    return tmp_path / "few.npz"


def test_an_embedded_teacher_labels_a_few_images(halfbyte, few, tmp_path):
    facts = tmp_path / "facts.json"
    asked = ("labels", "--teacher", "fashion_resnet", "--data", few, "--out", tmp_path / "labels", "--crops", 4)
    done = halfbyte(*asked, "--top", 3, "--json", facts)
    assert done.code == 0, done.err
    assert "6 images, 4 crops each, the 3 best classes" in done.out
    found = json.loads(facts.read_text())
    assert (found["images"], found["crops"], found["top"]) == (6, 4, 3)
    labels = ShardedLabels(tmp_path / "labels", 10)
    assert labels.header["teacher"]["architecture"] == "fashion_resnet"
    assert labels.of("few.npz[5]").ids.shape == (4, 3)
    halfbyte(*asked, "--top", 3).refused("holds soft labels; continue with --resume")
    halfbyte(*asked, "--top", 2, "--resume").refused("labels of another kind (top)")
    assert halfbyte(*asked, "--top", 3, "--resume").code == 0


def test_classes_whose_names_are_no_text(halfbyte, tmp_path):
    for name in (b"caf\xe9", "日本".encode()):
        folder = Path(os.fsdecode(os.fsencode(tmp_path / "images") + b"/" + name))
        folder.mkdir(parents=True)
        Image.new("L", (28, 28)).save(folder / "0.png")
    asked = ("--teacher", "fashion_resnet", "--data", tmp_path / "images", "--out", tmp_path / "labels", "--crops", 1)
    done = halfbyte("labels", *asked, "--workers", 0)
    assert done.code == 0, done.err
    assert "2 images" in done.out


def test_another_process_at_work_in_the_folder_is_told(halfbyte, few, tmp_path):
    (tmp_path / "labels").mkdir()
    held = lock(tmp_path / "labels")
    asked = ("labels", "--teacher", "fashion_resnet", "--data", few, "--out", tmp_path / "labels", "--crops", 1)
    halfbyte(*asked).refused("another process writes into")
    assert not list((tmp_path / "labels").iterdir())
    held.release()
    # What a process leaves that is killed while it writes the header.
    (tmp_path / "labels" / "labels.json.part").write_text("{")
    assert halfbyte(*asked).code == 0


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (("--teacher", "fashion_vt"), "fashion_vit"),
        (("--data", "nowhere"), "does not exist"),
        (("--crops", 0), "give 1 to 10,000 crops"),
        (("--temperature", 0), "temperature"),
        (("--least-area", 2), "--least-area 2.0"),
        (("--seed", -1), "--seed must be at least 0"),
        (("--device", "tpu"), "--device must be"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(halfbyte, few, tmp_path, wrong, told):
    given = {"--teacher": "fashion_resnet", "--data": few, "--out": tmp_path / "labels"} | {wrong[0]: wrong[1]}
    halfbyte("labels", *(part for pair in given.items() for part in pair)).refused(told)
    assert not (tmp_path / "labels").exists()


@pytest.mark.slow
def test_a_thousand_images_killed_and_resumed_are_the_same_bytes(tmp_path, kill_when):
    pixels = np.random.default_rng(0).integers(0, 255, (1000, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "many.npz", x=pixels, y=np.zeros(1000, dtype=np.int64))
    command = [sys.executable, "-m", "halfbyte", "labels", "--teacher", "fashion_vit", "--crops", "16"]
    command += ["--data", str(tmp_path / "many.npz"), "--out"]
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    kill_when([*command, str(parts)], lambda: len(list(parts.glob("labels-*.safetensors"))) == 2)
    assert len(list(parts.glob("labels-*.safetensors"))) < -(-1000 // SHARD)
    assert subprocess.run([*command, str(parts), "--resume"], capture_output=True).returncode == 0
    assert subprocess.run([*command, str(whole)], capture_output=True).returncode == 0
    found = {path.name: path.read_bytes() for path in parts.iterdir() if not path.name.endswith(".part")}
    assert found == {path.name: path.read_bytes() for path in whole.iterdir()}
    # 16 crops of 5 classes: 10 bytes a box and its flip, 4 bytes a class; and the image's size and name.
    assert sum(map(len, found.values())) / 1000 < 16 * (9 + 4 * 5) + 40
