"""Images that are missing, damaged or do not fit the model: refused, or skipped by name when they are few."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.usefixtures("no_folder_left")


def _bomb_png() -> bytes:
    """A small file that unfolds to a picture of 3.6 gigapixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_missing_folder_of_images_is_told(refused, tmp_path):
    for option in ("--calib", "--val"):
        refused(str(tmp_path / "none"), "does not exist", options=(option, tmp_path / "none"))


def test_a_folder_without_images_is_told(refused, tmp_path):
    (tmp_path / "empty" / "class0").mkdir(parents=True)
    refused(str(tmp_path / "empty"), "no images", options=("--calib", tmp_path / "empty"))
    (tmp_path / "empty" / "class0").rmdir()
    refused(str(tmp_path / "empty"), "no class folders", options=("--calib", tmp_path / "empty"))


def test_more_than_one_corrupt_image_in_a_hundred_is_refused(refused, pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "images")
    for number in range(3):
        path = folder / "class3" / f"{number:02}.png"
        path.write_bytes(path.read_bytes()[:60])
    for option in ("--calib", "--val"):
        refused("3 of 200 images", "class3/00.png", "mend or remove", options=(option, folder))


@pytest.mark.parametrize("content", [b"", b"no picture", _bomb_png()], ids=["empty", "text", "decompression bomb"])
def test_one_corrupt_image_in_two_hundred_is_skipped_named_and_counted(quantize, pictures, tmp_path, content):
    folder = shutil.copytree(pictures, tmp_path / "images")
    (folder / "class7" / "05.png").write_bytes(content)
    outcome = quantize("--calib", folder, "--calib-images", 199, "--val", folder, "--limit", 1000)
    assert outcome.code == 0, outcome.err
    assert "1 of 200 images cannot be read and are skipped: class7/05.png" in outcome.err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["skipped_images"] == {"calibration": ["class7/05.png"], "evaluation": ["class7/05.png"]}
    assert metrics["images"] == {"calibration": 199, "evaluation": 199}


def test_a_corrupt_image_whose_name_is_no_text_is_skipped_too(quantize, pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "images")
    try:
        os.rename(folder / "class7" / "05.png", os.fsencode(folder / "class7") + b"/\xff[b].png")
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    (folder / "class7" / "\udcff[b].png").write_bytes(b"")
    outcome = quantize("--val", folder, "--out", tmp_path / "\udcfe")
    assert outcome.code == 0, outcome.err
    metrics = json.loads((tmp_path / "\udcfe" / "metrics.json").read_text())
    assert metrics["skipped_images"]["evaluation"] == ["class7/\udcff[b].png"]


def test_classes_that_do_not_fit_the_head_are_told(refused, pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "images")
    shutil.rmtree(folder / "class4")
    refused(str(folder), "9 class folders", "10 classes", options=("--val", folder))


def test_labels_that_do_not_fit_the_head_are_told(refused, tmp_path):
    np.savez(tmp_path / "labels.npz", x=np.zeros((40, 28, 28), np.uint8), y=np.arange(40) % 11)
    refused("labels.npz", "0 to 10", "10 classes", options=("--val", tmp_path / "labels.npz"))


def test_a_damaged_archive_of_images_is_told(refused, bomb, tmp_path):
    np.savez(tmp_path / "cut.npz", x=np.zeros((40, 28, 28), np.uint8), y=np.arange(40) % 10)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:5000])
    refused("cut.npz", options=("--calib", tmp_path / "cut.npz"))
    np.savez(tmp_path / "objects.npz", x=np.array([bomb]), y=np.zeros(1, int))
    refused("objects.npz", options=("--calib", tmp_path / "objects.npz"))
    assert not (tmp_path / "ran").exists()


def test_a_model_that_needs_images_says_so(refused, tmp_path):
    torch.save(_resnet20(), tmp_path / "cifar.pth")
    line = refused("give --calib DIR", model="cifar_resnet20", options=("--weights", tmp_path / "cifar.pth"))
    assert "cifar_resnet20" in line


def _resnet20() -> dict[str, torch.Tensor]:
    from halfbyte.models.load import create_architecture

    return create_architecture("cifar_resnet20").state_dict()


def test_as_a_process_an_error_is_one_line_and_warnings_of_pillow_are_none(tmp_path):
    # Pillow warns of every picture above 89 megapixels before it finds it damaged.
    header = bytearray(_bomb_png())
    header[16:24] = struct.pack(">II", 10000, 10000)
    header[29:33] = struct.pack(">I", zlib.crc32(bytes(header[12:29])))
    for label in range(10):
        (tmp_path / "images" / f"class{label}").mkdir(parents=True)
        Image.new("L", (28, 28)).save(tmp_path / "images" / f"class{label}" / "0.png")
    (tmp_path / "images" / "class0" / "1.png").write_bytes(header)
    ended = subprocess.run(
        [sys.executable, "-m", "halfbyte", "eval", "fashion_resnet", "--val", str(tmp_path / "images")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"halfbyte: images {tmp_path / 'images'}: 1 of 11 images cannot be read (class0/1.png")


def test_labels_that_no_class_can_have_are_told(quantize, tmp_path):
    labels = np.arange(64, dtype=np.uint64) + 2**63
    np.savez(tmp_path / "huge.npz", x=np.zeros((64, 28, 28), np.uint8), y=labels)
    quantize("--calib", tmp_path / "huge.npz").refused("huge.npz: y holds 9223372036854775871")


def test_one_image_is_too_few_for_some_steps(quantize, tmp_path):
    np.savez(tmp_path / "one.npz", x=np.zeros((1, 28, 28), np.uint8), y=np.zeros(1, int))
    outcome = quantize("--calib", tmp_path / "one.npz", "--recipe", "halfbyte-fast", "--calib-images", 1)
    assert outcome.code == 2
    said = outcome.err.splitlines()[-1]
    assert "the run has 1 for calibration, give more with --calib and --calib-images" in said


def test_a_budget_below_the_least_width_is_told_at_once(quantize):
    quantize("--budget", "1.5bits").refused("budget must be at least 2bits", "not 1.5bits")
