"""Quantformer: group-wise quantization whose groups are searched for in training (Wang et al., TPAMI 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from halfbyte.errors import HalfbyteError
from halfbyte.layers.site import WeightedSite
from halfbyte.prepare import site_module
from halfbyte.quantizers.groupwise import MOST_GROUPS, GroupwiseQuantizer
from halfbyte.session import Session
from halfbyte.steps.group_training import GroupTraining
from halfbyte.steps.groupwise import ASSIGNMENTS, WEIGHTS
from halfbyte.steps.train import Train
from halfbyte.train.attention_rank import POWERS

STAGES = ("shared", "search", "finetune")


@dataclass(frozen=True)
class Quantformer(Train):
    """One of the three trainings, behind `groupwise: {groups: 1}`; the parameters of `train` are its own as well.

    stage: `shared` trains with one range an input, `search` weighs `groups` ranges for each of its channels by logits
    that are learned, and `finetune` trains with the range of the largest. assignment: `clustered` or `random` groups,
    to compare the `searched` ones with, are trained just as long.

    attention: the weight of the loss that keeps the order of the float model's attention maps (not in `shared`); power:
    to which these are raised (0: by their entropy). entropy: the weight of the assignments' entropy. group_lr: their
    rate, constant (0: scaled to the length of this training, or the published one where the recipe is `paper_exact`).
    learn_ranges: learn the ranges of inputs and the steps of rows of weights too, by `rule`. fold, weights: as in
    `groupwise`, when `finetune` begins.
    """

    stage: str = "shared"
    groups: int = 8
    assignment: str = "searched"
    attention: float = 20.0
    power: int = 2
    entropy: float = 0.025
    group_lr: float = 0.0
    learn_ranges: bool = False
    fold: bool = True
    weights: str = "rows"

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = (("stage", STAGES), ("assignment", ("searched", *ASSIGNMENTS)), ("weights", WEIGHTS))
        for name, known in choices:
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}")
        if not 2 <= self.groups <= MOST_GROUPS:
            raise ValueError(f"groups must be from 2 to {MOST_GROUPS}")
        if self.power not in (0, *POWERS):
            raise ValueError(f"power must be from 1 to {POWERS[-1]}, or 0")
        for name in ("attention", "entropy", "group_lr"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0")
        if not self.quantize or self.regularizer or self.oscillations or self.freeze:
            raise ValueError("quantize: false, regularizer, oscillations and freeze belong to the step train")

    def check(self, session: Session) -> None:
        """Raises `HalfbyteError` where there are no group-wise quantizers to train."""
        super().check(session)
        calibrated = any(call.name == "groupwise" for call in session.recipe.steps)
        sites = (site_module(session.model, site.name) for site in session.layout.sites)
        found = any(
            isinstance(site, WeightedSite) and isinstance(site.quantizer("input"), GroupwiseQuantizer) for site in sites
        )
        if not calibrated and not found:
            raise HalfbyteError("quantformer trains what groupwise calibrated; put groupwise: {groups: 1} before it")

    def _training(self, session: Session) -> GroupTraining:
        return GroupTraining(session, self)
