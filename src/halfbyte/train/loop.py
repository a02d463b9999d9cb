"""A short training of few parameters: in chunks after which it can be killed, over any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from halfbyte.data.images import Items, grouped
from halfbyte.distributed import World
from halfbyte.train.schedule import Schedule

# Steps between two states from which a killed run continues.
CHUNK = 20


@dataclass(frozen=True)
class Plan:
    """batch_size: images of one step, in `accumulate` parts. cosine: the rate falls to its share `last` over all steps,
    behind `warmup` epochs in which it rises. clip: the largest norm of the gradient (0: any). average: how much of the
    moving average of the parameters, which is then what is chosen, a step keeps (0: no
    average). chunk: steps between two states from which a killed run continues (0: the default). most:
    steps in all (0: as many as the epochs have)."""

    epochs: int
    batch_size: int
    rate: float
    weight_decay: float = 0.0
    cosine: bool = False
    accumulate: int = 1
    autocast: bool = False
    warmup: float = 0.0
    last: float = 0.0
    clip: float = 0.0
    average: float = 0.0
    chunk: int = 0
    most: int = 0

    def steps(self, images: int) -> int:
        """Steps of one epoch; the last one may be smaller."""
        return -(-images // self.batch_size)

    def chunks(self, images: int) -> list[Chunk]:
        """All steps, in pieces that lie in one epoch each."""
        steps = self.steps(images)
        size, total = self.chunk or CHUNK, self.total(images)
        ends = [min(steps, total - epoch * steps) for epoch in range(self.epochs)]
        return [Chunk(epoch, start, min(start + size, end), start + size >= end)
                for epoch, end in enumerate(ends) for start in range(0, end, size)]  # fmt: skip

    def total(self, images: int) -> int:
        """Steps of the whole training."""
        steps = self.epochs * self.steps(images)
        return min(steps, self.most) if self.most else steps

    def schedule(self, images: int) -> Schedule:
        """The rate over all steps."""
        steps = self.steps(images)
        return Schedule(self.rate, self.total(images), round(self.warmup * steps), self.last, self.cosine)


class Chunk(NamedTuple):
    """Steps `first` to `end` (not included) of an epoch, and whether these are its last."""

    epoch: int
    first: int
    end: int
    ends_epoch: bool


@dataclass
class Job:
    """What the loop does not know: the mean loss of a batch, of whatever its items hold (images, labels); the loss on
    held-out images, by which the best epoch is chosen; statistics of the batches, filled by `loss`, of which the
    processes' largest count; and what is to be done with them after a step."""

    loss: Callable[..., Tensor]
    validate: Callable[[], float]
    extremes: Tensor
    after_step: Callable[[], None]


class Trainer:
    """AdamW on `parameters`, tensors or groups with options of their own (`factor` multiplies the rate, which is
    `constant` where this is set). `buffers` are
    changed by the job as it goes, in place, and belong to the result. `keyed`: items have keys (epoch, number).

    Under torchrun each process takes its share of every batch; gradients are summed, each image counted once.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter] | Sequence[dict[str, Any]],
        buffers: Sequence[Tensor],
        images: Items,
        plan: Plan,
        job: Job,
        *,
        device: torch.device,
        world: World,
        workers: int = 0,
        keyed: bool = False,
    ) -> None:
        self.optimizer = torch.optim.AdamW(cast(Any, list(parameters)), plan.rate, weight_decay=plan.weight_decay)
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.buffers, self.images, self.plan, self.job = buffers, images, plan, job
        self.device, self.world, self.workers, self.keyed = device, world, workers, keyed
        self.schedule = plan.schedule(len(images))
        # The share of all steps that were taken before the present one.
        self.progress = 0.0
        self.averages = [parameter.detach().clone() for parameter in self.parameters] if plan.average else []
        self.order = torch.zeros(0, dtype=torch.int64)
        self.best_loss = float("inf")
        self.best: list[Tensor] = []

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
        state |= {f"average.{number}": tensor for number, tensor in enumerate(self.averages)}
        return state | optimizer_tensors(self.optimizer)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from what `tensors` gave."""
        self.order, self.best_loss = state["order"], float(state["best_loss"])
        for number, tensor in enumerate(self.buffers):
            tensor.copy_(state[f"buffer.{number}"])
        for number, tensor in enumerate(self.averages):
            tensor.copy_(state[f"average.{number}"])
        self.best = [state[f"best.{number}"].to(self.device) for number in range(len(self._result()))]
        restore_optimizer(self.optimizer, state)

    def _result(self) -> list[Tensor]:
        return [*self.parameters, *self.buffers]

    def _validate(self) -> float:
        with self._averaged():
            loss = self.job.validate()
            if loss < self.best_loss or not self.best:
                self.best_loss = loss
                self.best = [tensor.detach().clone() for tensor in self._result()]
        return loss

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """For a with-block the parameters' averages in their place, where there are some."""
        kept = [parameter.detach().clone() for parameter in self.parameters] if self.averages else []
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.averages, strict=False):
                parameter.copy_(average)
            try:
                yield
            finally:
                for parameter, own in zip(self.parameters, kept, strict=False):
                    parameter.copy_(own)

    def _rows(self, epoch: int, step: int) -> list[int]:
        start = step * self.plan.batch_size
        rows: list[int] = self.order[epoch, start : start + self.plan.batch_size].tolist()
        return rows

    def _batches(self, chunk: Chunk) -> Iterator[tuple[int, list[tuple[Tensor, ...]]]]:
        """For each step this process's part of the batch, in the pieces in which it goes through the model."""
        groups = []
        for step in range(chunk.first, chunk.end):
            own: list[Any] = self._rows(chunk.epoch, step)[self.world.rank :: self.world.size]
            own = [(chunk.epoch, row) for row in own] if self.keyed else own
            size = max(1, -(-len(own) // self.plan.accumulate))
            groups.append([own[start : start + size] for start in range(0, len(own), size)])
        loaded = grouped(self.images, [group for pieces in groups for group in pieces], self.workers)
        for step, pieces in zip(range(chunk.first, chunk.end), groups, strict=True):
            yield step, [next(loaded) for _ in pieces]

    def _step(self, epoch: int, step: int, batch: list[tuple[Tensor, ...]], count: int) -> float:
        done = epoch * self.plan.steps(len(self.images)) + step
        self.progress = done / self.schedule.total
        self.optimizer.zero_grad(set_to_none=False)
        total = torch.zeros((), device=self.device)
        for parts in batch:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.autocast):
                loss = self.job.loss(*(part.to(self.device) for part in parts))
            # A batch's mean, whoever holds how many of its rows.
            share = loss * (len(parts[0]) / count)
            share.backward()  # type: ignore[no-untyped-call]
            total += share.detach()
        mean = self._synchronize(total)
        if not math.isfinite(mean):
            raise FloatingPointError("the loss is not finite")
        if self.plan.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.plan.clip)
        rate = self.schedule.at(done)
        for group in self.optimizer.param_groups:
            group["lr"] = (self.plan.rate if group.get("constant") else rate) * group.get("factor", 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(self.averages, self.parameters, strict=False):
                average.lerp_(parameter, 1 - self.plan.average)
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
