"""The three trainings of Quantformer: shared ranges, the search for groups, and the fine-tuning of what it found."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from halfbyte.families.describe import describe
from halfbyte.layers.linear import QuantLinear
from halfbyte.layers.site import SiteModule
from halfbyte.layers.slicing import fix_orders
from halfbyte.prepare import prepare, set_state, site_module
from halfbyte.quantizers.groupwise import GroupwiseQuantizer
from halfbyte.session import Session
from halfbyte.steps.groupwise import fit_weight, fold_groups
from halfbyte.steps.model_training import ModelTraining
from halfbyte.steps.regroup import regroup
from halfbyte.train.attention_rank import concentration, rank_loss, relative_entropy
from halfbyte.train.grouped_quantization import GroupedQuantization
from halfbyte.train.loop import Chunk

if TYPE_CHECKING:
    from halfbyte.steps.quantformer import Quantformer

# Images by which the power of attention is chosen.
CHOOSING = 16
# How far a logit can go in a search: twice what the published rate comes to in an epoch of ImageNet in batches of 8,
# so that the assignments are settled for the second half.
REACH, PUBLISHED_RATE = 32.0, 1e-4


class AttentionMaps:
    """An observer that keeps attention maps, one a block `[B, heads, N, N]`, while they are `wanted`: those of a whole
    evaluation would fill the memory."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        self._products = {site_module(model, name) for name in names}
        self.found: list[Tensor] = []
        self.wanted = False

    def __call__(self, module: SiteModule, operand: str, x: Tensor) -> Tensor:
        if self.wanted and operand == "left" and module in self._products:
            self.found.append(x)
        return x


class GroupTraining(ModelTraining):
    """Adds to the training of a quantized model assignments of channels to groups, their entropy, and the order of the
    float model's attention."""

    learned: GroupedQuantization
    step: Quantformer

    def __init__(self, session: Session, step: Quantformer) -> None:
        # Of the prepared teacher, whose attention can be seen: it is made once.
        teacher = copy.deepcopy(session.teacher)
        layout = prepare(teacher, describe(teacher))
        self._attentions = [site.name for site in session.layout.sites if site.role == "pv"]
        known = {site.name for site in layout.sites}
        self.wanted = AttentionMaps(teacher, [name for name in self._attentions if name in known])
        set_state(teacher, "observe", self.wanted)
        self._teacher = teacher.to(session.device)
        self.step = step
        self.power = step.power or (self._chosen_power(session) if self._compared() else 1)
        super().__init__(session, step)
        if session.guide is None:
            self.guide = self._teacher

    def start(self) -> None:
        """Make the groups of this stage, then begin as every training."""
        if self.step.stage == "search":
            regroup(self.session, self._searchable(), self.step.groups, self.step.assignment)
        elif self.step.stage == "finetune" and self.step.fold:
            for name in fold_groups(self.session, [site.name for site in self.session.layout.sites]):
                module = site_module(self.session.model, name)
                assert isinstance(module, QuantLinear)
                fit_weight(module, module.quantizer("weight").bits, self.step.weights)
        super().start()

    def finish(self) -> dict[str, Any]:
        figures = super().finish()
        figures |= {"stage": self.step.stage, "power": self.power if self._compared() else 0}
        if self.learned.logits:
            figures["entropy"] = [[note["step"], note["entropy"]] for note in self.session.notes if "entropy" in note]
            figures["sizes"] = {name: self._sizes(site) for name, site in self._searchable().items()}
        return figures

    @contextmanager
    def _training(self, chunk: Chunk) -> Iterator[None]:
        with super()._training(chunk):
            if self._compared():
                # Maps can be compared where both models have their tokens in one order.
                fix_orders(self.session.model)
            yield

    def _quantization(self, sites: dict[str, SiteModule]) -> GroupedQuantization:
        step = self.step
        searched = tuple(self._searchable()) if step.stage == "search" and step.assignment == "searched" else ()
        return GroupedQuantization(
            sites, step.rule, step.batch_size * step.crops, relative=step.relative, ranges=step.learn_ranges,
            searched=searched, watched=self._compared(),
        )  # fmt: skip

    def _further_groups(self) -> list[dict[str, Any]]:
        logits = list(self.learned.logits.values())
        if not logits:
            return []
        total = self.plan.total(len(self.fitted))
        rate = self.step.group_lr or (PUBLISHED_RATE if self.session.recipe.paper_exact else REACH / total)
        return [{"params": logits, "weight_decay": 0.0, "factor": rate / (self.step.lr or 1.0), "constant": True}]

    def _own(self) -> list[nn.Parameter]:
        return [*super()._own(), *self.learned.logits.values()]

    def _note(self, **figures: Any) -> None:
        if self.learned.logits:
            with torch.no_grad():
                figures["entropy"] = float(self.learned.entropy()) / len(self.learned.logits)
        super()._note(**figures)

    def _loss(self, crops: Tensor, labels: Tensor, ids: Tensor, probabilities: Tensor) -> Tensor:
        step, compares = self.step, bool(self._compared())
        self.wanted.found, self.learned.maps, self.wanted.wanted = [], [], compares
        loss = super()._loss(crops, labels, ids, probabilities)
        if compares:
            if not self.wanted.found:
                with torch.no_grad():
                    self._teacher(crops.flatten(0, 1))
            pairs = zip(self.wanted.found, self.learned.maps, strict=True)
            loss = loss + step.attention * torch.stack([rank_loss(t, s, self.power) for t, s in pairs]).sum()
            self.wanted.wanted = False
        if self.learned.logits and step.entropy:
            loss = loss + step.entropy * self.learned.entropy()
        return loss

    @staticmethod
    def _sizes(site: QuantLinear) -> list[int]:
        """How many channels each group of a site's input has."""
        quantizer = site.quantizer("input")
        assert isinstance(quantizer, GroupwiseQuantizer)
        place = quantizer.calibrated(quantizer.group).long()
        return torch.bincount(place, minlength=quantizer.groups).tolist()

    def _chosen_power(self, session: Session) -> int:
        """By the entropy of the float model's attention."""
        entropies = []
        self.wanted.wanted = True
        with torch.no_grad():
            for batch in session.images(min(CHOOSING, len(session.calibration))):
                self.wanted.found = []
                self._teacher(batch)
                entropies += [relative_entropy(maps).flatten() for maps in self.wanted.found]
        self.wanted.wanted, self.wanted.found = False, []
        return concentration(torch.cat(entropies))

    def _compared(self) -> tuple[str, ...]:
        """The products whose attention maps are compared: none in the stage without groups, as published."""
        return tuple(self._attentions) if self.step.attention and self.step.stage != "shared" else ()

    def _searchable(self) -> dict[str, QuantLinear]:
        """The linears of the blocks whose inputs have, or are to have, groups of channels."""
        found = {}
        for site in self.session.layout.sites:
            module = site_module(self.session.model, site.name)
            if site.role not in ("stem", "head", "side") and isinstance(module, QuantLinear):
                found[site.name] = module
        return found
