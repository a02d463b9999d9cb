"""Fashion-MNIST's files (IDX, as published) as the .npz that `--data` and `--val` read.

    python benchmarks/fashion_mnist.py DIR --train 6000 --test 5000 --out DIR

Writes train.npz and test.npz: so many of the 60,000 training images and of the 10,000 test images, drawn by seed 0.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=6000)
    parser.add_argument("--test", type=int, default=10000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, prefix, count in (("train", "train", options.train), ("test", "t10k", options.test)):
        images = _values(options.folder / f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        labels = _values(options.folder / f"{prefix}-labels-idx1-ubyte.gz", 8).astype(np.int64)
        chosen = np.random.default_rng(0).permutation(len(images))[:count]
        np.savez_compressed(options.out / f"{name}.npz", x=images[chosen], y=labels[chosen])


def _values(file: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=header)


if __name__ == "__main__":
    main()
