"""A block's quantizers as something that can be learned: the rounding of weights, and the scales of both operands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from halfbyte.layers.site import SiteModule, WeightedSite
from halfbyte.quantizers.base import Quantizer
from halfbyte.quantizers.rounding import initial_alpha, rounded_up, soft_share, undecided
from halfbyte.quantizers.uniform import UniformQuantizer

ROUNDINGS = ("adaround", "ste", "nearest")
# A weight starts so near to the code that it has, in steps, that this one is its nearest.
WITHIN = 0.499
LEAST_SCALE = 1e-8


def kept(x: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """1 for the elements of `x` that stay in, 0 for the share `drop` (in 256ths) of them, drawn anew: in its shape and
    dtype, for `torch.lerp`, which takes one of two values as it is and is several times as fast as `torch.where`."""
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int32).random_(-(2**31), 2**31 - 1, generator=generator)
    drawn = words.view(torch.uint8)[: x.numel()].view(x.shape).to(x.device)
    return (drawn >= round(256 * drop)).to(x.dtype)


class LearnedScale(torch.autograd.Function):
    """Gives a quantized value; backwards the straight-through gradient, and for the scale s, with Q(x) = s q(x / s),
    that of q(x / s) - x / s inside the range and q(x / s) outside (LSQ, Esser et al., ICLR 2020, eq. 3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, quantized: Tensor, inside: Tensor | None, offset: float) -> Tensor:
        ctx.save_for_backward(x, scale, quantized, inside)
        ctx.offset = offset
        return quantized

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, scale, quantized, inside = ctx.saved_tensors
        (gradient,) = gradients
        by_scale = None
        if ctx.needs_input_grad[1]:
            passed = x if inside is None else (x - ctx.offset).mul_(inside).add_(ctx.offset)
            residue = quantized - passed
            by_scale = residue.mul_(gradient).sum_to_size(scale.shape) / scale
        by_x = gradient if inside is None else gradient * inside
        return by_x if ctx.needs_input_grad[0] else None, by_scale, None, None, None


def with_learned_scale(quantizer: Quantizer, x: Tensor, scale: Tensor) -> Tensor:
    """`quantizer(x)` at `scale`, with gradients for both; the quantizer has that scale from then on."""
    with torch.no_grad():
        quantizer.scale = scale.detach().clone()
        seen = x.detach()
        quantized, inside = quantizer(seen), quantizer.inside(seen)
    passed: Tensor = LearnedScale.apply(x, scale, quantized, inside, quantizer.offset)
    return passed


def near_codes(site: WeightedSite) -> Tensor:
    """A site's weight, moved so near to the codes that the site has that these are its nearest; as it is where it lies
    beyond the last code and has that."""
    quantizer = cast(UniformQuantizer, site.quantizer("weight"))
    codes, weight = site.codes(), site.float_weight().detach()
    scale, coded = quantizer.calibrated(quantizer.scale), _coded(site)
    steps = (weight - coded) / scale
    beyond = ((codes == 0) & (steps < 0)) | ((codes == quantizer.last_code) & (steps > 0))
    return torch.where(beyond, weight, coded + steps.clamp(-WITHIN, WITHIN) * scale)


class _Weight:
    """A weight on its way from the codes that it has to those that it gets."""

    def __init__(self, site: WeightedSite, rounding: str, scales: bool) -> None:
        self.site, self.rounding = site, rounding
        self.quantizer = cast(UniformQuantizer, site.quantizer("weight"))
        with torch.no_grad():
            scale, start = self.quantizer.calibrated(self.quantizer.scale), near_codes(site)
            self.parameters: dict[str, nn.Parameter] = {}
            if rounding == "adaround":
                self.floor = torch.floor(start / scale)
                self.parameters["alpha"] = nn.Parameter(initial_alpha(start / scale - self.floor))
            elif rounding == "ste":
                self.parameters["weight"] = nn.Parameter(start)
                if scales:
                    self.parameters["scale"] = nn.Parameter(scale.clone())
            else:
                self.fixed = _coded(site)

    def value(self) -> Tensor:
        """The weight to compute with, dequantized."""
        quantizer = self.quantizer
        if self.rounding == "ste":
            weight = self.parameters["weight"]
            scale = self.parameters.get("scale")
            return with_learned_scale(quantizer, weight, scale) if scale is not None else quantizer(weight)
        if self.rounding == "adaround":
            return self._dequantized(self.floor + soft_share(self.parameters["alpha"]))
        return self.fixed

    @torch.no_grad()
    def codes(self) -> Tensor:
        """The codes that it has come to."""
        if self.rounding == "ste":
            return self.quantizer.quantize(self.parameters["weight"])
        if self.rounding == "adaround":
            steps = self.floor + rounded_up(self.parameters["alpha"])
            return self._clipped(steps).to(torch.uint8)
        return self.site.codes()

    def _dequantized(self, steps: Tensor) -> Tensor:
        scale, zero_point = self.quantizer.calibrated(self.quantizer.scale), self.quantizer.zero_point
        return (self._clipped(steps) - cast(Tensor, zero_point)) * scale

    def _clipped(self, steps: Tensor) -> Tensor:
        return (steps + cast(Tensor, self.quantizer.zero_point)).clamp(0, self.quantizer.levels - 1)


def _coded(site: WeightedSite) -> Tensor:
    """The weight of a site's codes."""
    return site.quantizer("weight").dequantize(site.codes())


class SoftQuantization:
    """An observer: gives what sites compute with, with gradients for what is learned.

    drop: the share of the activations that stay as they are, drawn anew at each call (QDrop, Wei et al., ICLR 2022).
    """

    def __init__(
        self,
        sites: Mapping[str, SiteModule],
        *,
        rounding: str,
        weight_scales: bool,
        activation_scales: bool,
        drop: float,
        generator: torch.Generator,
    ) -> None:
        self.drop, self.generator = drop, generator
        self.weights: dict[SiteModule, _Weight] = {}
        self.scales: dict[tuple[SiteModule, str], nn.Parameter] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        for name, site in sites.items():
            if isinstance(site, WeightedSite):
                uniform = isinstance(site.quantizer("weight"), UniformQuantizer)
                self.weights[site] = weight = _Weight(site, rounding if uniform else "nearest", weight_scales)
                self.parameters |= {f"{name}/{key}": value for key, value in weight.parameters.items()}
            for operand in site.operands if activation_scales else ():
                if operand != "weight":
                    quantizer = site.quantizer(operand)
                    parameter = nn.Parameter(quantizer.calibrated(quantizer.scale).detach().clone())
                    self.scales[site, operand] = self.parameters[f"{name}/{operand}"] = parameter

    def __call__(self, module: SiteModule, operand: str, x: Tensor) -> Tensor:
        if operand == "weight":
            weight = self.weights.get(module)
            # Of a site that is not learned the codes that it has, which need not be the nearest ones.
            return _coded(cast(WeightedSite, module)) if weight is None else weight.value()
        scale = self.scales.get((module, operand))
        quantizer = module.quantizer(operand)
        quantized: Tensor = quantizer(x) if scale is None else with_learned_scale(quantizer, x, scale)
        if not self.drop:
            return quantized
        return torch.lerp(x, quantized, kept(x, self.drop, self.generator))

    def undecided(self, power: float) -> Tensor | float:
        """AdaRound's second loss: the sum over all weights."""
        parts = [undecided(weight.parameters["alpha"], power)
                 for weight in self.weights.values() if weight.rounding == "adaround"]  # fmt: skip
        return torch.stack(parts).sum() if parts else 0.0

    @torch.no_grad()
    def keep_positive(self) -> None:
        """Hold the scales above zero after a step."""
        for name, parameter in self.parameters.items():
            if not name.endswith(("/alpha", "/weight")):
                parameter.clamp_(min=LEAST_SCALE)

    @torch.no_grad()
    def settle(self) -> dict[WeightedSite, Tensor]:
        """Give the quantizers the learned scales; returns the codes of every weight."""
        for (module, operand), scale in self.scales.items():
            module.quantizer(operand).scale = scale.detach().clone()
        codes = {}
        for module, weight in self.weights.items():
            if "scale" in weight.parameters:
                weight.quantizer.scale = weight.parameters["scale"].detach().clone()
            codes[cast(WeightedSite, module)] = weight.codes()
        return codes
