"""Sets of labelled images, prepared for a model: opened, checked, chosen and batched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from halfbyte.data.decode import image_fault, image_mode, open_image
from halfbyte.data.sources import EMBEDDED_CALIBRATION, EMBEDDED_TEST, ArraySource, FolderSource, Source, open_source
from halfbyte.errors import HalfbyteError
from halfbyte.progress import Progress

__all__ = [
    "EMBEDDED_CALIBRATION",
    "EMBEDDED_TEST",
    "ImageSet",
    "batches",
    "calibration_subset",
    "grouped",
    "limit",
    "open_image",
    "open_images",
]

TRANSFORM_KEYS = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
MOST_CHECKED = 50_000
MOST_SKIPPED = 0.01
SHOWN = 5

Transform = Callable[[Image.Image], Tensor]


class ImageSet(Dataset[tuple[Tensor, int]]):
    """Some of a source's images, in a fixed order; item i is a prepared image `[C, H, W]` and its class.

    `labels` and `names` have one entry an image; `skipped` names the source's unreadable images, which are in no
    set. An image that became unreadable since it was checked raises `HalfbyteError`.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        channels: int,
        indices: Sequence[int] | None = None,
        skipped: Sequence[str] = (),
    ) -> None:
        self._source = source
        self._transform = transform
        self._channels = channels
        self._indices = list(range(len(source.labels)) if indices is None else indices)
        self.labels = [source.labels[i] for i in self._indices]
        self.skipped = list(skipped)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self.picture(index)), self.labels[index]

    def picture(self, index: int) -> Image.Image:
        """An image before it is prepared, greyscale or RGB as the model takes them."""
        return self._source.image(self._indices[index], self._channels)

    @property
    def names(self) -> list[str]:
        """One name an image: its path below the folder, or its number in the archive."""
        names = self._source.names
        return [names[i] for i in self._indices]

    @property
    def class_folders(self) -> list[str] | None:
        """The names of the classes' folders, one a class; None where the source has only numbers."""
        return self._source.classes.folders() if isinstance(self._source, FolderSource) else None

    @property
    def class_names(self) -> dict[int, str]:
        """Names by class, as far as the images' folders tell them."""
        return self._source.class_names

    @property
    def dataset(self) -> str | None:
        """The data set that these images are known to be of."""
        return self._source.dataset if isinstance(self._source, ArraySource) else None

    def subset(self, indices: Sequence[int]) -> ImageSet:
        """The images at these positions of this set, in this order."""
        chosen = [self._indices[i] for i in indices]
        return ImageSet(self._source, self._transform, self._channels, chosen, self.skipped)

    def useful_workers(self) -> int:
        """How many processes can help to prepare the images: one a core for files, none for an array."""
        return _cores() if isinstance(self._source, FolderSource) else 0

    def check_classes(self, num_classes: int) -> None:
        """Raise `HalfbyteError` unless the labels can be classes of a model with `num_classes` outputs."""
        self._source.check_classes(num_classes)


def open_images(
    where: Path | str,
    config: Mapping[str, Any],
    *,
    num_classes: int | None,
    progress: Progress | None = None,
    workers: int = 0,
) -> ImageSet:
    """The images of a folder, a `.npz` file, `EMBEDDED_CALIBRATION` or `EMBEDDED_TEST`, prepared as `config` says.

    `config` is timm's (`input_size`, `interpolation`, `mean`, `std`, `crop_pct`, `crop_mode`). With `num_classes`
    the labels must be the model's classes, as evaluation needs; None takes any. Every image file is decoded once, on
    `workers` threads (0: one a core), a fixed 50,000 of them where there are more: unreadable ones are named and
    left out. Raises `HalfbyteError` where more than 1 % are unreadable, and for every unusable folder or file.
    """
    channels = int(config["input_size"][0])
    image_mode(channels)
    source = open_source(where)
    if num_classes is not None:
        source.check_classes(num_classes)
    progress = progress or Progress(quiet=True)
    bad = _unreadable(source, channels, progress, workers) if isinstance(source, FolderSource) else []
    skipped = [source.names[i] for i in bad]
    unusable = set(bad)
    good = [i for i in range(len(source.labels)) if i not in unusable]
    return ImageSet(source, _transform(config), channels, good, skipped)


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _transform(config: Mapping[str, Any]) -> Transform:
    from timm.data.transforms_factory import create_transform

    settings = {key: config[key] for key in TRANSFORM_KEYS if key in config}
    create: Any = create_transform
    transform: Transform = create(**settings, is_training=False)
    return transform


def _unreadable(source: FolderSource, channels: int, progress: Progress, workers: int) -> list[int]:
    """The numbers of the images that cannot be decoded; reports them, and raises where they are too many."""
    numbers = _to_check(len(source.names))

    def fault(number: int) -> str | None:
        return image_fault(source.root / source.names[number], channels)

    # Pillow decodes outside the interpreter lock, so threads are enough and nothing has to be sent to a process.
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        faults = list(progress.track(pool.map(fault, numbers), "checking images", len(numbers)))
    bad = [number for number, reason in zip(numbers, faults, strict=True) if reason is not None]
    if not bad:
        return []
    names = ", ".join(source.names[number] for number in bad[:SHOWN]) + (", ..." if len(bad) > SHOWN else "")
    count = f"{len(bad)} of {len(numbers)} images cannot be read"
    if len(bad) > MOST_SKIPPED * len(numbers):
        first = next(reason for reason in faults if reason is not None)
        raise HalfbyteError(f"images {source.root}: {count} ({names}; the first: {first}); mend or remove them")
    progress.say(f"{source.root}: {count} and are skipped: {names}")
    return bad


def _to_check(count: int) -> list[int]:
    if count <= MOST_CHECKED:
        return list(range(count))
    chosen = np.random.default_rng(0).choice(count, MOST_CHECKED, replace=False)
    return [int(number) for number in np.sort(chosen)]


def calibration_subset(images: ImageSet, count: int, seed: int) -> ImageSet:
    """`count` images chosen by `seed`, as evenly over the classes as they come.

    The order is such that the first so many are spread evenly as well. Raises `HalfbyteError` for fewer than one
    image, or more than there are.
    """
    if not 1 <= count <= len(images):
        raise HalfbyteError(
            f"{count} calibration images asked for, but there are {len(images)}; give 1 to {len(images)}"
        )
    shuffled = np.random.default_rng(seed).permutation(len(images))
    labels = np.asarray(images.labels)[shuffled]
    # Every class gives its first image, then every class that has one its second, and so on.
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], labels[by_class])
    turn = np.empty(len(images), np.int64)
    turn[by_class] = np.arange(len(images)) - starts
    chosen = shuffled[np.argsort(turn, kind="stable")][:count]
    return images.subset(chosen.tolist())


def limit(images: ImageSet, count: int) -> ImageSet:
    """At most `count` images, always the same, in the set's order: every class keeps its share, to within one image.

    Raises `HalfbyteError` for fewer than one image.
    """
    if count < 1:
        raise HalfbyteError(f"--limit {count}: must be at least 1")
    if count >= len(images):
        return images
    by_class = np.argsort(np.asarray(images.labels), kind="stable")
    spaced = (np.arange(count) * 2 + 1) * len(images) // (2 * count)
    return images.subset(np.sort(by_class[spaced]).tolist())


class Items(Protocol):
    """What can be batched: items by a key, each a tuple of tensors and numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> tuple[Any, ...]: ...

    def useful_workers(self) -> int:
        """How many processes can help to prepare items."""


class _Caught(Dataset[tuple[Any, ...] | HalfbyteError]):
    """Hands errors over as items: raised in a worker process they would arrive wrapped in its whole traceback."""

    def __init__(self, items: Items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Any) -> tuple[Any, ...] | HalfbyteError:
        try:
            return self.items[key]
        except HalfbyteError as error:
            return error


def _collate(items: list[tuple[Any, ...] | HalfbyteError]) -> tuple[Tensor, ...] | HalfbyteError:
    for item in items:
        if isinstance(item, HalfbyteError):
            return item
    return tuple(default_collate(items))


def batches(images: ImageSet, batch_size: int, workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """The images in order: `[B, C, H, W]` float32 and their classes `[B]` int64, the last batch perhaps smaller.

    `workers` processes prepare them (0: this one); the batches are the same for any number. Raises `HalfbyteError`
    where an image became unreadable.
    """
    if batch_size < 1 or workers < 0:
        raise HalfbyteError(f"batch size {batch_size} and {workers} workers: at least 1 and 0 are needed")
    starts = range(0, len(images), batch_size)
    groups = [list(range(start, min(start + batch_size, len(images)))) for start in starts]
    for batch in grouped(images, groups, workers):
        yield batch[0], batch[1]


def grouped(items: Items, groups: list[list[Any]], workers: int = 0) -> Iterator[tuple[Tensor, ...]]:
    """The items with these keys in batches, each part of an item stacked."""
    loader: DataLoader[Any] = DataLoader(
        _Caught(items),
        batch_sampler=groups,
        num_workers=min(workers, items.useful_workers()),
        collate_fn=_collate,
        # A loader draws its workers' seed even where nothing is random: not from everyone's generator.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, HalfbyteError):
            raise batch
        yield batch
