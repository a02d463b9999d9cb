"""Soft labels in the layout in which FKD publishes them: one file an image, in folders like those of the images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from halfbyte.data.soft_labels import ShardedLabels, SoftLabel, SoftLabels
from halfbyte.errors import HalfbyteError
from halfbyte.files import LABELS

# How a file of the K most probable classes spreads the rest: over the others, or not at all.
TAILS = ("smoothing", "renorm")
# Folders of an image's path that its label's repeats: VVTQ's layout, then FKD's own.
_PARTS = (4, 3)


class PublishedLabels:
    """Labels `root/<last parts of the image's path>.tar`, each a list of crops `[M, 4]`, mirrored `[M]` and labels.

    The labels are classes `[M]`, the most probable class and its probability `[M, 2]`, the K most probable ones
    `[M, 2, K]`, or all probabilities `[M, classes]`. images: the folder below which the names lie.
    """

    def __init__(self, root: Path, images: Path, classes: int, tail: str = "smoothing") -> None:
        if tail not in TAILS:
            raise HalfbyteError(f"the tail of soft labels must be one of {', '.join(TAILS)}, not {tail!r}")
        if not root.is_dir():
            raise HalfbyteError(f"soft labels {root}: no such folder")
        self.root, self.images, self.classes, self.tail = root, images, classes, tail

    def of(self, name: str) -> SoftLabel:
        """Of an image of that name; raises `HalfbyteError` where its file is missing or damaged."""
        parts = (self.images.absolute() / name).with_suffix(".tar").parts
        places = [self.root.joinpath(*parts[-count:]) for count in _PARTS]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise HalfbyteError(f"soft labels {self.root} have none for {name} ({places[0]} does not exist)")
        try:
            boxes, mirrored, label = torch.load(path, weights_only=True, map_location="cpu")
            ids, probabilities = self._decoded(torch.as_tensor(label))
            fractions, flips = torch.as_tensor(boxes).double(), torch.as_tensor(mirrored).bool()
            if fractions.shape != (len(ids), 4) or flips.shape != (len(ids),):
                raise ValueError(f"{len(ids)} labels, crops {list(fractions.shape)}, flips {list(flips.shape)}")
            if not bool(((fractions >= 0) & (fractions <= 1)).all()):
                raise ValueError("a crop leaves its picture")
            if not bool(((ids >= 0) & (ids < self.classes)).all()) or not bool(probabilities.isfinite().all()):
                raise ValueError(f"a class or a probability is impossible for {self.classes} classes")
        except Exception as error:  # a damaged or hostile file can make the reader raise anything at all
            raise HalfbyteError(f"soft labels {path}: not in the published layout ({_first_line(error)})") from None
        return SoftLabel(fractions, flips, ids, probabilities)

    def _decoded(self, label: Tensor) -> tuple[Tensor, Tensor]:
        if label.ndim == 1:
            return label.long()[:, None], torch.ones(len(label), 1)
        if label.ndim == 3 and label.shape[1] == 2:
            ids, probabilities = label[:, 0].long(), label[:, 1].float()
            if self.tail == "renorm":
                probabilities = probabilities / probabilities.sum(1, keepdim=True)
            return ids, probabilities
        if label.shape[1:] == (self.classes,) and self.classes != 2:
            return torch.arange(self.classes).repeat(len(label), 1), label.float()
        if label.shape[1:] == (2,):
            return label[:, :1].long(), label[:, 1:].float()
        raise ValueError(f"labels {list(label.shape)}")


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def open_labels(folder: Path, images: Path | None, classes: int) -> SoftLabels:
    """The soft labels in a folder, ours or in the published layout, of images in `images`.

    Raises `HalfbyteError` where there are none, and for published ones without a folder of images.
    """
    if not folder.is_dir():
        raise HalfbyteError(f"--labels {folder}: no such folder; make some with `halfbyte labels`")
    if (folder / LABELS).is_file():
        return ShardedLabels(folder, classes)
    if images is None or not images.is_dir():
        raise HalfbyteError(f"--labels {folder} lie as the images do; give these with --data DIR")
    return PublishedLabels(folder, images, classes)
