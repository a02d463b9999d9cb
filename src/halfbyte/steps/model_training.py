"""The training of a whole quantized model, in the form in which it is deployed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from halfbyte.data.crop_set import CropSet
from halfbyte.errors import HalfbyteError
from halfbyte.evaluate import Loop, evaluate
from halfbyte.layers.norm import ExactLayerNorm
from halfbyte.layers.site import SiteModule, State, WeightedSite
from halfbyte.prepare import model_state, site_module
from halfbyte.quantizers.lsq import LsqQuantizer
from halfbyte.session import Session
from halfbyte.train.bin_regularizer import bin_spread, strength
from halfbyte.train.drop_paths import dropping_paths
from halfbyte.train.learned_quantization import LearnedQuantization
from halfbyte.train.loop import Chunk, Job, Plan, Trainer
from halfbyte.train.losses import soft_cross_entropy
from halfbyte.train.oscillation import OscillationTracker
from halfbyte.train.soft_quantization import near_codes

if TYPE_CHECKING:
    from halfbyte.steps.train import Train

HELD_OUT, MOST_HELD_OUT = 8, 2000


class ModelTraining:
    """A session's model, what is learned of it, and what it is trained on.

    The state in which a killed run continues is kept in the session behind every part.
    """

    def __init__(self, session: Session, step: Train) -> None:
        self.session, self.step = session, step
        self.guide = session.guide or session.teacher
        images = session.training or session.calibration
        count = min(step.training_images, len(images)) or len(images)
        held_out = max(1, min(count // HELD_OUT, MOST_HELD_OUT))
        # The order of the images spreads the classes: any stretch of it has all of them.
        self.fitted = images.subset(range(count - held_out))
        self.held_out = images.subset(range(count - held_out, count))
        self.plan = Plan(
            epochs=step.epochs, batch_size=step.batch_size, rate=step.lr, weight_decay=step.weight_decay, cosine=True,
            accumulate=step.accumulate, autocast=step.autocast, warmup=step.warmup, last=step.last, clip=step.clip,
            average=step.average, chunk=step.save_every, most=step.steps,
        )  # fmt: skip
        self._reference: Tensor | None = None
        if session.kept:
            self._build(int(session.kept["seed"]))
            for number, tensor in enumerate(self._own()):
                tensor.data.copy_(session.kept[f"step.{number}"])
            for number, first in enumerate(self.learned.first):
                first.copy_(session.kept[f"first.{number}"])
            self.trainer.restore(session.kept)
            for number, tracker in enumerate(self.trackers.values()):
                tracker.restore({name: session.kept[f"turns.{number}.{name}"] for name in tracker.tensors()})

    def parts(self) -> list[Chunk | None]:
        """The work in parts; the first one, None, is `start`."""
        return [None, *self.plan.chunks(len(self.fitted))]

    def start(self) -> None:
        """Let the weights begin at the codes that they have, and measure the model as it is."""
        for site in self._weighted() if self.step.quantize else ():
            with torch.no_grad():
                assert site.weight is not None
                site.weight.copy_(near_codes(site))
            site.weight_codes = site.trained_bias = None
        for module in self.session.model.modules():
            if isinstance(module, ExactLayerNorm):
                module.trained_weight = module.trained_bias = None
        self._build(int(torch.randint(2**31, (), generator=self.session.generator)))
        self._check_alike()
        self._note(step=0, held_out=self.trainer.start(self.session.generator))

    def run(self, chunk: Chunk) -> None:
        """Take some steps."""
        start = time.perf_counter()
        try:
            state: State = "observe" if self.step.quantize else "float"
            with self._training(chunk), model_state(self.session.model, state, self.learned):
                loss, held_out = self.trainer.run(chunk)
        except FloatingPointError as error:
            raise HalfbyteError(f"training failed: {error}; lower the step's lr") from None
        done = chunk.epoch * self.plan.steps(len(self.fitted)) + chunk.end
        seen = min(chunk.end * self.plan.batch_size, len(self.fitted)) - chunk.first * self.plan.batch_size
        self._note(
            epoch=chunk.epoch + 1, step=done, loss=loss, lr=self.trainer.schedule.at(done - 1),
            images_per_second=round(seen / (time.perf_counter() - start), 2),
            **({} if held_out is None else {"held_out": held_out}),
        )  # fmt: skip

    def detail(self) -> str:
        """Of the last steps the loss, the rate and the speed, for whoever watches."""
        note = self.session.notes[-1]
        if "loss" not in note:
            return ""
        return f"loss {note['loss']:.4f}, lr {note['lr']:.1e}, {note['images_per_second']:.1f} images/s"

    def finish(self) -> dict[str, Any]:
        """Leave the best epoch's model; figures of the training."""
        self.trainer.restore_best()
        self.learned.settle()
        self.session.edit("train_model")
        losses = [note["held_out"] for note in self.session.notes if "held_out" in note]
        return {
            "parameters": sum(parameter.numel() for parameter in self.trainer.parameters),
            "images": {"training": len(self.fitted), "held_out": len(self.held_out)},
            "optimizer_steps": self.trainer.schedule.total,
            **self._turned(),
            "held_out_loss": losses,
            "chosen_epoch": losses.index(min(losses)),
            "training_loss": [round(note["loss"], 6) for note in self.session.notes if "loss" in note],
        }

    def _build(self, seed: int) -> None:
        session, step = self.session, self.step
        self.seed = seed
        sites = {site.name: site_module(session.model, site.name) for site in session.layout.sites if step.quantize}
        self.learned = self._quantization(sites)
        items = CropSet(self.fitted, session.preprocessing, step.crops, seed, session.soft_labels, (step.area, 1.0))
        matrices = [parameter for parameter in session.model.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in session.model.parameters() if parameter.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices},
            {"params": vectors, "weight_decay": 0.0},
            {"params": [*self.learned.steps, *self.learned.offsets], "weight_decay": 0.0, "factor": step.step_lr},
            *self._further_groups(),
        ]
        watched = self._weighted() if step.oscillations or step.freeze else []
        self.trackers = {site: OscillationTracker(self._levels(site), freeze=step.freeze or None) for site in watched}
        job = Job(self._loss, self._held_out_loss, torch.zeros(1, device=session.device), self._after_step)
        self.trainer = Trainer(
            [group for group in groups if group["params"]], [], items, self.plan, job, device=session.device,
            world=session.world, workers=session.workers, keyed=True,
        )  # fmt: skip

    def _check_alike(self) -> None:
        """Under torchrun all processes must begin with the same steps: what differs now differs for ever."""
        held = [*self.trainer.parameters, *self.learned.first, *self.session.model.buffers()]
        first, *others = self.session.world.gather([tensor.detach().cpu() for tensor in held])
        if not all(torch.equal(mine, own) for other in others for mine, own in zip(first, other, strict=True)):
            raise HalfbyteError("the processes begin with different models; give all the same weights, images and seed")

    def _quantization(self, sites: dict[str, SiteModule]) -> LearnedQuantization:
        """What quantizes in training, and what of it is learned."""
        step = self.step
        return LearnedQuantization(sites, step.rule, step.batch_size * step.crops, relative=step.relative)

    def _further_groups(self) -> list[dict[str, Any]]:
        """Parameters besides the model's, steps and offsets, with the options of their optimizer."""
        return []

    def _own(self) -> list[nn.Parameter]:
        """All parameters that are not the model's."""
        return [*self.learned.steps, *self.learned.offsets]

    def _weighted(self) -> list[WeightedSite]:
        modules = (site_module(self.session.model, site.name) for site in self.session.layout.sites)
        return [module for module in modules if isinstance(module, WeightedSite)]

    @torch.no_grad()
    def _after_step(self) -> None:
        self.learned.keep_positive()
        for site, tracker in self.trackers.items():
            tracker.update(self._levels(site))
            if self.step.freeze and site.weight is not None:
                still = tracker.frozen_level * self.learned.step(site, "weight")
                site.weight.copy_(torch.where(tracker.frozen, still, site.weight))

    @torch.no_grad()
    def _levels(self, site: WeightedSite) -> Tensor:
        """The levels of a site's weight at its present step."""
        quantizer = cast(LsqQuantizer, site.quantizer("weight"))
        step = self.learned.step(site, "weight")
        return (site.float_weight() / step).clamp(quantizer.low, quantizer.high).round()

    def _turned(self) -> dict[str, float]:
        """The shares of all weights that oscillate and that are frozen."""
        if not self.trackers:
            return {}
        count = sum(tracker.turns.numel() for tracker in self.trackers.values())
        turning = sum(tracker.share() * tracker.turns.numel() for tracker in self.trackers.values())
        frozen = sum(int(tracker.frozen.sum()) for tracker in self.trackers.values())
        return {"oscillating": round(turning / count, 6), "frozen": round(frozen / count, 6)}

    def _note(self, **figures: Any) -> None:
        self.session.notes.append(figures)
        self.session.record("training", **figures)
        kept = {f"step.{number}": tensor.detach() for number, tensor in enumerate(self._own())}
        kept |= {f"first.{number}": first for number, first in enumerate(self.learned.first)}
        for number, tracker in enumerate(self.trackers.values()):
            kept |= {f"turns.{number}.{name}": tensor for name, tensor in tracker.tensors().items()}
        self.session.kept = {**self.trainer.tensors(), **kept, "seed": torch.tensor(self.seed)}

    @contextmanager
    def _training(self, chunk: Chunk) -> Iterator[None]:
        """Gradients for every parameter, and the model in training; afterwards as it was."""
        model = self.session.model
        flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        # What a model draws by itself, such as the branches that it leaves out, is drawn again in a repeated part.
        with dropping_paths(model, self.step.drop_path), torch.random.fork_rng():
            step = chunk.epoch * self.plan.steps(len(self.fitted)) + chunk.first
            torch.manual_seed(self.seed + step * self.session.world.size + self.session.world.rank)
            model.requires_grad_(True).train()
            try:
                yield
            finally:
                model.eval()
                for parameter, flag in flags:
                    parameter.requires_grad_(flag)

    def _loss(self, crops: Tensor, labels: Tensor, ids: Tensor, probabilities: Tensor) -> Tensor:
        images = crops.flatten(0, 1)
        self.learned.images = len(images)
        student = self.session.model(images).float()
        if probabilities.shape[-1]:
            loss = soft_cross_entropy(student, ids.flatten(0, 1), probabilities.flatten(0, 1))
        else:
            with torch.no_grad():
                target = self.guide(images).float().softmax(-1)
            loss = -(target * student.log_softmax(-1)).sum(-1).mean()
        if self.step.hard:
            loss = (1 - self.step.hard) * loss + self.step.hard * F.cross_entropy(student, labels.flatten())
        weight = strength(self.trainer.progress, largest=self.step.regularizer) if self.step.regularizer else 0.0
        return loss + weight * self._spread() if weight else loss

    def _spread(self) -> Tensor:
        """The regularizer of all weights."""
        parts = []
        for site in self._weighted():
            quantizer = site.quantizer("weight")
            assert isinstance(quantizer, LsqQuantizer)
            weight = site.float_weight()
            multiplier = self.learned.multiplier(quantizer, "weight", weight)
            parts.append(bin_spread(weight, self.learned.step(site, "weight"), multiplier, quantizer.bits))
        return torch.stack(parts).sum()

    def _held_out_loss(self) -> float:
        """KL(teacher || model) on the images that decide, prepared as for evaluation, with the model's own integers."""
        session = self.session
        loop = Loop(session.batch_size, session.workers, session.device, session.world)
        if self._reference is None:
            self._reference = evaluate(self.guide, self.held_out, loop)[1].double().log_softmax(1)
        self.learned.settle()
        # Between two parts of a training the model is in training.
        training = session.model.training
        session.model.eval()
        with model_state(session.model, "quantized" if self.step.quantize else "float"):
            found = evaluate(session.model, self.held_out, loop)[1].double().log_softmax(1)
        session.model.train(training)
        return float((self._reference.exp() * (self._reference - found)).sum(1).mean())
