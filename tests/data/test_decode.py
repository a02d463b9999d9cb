"""One picture from a file: every mode, tone and orientation, and every cut found by the check as by the reader."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from halfbyte.data.decode import image_fault
from halfbyte.data.images import EMBEDDED_TEST, open_image, open_images
from halfbyte.errors import HalfbyteError


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


@pytest.mark.parametrize(("kind", "low", "high"), [("<u2", 0, 2**16), (">u2", 0, 2**16), ("<i4", -70_000, 140_000)])
def test_wide_pictures_of_many_strips_are_rounded_as_a_whole(kind, low, high):
    # More than two strips, the last of them short.
    wide = np.random.default_rng(0).integers(low, high, (1600, 1501)).astype(kind)
    stream = io.BytesIO()
    Image.fromarray(wide).save(stream, "TIFF")
    expected = (np.clip(wide.astype(np.int64), 0, 65535) + 128) // 257
    assert np.array_equal(np.asarray(open_image(stream, 1)), expected)


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


def test_damaged_notes_do_not_make_a_picture_unreadable(tmp_path, monkeypatch, picture):
    def fail(_):
        raise SyntaxError("not a TIFF file")

    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(tmp_path / "a.png", exif=exif)
    monkeypatch.setattr("halfbyte.data.decode.ImageOps.exif_transpose", fail)
    assert open_image(tmp_path / "a.png", 3).size == (20, 24)


def test_an_image_is_read_from_a_stream(picture):
    stream = io.BytesIO()
    picture().save(stream, "PNG")
    stream.seek(0)
    assert np.array_equal(np.asarray(open_image(stream, 3)), np.asarray(picture()))
    with pytest.raises(HalfbyteError, match="given as a stream"):
        open_image(io.BytesIO(b"nothing"), 3)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_channel_counts_are_refused(tmp_path, channels, rgb):
    with pytest.raises(HalfbyteError, match=f"images of {channels} channels"):
        open_image(tmp_path, channels)
    with pytest.raises(HalfbyteError, match=f"images of {channels} channels"):
        open_images(EMBEDDED_TEST, {**rgb, "input_size": (channels, 8, 8)}, num_classes=None)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_files_are_found_by_the_check_as_by_the_reader(tmp_path, suffix, share, picture):
    path = tmp_path / f"image.{suffix}"
    picture(size=(200, 150)).save(path)
    assert image_fault(path, 3) is None
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert image_fault(path, 3)
    with pytest.raises(HalfbyteError, match=rf"cannot read the image .*image\.{suffix}"):
        open_image(path, 3)


def test_the_check_of_a_jpeg_is_a_small_decode(tmp_path, monkeypatch, picture):
    picture(size=(160, 80)).save(tmp_path / "a.jpg")
    sizes = []
    monkeypatch.setattr("halfbyte.data.decode._to_mode", lambda image, _: sizes.append(image.size))
    assert image_fault(tmp_path / "a.jpg", 3) is None
    assert sizes == [(20, 10)]
