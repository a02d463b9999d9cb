"""Quantization-aware training: weights, steps and all else of a quantized model, by a teacher or its soft labels (LSQ,
Esser et al., ICLR 2020; VVTQ, Huang et al., TMLR 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from halfbyte.errors import HalfbyteError
from halfbyte.prepare import site_module
from halfbyte.quantizers.lsq import LsqQuantizer
from halfbyte.session import Session
from halfbyte.steps.model_training import ModelTraining
from halfbyte.train.drop_paths import drop_path_places
from halfbyte.train.learned_quantization import RULES


@dataclass(frozen=True)
class Train:
    """Train the model in the form in which it is deployed, on random crops of the training images.

    quantize: false trains the float model, for a fair comparison: the run leaves its weights, and no artifact.
    training_images: how many of them (0: all), of which an eighth, at most 2,000, is held out: the epoch that is best
    on it is kept. epochs; steps: of the optimizer, at most (0: any). batch_size: images of a step, of each of which
    `crops` go through the model, in `accumulate` parts; area: the least share of an image that a crop has.

    lr, of the weights, times `step_lr` that of steps and offsets, which are learned as shares of their first value
    where `relative`; it rises for `warmup` epochs and falls to the share
    `last`. weight_decay: of what has more than one dimension. clip: the largest norm of the gradient (0: any). average:
    of the moving average that is kept (0: none). autocast: products in bfloat16. drop_path: the share of the images
    for which a branch is left out, growing from 0 over the blocks.

    rule: of the steps' gradients, `lsq`, `vvtq` or `none`. regularizer: the largest weight of VVTQ's (0: without).
    oscillations: count the weights whose level turns back and forth; freeze: one that does so more often than this
    share of the steps stays on the level where it was most (0: none, and it should be a few thousandths at least).
    hard: how much of the loss is the cross entropy with the images' classes, the rest is by the soft labels, or without
    them by the teacher. save_every: steps between two states from which a killed run continues.
    """

    calibrates: ClassVar[bool] = False
    quantize: bool = True
    training_images: int = 0
    epochs: int = 1
    steps: int = 0
    batch_size: int = 32
    crops: int = 1
    area: float = 0.25
    accumulate: int = 1
    lr: float = 1e-4
    step_lr: float = 1.0
    relative: bool = True
    warmup: float = 0.0
    last: float = 0.01
    weight_decay: float = 1e-4
    clip: float = 1.0
    average: float = 0.0
    autocast: bool = False
    drop_path: float = 0.0
    rule: str = "lsq"
    regularizer: float = 0.0
    oscillations: bool = False
    freeze: float = 0.0
    hard: float = 0.0
    save_every: int = 20

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}")
        counts = ("epochs", "batch_size", "crops", "accumulate", "save_every")
        for name, least in (*((name, 1) for name in counts), ("training_images", 0), ("steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}")
        for name in ("lr", "last", "weight_decay", "average", "drop_path", "regularizer", "freeze"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be from 0 to less than 1")
        if not 0 < self.area <= 1 or not 0 <= self.hard <= 1:
            raise ValueError("area must be above 0 and at most 1, hard from 0 to 1")
        for name in ("step_lr", "warmup", "clip"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0")

    @property
    def prepares(self) -> bool:
        """Whether it changes the trained weights before anything is calibrated."""
        return not self.quantize

    def check(self, session: Session) -> None:
        """Raises `HalfbyteError` for other steps beside the training of a float model, and for
        a rate of drop paths that the model does not have."""
        if self.drop_path and not drop_path_places(session.model):
            raise HalfbyteError("drop_path: the model has no branches of which timm drops paths; leave it 0")
        if not self.quantize and len(session.recipe.steps) > 1:
            raise HalfbyteError(
                f"{session.recipe.source}: train.quantize=false trains the float model; quantize it in another run"
            )

    def run(self, session: Session) -> dict[str, Any]:
        """Train in parts, behind each of which a killed run can continue.

        Raises `HalfbyteError` for what needs learned steps of weights (`learned_steps`) without them, and where the
        loss is not finite.
        """
        odd = [site.name for site in session.layout.sites if "weight" in site.operands
               and not isinstance(site_module(session.model, site.name).quantizer("weight"), LsqQuantizer)]  # fmt: skip
        for name in ("regularizer", "oscillations", "freeze"):
            if getattr(self, name) and (odd or not self.quantize):
                raise HalfbyteError(f"train.{name} looks at the levels of learned_steps; put that step before train")
        training = self._training(session)
        for part in session.parts(training.parts(), "training", training.detail):
            if part is None:
                training.start()
            else:
                training.run(part)
        return training.finish()

    def _training(self, session: Session) -> ModelTraining:
        return ModelTraining(session, self)
