"""A list of tensors that moves to disk where it grows large."""

from __future__ import annotations

import os
import tempfile

import torch
from torch import Tensor

from halfbyte.files import FULL, no_room

# More than this many bytes of one list are kept on disk.
IN_MEMORY = 2**29


class BatchStore:
    """Batches in order, float32; each can be overwritten by one of the same shape.

    What does not fit into `limit` bytes lies in files without a name, which vanish with the process.
    """

    def __init__(self, limit: int = IN_MEMORY) -> None:
        self.limit = limit
        self.bytes = 0
        self._batches: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Tensor:
        return self._batches[index]

    def __setitem__(self, index: int, batch: Tensor) -> None:
        if batch.shape == self._batches[index].shape:
            self._batches[index].copy_(batch)
        else:
            self._batches[index] = self._kept(batch)

    def append(self, batch: Tensor) -> None:
        """Keep one more batch."""
        self._batches.append(self._kept(batch))

    def _kept(self, batch: Tensor) -> Tensor:
        self.bytes += batch.numel() * 4
        if self.bytes <= self.limit:
            return batch.detach().float().clone()
        with tempfile.NamedTemporaryFile(prefix="halfbyte-") as file:
            _allocate(file.fileno(), batch.numel() * 4)
            place = torch.from_file(file.name, shared=True, size=batch.numel(), dtype=torch.float32)
        return place.view(batch.shape).copy_(batch.detach())


def _allocate(descriptor: int, size: int) -> None:
    """Take the room at once: a disk that is full when a mapped file is written kills the process."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in FULL:
                return  # a file system that cannot tell beforehand
            raise no_room(f"inputs of a block, {size / 2**20:.0f} MB,", error) from None
