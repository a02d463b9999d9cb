"""Crops for training: the same for one epoch, other ones in the next, and those of the soft labels where there are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from halfbyte.data.crop_set import CropSet
from halfbyte.data.images import open_images
from halfbyte.data.soft_labels import LabelPlan, ShardedLabels, write_labels

CONFIG = {"input_size": (1, 12, 12), "interpolation": "bilinear", "mean": (0.5,), "std": (0.2,), "crop_pct": 1.0,
          "crop_mode": "center"}  # fmt: skip


@pytest.fixture
def images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "five.npz", x=pixels, y=np.arange(5))
    return open_images(tmp_path / "five.npz", CONFIG, num_classes=None)


def test_drawn_for_an_epoch_from_the_seed(images):
    crops = CropSet(images, CONFIG, 3, seed=1)
    first, label, ids, probabilities = crops[0, 2]
    assert first.shape == (3, 1, 12, 12)
    assert label.tolist() == [2, 2, 2]
    assert ids.shape == probabilities.shape == (3, 0)
    assert torch.equal(crops[0, 2][0], first)
    assert torch.equal(CropSet(images.subset([2]), CONFIG, 3, seed=1)[0, 0][0], first)
    assert not torch.equal(crops[1, 2][0], first)
    assert not torch.equal(CropSet(images, CONFIG, 3, seed=2)[0, 2][0], first)
    assert not torch.equal(first[0], first[1])


def test_with_labels_the_teacher_saw_the_crops(images, tmp_path):
    def teacher(crops):
        return torch.stack([crops.mean((1, 2, 3)) * scale for scale in (1, 5, -5)], 1)

    preprocessing = {key: CONFIG[key] for key in ("input_size", "interpolation", "mean", "std")}
    write_labels(images, LabelPlan({}, preprocessing, 3, crops=4, top=2), teacher, tmp_path / "labels")
    crops = CropSet(images, CONFIG, 2, seed=0, labels=ShardedLabels(tmp_path / "labels", 3))
    seen, _, ids, probabilities = crops[0, 3]
    expected = teacher(seen).softmax(-1).topk(2)
    assert torch.equal(ids, expected.indices)
    assert torch.allclose(probabilities, expected.values, atol=1e-3)
    more = CropSet(images, CONFIG, 6, seed=0, labels=crops.labels)[0, 3]
    assert more[0].shape == (6, 1, 12, 12)
    assert torch.equal(more[0][4], more[0][0])
