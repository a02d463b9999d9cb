"""The little of torch.distributed that sharded evaluation needs; without torchrun everything is one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class World:
    """This process's number and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def merge(self, rows: Tensor) -> Tensor:
        """The sum over the processes of a tensor that each filled in part (zero elsewhere): exact, being disjoint."""
        if self.size > 1:
            distributed.all_reduce(rows)
        return rows

    def gather(self, value: Any) -> list[Any]:
        """What every process has, in their order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def world() -> Iterator[World]:
    """Join the processes that torchrun started, for the length of a with-block."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield World(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def leads() -> bool:
    """Whether this process is the one that prints, also outside `world`."""
    return os.environ.get("RANK", "0") == "0"
