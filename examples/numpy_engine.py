"""Run an artifact on integers with NumPy alone: no torch, no timm, no compiler.

    python examples/numpy_engine.py runs/vit4

The interpreter computes what the program of the artifact means, operation by operation; `halfbyte.runtime.Engine`, in
its place, runs the same on compiled kernels.
"""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path

import numpy as np

from halfbyte.program.interpret import Interpreter
from halfbyte.program.load import load_program


def embedded_images(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first test images that come with the package, prepared as the artifact asks for, and their classes."""
    asked = json.loads((folder / "quantization.json").read_text())["preprocessing"]
    with resources.files("halfbyte").joinpath("assets/fashion_test.npz").open("rb") as file, np.load(file) as data:
        pixels, labels = data["x"][:count], data["y"][:count]
    mean, deviation = np.float32(asked["mean"][0]), np.float32(asked["std"][0])
    return ((pixels.astype(np.float32) / 255 - mean) / deviation)[:, None], labels


def main(folder: Path, count: int = 32) -> None:
    """Classify some of the embedded images with the artifact of an embedded model."""
    images, labels = embedded_images(folder, count)
    program = load_program(folder)
    logits = Interpreter(program)(images)  # float32 [B, 1, 28, 28] -> [B, 10]
    right = int((logits.argmax(1) == labels).sum())
    print(f"{len(program.ops)} operations, {right} of {count} images right")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
