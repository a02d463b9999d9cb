"""Image files of every kind as 8-bit greyscale or RGB pictures."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from halfbyte.errors import HalfbyteError
from halfbyte.files import open_file

MODES = {1: "L", 3: "RGB"}
DRAFT_SCALE = 8


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
        return ImageOps.exif_transpose(image)
    except Exception:  # a picture with damaged notes beside it is still a picture
        return image


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow would clip 16-bit values at 255, which leaves a white picture.
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        # Without this step Pillow warns of the transparency that it is about to drop.
        image = image.convert("RGBA")
    return image.convert(mode)


def _name(source: Path | str | IO[bytes]) -> str:
    return str(source) if isinstance(source, (str, Path)) else str(getattr(source, "name", "given as a stream"))
