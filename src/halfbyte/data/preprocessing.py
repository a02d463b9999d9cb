"""From a picture to what a model takes, by Pillow and NumPy: bit for bit what timm's evaluation transform gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from halfbyte.errors import HalfbyteError, did_you_mean

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")
# A picture is resized to the model's size divided by this share: below, to hundreds of megapixels and more.
LEAST_CROP_PCT = 0.05
_LEVELS = 256


def checked_preprocessing(crop_pct: float | None, interpolation: str | None) -> dict[str, Any]:
    """Both settings by name; raises `HalfbyteError` for one with which no image can be prepared."""
    if crop_pct is not None and not LEAST_CROP_PCT <= crop_pct <= 1.0:
        raise HalfbyteError(f"--crop-pct {crop_pct}: must be from {LEAST_CROP_PCT} to 1")
    if interpolation is not None and interpolation not in INTERPOLATIONS:
        raise HalfbyteError(
            f"--interpolation {interpolation!r} is unknown{did_you_mean(interpolation, INTERPOLATIONS)}"
        )
    return {"crop_pct": crop_pct, "interpolation": interpolation}


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared, under timm's names; `input_size` is (channels, height, width).

    Raises `HalfbyteError` for settings with which no image can be prepared.
    """

    input_size: tuple[int, int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str

    def __post_init__(self) -> None:
        fits = len(self.input_size) == 3 and len(self.mean) == len(self.std) == self.input_size[0]
        if not fits or min(self.std) <= 0 or self.crop_mode not in CROP_MODES:
            raise HalfbyteError("it holds a preprocessing that does not exist")
        checked_preprocessing(self.crop_pct, self.interpolation)

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Preprocessing:
        """From an artifact's "preprocessing"."""
        size, mean, std = (tuple(facts[key]) for key in ("input_size", "mean", "std"))
        return cls(size, facts["interpolation"], mean, std, facts["crop_pct"], facts["crop_mode"])

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height to which a picture is resized before its centre is cut out."""
        target_height, target_width = (math.floor(side / self.crop_pct) for side in self.input_size[1:])
        if self.crop_mode == "squash":
            return target_width, target_height
        if self.crop_mode == "center" and target_width == target_height:
            shorter, longer = min(width, height), max(width, height)
            along = int(target_width * longer / shorter)
            return (target_width, along) if width <= height else (along, target_width)
        ratios = height / target_height, width / target_width
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        return round(width / ratio), round(height / ratio)

    def __call__(self, picture: Image.Image) -> npt.NDArray[np.float32]:
        """The tensor `[C, H, W]` of a picture as `open_image` gives it: greyscale for one channel, RGB for three."""
        channels = self.input_size[0]
        size = self.resized(picture.width, picture.height)
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling[self.interpolation.upper()])
        pixels = np.asarray(self._centre(picture)).reshape(*self.input_size[1:], channels)
        # There are few values a channel can have; looking them up is faster than computing them.
        values = np.arange(_LEVELS, dtype=np.float32) / np.float32(_LEVELS - 1)
        tables = (values - np.float32(mean) for mean in self.mean)
        channel_tables = [table / np.float32(std) for table, std in zip(tables, self.std, strict=True)]
        return np.stack([table[pixels[..., channel]] for channel, table in enumerate(channel_tables)])

    def _centre(self, picture: Image.Image) -> Image.Image:
        """The middle of a picture; what it lacks there is black, or with borders the images' mean."""
        _, height, width = self.input_size
        places = zip((picture.width, picture.height), (width, height), strict=True)
        left, top = (round((have - want) / 2) if have >= want else -((want - have) // 2) for have, want in places)
        if picture.width >= width and picture.height >= height:
            return picture.crop((left, top, left + width, top + height))
        fill = tuple(round(255 * mean) if self.crop_mode == "border" else 0 for mean in self.mean)
        canvas = Image.new(picture.mode, (width, height), fill if len(fill) > 1 else fill[0])
        canvas.paste(picture, (-left, -top))
        return canvas
