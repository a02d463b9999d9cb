"""Image sets: every kind of file, every kind of damage, and choices that are the same each time."""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from halfbyte.data import images as images_module
from halfbyte.data.classes import class_index, imagenet_index
from halfbyte.data.decode import image_fault
from halfbyte.data.images import (
    EMBEDDED_CALIBRATION,
    EMBEDDED_TEST,
    batches,
    calibration_subset,
    limit,
    open_image,
    open_images,
)
from halfbyte.errors import HalfbyteError
from halfbyte.progress import Progress

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared images")

RGB = {
    "input_size": (3, 16, 16), "interpolation": "bicubic", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
    "crop_pct": 1.0, "crop_mode": "center",
}  # fmt: skip
GREY = {**RGB, "input_size": (1, 16, 16), "mean": (0.5,), "std": (0.25,)}


def picture(seed=0, size=(20, 24), mode="RGB"):
    """A noisy picture, so that its JPEG has entropy-coded data all the way."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def folder(root, counts, size=(20, 24)):
    """JPEG files in class folders: `counts` maps a folder's name to how many."""
    number = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(number, size).save(root / name / f"{i:03}.jpg")
            number += 1
    return root


def archive(path, x=None, y=None, **others):
    x = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8) if x is None else x
    np.savez(path, x=x, y=np.arange(len(x)) % 10 if y is None else y, **others)
    return path


class Lines:
    """A stream that keeps what is written."""

    def __init__(self):
        self.stream = io.StringIO()
        self.progress = Progress(stream=self.stream)

    @property
    def text(self):
        return self.stream.getvalue()


# Decoding


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16", "YCbCr"])
@pytest.mark.parametrize(("channels", "expected"), [(1, "L"), (3, "RGB")])
def test_every_mode_becomes_8_bit_grey_or_rgb(tmp_path, mode, channels, expected):
    suffix = {"CMYK": ".jpg", "YCbCr": ".jpg"}.get(mode, ".png")
    path = tmp_path / f"image{suffix}"
    level = 255 if mode == "1" else 204  # black and white have no other tones, and the palette is in steps of 51
    pixels = np.full((4, 6), level * 257, np.uint16)
    made = Image.fromarray(pixels) if mode == "I;16" else Image.new("RGB", (6, 4), (level,) * 3).convert(mode)
    assert made.mode == mode
    made.save(path, **({"quality": 100} if suffix == ".jpg" else {}))
    image = open_image(path, channels)
    assert (image.mode, image.size) == (expected, (6, 4))
    assert np.abs(np.asarray(image).astype(int) - level).max() <= 3


def test_16_bit_pictures_keep_their_tones(tmp_path):
    levels = np.array([[0, 128, 129, 257 * 100, 257 * 254 + 200, 65535]], np.uint16)
    for mode, name in (("I;16", "a.png"), ("I", "b.tif")):
        made = Image.fromarray(levels if mode == "I;16" else levels.astype(np.int32))
        assert made.mode == mode
        made.save(tmp_path / name)
        assert np.asarray(open_image(tmp_path / name, 1)).tolist() == [[0, 0, 1, 100, 255, 255]]
        assert np.asarray(open_image(tmp_path / name, 3))[0, 3].tolist() == [100, 100, 100]


def test_a_palette_with_transparency_gives_its_colours_without_a_warning(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = open_image(tmp_path / "p.png", 3)
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (200, 100, 50)]


def test_transparency_is_dropped_and_not_blended(tmp_path):
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png", 3).getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (5, 3)), (6, (3, 0)), (8, (0, 5))])
def test_a_camera_held_sideways_is_turned_upright(tmp_path, orientation, corner):
    image = Image.new("L", (6, 4))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    loaded = open_image(tmp_path / "turned.png", 1)
    assert loaded.size == ((6, 4) if orientation in (1, 3) else (4, 6))
    assert loaded.getpixel(corner) == 255
    assert np.asarray(loaded).sum() == 255


def test_damaged_notes_do_not_make_a_picture_unreadable(tmp_path, monkeypatch):
    def fail(_):
        raise SyntaxError("not a TIFF file")

    picture().save(tmp_path / "a.png")
    monkeypatch.setattr("halfbyte.data.decode.ImageOps.exif_transpose", fail)
    assert open_image(tmp_path / "a.png", 3).size == (20, 24)


def test_an_image_is_read_from_a_stream():
    stream = io.BytesIO()
    picture().save(stream, "PNG")
    stream.seek(0)
    assert np.array_equal(np.asarray(open_image(stream, 3)), np.asarray(picture()))
    with pytest.raises(HalfbyteError, match="given as a stream"):
        open_image(io.BytesIO(b"nothing"), 3)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_channel_counts_are_refused(tmp_path, channels):
    with pytest.raises(HalfbyteError, match=f"images of {channels} channels"):
        open_image(tmp_path, channels)
    with pytest.raises(HalfbyteError, match=f"images of {channels} channels"):
        open_images(EMBEDDED_TEST, {**RGB, "input_size": (channels, 8, 8)}, num_classes=None)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_files_are_found_by_the_check_as_by_the_reader(tmp_path, suffix, share):
    path = tmp_path / f"image.{suffix}"
    picture(size=(200, 150)).save(path)
    assert image_fault(path, 3) is None
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert image_fault(path, 3)
    with pytest.raises(HalfbyteError, match=rf"cannot read the image .*image\.{suffix}"):
        open_image(path, 3)


def test_the_check_of_a_jpeg_is_a_small_decode(tmp_path, monkeypatch):
    picture(size=(160, 80)).save(tmp_path / "a.jpg")
    sizes = []
    monkeypatch.setattr("halfbyte.data.decode._to_mode", lambda image, _: sizes.append(image.size))
    assert image_fault(tmp_path / "a.jpg", 3) is None
    assert sizes == [(20, 10)]


# Classes


def test_imagenets_index_is_timms_list():
    index = imagenet_index()
    assert len(index) == 1000
    assert (index["n01440764"], index["n15075141"]) == (0, 999)
    if SHARED.is_dir():
        assert list(index) == json.loads((SHARED / "imagenet_classes.json").read_text())


def test_wnid_folders_get_their_imagenet_class_though_few_are_there(tmp_path):
    folder(tmp_path, {"n15075141": 1, "n01440764": 2, "n01443537": 1})
    images = open_images(tmp_path, RGB, num_classes=1000)
    assert images.labels == [0, 0, 1, 999]
    assert images.names[0] == os.path.join("n01440764", "000.jpg")
    with pytest.raises(HalfbyteError, match=r"3 class folders are ImageNet wnids.*1000 classes, but the model has 10$"):
        open_images(tmp_path, RGB, num_classes=10)
    assert len(open_images(tmp_path, RGB, num_classes=None)) == 4


def test_other_folders_are_numbered_by_sorted_name(tmp_path):
    folder(tmp_path, {"zebra": 1, "ant": 2, "Bee": 1, "empty": 0, ".hidden": 1})
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "ant" / "._000.jpg").write_bytes(b"a resource fork")
    images = open_images(tmp_path, RGB, num_classes=4)
    assert images.labels == [0, 1, 1, 3]
    with pytest.raises(HalfbyteError, match="4 class folders, but the model has 3 classes"):
        open_images(tmp_path, RGB, num_classes=3)


def test_a_folder_that_is_no_wnid_is_named_among_wnids(tmp_path):
    assert class_index({"n01440764": 3, "extra": 0}).wnids
    assert not class_index({"n01440764": 3, "n00000000": 2}).wnids
    folder(tmp_path, {"n01440764": 1, "n01443537": 1, "extra": 1})
    with pytest.raises(HalfbyteError, match=r"3 class folders.*1000 classes; 2 of the folders are .*not 'extra'"):
        open_images(tmp_path, RGB, num_classes=1000)


def test_images_may_lie_deeper_in_a_class_folder(tmp_path):
    folder(tmp_path, {"a/images": 2, "b": 1})
    assert open_images(tmp_path, RGB, num_classes=2).labels == [0, 0, 1]


# Preparation


def test_images_are_prepared_as_timm_does(tmp_path):
    from timm.data import create_transform

    folder(tmp_path, {"a": 1, "b": 1}, size=(30, 40))
    config = {**RGB, "crop_pct": 0.8, "interpolation": "bilinear", "mean": (0.1, 0.2, 0.3)}
    images = open_images(tmp_path, config, num_classes=2)
    x, y = images[1]
    expected = create_transform(**config, is_training=False)(Image.open(tmp_path / "b" / "000.jpg"))
    assert torch.equal(x, expected)
    assert (x.shape, x.dtype, y) == ((3, 16, 16), torch.float32, 1)


def test_grey_models_get_grey_images(tmp_path):
    folder(tmp_path, {"a": 1})
    x, _ = open_images(tmp_path, GREY, num_classes=1)[0]
    assert x.shape == (1, 16, 16)
    path = archive(tmp_path / "grey.npz", np.full((4, 16, 16), 51, np.uint8))
    grey, _ = open_images(path, GREY, num_classes=10)[0]
    assert torch.allclose(grey, torch.tensor((0.2 - 0.5) / 0.25).expand(1, 16, 16))
    assert open_images(path, RGB, num_classes=10)[0][0].shape == (3, 16, 16)


def test_an_archive_gives_its_pixels(tmp_path):
    x = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    images = open_images(archive(tmp_path / "a.npz", x, np.array([2, 0, 1, 1, 0])), RGB, num_classes=3)
    assert images.labels == [2, 0, 1, 1, 0]
    assert images.names[3] == "a.npz[3]"
    assert torch.allclose(images[3][0], torch.from_numpy(x[3]).permute(2, 0, 1) / 127.5 - 1, atol=1e-6)


def test_the_embedded_images():
    config = {**GREY, "input_size": (1, 28, 28)}
    test = open_images(EMBEDDED_TEST, config, num_classes=10)
    calibration = open_images(EMBEDDED_CALIBRATION, config, num_classes=10)
    assert (len(test), len(calibration)) == (2000, 1024)
    assert [test.labels.count(label) for label in range(10)] == [200] * 10
    assert test[0][0].shape == (1, 28, 28)


@needs_shared
def test_imagenet_files():
    images = open_images(SHARED / "imagenet_val", {**RGB, "input_size": (3, 64, 64)}, num_classes=1000)
    assert len(images) == 650
    assert not images.skipped
    index = imagenet_index()
    assert all(index[name.split(os.sep)[0]] == label for name, label in zip(images.names, images.labels, strict=True))


# Damage


def _break(path):
    path.write_bytes(path.read_bytes()[:-200])


def test_a_few_corrupt_images_are_named_and_skipped(tmp_path):
    folder(tmp_path, {"a": 100, "b": 100})
    _break(tmp_path / "a" / "017.jpg")
    (tmp_path / "b" / "099.jpg").write_text("no image")
    lines = Lines()
    images = open_images(tmp_path, RGB, num_classes=2, progress=lines.progress, workers=2)
    names = [os.path.join("a", "017.jpg"), os.path.join("b", "099.jpg")]
    assert images.skipped == names
    assert len(images) == 198
    assert not set(names) & set(images.names)
    assert images.labels == [0] * 99 + [1] * 99
    assert f"2 of 200 images cannot be read and are skipped: {', '.join(names)}" in lines.text
    assert sum(len(y) for _, y in batches(images, 64)) == 198
    assert images.subset([0]).skipped == names


def test_more_than_one_in_a_hundred_corrupt_is_an_error(tmp_path):
    folder(tmp_path, {"a": 200})
    for number in (3, 50, 120):
        _break(tmp_path / "a" / f"{number:03}.jpg")
    with pytest.raises(HalfbyteError, match=r"3 of 200 images cannot be read \(a.003\.jpg, a.050\.jpg, a.120\.jpg;"):
        open_images(tmp_path, RGB, num_classes=None)


def test_a_set_of_nothing_but_damage_is_an_error(tmp_path):
    folder(tmp_path, {"a": 8})
    for path in (tmp_path / "a").iterdir():
        path.write_bytes(b"")
    with pytest.raises(HalfbyteError, match=r"8 of 8 images cannot be read .*004\.jpg, \.\.\.; the first"):
        open_images(tmp_path, RGB, num_classes=None)


def test_of_many_images_a_fixed_sample_is_checked(tmp_path, monkeypatch):
    folder(tmp_path, {"a": 30})
    checked = []
    monkeypatch.setattr(images_module, "MOST_CHECKED", 10)
    monkeypatch.setattr(images_module, "image_fault", lambda path, _: checked.append(path.name))
    assert len(open_images(tmp_path, RGB, num_classes=None)) == 30
    first = set(checked)
    checked.clear()
    open_images(tmp_path, RGB, num_classes=None, workers=1)
    assert len(first) == 10
    assert set(checked) == first


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_later_is_one_line(tmp_path, workers):
    folder(tmp_path, {"a": 4})
    images = open_images(tmp_path, RGB, num_classes=1)
    _break(tmp_path / "a" / "002.jpg")
    with pytest.raises(HalfbyteError) as error:
        list(batches(images, 2, workers))
    assert str(error.value).startswith("cannot read the image ")
    assert "002.jpg" in str(error.value)
    assert "Traceback" not in str(error.value)


def test_places_without_images_are_told(tmp_path):
    folder(tmp_path / "flat", {"": 2})
    (tmp_path / "nothing").mkdir()
    (tmp_path / "hollow" / "a").mkdir(parents=True)
    (tmp_path / "hollow" / "a" / "readme.txt").write_text("later")
    (tmp_path / "file.txt").write_text("no")
    expected = {
        "absent": "does not exist; give a folder with one folder a class, or a .npz with x and y",
        "flat": "no class folders",
        "nothing": "no class folders",
        "hollow": "1 class folders, but no images",
        "file.txt": "neither a folder nor a .npz",
    }
    for name, message in expected.items():
        with pytest.raises(HalfbyteError, match=message) as error:
            open_images(tmp_path / name, RGB, num_classes=None)
        assert name in str(error.value)


class _Code:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


def test_archives_that_are_none_are_told(tmp_path):
    good = archive(tmp_path / "good.npz").read_bytes()
    for share in (0.0, 0.5, 0.99):
        (tmp_path / f"cut{share}.npz").write_bytes(good[: int(len(good) * share)])
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(flipped)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(_Code(tmp_path / "was_run")))
    archive(tmp_path / "objects.npz", np.array([_Code(tmp_path / "was_run")], object))
    np.savez(tmp_path / "keys.npz", images=np.zeros(3), y=np.zeros(3))
    with (tmp_path / "single.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    byte = np.uint8
    archive(tmp_path / "float.npz", np.zeros((2, 4, 4, 3)))
    archive(tmp_path / "channels.npz", np.zeros((2, 4, 4, 4), byte))
    archive(tmp_path / "planar.npz", np.zeros((2, 3, 4, 4), byte))
    archive(tmp_path / "flat.npz", np.zeros((2, 16), byte))
    archive(tmp_path / "lengths.npz", np.zeros((2, 4, 4), byte), np.zeros(3, int))
    archive(tmp_path / "floaty.npz", np.zeros((2, 4, 4), byte), np.zeros(2))
    archive(tmp_path / "column.npz", np.zeros((2, 4, 4), byte), np.zeros((2, 1), int))
    archive(tmp_path / "empty.npz", np.zeros((0, 4, 4), byte), np.zeros(0, int))
    unreadable = "not a readable .npz file"
    expected = {
        "cut0.0.npz": unreadable, "cut0.5.npz": unreadable, "cut0.99.npz": unreadable, "flipped.npz": unreadable,
        "pickle.npz": unreadable, "objects.npz": unreadable, "keys.npz": "no x in it, only images, y",
        "single.npz": "a single array", "float.npz": "x is float64", "channels.npz": "[2, 4, 4, 4]",
        "planar.npz": "[2, 3, 4, 4]", "flat.npz": "[2, 16]", "lengths.npz": "2 images in x, but 3 labels in y",
        "floaty.npz": "y is float64", "column.npz": "y is int64 [2, 1]", "empty.npz": "holds no pixels",
    }  # fmt: skip
    for name, message in expected.items():
        with pytest.raises(HalfbyteError) as error:
            open_images(tmp_path / name, RGB, num_classes=None)
        assert message in str(error.value), name
        assert name in str(error.value)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("labels", [[0, 10], [-1, 3]])
def test_labels_outside_the_models_classes_are_an_error_in_evaluation_only(tmp_path, labels):
    path = archive(tmp_path / "a.npz", np.zeros((2, 16, 16), np.uint8), np.array(labels))
    with pytest.raises(HalfbyteError, match=rf"labels from {labels[0]} to {labels[1]}, but the model has 10 classes"):
        open_images(path, RGB, num_classes=10)
    assert open_images(path, RGB, num_classes=None).labels == labels


# Choices


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    """100 images sorted by class: 60 of class 0, 30 of class 1, 10 of class 2."""
    path = tmp_path_factory.mktemp("data") / "sorted.npz"
    x = np.repeat(np.arange(100, dtype=np.uint8), 16 * 16).reshape(100, 16, 16)
    return open_images(archive(path, x, np.repeat([0, 1, 2], [60, 30, 10])), GREY, num_classes=3)


def test_calibration_images_are_spread_over_the_classes(hundred):
    chosen = calibration_subset(hundred, 30, seed=0)
    assert [chosen.labels.count(label) for label in range(3)] == [10, 10, 10]
    assert len(set(chosen.names)) == 30
    for count in (3, 9, 18):
        assert [chosen.labels[:count].count(label) for label in range(3)] == [count // 3] * 3
    larger = calibration_subset(hundred, 100, seed=0)
    assert sorted(larger.names) == sorted(hundred.names)
    assert larger.names[:30] == chosen.names


def test_the_seed_alone_decides(hundred):
    first = calibration_subset(hundred, 20, seed=1)
    state = torch.random.get_rng_state()
    np.random.seed(5)
    assert calibration_subset(hundred, 20, seed=1).names == first.names
    assert torch.equal(torch.random.get_rng_state(), state)
    assert calibration_subset(hundred, 20, seed=2).names != first.names
    assert first.names != sorted(first.names)


@pytest.mark.parametrize("count", [0, -1, 101])
def test_an_impossible_number_of_calibration_images_names_both_numbers(hundred, count):
    with pytest.raises(HalfbyteError, match=f"{count} calibration images .* there are 100"):
        calibration_subset(hundred, count, seed=0)


def test_a_limit_keeps_each_classs_share_and_the_order(hundred):
    chosen = limit(hundred, 20)
    assert [chosen.labels.count(label) for label in range(3)] == [12, 6, 2]
    positions = [hundred.names.index(name) for name in chosen.names]
    assert positions == sorted(set(positions))
    assert limit(hundred, 20).names == chosen.names
    assert limit(hundred, 100).names == hundred.names
    assert len(limit(hundred, 5000)) == 100
    assert all(len(limit(hundred, count)) == count for count in range(1, 101))
    with pytest.raises(HalfbyteError, match="--limit 0"):
        limit(hundred, 0)


def test_subsets_of_subsets(hundred):
    part = hundred.subset([70, 5, 95]).subset([2, 0])
    assert part.labels == [2, 1]
    assert part.names == ["sorted.npz[95]", "sorted.npz[70]"]
    assert torch.equal(part[0][0], hundred[95][0])


# Batches


def test_batches_come_in_order_and_draw_nothing_at_random(hundred):
    state = torch.random.get_rng_state()
    plain = list(batches(hundred, 32))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [len(y) for _, y in plain] == [32, 32, 32, 4]
    assert plain[0][0].shape == (32, 1, 16, 16)
    assert plain[0][1].dtype == torch.int64
    assert torch.equal(torch.cat([y for _, y in plain]), torch.tensor(hundred.labels))
    assert torch.equal(plain[2][0][6], hundred[70][0])


def test_batches_are_the_same_with_any_number_of_workers(tmp_path):
    images = open_images(folder(tmp_path, {"a": 5, "b": 8}), RGB, num_classes=2)
    plain = list(batches(images, 4))
    assert [len(y) for _, y in plain] == [4, 4, 4, 1]
    for (x, y), (x2, y2) in zip(plain, batches(images, 4, workers=2), strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


@pytest.mark.parametrize(("batch_size", "workers"), [(0, 0), (4, -1)])
def test_impossible_batches_are_refused(hundred, batch_size, workers):
    with pytest.raises(HalfbyteError, match="at least 1 and 0"):
        list(batches(hundred, batch_size, workers))
