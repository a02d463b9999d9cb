"""Images for training: random crops of each, with soft labels where there are some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from halfbyte.data.crops import SCALE, Cropper, draw_box, generator_of
from halfbyte.data.images import ImageSet
from halfbyte.data.soft_labels import SoftLabels

Crops = tuple[Tensor, Tensor, Tensor, Tensor]


class CropSet(Dataset[Crops]):
    """Item (epoch, i): some crops of image i of a set, drawn for that epoch from the seed and the image's name alone.

    An item has the crops `[c, C, H, W]`, the image's class `[c]`, and of the soft labels the classes and probabilities
    `[c, K]` (K is 0 without labels). With labels the crops are some of those that the teacher saw; without, new ones.
    """

    def __init__(
        self,
        images: ImageSet,
        config: Mapping[str, Any],
        crops: int,
        seed: int,
        labels: SoftLabels | None = None,
        scale: tuple[float, float] = SCALE,
    ) -> None:
        self.images, self.crops, self.seed, self.labels, self.scale = images, crops, seed, labels, scale
        self.cropper = Cropper(config)
        self._names = images.names

    def __len__(self) -> int:
        return len(self.images)

    def useful_workers(self) -> int:
        """How many processes can help to prepare the images."""
        return self.images.useful_workers()

    def __getitem__(self, key: tuple[int, int]) -> Crops:
        epoch, number = key
        name, picture = self._names[number], self.images.picture(number)
        size = (picture.height, picture.width)
        generator = generator_of(f"{epoch}:{name}", self.seed)
        if self.labels is None:
            boxes = [draw_box(*size, generator, self.scale) for _ in range(self.crops)]
            mirrored = [bool(generator.random() < 0.5) for _ in boxes]
            ids, probabilities = torch.zeros(self.crops, 0, dtype=torch.int64), torch.zeros(self.crops, 0)
        else:
            label = self.labels.of(name)
            order = generator.permutation(len(label.ids)).tolist()
            # Where the teacher saw fewer crops than are asked for, some come twice.
            chosen = [order[index % len(order)] for index in range(self.crops)]
            boxes = [label.box(crop, *size) for crop in chosen]
            mirrored = [bool(label.mirrored[crop]) for crop in chosen]
            ids, probabilities = label.ids[chosen], label.probabilities[chosen]
        made = torch.stack([self.cropper(picture, box, flip) for box, flip in zip(boxes, mirrored, strict=True)])
        return made, torch.full((self.crops,), self.images.labels[number]), ids, probabilities
