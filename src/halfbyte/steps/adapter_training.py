"""The training of adapters in the form in which they are deployed, by a float teacher and a held-out eighth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from halfbyte.data.images import batches
from halfbyte.errors import HalfbyteError
from halfbyte.evaluate import Loop, evaluate
from halfbyte.families.places import Place
from halfbyte.layers.adapters import Adapter
from halfbyte.layers.site import WeightedSite
from halfbyte.prepare import model_state
from halfbyte.session import Session
from halfbyte.train.fake_quantization import FakeQuantization
from halfbyte.train.loop import Chunk, Job, Plan, Trainer
from halfbyte.train.losses import LossWeights

HELD_OUT = 8
# Images from which the first ranges come.
FIRST_LOOK = 32


@dataclass(frozen=True)
class Settings:
    """images: how many, the held-out eighth included. labels: whether the loss may use them."""

    images: int
    weights: LossWeights
    labels: bool
    plan: Plan


class AdapterTraining:
    """Trains all adapters that stand in a session's model; its own quantizers and weights stay as they are.

    The state in which a killed run continues is kept in the session behind every part.
    """

    def __init__(self, session: Session, places: list[Place], settings: Settings) -> None:
        self.session, self.settings = session, settings
        self.blocks = [place.block for place in places]
        fitted = settings.images - max(1, settings.images // HELD_OUT)
        # The calibration images' order spreads the classes: any stretch of it has all of them.
        self.training = session.calibration.subset(range(fitted))
        self.held_out = session.calibration.subset(range(fitted, settings.images))
        self._reference: Tensor | None = None
        if session.kept:
            self._build()
            self.trainer.restore(session.kept)
            self.observer.fit_ranges()

    def parts(self) -> list[Chunk | None]:
        """The work in parts; the first one, None, is `start`."""
        return [None, *self.settings.plan.chunks(len(self.training))]

    def start(self) -> None:
        """Prepare for the adapters that were attached: ranges, order of the images, the loss without them."""
        self._build()
        look = self.training.subset(range(min(FIRST_LOOK, len(self.training))))
        with torch.no_grad(), model_state(self.session.model, "observe", self.observer):
            for images, _ in batches(look, len(look)):
                self.session.model(images.to(self.session.device))
        self.observer.advance(shrink=1.0)
        self._note(held_out=self.trainer.start(self.session.generator))

    def run(self, chunk: Chunk) -> None:
        """Take some steps."""
        try:
            with self._trainable(), model_state(self.session.model, "observe", self.observer):
                loss, held_out = self.trainer.run(chunk)
        except FloatingPointError as error:
            raise HalfbyteError(f"training failed: {error}; lower qla.lr") from None
        self._note(epoch=chunk.epoch + 1, loss=loss, **({} if held_out is None else {"held_out": held_out}))

    def finish(self) -> dict[str, Any]:
        """Leave the adapters of the best epoch, with the quantizers that belong to them."""
        self.trainer.restore_best()
        self.observer.fit_ranges()
        for adapter in self.adapters:
            adapter.fold()
        for site in self.observer.trained:
            self.observer.fit_weight(site)
        losses = [note["held_out"] for note in self.session.notes if "held_out" in note]
        best = losses.index(min(losses))
        if best == 0:
            self.session.progress.say(
                "qla: no epoch was better on the held-out images; the adapters stay as they began"
            )
        return {
            "adapters": len(self.adapters),
            "parameters": sum(parameter.numel() for parameter in self.trainer.parameters),
            "labels": self.settings.labels,
            "held_out_loss": losses,
            "chosen_epoch": best,
            "training_loss": [round(note["loss"], 6) for note in self.session.notes if "loss" in note],
        }

    def _build(self) -> None:
        """The observer and the trainer for the adapters in the model."""
        session = self.session
        self.adapters = [module for module in session.model.modules() if isinstance(module, Adapter)]
        sites = [site for adapter in self.adapters for site in adapter.modules() if isinstance(site, WeightedSite)]
        # What reads the codes of another site's input has that one's range.
        codes = {id(site) for adapter in self.adapters for site in adapter.reads_codes}
        self.observer = FakeQuantization(sites, [site for site in sites if id(site) not in codes], session.device)
        job = Job(self._loss, self._held_out_loss, self.observer.extremes, self.observer.advance)
        parameters = [parameter for adapter in self.adapters for parameter in adapter.parameters()]
        self.trainer = Trainer(
            parameters, [self.observer.ranges], self.training, self.settings.plan, job,
            device=session.device, world=session.world, workers=session.workers,
        )  # fmt: skip

    def _note(self, **figures: Any) -> None:
        self.session.notes.append(figures)
        self.session.kept = self.trainer.tensors()

    @contextmanager
    def _trainable(self) -> Iterator[None]:
        """Gradients for the adapters' parameters and no others."""
        flags = [(parameter, parameter.requires_grad) for parameter in self.session.model.parameters()]
        self.session.model.requires_grad_(False)
        for parameter in self.trainer.parameters:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        weights = self.settings.weights
        blocks = self.blocks if weights.feature else []
        with torch.no_grad(), outputs(self.session.aligned, blocks) as wanted:
            teacher = self.session.aligned(images)
        with outputs(self.session.model, blocks) as features:
            student = self.session.model(images)
        pairs = list(zip(features, wanted, strict=True))
        return weights(student.float(), teacher.float(), labels if self.settings.labels else None, pairs)

    def _held_out_loss(self) -> float:
        """The loss of the integer model, features apart, on the images that decide."""
        session = self.session
        loop = Loop(session.batch_size, session.workers, session.device, session.world)
        if self._reference is None:
            self._reference = evaluate(session.teacher, self.held_out, loop)[1]
        for site in self.observer.trained:
            self.observer.fit_weight(site)
        with model_state(session.model, "quantized"):
            logits = evaluate(session.model, self.held_out, loop)[1]
        labels = torch.tensor(self.held_out.labels) if self.settings.labels else None
        return float(self.settings.weights(logits.double(), self._reference.double(), labels))


@contextmanager
def outputs(model: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """The outputs of these modules, in the order in which they run, of what is computed in a with-block."""
    kept: list[Tensor] = []
    hooks = [model.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: kept.append(output))
             for name in names]  # fmt: skip
    try:
        yield kept
    finally:
        for handle in hooks:
            handle.remove()
