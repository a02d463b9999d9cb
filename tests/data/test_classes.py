"""Which class each image has: by ImageNet's wnids, by sorted folder names or by an archive's labels."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from halfbyte.data.classes import class_index, imagenet_index
from halfbyte.data.images import open_images
from halfbyte.errors import HalfbyteError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared images")


def test_imagenets_index_is_timms_list():
    index = imagenet_index()
    assert len(index) == 1000
    assert (index["n01440764"], index["n15075141"]) == (0, 999)
    if SHARED.is_dir():
        assert list(index) == json.loads((SHARED / "imagenet_classes.json").read_text())


def test_wnid_folders_get_their_imagenet_class_though_few_are_there(tmp_path, folder, rgb):
    folder(tmp_path, {"n15075141": 1, "n01440764": 2, "n01443537": 1})
    images = open_images(tmp_path, rgb, num_classes=1000)
    assert images.labels == [0, 0, 1, 999]
    assert images.names[0] == os.path.join("n01440764", "000.jpg")
    with pytest.raises(HalfbyteError, match=r"3 class folders are ImageNet wnids.*1000 classes, but the model has 10$"):
        open_images(tmp_path, rgb, num_classes=10)
    assert len(open_images(tmp_path, rgb, num_classes=None)) == 4


def test_other_folders_are_numbered_by_sorted_name(tmp_path, folder, rgb):
    folder(tmp_path, {"zebra": 1, "ant": 2, "Bee": 1, "empty": 0, ".hidden": 1})
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "ant" / "._000.jpg").write_bytes(b"a resource fork")
    images = open_images(tmp_path, rgb, num_classes=4)
    assert images.labels == [0, 1, 1, 3]
    with pytest.raises(HalfbyteError, match="4 class folders, but the model has 3 classes"):
        open_images(tmp_path, rgb, num_classes=3)


def test_a_folder_that_is_no_wnid_is_named_among_wnids(tmp_path, folder, rgb):
    assert class_index({"n01440764": 3, "extra": 0}).wnids
    assert not class_index({"n01440764": 3, "n00000000": 2}).wnids
    folder(tmp_path, {"n01440764": 1, "n01443537": 1, "extra": 1})
    with pytest.raises(HalfbyteError, match=r"3 class folders.*1000 classes; 2 of the folders are .*not 'extra'"):
        open_images(tmp_path, rgb, num_classes=1000)


def test_images_may_lie_deeper_in_a_class_folder(tmp_path, folder, rgb):
    folder(tmp_path, {"a/images": 2, "b": 1})
    assert open_images(tmp_path, rgb, num_classes=2).labels == [0, 0, 1]


@pytest.mark.parametrize("labels", [[0, 10], [-1, 3]])
def test_labels_outside_the_models_classes_are_an_error_in_evaluation_only(tmp_path, labels, archive, rgb):
    path = archive(tmp_path / "a.npz", np.zeros((2, 16, 16), np.uint8), np.array(labels))
    with pytest.raises(HalfbyteError, match=rf"labels from {labels[0]} to {labels[1]}, but the model has 10 classes"):
        open_images(path, rgb, num_classes=10)
    assert open_images(path, rgb, num_classes=None).labels == labels


@needs_shared
def test_imagenet_files(rgb):
    images = open_images(SHARED / "imagenet_val", {**rgb, "input_size": (3, 64, 64)}, num_classes=1000)
    assert len(images) == 650
    assert not images.skipped
    index = imagenet_index()
    assert all(index[name.split(os.sep)[0]] == label for name, label in zip(images.names, images.labels, strict=True))
