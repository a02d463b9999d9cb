"""The images on which an exported model is compared with its program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from halfbyte.artifact_files import read_facts
from halfbyte.data.images import batches, limit, open_images
from halfbyte.inputs import embedded_images
from halfbyte.progress import Progress

IMAGES = 32
_COARSE = 8


def verification_images(folder: Path, val: Path | None, progress: Progress) -> npt.NDArray[np.float32]:
    """`[B, C, H, W]`, preprocessed as the artifact says: some of `val`, else the embedded images.

    Where there are neither, smooth noise, always the same; the progress display says so.
    """
    facts, config = read_facts(folder)
    where: Path | str | None = val or embedded_images(facts["source"], "embedded:test")
    if where is None:
        progress.say("no images to verify with (give --val DIR): random ones, whose classes mean nothing")
        return _noise(facts["preprocessing"])
    images = open_images(where, facts["preprocessing"], num_classes=config["num_classes"], progress=progress, workers=0)
    few = images if len(images) <= IMAGES else limit(images, IMAGES)
    return np.concatenate([pixels.numpy() for pixels, _ in batches(few, IMAGES)])


def _noise(preprocessing: dict[str, Any]) -> npt.NDArray[np.float32]:
    channels, height, width = preprocessing["input_size"]
    generator = np.random.default_rng(0)
    coarse = generator.standard_normal((IMAGES, channels, _COARSE, _COARSE)).astype(np.float32)
    rows, columns = (np.arange(size) * _COARSE // size for size in (height, width))
    return np.ascontiguousarray(coarse[:, :, rows][:, :, :, columns])
