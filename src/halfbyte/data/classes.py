"""From the names of class folders to class indices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halfbyte.errors import HalfbyteError

WNID = re.compile(r"n\d{8}")
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class ClassIndex:
    """`index` maps a folder's name to its class; `wnids` says that these are ImageNet-1k's own class indices."""

    index: Mapping[str, int]
    wnids: bool

    def check(self, num_classes: int, where: str) -> None:
        """Raise `HalfbyteError` unless these classes can be those of a model with `num_classes` outputs."""
        if self.wnids and num_classes != IMAGENET_CLASSES:
            raise HalfbyteError(
                f"{where}: its {len(self.index)} class folders are ImageNet wnids, for a model of {IMAGENET_CLASSES} "
                f"classes, but the model has {num_classes}"
            )
        if not self.wnids and len(self.index) != num_classes:
            raise HalfbyteError(
                f"{where}: {len(self.index)} class folders, but the model has {num_classes} classes{self._strangers()}"
            )

    def names(self) -> dict[int, str]:
        """A name for each class: its folder's, or the first of ImageNet's words for each of its classes."""
        if not self.wnids:
            return {number: folder for folder, number in self.index.items()}
        return {number: words.partition(",")[0] for number, words in enumerate(imagenet_descriptions().values())}

    def _strangers(self) -> str:
        known = imagenet_index()
        strangers = [name for name in self.index if name not in known]
        if len(strangers) == len(self.index):
            return ""
        return f"; {len(self.index) - len(strangers)} of the folders are ImageNet wnids, but not {strangers[0]!r}"

    def folders(self) -> list[str]:
        """The names of all classes' folders, also of those that are not there, in the order of their numbers."""
        return list(imagenet_index() if self.wnids else self.index)


def imagenet_index() -> dict[str, int]:
    """The 1,000 wnids of ImageNet-1k and their class indices, from timm's own list."""
    return {wnid: index for index, wnid in enumerate(_imagenet().label_names())}


def imagenet_descriptions() -> dict[str, str]:
    """What the wnids of ImageNet-1k mean, in the order of their class indices: n01440764 is a tench, Tinca tinca."""
    described: dict[str, str] = _imagenet().label_descriptions(as_dict=True)
    return described


def _imagenet() -> Any:
    from timm.data.imagenet_info import ImageNetInfo

    return ImageNetInfo("imagenet-1k")


def class_index(image_counts: Mapping[str, int]) -> ClassIndex:
    """The classes of folders, given how many images each holds.

    Where every folder with images is named by an ImageNet-1k wnid, present or not as the others may be, the classes
    are ImageNet's. Otherwise all folders, empty ones too, are numbered in the order of their sorted names.
    """
    folders = sorted(image_counts)
    filled = [name for name in folders if image_counts[name]]
    # Reading timm's list takes a while; most other data sets do not even look like it.
    if filled and all(WNID.fullmatch(name) for name in filled):
        known = imagenet_index()
        if all(name in known for name in filled):
            return ClassIndex({name: known[name] for name in filled}, wnids=True)
    return ClassIndex({name: number for number, name in enumerate(folders)}, wnids=False)
