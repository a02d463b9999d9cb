"""The tensor of each image: resized, cropped and normalized as timm does."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from halfbyte.data.images import EMBEDDED_CALIBRATION, EMBEDDED_TEST, open_images


def test_images_are_prepared_as_timm_does(tmp_path, folder, rgb):
    from timm.data import create_transform

    folder(tmp_path, {"a": 1, "b": 1}, size=(30, 40))
    config = {**rgb, "crop_pct": 0.8, "interpolation": "bilinear", "mean": (0.1, 0.2, 0.3)}
    images = open_images(tmp_path, config, num_classes=2)
    x, y = images[1]
    expected = create_transform(**config, is_training=False)(Image.open(tmp_path / "b" / "000.jpg"))
    assert torch.equal(x, expected)
    assert (x.shape, x.dtype, y) == ((3, 16, 16), torch.float32, 1)


def test_grey_models_get_grey_images(tmp_path, folder, archive, rgb, grey):
    folder(tmp_path, {"a": 1})
    x, _ = open_images(tmp_path, grey, num_classes=1)[0]
    assert x.shape == (1, 16, 16)
    path = archive(tmp_path / "grey.npz", np.full((4, 16, 16), 51, np.uint8))
    pixels, _ = open_images(path, grey, num_classes=10)[0]
    assert torch.allclose(pixels, torch.tensor((0.2 - 0.5) / 0.25).expand(1, 16, 16))
    assert open_images(path, rgb, num_classes=10)[0][0].shape == (3, 16, 16)


def test_an_archive_gives_its_pixels(tmp_path, archive, rgb):
    x = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    images = open_images(archive(tmp_path / "a.npz", x, np.array([2, 0, 1, 1, 0])), rgb, num_classes=3)
    assert images.labels == [2, 0, 1, 1, 0]
    assert images.names[3] == "a.npz[3]"
    assert torch.allclose(images[3][0], torch.from_numpy(x[3]).permute(2, 0, 1) / 127.5 - 1, atol=1e-6)


def test_the_embedded_images(grey):
    config = {**grey, "input_size": (1, 28, 28)}
    test = open_images(EMBEDDED_TEST, config, num_classes=10)
    calibration = open_images(EMBEDDED_CALIBRATION, config, num_classes=10)
    assert (len(test), len(calibration)) == (2000, 1024)
    assert [test.labels.count(label) for label in range(10)] == [200] * 10
    assert test[0][0].shape == (1, 28, 28)
