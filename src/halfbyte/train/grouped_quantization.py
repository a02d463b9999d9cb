"""Quantformer's quantizers in training: ranges around learned centres, and groups of channels that are searched for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from halfbyte.layers.site import SiteModule, WeightedSite
from halfbyte.quantizers.base import Quantizer
from halfbyte.quantizers.groupwise import CentredQuantizer, GroupwiseQuantizer
from halfbyte.quantizers.lsq import LsqQuantizer
from halfbyte.train.group_mixture import assignment_entropy, centred_range, mixture
from halfbyte.train.learned_quantization import LearnedQuantization, scaled_gradient
from halfbyte.train.soft_quantization import with_learned_scale

# Published: no group is preferred at first. Here the one that the channel has is, by next to nothing: before any search
# the model is judged by it, not by the first group.
FIRST_LOGIT, TIE = 0.01, 1e-4


class GroupedQuantization(LearnedQuantization):
    """Learns the centre and the half-width of every `CentredQuantizer`, as shares of the half-width's step; with
    `ranges` also the steps of inputs that have one and those of rows of weights, and for the sites of `searched` logits
    `[groups, C]`, by which their inputs are mixtures of all groups. Other quantizers stay as they are.

    `maps` collects the left operands of the products in `watched`, attention maps, as quantized.
    """

    def __init__(
        self,
        sites: Mapping[str, SiteModule],
        rule: str,
        batch_size: int,
        *,
        relative: bool = True,
        ranges: bool = False,
        searched: tuple[str, ...] = (),
        watched: tuple[str, ...] = (),
    ) -> None:
        super().__init__({}, rule, batch_size, relative=relative)
        self._sites = dict(sites)
        self.maps: list[Tensor] = []
        self._watched = {sites[name] for name in watched}
        self.logits: dict[SiteModule, nn.Parameter] = {}
        for name, site in sites.items():
            for operand in site.operands:
                quantizer = site.quantizer(operand)
                if isinstance(quantizer, CentredQuantizer):
                    self._learn(site, operand, quantizer.calibrated(quantizer.middle))
                elif ranges and (isinstance(quantizer, LsqQuantizer) or _is_one_range(operand, quantizer)):
                    self._learn(site, operand, None)
            if name in searched:
                quantizer = cast(GroupwiseQuantizer, site.quantizer("input"))
                group = quantizer.calibrated(quantizer.group).long()
                logits = torch.full((quantizer.groups, len(group)), FIRST_LOGIT, device=group.device)
                logits.scatter_(0, group[None], FIRST_LOGIT + TIE)
                self.logits[site] = nn.Parameter(logits)

    def _learn(self, site: SiteModule, operand: str, middle: Tensor | None) -> None:
        quantizer = site.quantizer(operand)
        first = quantizer.calibrated(quantizer.scale).detach().clone()
        step, beta = nn.Parameter(torch.ones_like(first) if self.relative else first.clone()), None
        if middle is not None:
            beta = nn.Parameter(middle.detach() / first if self.relative else middle.detach().clone())
            self.offsets.append(beta)
        self.steps.append(step)
        self.first.append(first)
        self._of[site, operand] = (step, beta, first)

    def __call__(self, module: SiteModule, operand: str, x: Tensor) -> Tensor:
        quantized = self._quantized(module, operand, x.float())
        if operand == "left" and module in self._watched:
            self.maps.append(quantized)
        return quantized

    def _quantized(self, module: SiteModule, operand: str, x: Tensor) -> Tensor:
        quantizer = module.quantizer(operand)
        if operand == "input" and module in self.logits:
            grouped = cast(GroupwiseQuantizer, quantizer)
            return mixture(x, self.logits[module], grouped.calibrated(grouped.scale), grouped.low, grouped.high)
        if (module, operand) not in self._of:
            return quantizer(x)  # type: ignore[no-any-return]
        if isinstance(quantizer, LsqQuantizer):
            return super().__call__(module, operand, x)
        step, middle = self.step(module, operand), self._offset(module, operand)
        if isinstance(quantizer, CentredQuantizer):
            assert middle is not None
            return centred_range(x, middle, step * quantizer.count, quantizer.count)
        return with_learned_scale(quantizer, x, scaled_gradient(step, self.multiplier(quantizer, operand, x)))

    def entropy(self) -> Tensor:
        """The sum over the searched sites of their assignments' entropy."""
        return torch.stack([assignment_entropy(logits) for logits in self.logits.values()]).sum()

    @torch.no_grad()
    def settle(self) -> None:
        """Give the quantizers what was learned, each channel the group of its largest logit; weights get the codes of
        what they are now."""
        for site, operand in self._of:
            quantizer = site.quantizer(operand)
            quantizer.scale = self.step(site, operand).detach().clone()
            if isinstance(quantizer, CentredQuantizer):
                quantizer.middle = cast(Tensor, self._offset(site, operand)).detach().clone()
        for module, logits in self.logits.items():
            cast(GroupwiseQuantizer, module.quantizer("input")).group = logits.argmax(0).to(torch.uint8)
        for module in self._sites.values():
            if isinstance(module, WeightedSite):
                module.weight_codes = None


def _is_one_range(operand: str, quantizer: Quantizer) -> bool:
    return operand == "input" and isinstance(quantizer, GroupwiseQuantizer) and quantizer.groups == 1
