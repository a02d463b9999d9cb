"""The quantized model in a form that has gradients: float products of operands that went through their quantizers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from halfbyte.calibrate.side_fit import weight_quantizer
from halfbyte.layers.site import SiteModule, WeightedSite
from halfbyte.quantizers.uniform import UniformQuantizer

# How fast a range shrinks towards what the last steps needed; it grows at once.
SHRINK = 0.02


class FakeQuantization:
    """An observer: what it is given in the state `observe` it hands back quantized, with straight-through gradients.

    Of the frozen sites the dequantized weights are made once. The weights of the sites in `trained` are quantized anew
    at each call, signed, with one scale an output channel that makes the largest magnitude a code. The inputs of the
    sites in `ranged`, some of these, get their range from what reached them in the steps before (`extremes`, since the
    last `advance`), so that the ranges in use do not depend on how a batch is shared out among processes.
    """

    def __init__(self, trained: Iterable[WeightedSite], ranged: Iterable[WeightedSite], device: torch.device) -> None:
        self.trained, self.ranged = list(trained), list(ranged)
        self.ranges = torch.zeros(len(self.ranged), 2, device=device)
        self.extremes = torch.full_like(self.ranges, float("-inf"))
        self._rows = {site: row for row, site in enumerate(self.ranged)}
        self._frozen: dict[SiteModule, Tensor] = {}

    def __call__(self, module: SiteModule, operand: str, x: Tensor) -> Tensor:
        if operand == "weight":
            assert isinstance(module, WeightedSite)
            if module in self.trained:
                self.fit_weight(module)
                return module.quantizer("weight")(x)  # type: ignore[no-any-return]
            return self._frozen_weight(module)
        if (row := self._rows.get(module)) is not None:  # type: ignore[call-overload]
            low, high = x.detach().float().aminmax()
            self.extremes[row] = torch.maximum(self.extremes[row], torch.stack((-low, high)))
            if not module.quantizer(operand).fitted:
                return x
        return module.quantizer(operand)(x)  # type: ignore[no-any-return]

    def fit_weight(self, module: WeightedSite) -> None:
        """Give a trained site the quantizer of its present weight."""
        assert module.weight is not None
        bits = module.quantizer("weight").bits
        module.set_quantizer("weight", weight_quantizer(module.weight.detach(), bits))

    def advance(self, shrink: float = SHRINK) -> None:
        """Take the extremes seen since the last time into the ranges; without any, leave them."""
        seen = torch.where(self.extremes.isfinite(), self.extremes, self.ranges)
        self.ranges.copy_(torch.maximum(seen, self.ranges + shrink * (seen - self.ranges)))
        self.extremes.fill_(float("-inf"))
        self.fit_ranges()

    def fit_ranges(self) -> None:
        """Give the inputs' quantizers the present ranges."""
        for module, (low, high) in zip(self.ranged, self.ranges, strict=True):
            quantizer = module.quantizer("input")
            assert isinstance(quantizer, UniformQuantizer)
            quantizer.set_range(-low, high)

    def _frozen_weight(self, module: WeightedSite) -> Tensor:
        if module not in self._frozen:
            with torch.no_grad():
                self._frozen[module] = module.quantizer("weight").dequantize(module.codes())
        return self._frozen[module]
