"""Changed predictions and accuracy by class, against counting by hand."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from halfbyte.evaluate import metrics
from halfbyte.findings.predictions import SHOWN, prediction_findings
from halfbyte.findings.thumbnail import SIDE, thumbnail


@pytest.fixture(scope="module")
def logits(vit):
    torch.manual_seed(0)
    labels = torch.tensor(vit.images.labels)
    floats = torch.randn(len(labels), 10)
    floats[torch.arange(len(labels)), labels] += 3
    return floats, floats + torch.randn_like(floats)


@pytest.fixture(scope="module")
def found(vit, logits):
    return prediction_findings(vit.images, *logits, vit.teacher, vit.preprocessing)


def test_classes_sum_up_to_the_metrics(vit, logits, found) -> None:
    labels = torch.tensor(vit.images.labels)
    for key, own in zip(("float", "quantized"), logits, strict=True):
        hits = sum(row[key] for row in found["classes"])
        assert 100 * hits / len(labels) == pytest.approx(metrics(own, labels).top1)
    assert sum(row["images"] for row in found["classes"]) == len(labels)
    assert found["classes"][0]["name"] == "T-shirt/top"
    assert found["outputs"] == 10


def test_changed_predictions_are_those_that_do_not_agree(vit, logits, found) -> None:
    floats, quantized = logits
    changed = (floats.argmax(1) != quantized.argmax(1)).nonzero()[:, 0].tolist()
    assert found["changed"]["count"] == len(changed)
    assert found["changed"]["of"] == len(vit.images)
    shown = found["changed"]["shown"]
    assert 1 < len(shown) == min(SHOWN, len(changed))
    chances = [row["float"]["probability"] for row in shown]
    assert chances == sorted(chances, reverse=True)
    names = vit.images.names
    for row in shown:
        number = names.index(row["image"])
        assert number in changed
        assert row["class"] == vit.images.labels[number]
        assert row["float"]["class"] == int(floats[number].argmax())
        assert row["quantized"]["class"] == int(quantized[number].argmax())
        assert row["quantized"]["probability"] == pytest.approx(float(quantized[number].softmax(0).max()), abs=1e-4)


def test_without_a_change_nothing_is_shown(vit, logits) -> None:
    found = prediction_findings(vit.images, logits[0], logits[0], vit.teacher, vit.preprocessing)
    assert found["changed"] == {"count": 0, "of": len(vit.images), "shown": []}


def test_the_same_images_are_known_by_their_checksum(vit, logits, found) -> None:
    half = vit.images.subset(range(20))
    other = prediction_findings(half, logits[0][:20], logits[1][:20], vit.teacher, vit.preprocessing)
    assert other["images"] != found["images"]


def picture_of(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def test_a_small_picture_is_what_the_model_sees_to_the_pixel(vit) -> None:
    pixels, _ = vit.images[0]
    picture = picture_of(thumbnail(pixels, vit.preprocessing))
    assert picture.format == "PNG"
    mean, std = vit.preprocessing["mean"][0], vit.preprocessing["std"][0]
    expected = (pixels[0] * std + mean).mul(255).round()
    assert np.asarray(picture).tolist() == expected.int().tolist()


def test_a_large_picture_is_made_small() -> None:
    config = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    address = thumbnail(torch.randn(3, 224, 448), config)
    picture = picture_of(address)
    assert (picture.format, picture.size, picture.mode) == ("JPEG", (SIDE, SIDE // 2), "RGB")
    assert len(address) < 8_000
