"""Random crops of pictures (Szegedy et al., CVPR 2015), drawn for one image from one number, and made into tensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from halfbyte.errors import HalfbyteError

# Shares of the picture's area, and width by height.
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_TRIES = 10

Box = tuple[int, int, int, int]


def generator_of(name: str, seed: int) -> np.random.Generator:
    """A source of random numbers for one image: its name and the seed alone decide what it gives."""
    # A file's name may hold bytes that are no text.
    digest = hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def draw_box(height: int, width: int, generator: np.random.Generator, scale: tuple[float, float] = SCALE) -> Box:
    """Top, left, height and width in pixels of a random part of a picture, at least one pixel."""
    for _ in range(_TRIES):
        area = height * width * generator.uniform(*scale)
        ratio = math.exp(generator.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        high, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < high <= height and 0 < wide <= width:
            return int(generator.integers(height - high + 1)), int(generator.integers(width - wide + 1)), high, wide
    # The largest part in the middle whose sides have an allowed ratio.
    wide, high = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (height - high) // 2, (width - wide) // 2, max(1, high), max(1, wide)


class Cropper:
    """Makes part of a picture, perhaps mirrored, a tensor `[C, H, W]` as `config` says.

    `config` is timm's: `input_size`, `interpolation`, `mean`, `std`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        channels, self.height, self.width = config["input_size"]
        try:
            self.filter = Image.Resampling[str(config["interpolation"]).upper()]
        except KeyError:
            raise HalfbyteError(
                f"crops cannot be resized by {config['interpolation']!r}; use bilinear or bicubic"
            ) from None
        self.mean = torch.tensor(config["mean"]).view(channels, 1, 1)
        self.std = torch.tensor(config["std"]).view(channels, 1, 1)

    def __call__(self, picture: Image.Image, box: Box, mirrored: bool) -> Tensor:
        top, left, height, width = box
        part = picture.crop((left, top, left + width, top + height)).resize((self.width, self.height), self.filter)
        pixels = np.array(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else part)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return (torch.from_numpy(pixels.copy()).float() / 255 - self.mean) / self.std
