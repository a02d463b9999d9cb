"""A short training of few parameters: in chunks after which it can be killed, over any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from halfbyte.data.images import ImageSet, grouped
from halfbyte.distributed import World

# Steps between two states from which a killed run continues.
CHUNK = 20


@dataclass(frozen=True)
class Plan:
    """batch_size: images of one step, in `accumulate` parts. cosine: the rate falls to 0 over all steps."""

    epochs: int
    batch_size: int
    rate: float
    weight_decay: float = 0.0
    cosine: bool = False
    accumulate: int = 1
    autocast: bool = False

    def steps(self, images: int) -> int:
        """Steps of one epoch; the last one may be smaller."""
        return -(-images // self.batch_size)

    def chunks(self, images: int) -> list[Chunk]:
        """All steps, in pieces that lie in one epoch each."""
        steps = self.steps(images)
        starts = range(0, steps, CHUNK)
        return [Chunk(epoch, start, min(start + CHUNK, steps), start + CHUNK >= steps)
                for epoch in range(self.epochs) for start in starts]  # fmt: skip


class Chunk(NamedTuple):
    """Steps `first` to `end` (not included) of an epoch, and whether these are its last."""

    epoch: int
    first: int
    end: int
    ends_epoch: bool


@dataclass
class Job:
    """What the loop does not know: the mean loss of a batch (images, labels); the loss on held-out images, by which the
    best epoch is chosen; statistics of the batches, filled by `loss`, of which the processes' largest count; and
    what is to be done with them after a step."""

    loss: Callable[[Tensor, Tensor], Tensor]
    validate: Callable[[], float]
    extremes: Tensor
    after_step: Callable[[], None]


class Trainer:
    """AdamW on `parameters`. `buffers` are changed by the job as it goes, in place, and belong to the result.

    Under torchrun each process takes its share of every batch; gradients are summed, each image counted once.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        buffers: Sequence[Tensor],
        images: ImageSet,
        plan: Plan,
        job: Job,
        *,
        device: torch.device,
        world: World,
        workers: int = 0,
    ) -> None:
        self.parameters, self.buffers, self.images, self.plan, self.job = parameters, buffers, images, plan, job
        self.device, self.world, self.workers = device, world, workers
        self.order = torch.zeros(0, dtype=torch.int64)
        self.best_loss = float("inf")
        self.best: list[Tensor] = []
        self.optimizer = torch.optim.AdamW(list(parameters), plan.rate, weight_decay=plan.weight_decay)

    def start(self, generator: torch.Generator) -> float:
        """Draw the order of the images in every epoch; returns the held-out loss before any step."""
        self.order = torch.stack([torch.randperm(len(self.images), generator=generator)
                                  for _ in range(self.plan.epochs)])  # fmt: skip
        return self._validate()

    def run(self, chunk: Chunk) -> tuple[float, float | None]:
        """Take the steps of a chunk; returns their mean loss and, at an epoch's end, the held-out one."""
        total = rows = 0.0
        for step, batch in self._batches(chunk):
            count = len(self._rows(chunk.epoch, step))
            total += self._step(chunk.epoch, step, batch, count) * count
            rows += count
        return total / rows, self._validate() if chunk.ends_epoch else None

    def restore_best(self) -> None:
        """Go back to the epoch with the least held-out loss: perhaps to the start."""
        with torch.no_grad():
            for tensor, kept in zip(self._result(), self.best, strict=True):
                tensor.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        """All that a continuation needs besides the parameters."""
        state = {"order": self.order, "best_loss": torch.tensor(self.best_loss, dtype=torch.float64)}
        state |= {f"buffer.{number}": tensor for number, tensor in enumerate(self.buffers)}
        state |= {f"best.{number}": tensor for number, tensor in enumerate(self.best)}
        return state | optimizer_tensors(self.optimizer)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from what `tensors` gave."""
        self.order, self.best_loss = state["order"], float(state["best_loss"])
        for number, tensor in enumerate(self.buffers):
            tensor.copy_(state[f"buffer.{number}"])
        self.best = [state[f"best.{number}"].to(self.device) for number in range(len(self._result()))]
        restore_optimizer(self.optimizer, state)

    def _result(self) -> list[Tensor]:
        return [*self.parameters, *self.buffers]

    def _validate(self) -> float:
        loss = self.job.validate()
        if loss < self.best_loss or not self.best:
            self.best_loss = loss
            self.best = [tensor.detach().clone() for tensor in self._result()]
        return loss

    def _rows(self, epoch: int, step: int) -> list[int]:
        start = step * self.plan.batch_size
        rows: list[int] = self.order[epoch, start : start + self.plan.batch_size].tolist()
        return rows

    def _batches(self, chunk: Chunk) -> Iterator[tuple[int, list[tuple[Tensor, Tensor]]]]:
        """For each step this process's part of the batch, in the pieces in which it goes through the model."""
        groups = []
        for step in range(chunk.first, chunk.end):
            own = self._rows(chunk.epoch, step)[self.world.rank :: self.world.size]
            size = max(1, -(-len(own) // self.plan.accumulate))
            groups.append([own[start : start + size] for start in range(0, len(own), size)])
        loaded = grouped(self.images, [group for pieces in groups for group in pieces], self.workers)
        for step, pieces in zip(range(chunk.first, chunk.end), groups, strict=True):
            yield step, [next(loaded) for _ in pieces]

    def _step(self, epoch: int, step: int, batch: list[tuple[Tensor, Tensor]], count: int) -> float:
        self.optimizer.zero_grad(set_to_none=False)
        total = torch.zeros((), device=self.device)
        for images, labels in batch:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.autocast):
                loss = self.job.loss(images.to(self.device), labels.to(self.device))
            # A batch's mean, whoever holds how many of its rows.
            share = loss * (len(images) / count)
            share.backward()  # type: ignore[no-untyped-call]
            total += share.detach()
        mean = self._synchronize(total)
        if not math.isfinite(mean):
            raise FloatingPointError("the loss is not finite")
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(epoch * self.plan.steps(len(self.images)) + step)
        self.optimizer.step()
        self.job.after_step()
        return mean

    def _synchronize(self, loss: Tensor) -> float:
        """Sum gradients and loss over the processes, take the largest of the extremes; returns the loss."""
        if self.world.size > 1:
            for parameter in self.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            flat = torch.cat([*(gradient.flatten() for gradient in gradients), loss.view(1)])
            flat = self.world.merge(flat)
            summed = torch.split(flat[:-1], [gradient.numel() for gradient in gradients])
            for gradient, total in zip(gradients, summed, strict=True):
                gradient.copy_(total.view_as(gradient))
            loss = flat[-1]
            for found in self.world.gather(self.job.extremes.cpu()):
                self.job.extremes.copy_(torch.maximum(self.job.extremes, found.to(self.job.extremes.device)))
        return float(loss)

    def _rate(self, done: int) -> float:
        if not self.plan.cosine:
            return self.plan.rate
        total = self.plan.epochs * self.plan.steps(len(self.images))
        return self.plan.rate * 0.5 * (1 + math.cos(math.pi * done / total))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as tensors, their names beginning with `optimizer.`."""
    return {
        f"optimizer.{number}.{name}": torch.as_tensor(value)
        for number, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Give an optimizer of the same parameters the state that is among these tensors."""
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            entries.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
