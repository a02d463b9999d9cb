"""AdaLog: log quantizers of adaptive base, and a progressive search for every parameter (Wu et al., ECCV 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from halfbyte.calibrate.alternate import WeightSearch, search_linear, search_product
from halfbyte.calibrate.fpcs import Found
from halfbyte.calibrate.operands import LogOperand, Operand, Settings, TwinOperand, UniformOperand, all_calls
from halfbyte.capture import BlockCapture, Operands, channel_rows
from halfbyte.errors import HalfbyteError
from halfbyte.families.layout import Block, Site
from halfbyte.layers.activation import ExactElementwise, ExactGELU
from halfbyte.layers.conv import QuantConv2d
from halfbyte.layers.linear import QuantLinear
from halfbyte.layers.site import WeightedSite
from halfbyte.parallel import side_by_side
from halfbyte.prepare import site_module
from halfbyte.quantizers.log import (
    GELU_SHIFT,
    LEAST_LEVEL_BITS,
    LEVEL_BITS,
    AdaLogQuantizer,
    Log2Quantizer,
    LogQuantizer,
    LogSqrt2Quantizer,
    level_bits_behind_gelu,
)
from halfbyte.quantizers.twin import TwinUniformQuantizer
from halfbyte.quantizers.uniform import UniformQuantizer
from halfbyte.session import Session
from halfbyte.steps.reparameterize import constant_channels, fold_channels, reparameterizable

LOGS: dict[str, type[LogQuantizer]] = {kind.kind: kind for kind in (AdaLogQuantizer, Log2Quantizer, LogSqrt2Quantizer)}
CHOICES = (*LOGS, "uniform", TwinUniformQuantizer.kind)
LIMITS = {"images": (1, 2**31), "candidates": (64, 4096), "steps": (1, 20), "rounds": (1, 20)}
# A nonlinearity that reaches less far below zero is taken for one that does not.
LEAST_SHIFT = 0.01
# Patches of a convolution's input that are unfolded at a time.
_UNFOLDED = 2**24


@dataclass(frozen=True)
class AdaLog:
    """Search every scale, zero point and base for the error of the site's output, in the float model.

    images: calibration images. candidates, steps, rounds: the size of each search and how often the operands of a site
    take turns. post_softmax, post_gelu: the quantizer of attention maps and of inputs behind GELU (adalog, log2,
    log_sqrt2, uniform, twin_uniform). gelu_level_bits: of the whole numbers that logarithmic codes behind GELU stand
    for; those of at most 8 bits are multiplied as bytes, others as 16-bit numbers. 0: 8 for AdaLog's codes of at most 4
    bits, 15 for others. race: rank candidates on a part of the tokens and decide among the best on all.
    """

    calibrates: ClassVar[bool] = True
    images: int = 32
    candidates: int = 128
    steps: int = 6
    rounds: int = 3
    post_softmax: str = "adalog"
    post_gelu: str = "adalog"
    gelu_level_bits: int = 0
    race: bool = True

    def __post_init__(self) -> None:
        for name, (least, most) in LIMITS.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from {least} to {most}")
        if self.gelu_level_bits and not LEAST_LEVEL_BITS <= self.gelu_level_bits <= LEVEL_BITS:
            raise ValueError(f"gelu_level_bits must be 0, or from {LEAST_LEVEL_BITS} to {LEVEL_BITS}")
        for name in ("post_softmax", "post_gelu"):
            if getattr(self, name) not in CHOICES:
                raise ValueError(f"{name} must be one of {', '.join(CHOICES)}")

    def run(self, session: Session) -> dict[str, Any]:
        """Block by block: capture the operands of its sites, then search each site."""
        settings = Settings.make(
            self.candidates, self.steps, self.rounds, paper_exact=session.recipe.paper_exact, race=self.race
        )
        capture = BlockCapture(session, self.images)
        for block in session.parts(session.layout.blocks, "searching blocks"):
            with torch.no_grad():
                try:
                    _SearchedBlock(self, session, settings, block, capture.operands(block)).run()
                except ValueError as error:
                    raise HalfbyteError(f"calibration failed: {error}; are these the weights of this model?") from None
        return {}


class _SearchedBlock:
    """The searches of one block's sites."""

    def __init__(
        self, step: AdaLog, session: Session, settings: Settings, block: Block, operands: dict[str, list[Operands]]
    ) -> None:
        self.step, self.session, self.settings, self.block = step, session, settings, block
        self.operands = operands

    def run(self) -> None:
        for x in (x for calls in self.operands.values() for call in calls for x in call.values()):
            if not bool(torch.isfinite(x).all()):
                raise ValueError("a tensor to be quantized holds values that are not finite")
        for norm, sites in reparameterizable(self.session).items():
            if all(site in self.operands for site in sites):
                self._reparameterize(norm, sites)
        # The largest first: then the others fill up the time of the last.
        by_size = sorted(self.block.sites, key=lambda site: -self._size(site.name))
        side_by_side(
            [partial(self._search, site, self.operands.pop(site.name)) for site in by_size], self.session.device
        )

    def _size(self, site: str) -> int:
        return sum(x.numel() for call in self.operands[site] for x in call.values())

    def _search(self, site: Site, calls: list[Operands]) -> None:
        module = site_module(self.session.model, site.name)
        if site.role in ("qk", "pv"):
            self._search_product(site, calls)
        elif isinstance(module, QuantConv2d):
            self._search_convolution(module, calls)
        else:
            self._search_linear(site, cast(QuantLinear, module), channel_rows(calls, "input"))

    def _reparameterize(self, norm: str, sites: list[str]) -> None:
        """One scale a channel by the input's own error, folded into the norm and the linears behind."""
        x = channel_rows(self.operands[sites[0]], "input")
        bits = site_module(self.session.model, sites[0]).quantizer("input").bits
        channels = x.flatten(0, -2).T.contiguous()
        rows = UniformOperand(channels[:, None, None], bits, self.settings)
        found = rows.by_own_error()
        folded = fold_channels(
            self.session, norm, sites, found.scale, found.other, constant_channels(x), round_zero_point=True
        )
        for call in (call for site in sites for call in self.operands[site]):
            call["input"] = call["input"] / folded.r1 - folded.r2

    def _search_product(self, site: Site, calls: list[Operands]) -> None:
        module = site_module(self.session.model, site.name)
        bits = module.quantizer("left").bits
        left = [call["left"].transpose(0, 1) for call in calls]
        right = [call["right"].permute(1, 0, 3, 2) for call in calls]
        searched_right = UniformOperand(all_calls(right), bits, self.settings, of_product=True)
        searched_left: Operand
        if site.role == "qk" or self.step.post_softmax == "uniform":
            searched_left = UniformOperand(all_calls(left), bits, self.settings, of_product=True)
        else:
            left = [call["left"].flatten(0, 1)[None] for call in calls]
            maps = all_calls(left)
            if self.step.post_softmax == TwinUniformQuantizer.kind:
                searched_left = TwinOperand(maps, bits, self.settings, signed=False)
            else:
                like = LOGS[self.step.post_softmax](bits, paper_exact=self.session.recipe.paper_exact)
                # The published scale is 1, whatever the largest attention is.
                searched_left = LogOperand(maps, like, self.settings, search_scale=not self.settings.paper_exact)
        found = search_product(searched_left, searched_right, list(zip(left, right, strict=True)))
        for operand, quantizer in zip(module.operands, found, strict=True):
            module.set_quantizer(operand, quantizer)

    def _search_linear(self, site: Site, module: QuantLinear, x: Tensor) -> None:
        weight = module.float_weight()
        bits = module.quantizer("input").bits
        values = x.reshape(1, 1, -1, x.shape[-1])
        shift = self._shift(site)
        inputs: Operand
        if shift is None or self.step.post_gelu == "uniform":
            inputs = UniformOperand(values, bits, self.settings)
        elif self.step.post_gelu == TwinUniformQuantizer.kind:
            inputs = TwinOperand(values, bits, self.settings, signed=True)
        else:
            exact = self.session.recipe.paper_exact
            kind = LOGS[self.step.post_gelu]
            usual = level_bits_behind_gelu(bits) if kind is AdaLogQuantizer and not exact else LEVEL_BITS
            level_bits = self.step.gelu_level_bits or usual
            like = kind(bits, paper_exact=exact, shift=shift, level_bits=level_bits)
            inputs = LogOperand(values, like, self.settings, search_scale=True)
        rows, quantizer = search_linear(
            inputs, WeightSearch(weight[None], module.quantizer("weight").bits, self.settings)
        )
        module.set_quantizer("input", quantizer)
        self._set_weight(module, rows)

    def _shift(self, site: Site) -> float | None:
        """How far the nonlinearity in front of a site reaches below zero; None where it does not, or there is none."""
        if site.activation is None:
            return None
        activation = self.session.model.get_submodule(site.activation)
        if isinstance(activation, ExactGELU):
            return GELU_SHIFT
        if not isinstance(activation, ExactElementwise):
            return None
        least = -float(activation.inner(torch.linspace(-20, 20, 2**16, dtype=torch.float64)).min())
        return least if LEAST_SHIFT < least < 1 else None

    def _search_convolution(self, module: QuantConv2d, calls: list[Operands]) -> None:
        """The input by its own error, then the weight by the error of the output (the published search knows the
        input as it is)."""
        images = [call["input"] for call in calls]
        values = all_calls([x[None] for x in images])
        inputs = UniformOperand(values, module.quantizer("input").bits, self.settings, covers_zero=True)
        quantizer = inputs.quantizer(inputs.by_own_error())
        module.set_quantizer("input", quantizer)
        weight = module.float_weight()
        pieces = [piece for x in images for piece in torch.split(x, self._together(module, x))]
        grouped = weight.reshape(module.groups, -1, weight[0].numel())
        search = WeightSearch(grouped, module.quantizer("weight").bits, self.settings, of_convolution=True)
        if self.settings.paper_exact:
            pairs = ((patches, patches) for patches in map(module.patches, pieces))
        else:
            pairs = ((module.patches(piece), module.patches(quantizer(piece))) for piece in pieces)
        self._set_weight(module, search.improved(search.error(pairs), search.initial()))

    def _together(self, module: QuantConv2d, x: Tensor) -> int:
        """How many images are unfolded at a time."""
        return max(1, _UNFOLDED // module.patches(x[:1]).numel())

    def _set_weight(self, module: WeightedSite, rows: Found) -> None:
        weight = module.float_weight()
        quantizer = UniformQuantizer(module.quantizer("weight").bits, axis=0)
        shape = (-1, *[1] * (weight.ndim - 1))
        quantizer.set_parameters(rows.scale.view(shape), rows.other.view(shape))
        module.set_quantizer("weight", quantizer)
