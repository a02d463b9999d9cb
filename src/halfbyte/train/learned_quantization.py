"""A quantized model's steps as parameters, learned together with its weights (LSQ; VVTQ's rules)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from halfbyte.layers.site import SiteModule, WeightedSite
from halfbyte.quantizers.base import Quantizer
from halfbyte.quantizers.groupwise import GroupwiseQuantizer
from halfbyte.quantizers.lsq import (
    LearnedStep,
    LsqQuantizer,
    activation_multiplier,
    lsq_multiplier,
    weight_multiplier,
)
from halfbyte.train.soft_quantization import with_learned_scale

# How far the gradient of a step is turned down: LSQ's rule, VVTQ's (by the weight's magnitude), or not at all.
RULES = ("lsq", "vvtq", "none")
# Of its first value, what a step is at least. VVTQ holds all above 1e-4: more than many a channel's step at 8 bits.
LEAST_SHARE = 0.01


class LearnedQuantization:
    """An observer for a whole model: what it is given it hands back quantized, with gradients for steps and offsets.

    Every kind of quantizer can be learned; those of `quantizers.lsq` also learn their offset. `relative`: the
    parameters are shares of the steps that the quantizers have now, so that one rate fits steps of any size.
    `batch_size`: the number of images by which VVTQ's and LSQ's rules count an activation's elements, whatever the
    size of the batches that go through at once (0: that one). Quantizers work in float32 under autocast too.
    """

    def __init__(
        self, sites: Mapping[str, SiteModule], rule: str, batch_size: int = 0, *, relative: bool = False
    ) -> None:
        self.rule, self.batch_size, self.relative = rule, batch_size, relative
        # Of the batch that goes through now.
        self.images = 0
        self.steps: list[nn.Parameter] = []
        self.offsets: list[nn.Parameter] = []
        # The steps with which the training began.
        self.first: list[Tensor] = []
        self._of: dict[tuple[SiteModule, str], tuple[nn.Parameter, nn.Parameter | None, Tensor]] = {}
        self._sites = dict(sites)
        for site in sites.values():
            for operand in site.operands:
                quantizer = site.quantizer(operand)
                first = quantizer.calibrated(quantizer.scale).detach().clone()
                step = nn.Parameter(torch.ones_like(first) if relative else first.clone())
                beta = None
                if isinstance(quantizer, LsqQuantizer) and quantizer.with_offset:
                    start = quantizer.calibrated(quantizer.beta).detach().clone()
                    beta = nn.Parameter(start / first if relative else start)
                    self.offsets.append(beta)
                self.steps.append(step)
                self.first.append(first)
                self._of[site, operand] = (step, beta, first)

    def step_of(self, name: str, operand: str) -> Tensor:
        """The same by the site's name."""
        return self.step(self._sites[name], operand)

    def offset_of(self, name: str, operand: str) -> Tensor | None:
        """The learned offset of a site's operand, where it has one."""
        return self._offset(self._sites[name], operand)

    def __call__(self, module: SiteModule, operand: str, x: Tensor) -> Tensor:
        quantizer = module.quantizer(operand)
        step, beta = self.step(module, operand), self._offset(module, operand)
        x = x.float()
        multiplier = self.multiplier(quantizer, operand, x)
        if isinstance(quantizer, LsqQuantizer):
            return cast(Tensor, LearnedStep.apply(x, step, beta, multiplier, quantizer.low, quantizer.high))
        return with_learned_scale(quantizer, x, scaled_gradient(step, multiplier))

    def step(self, site: SiteModule, operand: str) -> Tensor:
        """The learned step of a site's operand."""
        step, _, first = self._of[site, operand]
        return step * first if self.relative else step

    def _offset(self, site: SiteModule, operand: str) -> Tensor | None:
        _, beta, first = self._of[site, operand]
        return beta * first if beta is not None and self.relative else beta

    def multiplier(self, quantizer: Quantizer, operand: str, x: Tensor) -> Tensor | float:
        """What the rule multiplies the gradient of a step by, for a tensor that it quantizes."""
        if self.rule == "none":
            return 1.0
        stated = quantizer.high if isinstance(quantizer, (LsqQuantizer, GroupwiseQuantizer)) else None
        high = quantizer.levels // 2 - 1 if stated is None else stated
        if operand == "weight":
            # LSQ counts the weights that share a step: those of one channel, where each has its own.
            shared = x.numel() // cast(Tensor, quantizer.scale).numel()
            return weight_multiplier(x, high) if self.rule == "vvtq" else lsq_multiplier(shared, high)
        count = x.numel()
        if self.batch_size and self.images:
            count = count * self.batch_size // self.images
        return activation_multiplier(count, high) if self.rule == "vvtq" else lsq_multiplier(count, high)

    @torch.no_grad()
    def keep_positive(self) -> None:
        """Hold the steps well above zero after a step of the optimizer: where all rounds to zero, no gradient tells."""
        for step, first in zip(self.steps, self.first, strict=True):
            if self.relative:
                step.clamp_(min=LEAST_SHARE)
            else:
                step.clamp_(min=LEAST_SHARE * first)

    @torch.no_grad()
    def settle(self) -> None:
        """Give the quantizers what was learned; weights get the codes of what they are now."""
        for site, operand in self._of:
            quantizer = site.quantizer(operand)
            quantizer.scale = self.step(site, operand).detach().clone()
            beta = self._offset(site, operand)
            if beta is not None:
                cast(LsqQuantizer, quantizer).beta = beta.detach().clone()
            if operand == "weight":
                cast(WeightedSite, site).weight_codes = None


def scaled_gradient(x: Tensor, multiplier: Tensor | float) -> Tensor:
    """`x`, whose gradient is multiplied."""
    scaled = x * multiplier
    return scaled + (x - scaled).detach()
