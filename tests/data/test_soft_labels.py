"""Soft labels: written, killed and resumed, read back, refused where damaged; and files in the published layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from halfbyte.data import soft_labels
from halfbyte.data.crops import Cropper, draw_box, generator_of
from halfbyte.data.images import open_images
from halfbyte.data.published_labels import PublishedLabels
from halfbyte.data.soft_labels import LabelPlan, ShardedLabels, write_labels
from halfbyte.errors import HalfbyteError
from halfbyte.train.losses import soft_cross_entropy

CONFIG = {"input_size": (3, 16, 16), "interpolation": "bilinear", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2),
          "crop_pct": 1.0, "crop_mode": "center"}  # fmt: skip
CLASSES = 12


@pytest.fixture
def images(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(7):
        folder = tmp_path / "imagenet" / "train" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return open_images(tmp_path / "imagenet" / "train", CONFIG, num_classes=None)


def plan(**changes) -> LabelPlan:
    given = {"teacher": {"sha256": "0"}, "preprocessing": {key: CONFIG[key] for key in
             ("input_size", "interpolation", "mean", "std")}, "classes": CLASSES, "crops": 4, "top": 3}  # fmt: skip
    return LabelPlan(**given | changes)


def predict(crops: torch.Tensor) -> torch.Tensor:
    """A teacher whose logits depend on every pixel."""
    weight = torch.randn(CLASSES, crops[0].numel(), generator=torch.Generator().manual_seed(1))
    return crops.flatten(1).double() @ weight.double().T / 20


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_crops_are_drawn_from_the_name_alone():
    boxes = [draw_box(40, 60, generator_of("a.png", 3)) for _ in range(2)]
    assert boxes[0] == boxes[1] != draw_box(40, 60, generator_of("b.png", 3))
    generator = generator_of("many", 0)
    drawn = np.array([draw_box(40, 60, generator, (0.25, 1.0)) for _ in range(500)])
    top, left, height, width = drawn.T
    assert (top + height).max() <= 40
    assert (left + width).max() <= 60
    assert drawn[:, :2].min() == 0
    areas = height * width / (40 * 60)
    assert 0.23 < areas.min() < 0.35
    assert areas.max() > 0.8
    assert 0.7 < (width / height).min() < (width / height).max() < 1.4
    # A picture in which no allowed part fits gives its middle.
    assert draw_box(1, 1000, generator, (1.0, 1.0)) == (0, 499, 1, 1)


def test_a_crop_is_that_part_of_the_picture():
    picture = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
    cropper = Cropper(CONFIG)
    whole = cropper(picture, (0, 0, 16, 16), False)
    expected = (torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 - cropper.mean) / cropper.std
    assert torch.equal(whole, expected)
    assert torch.equal(cropper(picture, (0, 0, 16, 16), True), expected.flip(2))
    assert cropper(picture, (3, 2, 5, 7), False).shape == (3, 16, 16)


def test_written_and_read(images, tmp_path):
    write_labels(images, plan(), predict, tmp_path / "labels")
    labels = ShardedLabels(tmp_path / "labels", CLASSES)
    cropper = Cropper(CONFIG)
    for row, name in enumerate(images.names):
        label, picture = labels.of(name), images.picture(row)
        boxes = [label.box(crop, picture.height, picture.width) for crop in range(4)]
        assert len(set(boxes)) > 1
        crops = torch.stack([cropper(picture, box, bool(label.mirrored[crop])) for crop, box in enumerate(boxes)])
        expected = predict(crops).softmax(-1).topk(3)
        assert torch.equal(label.ids, expected.indices)
        assert torch.allclose(label.probabilities.double(), expected.values, atol=1e-3)
        assert (label.probabilities.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_killed_and_resumed_they_are_the_same_bytes(images, tmp_path, monkeypatch, stop):
    monkeypatch.setattr(soft_labels, "SHARD", 2)
    write_labels(images, plan(), predict, tmp_path / "whole")
    calls = iter(range(100))

    def stopped(crops):
        if next(calls) == stop:
            raise KeyboardInterrupt
        return predict(crops)

    with pytest.raises(KeyboardInterrupt):
        write_labels(images, plan(), stopped, tmp_path / "parts")
    write_labels(images, plan(), predict, tmp_path / "parts", resume=True)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    # Finished ones are left as they are.
    write_labels(images, plan(), stopped, tmp_path / "parts", resume=True)


def test_an_image_is_labelled_the_same_among_others(images, tmp_path):
    write_labels(images, plan(), predict, tmp_path / "all")
    write_labels(images.subset([5, 1]), plan(), predict, tmp_path / "two")
    both = [ShardedLabels(tmp_path / name, CLASSES).of(images.names[5]) for name in ("all", "two")]
    assert torch.equal(both[0].probabilities, both[1].probabilities)
    assert torch.equal(both[0].fractions, both[1].fractions)


def test_what_stands_in_the_way_is_told(images, tmp_path):
    write_labels(images, plan(), predict, tmp_path / "labels")
    with pytest.raises(HalfbyteError, match="continue with --resume, or choose another") as refused:
        write_labels(images, plan(), predict, tmp_path / "labels")
    # Whoever keeps the error, as notebooks do, can do what it says.
    write_labels(images, plan(), predict, tmp_path / "labels", resume=True)
    assert refused.value is not None
    with pytest.raises(HalfbyteError, match=r"labels of another kind \(crops, seed\)"):
        write_labels(images, plan(crops=2, seed=1), predict, tmp_path / "labels", resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").write_text("")
    with pytest.raises(HalfbyteError, match="something else than soft labels"):
        write_labels(images, plan(), predict, tmp_path / "other", resume=True)
    with pytest.raises(HalfbyteError, match="are for 12 classes, the model has 10"):
        ShardedLabels(tmp_path / "labels", 10)
    with pytest.raises(HalfbyteError, match=r"have none for other\.png"):
        ShardedLabels(tmp_path / "labels", CLASSES).of("other.png")


@pytest.mark.parametrize("wrong", [{"crops": 0}, {"top": 13}, {"temperature": 0.0}])
def test_impossible_plans_are_told(wrong):
    with pytest.raises(HalfbyteError, match=r"give 1 to 10,000 crops|temperature"):
        plan(**wrong)


def test_damage_is_told(images, tmp_path):
    write_labels(images, plan(), predict, tmp_path / "labels")
    shard, header = tmp_path / "labels" / "labels-00000.safetensors", tmp_path / "labels" / "labels.json"
    whole = shard.read_bytes()
    for share in (0.0, 0.3, 0.99):
        shard.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(HalfbyteError, match=r"labels-00000.safetensors: damaged .* make it again"):
            ShardedLabels(tmp_path / "labels", CLASSES)
    shard.unlink()
    with pytest.raises(HalfbyteError, match="is missing; continue making them with --resume"):
        ShardedLabels(tmp_path / "labels", CLASSES)
    plain = json.loads(header.read_text())
    for text in ("{", json.dumps(plain | {"version": 9}), json.dumps(plain | {"crops": "4"}), "[]"):
        header.write_text(text)
        with pytest.raises(HalfbyteError, match=r"labels\.json is damaged"):
            ShardedLabels(tmp_path / "labels", CLASSES)


# The published layout


@pytest.fixture
def published(images, tmp_path):
    """Writes a file in the published layout for the first image; returns a reader."""

    def write(label, tail="smoothing", parts=4, boxes=None):
        crops = len(label)
        boxes = torch.tensor([[0.1, 0.2, 0.5, 0.25]] * crops) if boxes is None else boxes
        folder = (tmp_path / "imagenet" / "train").absolute()
        path = tmp_path / "soft" / "/".join((folder / images.names[0]).with_suffix(".tar").parts[-parts:])
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save([boxes, torch.tensor([False, True] * (crops // 2)), label], path)
        return PublishedLabels(tmp_path / "soft", folder, CLASSES, tail)

    return write


def dense(label):
    """The whole distribution that a label means."""
    rest = (1 - label.probabilities.sum(1, keepdim=True)) / max(CLASSES - label.ids.shape[1], 1)
    return rest.repeat(1, CLASSES).scatter(1, label.ids, label.probabilities)


@pytest.mark.parametrize("parts", [3, 4])
def test_the_most_probable_classes(images, published, parts):
    label = torch.tensor([[[3.0, 1.0], [0.5, 0.25]], [[0.0, 11.0], [0.75, 0.25]]])
    found = published(label, parts=parts).of(images.names[0])
    assert found.ids.tolist() == [[3, 1], [0, 11]]
    assert torch.allclose(dense(found)[0, 2], torch.tensor(0.025))
    assert found.mirrored.tolist() == [False, True]
    assert found.box(0, 20, 40) == (2, 8, 10, 10)
    renormalised = published(label, "renorm").of(images.names[0])
    assert torch.allclose(renormalised.probabilities, torch.tensor([[2 / 3, 1 / 3], [0.75, 0.25]]))


@pytest.mark.parametrize(
    ("label", "row"),
    [
        (torch.tensor([4, 2]), {4: 1.0}),
        (torch.tensor([[4.0, 0.56], [1.0, 0.9]]), {4: 0.56, 0: 0.04}),
        (torch.eye(CLASSES)[[5, 6]], {5: 1.0, 4: 0.0}),
    ],
)
def test_other_kinds_of_labels(images, published, label, row):
    found = dense(published(label).of(images.names[0]))
    assert found.sum(1).tolist() == pytest.approx([1, 1])
    for number, probability in row.items():
        assert float(found[0, number]) == pytest.approx(probability)


@pytest.mark.parametrize(
    ("label", "boxes"),
    [
        (torch.tensor([CLASSES, 0]), None),
        (torch.zeros(2, 7), None),
        (torch.tensor([0, 1]), torch.zeros(3, 4)),
        (torch.tensor([0, 1]), torch.full((2, 4), 1.5)),
    ],
)
def test_files_of_another_layout_are_told(images, published, label, boxes):
    with pytest.raises(HalfbyteError, match="not in the published layout"):
        published(label, boxes=boxes).of(images.names[0])


def test_pickled_objects_are_never_run(images, published, tmp_path):
    reader = published(torch.tensor([0, 1]))
    path = next((tmp_path / "soft").rglob("*.tar"))
    torch.save([torch.zeros(2, 4), torch.zeros(2), np.random.default_rng()], path)
    with pytest.raises(HalfbyteError, match="not in the published layout"):
        reader.of(images.names[0])
    path.unlink()
    with pytest.raises(HalfbyteError, match="have none for"):
        reader.of(images.names[0])
    with pytest.raises(HalfbyteError, match="no such folder"):
        PublishedLabels(tmp_path / "nowhere", tmp_path, CLASSES)


def test_the_loss_needs_no_dense_matrix():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, CLASSES, generator=generator, dtype=torch.float64)
    ids = torch.stack([torch.randperm(CLASSES, generator=generator)[:3] for _ in range(5)])
    probabilities = torch.rand(5, 3, generator=generator) / 3
    rest = (1 - probabilities.sum(1, keepdim=True)) / (CLASSES - 3)
    whole = rest.repeat(1, CLASSES).scatter(1, ids, probabilities)
    expected = -(whole * logits.float().log_softmax(-1)).sum(1).mean()
    assert torch.allclose(soft_cross_entropy(logits, ids, probabilities), expected)
    everything = torch.arange(CLASSES).repeat(5, 1)
    assert torch.allclose(soft_cross_entropy(logits, everything, whole), expected)
