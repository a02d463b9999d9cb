"""What the float model makes of a block's output: features before the classifier, logits, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from halfbyte.block_stream import BlockStream, Unit
from halfbyte.errors import HalfbyteError
from halfbyte.prepare import example_input
from halfbyte.session import Session

# Of the largest logit: how closely the rest of the model must repeat the whole one.
TOLERANCE = 1e-3


class Suffix:
    """The float model from behind a unit on, for a model whose blocks follow each other and read nothing else.

    Raises `HalfbyteError` for any other model.
    """

    def __init__(self, session: Session, stream: BlockStream, unit: Unit) -> None:
        self.model, self.unit = session.aligned, unit
        chain = [candidate for candidate in stream.units if candidate.chained or candidate is stream.units[0]]
        if chain != stream.units:
            raise HalfbyteError("this loss needs blocks of which each reads the one before alone; use the loss mse")
        self.before = [candidate.block.name for candidate in stream.units[: stream.units.index(unit)]]
        heads = [site.name for site in session.layout.sites if site.role == "head"]
        if not heads:
            raise HalfbyteError("this loss needs a model with a classifier; use the loss mse")
        self.head = heads[0]

    def __call__(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Features before the classifier and logits, from the unit's output for some images."""
        features: list[Tensor] = []
        head = self.model.get_submodule(self.head)
        handle = head.register_forward_pre_hook(lambda _module, inputs: features.append(inputs[0]))
        try:
            with self._given(output):
                logits: Tensor = self.model(example_input(self.model, len(output)).to(output.device))
        finally:
            handle.remove()
        return features[0], logits

    def gradient(self, output: Tensor, wanted: Tensor) -> Tensor:
        """That of KL(softmax(wanted) || model), mean over the images, by the unit's output."""
        output = output.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self(output)[1]
            loss = F.kl_div(logits.log_softmax(-1), wanted.softmax(-1), reduction="batchmean")
            (gradient,) = torch.autograd.grad(loss, output)
        return gradient

    def check(self, images: Tensor, target: Tensor) -> None:
        """Raise `HalfbyteError` unless the rest of the model makes the whole one's logits of the unit's target."""
        with torch.no_grad():
            whole, rest = self.model(images), self(target)[1]
        if not float((whole - rest).abs().max()) <= TOLERANCE * float(whole.abs().max()):
            raise HalfbyteError(
                f"behind {self.unit.block.name} the model reads more than its output; use the loss mse"
            )  # fmt: skip

    @contextmanager
    def _given(self, output: Tensor) -> Iterator[None]:
        """For a with-block, the units before pass their input on and the unit gives `output`."""

        def passes(x: Tensor, *_: Any, **__: Any) -> Tensor:
            return x

        def gives(*_: Any, **__: Any) -> Tensor:
            return output

        replaced: list[nn.Module] = []
        try:
            for name, function in [*((name, passes) for name in self.before), (self.unit.block.name, gives)]:
                module = self.model.get_submodule(name)
                module.__dict__["forward"] = function
                replaced.append(module)
            yield
        finally:
            for module in replaced:
                del module.__dict__["forward"]
