"""Image files of every kind as 8-bit greyscale or RGB pictures."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from halfbyte.errors import HalfbyteError
from halfbyte.files import open_file

MODES = {1: "L", 3: "RGB"}
DRAFT_SCALE = 8
_TURNED = range(2, 9)  # the EXIF orientations that are not upright
# Pillow would clip 16-bit values at 255, which leaves a white picture.
_EIGHT_BITS = ((np.arange(2**16) + 128) // 257).astype(np.uint8)
_STRIP = 2**20


def open_image(source: Path | str | IO[bytes], channels: int, formats: tuple[str, ...] | None = None) -> Image.Image:
    """The picture upright, 8 bits a channel: mode "L" for 1 channel, "RGB" for 3.

    Transparency is dropped and not blended, as timm does when it measures its models; 16-bit pictures are scaled to
    8 bits. `formats` are Pillow's names of those that are read (None: all). Raises `HalfbyteError` that names the file
    where it is no readable picture, or for other `channels`.
    """
    mode = image_mode(channels)
    try:
        return _decode(source, mode, draft=False, formats=formats)
    except Exception as error:  # a damaged file can make its decoder raise anything at all
        raise HalfbyteError(f"cannot read the image {_name(source)}: {error or type(error).__name__}") from error


def image_fault(path: Path, channels: int) -> str | None:
    """Why a file is no readable picture, or None.

    A JPEG is decoded at an eighth of its size: that reads every byte, so truncation shows, at a fraction of the time.
    """
    mode = image_mode(channels)
    try:
        _decode(path, mode, draft=True)
    except Exception as error:  # as in `open_image`
        return str(error) or type(error).__name__
    return None


def image_mode(channels: int) -> str:
    """Pillow's mode for a model's input channels; raises `HalfbyteError` for anything but 1 and 3."""
    if channels not in MODES:
        raise HalfbyteError(f"the model takes images of {channels} channels; only 1 (greyscale) and 3 (RGB) are read")
    return MODES[channels]


def _decode(
    source: Path | str | IO[bytes], mode: str, draft: bool, formats: tuple[str, ...] | None = None
) -> Image.Image:
    if isinstance(source, (str, Path)):
        # Pillow would wait for a pipe's other end.
        open_file(source).close()
    with Image.open(source, formats=formats) as image:
        if draft:
            image.draft(None, (image.width // DRAFT_SCALE, image.height // DRAFT_SCALE))
        image.load()
        return _to_mode(_upright(image), mode)


def _upright(image: Image.Image) -> Image.Image:
    try:
        # Pillow copies a picture that is upright already.
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # a picture with damaged notes beside it is still a picture
        return image


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    elif image.mode == "P" and "transparency" in image.info:
        # Without this step Pillow warns of the transparency that it is about to drop.
        image = image.convert("RGBA")
    # Pillow copies a picture that has the mode already.
    return image if image.mode == mode else image.convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """A picture of wider values in 8 bits; strip by strip, as NumPy's temporaries may be many times its size."""
    narrow = np.empty((image.height, image.width), np.uint8)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        narrow[top : top + rows] = _EIGHT_BITS[np.clip(strip, 0, 2**16 - 1)]
    return Image.fromarray(narrow)


def _name(source: Path | str | IO[bytes]) -> str:
    return str(source) if isinstance(source, (str, Path)) else str(getattr(source, "name", "given as a stream"))
