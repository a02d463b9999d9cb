"""Where images lie: a folder with one folder a class, a NumPy archive, or the package itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from halfbyte.data.classes import ClassIndex, class_index
from halfbyte.data.decode import image_mode, open_image
from halfbyte.errors import HalfbyteError

EMBEDDED_CALIBRATION = "embedded:calibration"
EMBEDDED_TEST = "embedded:test"
EMBEDDED_DATASET = "fashion_mnist"
EMBEDDED = {EMBEDDED_CALIBRATION: "fashion_calibration.npz", EMBEDDED_TEST: "fashion_test.npz"}
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}


class Source(Protocol):
    """Images by number, with a name and a label each."""

    @property
    def names(self) -> list[str]:
        """One name an image, for messages."""

    @property
    def labels(self) -> list[int]:
        """One class an image."""

    @property
    def class_names(self) -> dict[int, str]:
        """Names by class, as far as the source knows them."""

    def image(self, number: int, channels: int) -> Image.Image:
        """The picture, greyscale or RGB; raises `HalfbyteError` where it cannot be read."""

    def check_classes(self, num_classes: int) -> None:
        """Raise `HalfbyteError` unless the labels can be classes of a model with `num_classes` outputs."""


@dataclass(frozen=True)
class FolderSource:
    """Files in class folders; `names` are paths below `root`."""

    root: Path
    names: list[str]
    labels: list[int]
    classes: ClassIndex

    @property
    def class_names(self) -> dict[int, str]:
        """The folders' names, or what ImageNet calls them."""
        return self.classes.names()

    def image(self, number: int, channels: int) -> Image.Image:
        """The picture, decoded from its file."""
        return open_image(self.root / self.names[number], channels)

    def check_classes(self, num_classes: int) -> None:
        """Compare the class folders with the model's outputs."""
        self.classes.check(num_classes, str(self.root))


@dataclass(frozen=True)
class ArraySource:
    """Pixels in memory: uint8 `[N, H, W]` or `[N, H, W, 3]`; `dataset` is what they are known to be."""

    title: str
    pixels: npt.NDArray[np.uint8]
    labels: list[int]
    dataset: str | None = None

    @property
    def names(self) -> list[str]:
        """The archive's name and the image's number in it."""
        return [f"{self.title}[{number}]" for number in range(len(self.labels))]

    @property
    def class_names(self) -> dict[int, str]:
        """None: an archive numbers its classes."""
        return {}

    def image(self, number: int, channels: int) -> Image.Image:
        """The picture, greyscale made RGB or the other way round where the model needs it."""
        return Image.fromarray(self.pixels[number]).convert(image_mode(channels))

    def check_classes(self, num_classes: int) -> None:
        """Compare the labels with the model's outputs."""
        low, high = min(self.labels), max(self.labels)
        if low < 0 or high >= num_classes:
            raise HalfbyteError(
                f"{self.title}: labels from {low} to {high}, but the model has {num_classes} classes "
                f"(0 to {num_classes - 1})"
            )


def open_source(where: Path | str) -> FolderSource | ArraySource:
    """The images at a folder, a `.npz` file, or one of the `EMBEDDED` names.

    Raises `HalfbyteError` where there is nothing, no class folder, no image, or no usable archive.
    """
    if isinstance(where, str) and where in EMBEDDED:
        resource = resources.files("halfbyte") / "assets" / EMBEDDED[where]
        if not resource.is_file():
            raise HalfbyteError(f"this installation lacks {EMBEDDED[where]}; install halfbyte again")
        with resources.as_file(resource) as path:
            return replace(_open_archive(path), dataset=EMBEDDED_DATASET)
    path = Path(where)
    if path.is_dir():
        return _open_folder(path)
    if path.is_file() and path.suffix == ".npz":
        return _open_archive(path)
    problem = "is neither a folder nor a .npz file" if path.exists() else "does not exist"
    raise HalfbyteError(f"images {path}: {problem}; give a folder with one folder a class, or a .npz with x and y")


def _open_folder(root: Path) -> FolderSource:
    try:
        folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        files = {folder: _images_below(root, folder) for folder in folders}
    except OSError as error:
        raise HalfbyteError(f"images {root}: {error.strerror or error}") from error
    if not folders:
        raise HalfbyteError(f"images {root}: no class folders in it; put the images of each class in a folder")
    counts = {folder: len(names) for folder, names in files.items()}
    if not any(counts.values()):
        raise HalfbyteError(
            f"images {root}: {len(folders)} class folders, but no images in them ({', '.join(sorted(SUFFIXES))})"
        )
    classes = class_index(counts)
    names = [name for folder in folders for name in files[folder]]
    labels = [classes.index[folder] for folder in folders for _ in files[folder]]
    return FolderSource(root, names, labels, classes)


def _images_below(root: Path, folder: str) -> list[str]:
    """Paths below `root` of a class folder's images at any depth, sorted; hidden files are not images."""
    found = [
        os.path.relpath(os.path.join(place, name), root)
        for place, _, names in os.walk(root / folder, onerror=_reraise)
        for name in names
        if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
    ]
    return sorted(found)


def _reraise(error: OSError) -> None:
    raise error


def _open_archive(path: Path) -> ArraySource:
    try:
        content = _arrays(np.load(path, allow_pickle=False), path)
    except HalfbyteError:
        raise
    except Exception as error:  # zip, zlib and NumPy each have their own ways to fail on a damaged file
        raise HalfbyteError(f"images {path}: not a readable .npz file of plain arrays ({error})") from error
    pixels, labels = content["x"], content["y"]
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] != 3):
        raise HalfbyteError(
            f"images {path}: x is {pixels.dtype} {list(pixels.shape)}; it must be uint8 [N, H, W] or [N, H, W, 3]"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise HalfbyteError(f"images {path}: y is {labels.dtype} {list(labels.shape)}; it must be integers [N]")
    if labels.size and int(labels.max()) > np.iinfo(np.int64).max:
        raise HalfbyteError(f"images {path}: y holds {labels.max()}; it must be the numbers of classes")
    if len(pixels) != len(labels):
        raise HalfbyteError(f"images {path}: {len(pixels)} images in x, but {len(labels)} labels in y")
    if not pixels.size:
        raise HalfbyteError(f"images {path}: x {list(pixels.shape)} holds no pixels")
    return ArraySource(path.name, pixels, labels.tolist())


def _arrays(archive: Any, path: Path) -> Mapping[str, npt.NDArray[Any]]:
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise HalfbyteError(f"images {path}: a single array, not a .npz file with x and y")
    with archive:
        missing = [key for key in ("x", "y") if key not in archive.files]
        if missing:
            raise HalfbyteError(f"images {path}: no {' and no '.join(missing)} in it, only {', '.join(archive.files)}")
        return {key: archive[key] for key in ("x", "y")}
