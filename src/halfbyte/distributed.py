"""The little of torch.distributed that a sharded run needs; without torchrun everything is one process."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from halfbyte.errors import HalfbyteError, ToldElsewhereError


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
            with self._meeting():
                distributed.all_reduce(rows)
        return rows

    def gather(self, value: Any) -> list[Any]:
        """What every process has, in their order; tensors of another process's GPU arrive on this one's."""
        if self.size == 1:
            return [value]
        packed = io.BytesIO()
        torch.save(value, packed)
        found: list[Any] = [None] * self.size
        with self._meeting():
            distributed.all_gather_object(found, packed.getvalue())
        return [torch.load(io.BytesIO(part), map_location=_here, weights_only=False) for part in found]

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Until every process has come through the with-block; what is refused in one of them is refused in all."""
        if self.size == 1:
            yield
            return
        refused: str | None = None
        try:
            yield
        except HalfbyteError as error:
            refused = str(error)
        told = next((text for text in self.gather(refused) if text is not None), None)
        if told is not None:
            raise HalfbyteError(told) if self.leads else ToldElsewhereError(told)

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if "onnection" not in str(error):
                raise
            text = "another process of the run ended; the same command with --resume continues"
            raise (HalfbyteError(text) if self.leads else ToldElsewhereError(text)) from error


@contextmanager
def world() -> Iterator[World]:
    """Join the processes that torchrun started, for the length of a with-block; inside of another, stay in its."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    if distributed.is_initialized():
        yield World(distributed.get_rank(), distributed.get_world_size())
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(_local("RANK", 0) % torch.cuda.device_count())
    distributed.init_process_group(_backend())
    try:
        yield World(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def _backend() -> str:
    """gloo for what lies on the CPU, and for the rest too where processes share a GPU."""
    own_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= _local("WORLD_SIZE", 1)
    return "cpu:gloo,cuda:nccl" if own_gpu else "gloo"


def _local(name: str, default: int) -> int:
    return int(os.environ.get(f"LOCAL_{name}", default))


def _here(storage: Any, location: str) -> Any:
    return storage if location == "cpu" else storage.cuda()


def leads() -> bool:
    """Whether this process is the one that prints, also outside `world`."""
    return os.environ.get("RANK", "0") == "0"
