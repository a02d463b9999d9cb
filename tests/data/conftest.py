"""Pictures, class folders and archives made for a test, and the settings they are opened with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def rgb() -> dict[str, Any]:
    """How a model takes colour images of 16 x 16."""
    return {
        "input_size": (3, 16, 16), "interpolation": "bicubic", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
        "crop_pct": 1.0, "crop_mode": "center",
    }  # fmt: skip


@pytest.fixture(scope="session")
def grey(rgb) -> dict[str, Any]:
    return {**rgb, "input_size": (1, 16, 16), "mean": (0.5,), "std": (0.25,)}


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """A noisy picture, so that its JPEG has entropy-coded data all the way."""

    def make(seed: int = 0, size: tuple[int, int] = (20, 24), mode: str = "RGB") -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        return Image.fromarray(pixels).convert(mode)

    return make


@pytest.fixture(scope="session")
def folder(picture) -> Callable[..., Path]:
    """JPEG files in class folders: `counts` maps a folder's name to how many."""

    def make(root: Path, counts: dict[str, int], size: tuple[int, int] = (20, 24)) -> Path:
        number = 0
        for name, count in counts.items():
            (root / name).mkdir(parents=True)
            for i in range(count):
                picture(number, size).save(root / name / f"{i:03}.jpg")
                number += 1
        return root

    return make


@pytest.fixture(scope="session")
def archive() -> Callable[..., Path]:
    """An archive of images `x` and labels `y`."""

    def make(path: Path, x: Any = None, y: Any = None, **others: Any) -> Path:
        x = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8) if x is None else x
        np.savez(path, x=x, y=np.arange(len(x)) % 10 if y is None else y, **others)
        return path

    return make
