"""The calibration images on their way through the quantized model, block by block."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from halfbyte.data.store import BatchStore
from halfbyte.families.layout import Block
from halfbyte.layers.compensation import HalfBranch
from halfbyte.layers.site import State, WeightedSite
from halfbyte.prepare import model_state
from halfbyte.session import Session

T = TypeVar("T")
# What a block shall give: what it would in float for the same input, or what it gives in the float model.
TARGETS = ("local", "stream")
# One batch of so many decides, the others are fitted.
HELD_OUT = 8


class _ReachedError(Exception):
    """Ends a forward pass of which nothing more is needed."""


@dataclass
class Unit:
    """A block that takes one tensor and gives one, once in a forward pass. `extra`: what else it is called with.

    `chained`: its input is the output of the unit before.
    """

    block: Block
    module: nn.Module
    extra: tuple[tuple[Any, ...], dict[str, Any]]
    chained: bool
    input_shape: torch.Size
    output_shape: torch.Size


@contextmanager
def watched(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """For the length of a with-block, a list that gets the input and the output of each of a module's calls."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    try:
        yield seen
    finally:
        handle.remove()


class BlockStream:
    """Walks over the model's blocks with what reaches each of them, in batches.

    `inputs` holds what the quantized model hands to the block, `float_inputs` (with `both`) what the float model does.
    A step may change a block while it is there; `advance` then makes the next block's inputs with what it has become.
    Memory holds one block's inputs. Under torchrun each process has its share of the batches. Every eighth batch is
    held out: what a step fits it fits to the others. `halves` is the state of compensations in float16: published code
    hands on what `observe` gives, their float32. `ends`: stem and head are units too. `state`: that of the model,
    `float` before it is calibrated.
    """

    def __init__(
        self,
        session: Session,
        images: int,
        *,
        both: bool = False,
        halves: State = "quantized",
        ends: bool = False,
        state: State = "quantized",
    ) -> None:
        self.session, self.images, self.both, self.halves, self.state = session, images, both, halves, state
        self.units = _units(session, ends)
        self.batch_size = max(1, min(session.batch_size, images // HELD_OUT))
        self.inputs = BatchStore()
        self.float_inputs = BatchStore()
        self._at: int | None = None

    def visit(self, units: Iterator[Unit] | list[Unit]) -> Iterator[Unit]:
        """Each of these units (some of `self.units`, in order), with its inputs in place."""
        for unit in units:
            self._go_to(self.units.index(unit))
            yield unit

    def run(self, unit: Unit, x: Tensor, state: State | None = None) -> Tensor:
        """The unit's output for a batch of inputs, in the stream's state unless another is given."""
        args, keywords = unit.extra
        with torch.no_grad(), self._state(unit.module, state or self.state):
            output: Tensor = unit.module(x, *args, **keywords)
        return output

    @contextmanager
    def _state(self, module: nn.Module, state: State) -> Iterator[None]:
        with model_state(module, state):
            for inner in module.modules():
                if isinstance(inner, HalfBranch) and state == "quantized":
                    inner.state = self.halves
            yield

    def run_float(self, unit: Unit, x: Tensor) -> Tensor:
        """The trained unit's output for a batch of inputs."""
        args, keywords = unit.extra
        with torch.no_grad():
            output: Tensor = self.session.aligned.get_submodule(unit.block.name)(x, *args, **keywords)
        return output

    def numbers(self) -> range:
        """The numbers of the batches that this process has."""
        return range(len(self.inputs))

    def in_order(self, own: Iterator[T]) -> Iterator[T]:
        """What every batch gives, in the batches' order, where `own` gives it for those of this process one by one.

        Sums over it have the same bits whichever process has which batch.
        """
        world = self.session.world
        rounds = -(-self.images // (self.batch_size * world.size))
        for _ in range(rounds):
            yield from (found[0] for found in world.gather(list(itertools.islice(own, 1))) if found)

    def held_out(self, number: int) -> bool:
        """Whether the batch of that number is for decisions and not for fitting."""
        world = self.session.world
        return (number * world.size + world.rank) % HELD_OUT == HELD_OUT - 1

    def advance(self, outputs: BatchStore | None = None, float_outputs: BatchStore | None = None) -> None:
        """Go to the next unit, with these outputs of the present one where they are known already."""
        assert self._at is not None
        unit = self.units[self._at]
        following = self.units[self._at + 1] if self._at + 1 < len(self.units) else None
        if following is None or not following.chained:
            self._at = None
            self._release(unit)
            return
        for number in self.numbers():
            known = outputs[number] if outputs is not None else self.run(unit, self.inputs[number])
            self.inputs[number] = known
            if self.both:
                exact = self.float_inputs[number]
                self.float_inputs[number] = (
                    float_outputs[number] if float_outputs is not None else self.run_float(unit, exact)
                )
        self._at += 1
        self._release(unit)

    @staticmethod
    def _release(unit: Unit) -> None:
        """What the unit's sites keep for their next batch would add up over the model."""
        for module in unit.module.modules():
            if isinstance(module, WeightedSite):
                module.release()

    def _go_to(self, index: int) -> None:
        while self._at is not None and self._at < index:
            self.advance()
        if self._at != index:
            name = self.units[index].block.name
            with self._state(self.session.model, self.state):
                self.inputs = self._inputs_of(self.session.model, name)
            if self.both:
                self.float_inputs = self._inputs_of(self.session.aligned, name)
            self._at = index

    def _inputs_of(self, model: nn.Module, name: str) -> BatchStore:
        """What reaches a module, by running the model from its start."""
        store = BatchStore()

        def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            store.append(inputs[0])
            raise _ReachedError

        handle = model.get_submodule(name).register_forward_pre_hook(keep)
        try:
            with torch.no_grad():
                for batch in self.session.own_images(self.images, self.batch_size):
                    with suppress(_ReachedError):
                        model(batch)
        finally:
            handle.remove()
        return store


def _units(session: Session, ends: bool) -> list[Unit]:
    """The blocks that can be units, in the order in which they run."""
    blocks = {block.name: block for block in session.layout.blocks if ends or not _ends(block)}
    modules = {name: session.model.get_submodule(name) for name in blocks}
    calls: dict[str, list[tuple[Any, dict[str, Any], Any]]] = {name: [] for name in blocks}
    order: list[str] = []

    def note(name: str) -> Any:
        def hook(_module: nn.Module, inputs: Any, keywords: dict[str, Any], output: Any) -> None:
            calls[name].append((inputs, keywords, output))
            order.append(name)

        return hook

    hooks = [module.register_forward_hook(note(name), with_kwargs=True) for name, module in modules.items()]
    try:
        with torch.no_grad(), model_state(session.model, "float"):
            session.model(next(session.images(1)))
    finally:
        for handle in hooks:
            handle.remove()
    units: list[Unit] = []
    last: Tensor | None = None
    for name in order:
        inputs, keywords, output = calls[name][0]
        if len(calls[name]) == 1 and inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            extra = (inputs[1:], keywords)
            units.append(
                Unit(blocks[name], modules[name], extra, inputs[0] is last, inputs[0].shape, output.shape)
            )  # fmt: skip
            last = output
        else:
            last = None
    return units


def _ends(block: Block) -> bool:
    return any(site.role in ("stem", "head") for site in block.sites)
