"""Sets with damage in them: a few images are skipped by name, more are an error, and no code in them is run."""

from __future__ import annotations

import io
import os
import pickle

import numpy as np
import pytest

from halfbyte.data import images as images_module
from halfbyte.data.images import batches, open_images
from halfbyte.errors import HalfbyteError
from halfbyte.progress import Progress


class Lines:
    """A stream that keeps what is written."""

    def __init__(self):
        self.stream = io.StringIO()
        self.progress = Progress(stream=self.stream)

    @property
    def text(self):
        return self.stream.getvalue()


def _break(path):
    path.write_bytes(path.read_bytes()[:-200])


def test_a_few_corrupt_images_are_named_and_skipped(tmp_path, folder, rgb):
    folder(tmp_path, {"a": 100, "b": 100})
    _break(tmp_path / "a" / "017.jpg")
    (tmp_path / "b" / "099.jpg").write_text("no image")
    lines = Lines()
    images = open_images(tmp_path, rgb, num_classes=2, progress=lines.progress, workers=2)
    names = [os.path.join("a", "017.jpg"), os.path.join("b", "099.jpg")]
    assert images.skipped == names
    assert len(images) == 198
    assert not set(names) & set(images.names)
    assert images.labels == [0] * 99 + [1] * 99
    assert f"2 of 200 images cannot be read and are skipped: {', '.join(names)}" in lines.text
    assert sum(len(y) for _, y in batches(images, 64)) == 198
    assert images.subset([0]).skipped == names


def test_more_than_one_in_a_hundred_corrupt_is_an_error(tmp_path, folder, rgb):
    folder(tmp_path, {"a": 200})
    for number in (3, 50, 120):
        _break(tmp_path / "a" / f"{number:03}.jpg")
    with pytest.raises(HalfbyteError, match=r"3 of 200 images cannot be read \(a.003\.jpg, a.050\.jpg, a.120\.jpg;"):
        open_images(tmp_path, rgb, num_classes=None)


def test_a_set_of_nothing_but_damage_is_an_error(tmp_path, folder, rgb):
    folder(tmp_path, {"a": 8})
    for path in (tmp_path / "a").iterdir():
        path.write_bytes(b"")
    with pytest.raises(HalfbyteError, match=r"8 of 8 images cannot be read .*004\.jpg, \.\.\.; the first"):
        open_images(tmp_path, rgb, num_classes=None)


def test_of_many_images_a_fixed_sample_is_checked(tmp_path, monkeypatch, folder, rgb):
    folder(tmp_path, {"a": 30})
    checked = []
    monkeypatch.setattr(images_module, "MOST_CHECKED", 10)
    monkeypatch.setattr(images_module, "image_fault", lambda path, _: checked.append(path.name))
    assert len(open_images(tmp_path, rgb, num_classes=None)) == 30
    first = set(checked)
    checked.clear()
    open_images(tmp_path, rgb, num_classes=None, workers=1)
    assert len(first) == 10
    assert set(checked) == first


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_later_is_one_line(tmp_path, workers, folder, rgb):
    folder(tmp_path, {"a": 4})
    images = open_images(tmp_path, rgb, num_classes=1)
    _break(tmp_path / "a" / "002.jpg")
    with pytest.raises(HalfbyteError) as error:
        list(batches(images, 2, workers))
    assert str(error.value).startswith("cannot read the image ")
    assert "002.jpg" in str(error.value)
    assert "Traceback" not in str(error.value)


def test_places_without_images_are_told(tmp_path, folder, rgb):
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
            open_images(tmp_path / name, rgb, num_classes=None)
        assert name in str(error.value)


class _Code:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


def test_archives_that_are_none_are_told(tmp_path, archive, rgb):
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
            open_images(tmp_path / name, rgb, num_classes=None)
        assert message in str(error.value), name
        assert name in str(error.value)
    assert not (tmp_path / "was_run").exists()
