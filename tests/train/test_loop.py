"""The loop on a toy: parts of a batch, processes and interruptions change nothing."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn

from halfbyte.distributed import World
from halfbyte.train import loop
from halfbyte.train.loop import Job, Plan, Trainer

# The last batch has three images: one process gets more of them than the other.
IMAGES, PLAN = 11, Plan(epochs=2, batch_size=4, rate=0.05, cosine=True)


class Toy:
    """Images `[1, 2, 2]` whose class is the sign of their sum."""

    def __init__(self) -> None:
        self.pixels = torch.randn(IMAGES, 1, 2, 2, generator=torch.Generator().manual_seed(1))
        self.seen: list[int] = []

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.seen.append(index)
        return self.pixels[index], int(self.pixels[index].sum() > 0)

    def useful_workers(self) -> int:
        return 0


class Run:
    """A trainer with its model; `losses` are what validation is to find."""

    def __init__(self, plan: Plan = PLAN, world: World | None = None, losses: tuple[float, ...] = ()) -> None:
        torch.manual_seed(0)
        self.model, self.images, self.losses = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), Toy(), list(losses)
        self.extremes, self.largest = torch.full((1,), float("-inf")), torch.zeros(1)
        self.job = Job(self.loss, self.validate, self.extremes, self.after_step)
        self.trainer = Trainer(
            list(self.model.parameters()), [self.largest], self.images, plan, self.job, device=torch.device("cpu"),
            world=world or World(),
        )  # fmt: skip

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        self.extremes.copy_(torch.maximum(self.extremes, images.amax()))
        return nn.functional.cross_entropy(self.model(images), labels)

    def after_step(self) -> None:
        self.largest.copy_(torch.maximum(self.largest, self.extremes))
        self.extremes.fill_(float("-inf"))

    def validate(self) -> float:
        if self.losses:
            return self.losses.pop(0)
        with torch.no_grad():
            return float(nn.functional.cross_entropy(self.model(self.images.pixels), torch.ones(IMAGES).long()))

    def train(self, first: int = 0, end: int | None = None) -> Run:
        if first == 0:
            self.trainer.start(torch.Generator().manual_seed(2))
        for chunk in self.trainer.plan.chunks(IMAGES)[first:end]:
            self.trainer.run(chunk)
        return self

    @property
    def result(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in (*self.model.parameters(), self.largest)])


def test_it_learns_and_sees_every_image_once_an_epoch() -> None:
    run = Run(Plan(epochs=30, batch_size=4, rate=0.05))
    run.train()
    assert sorted(run.images.seen[:IMAGES]) == list(range(IMAGES))
    assert run.images.seen[:IMAGES] != run.images.seen[IMAGES : 2 * IMAGES]
    predicted = run.model(run.images.pixels).argmax(1)
    assert torch.equal(predicted, (run.images.pixels.sum((1, 2, 3)) > 0).long())


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_parts_of_a_batch_give_its_gradient(parts: int) -> None:
    expected = Run().train().result
    found = Run(Plan(epochs=2, batch_size=4, rate=0.05, cosine=True, accumulate=parts)).train().result
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_epoch_with_the_least_held_out_loss_is_kept() -> None:
    plan = Plan(epochs=3, batch_size=4, rate=0.05)
    first = Run(plan).train(end=1).result
    run = Run(plan, losses=(3.0, 1.0, 2.0, 2.5)).train()
    assert not torch.equal(run.result, first)
    run.trainer.restore_best()
    assert torch.equal(run.result, first)
    untouched = Run(plan, losses=(0.5, 1.0, 2.0, 2.5))
    start = untouched.result
    untouched.train().trainer.restore_best()
    assert torch.equal(untouched.result[:-1], start[:-1])


@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, warmup=0.5, last=0.1, clip=0.05, average=0.8)])
def test_an_interrupted_training_goes_on_to_the_same_bits(monkeypatch, plan: Plan) -> None:
    monkeypatch.setattr(loop, "CHUNK", 2)
    whole = Run(plan).train()
    for stop in range(1, len(plan.chunks(IMAGES))):
        first, second = Run(plan).train(end=stop), Run(plan)
        state = {name: tensor.clone() for name, tensor in first.trainer.tensors().items()}
        second.model.load_state_dict(first.model.state_dict())
        second.trainer.restore(state)
        second.train(stop)
        assert torch.equal(second.result, whole.result)
        second.trainer.restore_best()
    whole.trainer.restore_best()
    assert torch.equal(second.result, whole.result)


def test_what_is_chosen_is_the_average() -> None:
    plan = replace(PLAN, average=0.5, chunk=1)
    run, expected = Run(plan), None
    run.trainer.start(torch.Generator().manual_seed(2))
    expected = torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])
    for chunk in plan.chunks(IMAGES):
        run.trainer.run(chunk)
        now = torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])
        expected = 0.5 * expected + 0.5 * now
    assert not torch.allclose(now, expected)
    run.losses, run.trainer.best = [], []
    run.trainer._validate()
    run.trainer.restore_best()
    assert torch.allclose(run.result[:-1], expected, atol=1e-6)


def test_a_long_gradient_is_shortened() -> None:
    # Adam's step has the same length for a gradient of any; what it remembers has not.
    run = Run(replace(PLAN, clip=1e-3)).train(end=1)
    squares = [state["exp_avg_sq"].sum() for state in run.trainer.optimizer.state.values()]
    assert 0 < float(sum(squares)) <= 1e-6
    assert float(sum(state["exp_avg_sq"].sum() for state in Run().train(end=1).trainer.optimizer.state.values())) > 1e-5


def test_groups_have_rates_of_their_own_and_items_keys() -> None:
    run = Run()
    keys: list[object] = []

    class Keyed(Toy):
        def __getitem__(self, key):
            keys.append(key)
            return super().__getitem__(key[1])

    weight, bias = run.model[1].weight, run.model[1].bias
    before = bias.detach().clone()
    trainer = Trainer(
        [{"params": [weight]}, {"params": [bias], "factor": 0.0, "weight_decay": 0.0}], [], Keyed(),
        PLAN, run.job, device=torch.device("cpu"), world=World(), keyed=True,
    )  # fmt: skip
    trainer.start(torch.Generator().manual_seed(2))
    for chunk in PLAN.chunks(IMAGES):
        trainer.run(chunk)
    assert torch.equal(bias, before)
    assert sorted(keys) == [(epoch, number) for epoch in range(2) for number in range(IMAGES)]


def test_a_loss_that_is_not_finite_is_told() -> None:
    run = Run()
    run.images.pixels[3] = float("nan")
    with pytest.raises(FloatingPointError):
        run.train()


def _process(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save(Run(world=World(rank, 2)).train().result, f"{out}{rank}")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_process, args=(rank, str(tmp_path / "store"), str(tmp_path / "result")))
                 for rank in range(2)]  # fmt: skip
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    found = [torch.load(tmp_path / f"result{rank}", weights_only=True) for rank in range(2)]
    assert torch.equal(*found)
    assert torch.allclose(found[0], Run().train().result, atol=1e-6)
