"""From uploaded bytes to a picture: only formats that are meant, and never more pixels than are allowed."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import Image

from halfbyte.data.decode import open_image
from halfbyte.data.preprocessing import Preprocessing
from halfbyte.errors import HalfbyteError
from halfbyte.serve.jpeg import survey

# Pillow's names, and what a browser's file dialog calls them.
FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp"}
_JPEG = b"\xff\xd8"
# What a refusal's header says beside its status. Behind a body that does not come there is no next request.
REFUSAL_HEADERS = {408: {"Connection": "close"}, 503: {"Retry-After": "1"}}


class RefusedError(HalfbyteError):
    """A request that is answered with the HTTP `status` and one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What a server takes: `upload` bytes a request, `pixels` of a picture, also as the model's preprocessing resizes
    it, `seconds` for an upload to arrive, `scans` of a JPEG: each goes over the whole picture."""

    upload: int = 10_000_000
    pixels: int = 50_000_000
    seconds: float = 30.0
    scans: int = 100


def checked_pixels(content: bytes, preprocessing: Preprocessing, limits: Limits) -> int:
    """The pixels of an uploaded picture, as stored or as resized, by its header; raises `RefusedError` for what is no
    picture, or too large to be decoded."""
    if not content:
        raise RefusedError(400, "the upload is empty; send an image")
    if len(content) > limits.upload:
        raise too_large(limits)
    width, height = _size(content)
    # The picture may yet be turned upright.
    resized = [preprocessing.resized(*size) for size in ((width, height), (height, width))]
    if min(map(min, resized)) < 1:
        raise RefusedError(400, f"an image of {width} x {height} pixels is too narrow for the model")
    # A narrow strip of few pixels becomes an enormous one when its shorter side is scaled up.
    pixels = max(x * y for x, y in [(width, height), *resized])
    if pixels > limits.pixels:
        megapixels = f"{limits.pixels / 1e6:g} megapixels"
        raise RefusedError(413, f"an image of {width} x {height} pixels; at most {megapixels} are taken, also resized")
    if content.startswith(_JPEG):
        _check_jpeg(content, limits)
    return pixels


def _check_jpeg(content: bytes, limits: Limits) -> None:
    scans, ordinary = survey(content, limits.scans)
    if not ordinary:
        # Arithmetic codes need few bytes to keep a decoder busy, however large the picture.
        raise RefusedError(415, "a lossless or arithmetic-coded JPEG; save it as an ordinary one")
    if scans > limits.scans:
        raise RefusedError(413, f"the JPEG has more than {limits.scans} scans; save it again")


def read_picture(content: bytes, channels: int) -> Image.Image:
    """The picture in an uploaded file's bytes, once they are checked; raises `RefusedError` for a damaged one."""
    try:
        return open_image(io.BytesIO(content), channels, tuple(FORMATS))
    except HalfbyteError as error:
        raise RefusedError(400, f"the image is damaged: {error.__cause__ or error}") from None


def too_large(limits: Limits) -> RefusedError:
    """What an upload of too many bytes is answered with."""
    return RefusedError(413, f"the upload is larger than {limits.upload / 1e6:g} MB")


def _size(content: bytes) -> tuple[int, int]:
    """Width and height by the file's header."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes near its own limit; ours is told below it.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=tuple(FORMATS)) as image:
                width, height = image.size
                return width, height
    except Image.DecompressionBombError as error:
        raise RefusedError(413, f"the image has too many pixels: {error}") from None
    except Exception:  # a damaged file can make its reader raise anything at all
        known = ", ".join(FORMATS)
        raise RefusedError(415, f"the upload is no image that can be read; send one of {known}") from None
