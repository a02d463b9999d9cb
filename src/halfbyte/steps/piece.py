"""What a piece of a model, a block or a layer, is trained on: its inputs, its targets and its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from halfbyte.block_stream import BlockStream, Unit, watched
from halfbyte.data.store import BatchStore
from halfbyte.layers.conv import QuantConv2d
from halfbyte.prepare import model_state
from halfbyte.session import Session
from halfbyte.steps.suffix import Suffix
from halfbyte.train.block_losses import LOSSES, BlockLoss, Extra
from halfbyte.train.soft_quantization import kept

if TYPE_CHECKING:
    from halfbyte.steps.reconstruct import Reconstruct

# The number of a batch and that of an image in it.
Row = tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """What is trained at once: a unit, or the module at `path` in it ("": the unit itself)."""

    unit: Unit
    path: str = ""

    @property
    def name(self) -> str:
        """The module path in the model."""
        return f"{self.unit.block.name}.{self.path}" if self.path else self.unit.block.name


class PieceData:
    """What the quantized and the float model hand to a piece, what the float one gives, and the loss between the two.

    `rows` are the images to train with; the batches `deciding`, every eighth where the step has a guard, are held out.
    """

    def __init__(self, step: Reconstruct, session: Session, stream: BlockStream, piece: Piece) -> None:
        self.step, self.session, self.stream, self.piece = step, session, stream, piece
        unit = piece.unit
        self.module = unit.module.get_submodule(piece.path) if piece.path else unit.module
        self.inputs, self.exact, self.targets = self._collected()
        decides = [number for number in stream.numbers() if step.guard and stream.held_out(number)]
        self.deciding = decides if len(decides) < len(self.inputs) else []
        self.rows = [(number, row) for number in stream.numbers() if number not in self.deciding
                     for row in range(len(self.inputs[number]))]  # fmt: skip
        # Maps of convolutions have their channels second, all else last.
        self._channels = 1 if any(isinstance(module, QuantConv2d) for module in self.module.modules()) else -1
        role = unit.block.sites[0].role
        name = step.head_loss if role == "head" else "mse" if role == "stem" or piece.path else step.loss
        self._loss: BlockLoss = LOSSES.get(name)()
        self._gradients, self._features = BatchStore(), BatchStore()
        needs_rest = self._loss.needs_gradient or self._loss.needs_features
        self._suffix = Suffix(session, stream, unit) if needs_rest else None
        self._look()

    def batch(self, rows: list[Row]) -> Tensor:
        """The piece's inputs: of the quantized model, of the float one, or (QDrop) each element of one of them."""
        if self.step.inputs == "quantized":
            return _gather(self.inputs, rows)
        exact = _gather(self.exact, rows)
        if self.step.inputs == "float":
            return exact
        return torch.lerp(exact, _gather(self.inputs, rows), kept(exact, self.step.drop, self.session.generator))

    def loss(self, output: Tensor, rows: list[Row], x: Tensor) -> Tensor:
        """Of what the piece gives for the inputs `x` of these images."""
        target = self._local_target(x) if self.step.target == "local" else _gather(self.targets, rows)
        return self._loss(output, target, self._extra(rows, output))

    @torch.no_grad()
    def held_out_loss(self, run: Callable[[int], Tensor]) -> float:
        """The mean loss on the held-out images, with what `run` gives for a batch; 0 where none are held out."""
        total = images = 0.0
        for number in self.deciding:
            output = run(number)
            rows = _all_rows(number, output)
            total += float(self.loss(output, rows, self.inputs[number])) * len(rows)
            images += len(rows)
        return total / images if images else 0.0

    def quantized(self, number: int) -> Tensor:
        """What the integer piece gives for a batch."""
        x = self.inputs[number]
        if not self.piece.path:
            return self.stream.run(self.piece.unit, x)
        with torch.no_grad(), model_state(self.module, "quantized"):
            output: Tensor = self.module(x)
        return output

    @torch.no_grad()
    def _local_target(self, x: Tensor) -> Tensor:
        """What the trained piece gives for the same input."""
        if not self.piece.path:
            return self.stream.run_float(self.piece.unit, x)
        with model_state(self.module, "float"):
            output: Tensor = self.module(x)
        return output

    def _collected(self) -> tuple[BatchStore, BatchStore, BatchStore]:
        """Quantized inputs, float inputs and float outputs of the piece."""
        stream, unit = self.stream, self.piece.unit
        targets = BatchStore()
        if not self.piece.path:
            for number in stream.numbers():
                targets.append(stream.run_float(unit, stream.float_inputs[number]))
            return stream.inputs, stream.float_inputs, targets
        inputs, exact = BatchStore(), BatchStore()
        for number in stream.numbers():
            with watched(self.module) as seen:
                stream.run(unit, stream.inputs[number])
            inputs.append(seen[0][0])
            with watched(self.module) as seen:
                stream.run(unit, stream.float_inputs[number], "float")
            exact.append(seen[0][0])
            targets.append(seen[0][1])
        return inputs, exact, targets

    def _look(self) -> None:
        """One pass over all images for what the loss prepares."""
        if self._suffix is None:
            return
        first = next(self.session.own_images(len(self.targets[0]), len(self.targets[0])))
        self._suffix.check(first, self.targets[0])
        for number in self.stream.numbers():
            output, target = self.quantized(number), self.targets[number]
            with torch.no_grad():
                features, logits = self._suffix(target)
            if self._loss.needs_gradient:
                self._gradients.append(self._suffix.gradient(output, logits))
            if self._loss.needs_features:
                self._features.append(features)
            if number not in self.deciding:
                with torch.no_grad():
                    self._loss.look(output, target, self._extra(_all_rows(number, output), output))

    def _extra(self, rows: list[Row], output: Tensor) -> Extra:
        gradient = _gather(self._gradients, rows) if self._loss.needs_gradient else None
        features = None
        if self._loss.needs_features:
            assert self._suffix is not None
            features = (self._suffix(output)[0], _gather(self._features, rows))
        return Extra(gradient, features, self._channels)


def _all_rows(number: int, output: Tensor) -> list[Row]:
    return [(number, row) for row in range(len(output))]


def _gather(store: BatchStore, rows: list[Row]) -> Tensor:
    """The named rows of the batches, in that order."""
    return torch.stack([store[number][row] for number, row in rows])
