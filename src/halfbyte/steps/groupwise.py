"""Ranges for groups of channels by calibration alone (Quantformer, Wang et al., TPAMI 2023, without its training)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from halfbyte.calibrate.channel_groups import PUBLISHED_CAP, channel_ranges, grouped_ranges
from halfbyte.calibrate.kl_threshold import kl_threshold
from halfbyte.calibrate.percentile import REPQ_PERCENTILES, fit_log
from halfbyte.capture import BlockCapture, Operands, channel_rows
from halfbyte.errors import HalfbyteError
from halfbyte.families.layout import Site
from halfbyte.layers.linear import QuantLinear
from halfbyte.layers.site import WeightedSite
from halfbyte.prepare import site_module
from halfbyte.quantizers.base import MAX_BITS
from halfbyte.quantizers.groupwise import LEVELS, MOST_GROUPS, CentredQuantizer, GroupwiseQuantizer
from halfbyte.quantizers.log import LogSqrt2Quantizer
from halfbyte.quantizers.lsq import LsqQuantizer, least_squares_step
from halfbyte.session import Session
from halfbyte.steps.reparameterize import fold_channels, reparameterizable

ASSIGNMENTS = ("clustered", "random")
ATTENTIONS = ("log", "centred")
WEIGHTS = ("rows", "mse", "kl")
PUBLISHED_HALF_WIDTH = 8.0
# Shares of a range that are tried for the least squared error, and the values of a tensor that decide.
SHRINKS = tuple(0.92**number for number in range(30))
MOST = 2**18


@dataclass(frozen=True)
class Groupwise:
    """Symmetric quantizers: one step for each group of channels of a linear's input, and one around a centre for what
    attention multiplies.

    groups: of channels, by their ranges: those between the least and the largest cut in equal parts (assignment:
    `clustered`), or drawn (`random`, to compare with). images: for calibration. weights: a step for each row of
    outputs (`rows`), or one for each weight, which clips where the squared error is least (`mse`) or where the
    published histogram says (`kl`). levels, of activations: `paper`, or `released`, a bit more on two-sided ones of at
    most 7 bits, in simulation only. attention: maps have the logarithmic levels of RepQ-ViT (`log`), or as published
    even ones (`centred`). fold: make the groups' steps part of the norm before and of the weights, so that none is left
    in what is deployed; false keeps them, in simulation only.

    A recipe that is `paper_exact` takes ranges as published: the quantile 0.9999, at most 6, and for attention no
    centre and at most 8; otherwise what has the least squared error. What follows a GELU gets some levels below zero
    then; the published range begins at zero, which costs a ViT most of its accuracy at any width.
    """

    calibrates: ClassVar[bool] = True
    groups: int = 8
    images: int = 32
    assignment: str = "clustered"
    weights: str = "rows"
    levels: str = "paper"
    attention: str = "log"
    fold: bool = True

    def __post_init__(self) -> None:
        for name, choices in (
            ("assignment", ASSIGNMENTS),
            ("weights", WEIGHTS),
            ("levels", LEVELS),
            ("attention", ATTENTIONS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}")
        if not 1 <= self.groups <= MOST_GROUPS:
            raise ValueError(f"groups must be from 1 to {MOST_GROUPS}")
        if self.images < 1:
            raise ValueError("images must be at least 1")

    def run(self, session: Session) -> dict[str, Any]:
        """Block by block: ranges and groups of what reaches its sites, then the thresholds of their weights.

        Raises `HalfbyteError` for values that are not finite.
        """
        capture = BlockCapture(session, self.images)
        for block in session.parts(session.layout.blocks, "grouping channels"):
            with torch.no_grad():
                operands = capture.operands(block)
                for site in block.sites:
                    for x in (x for call in operands[site.name] for x in call.values()):
                        if not bool(torch.isfinite(x).all()):
                            raise HalfbyteError(
                                f"calibration failed: what reaches {site.name} is not finite; are these the weights of "
                                "this model?"
                            )
                    session.notes += self._set_inputs(session, site, operands.pop(site.name))
                if self.fold:
                    fold_groups(session, [site.name for site in block.sites])
                for site in block.sites:
                    module = site_module(session.model, site.name)
                    if isinstance(module, WeightedSite):
                        fit_weight(module, session.bits.of(site)[0], self.weights)
        return {"groups": {note["site"]: note["sizes"] for note in session.notes}}

    def _set_inputs(self, session: Session, site: Site, calls: list[Operands]) -> list[dict[str, Any]]:
        """Give the operands that are activations their quantizers; returns the sizes of the groups, where there are."""
        module, bits = site_module(session.model, site.name), session.bits.of(site)[1]
        if not isinstance(module, WeightedSite):
            for operand in module.operands:
                x = channel_rows(calls, operand)
                logs = self.attention == "log" and (site.role, operand) == ("pv", "left")
                module.set_quantizer(operand, _log(session, x, bits) if logs else self._centred(session, x, bits))
            return []
        x = channel_rows(calls, "input")
        groups = self.groups if isinstance(module, QuantLinear) else 1
        quantizer = GroupwiseQuantizer(bits, groups, signed=site.activation is None, levels=self._levels(bits))
        if groups == 1:
            if session.recipe.paper_exact:
                channels = x.flatten(0, -2) if isinstance(module, QuantLinear) else x.flatten()[:, None]
                ranges, place = channel_ranges(channels, PUBLISHED_CAP).amax().reshape(1), None
            else:
                ranges, place = x.abs().amax().reshape(1), None
            ranges = ranges.clamp(min=torch.finfo(torch.float32).tiny * 2**20)
        else:
            ranges, place = self._grouped(session, x.flatten(0, -2))
        quantizer.set_ranges(ranges, place)
        if not session.recipe.paper_exact:
            quantizer = fitted(x, quantizer)
        module.set_quantizer("input", quantizer.to(session.device))
        if place is None:
            return []
        return [{"site": site.name, "sizes": torch.bincount(place, minlength=groups).tolist()}]

    def _grouped(self, session: Session, values: Tensor) -> tuple[Tensor, Tensor]:
        cap = PUBLISHED_CAP if session.recipe.paper_exact else float("inf")
        reach = channel_ranges(values, cap)
        ranges, place = grouped_ranges(reach, self.groups)
        if self.assignment == "random":
            drawn = torch.randint(self.groups, place.shape, generator=session.generator)
            place = drawn.to(place.device)
        return ranges, place

    def _centred(self, session: Session, x: Tensor, bits: int) -> CentredQuantizer:
        quantizer = CentredQuantizer(bits, levels=self._levels(bits))
        if session.recipe.paper_exact:
            quantizer.set_range(x.new_zeros(()), x.abs().amax().clamp(1e-6, PUBLISHED_HALF_WIDTH))
            return quantizer.to(session.device)
        low, high = x.amin(), x.amax()
        middle, width = (low + high) / 2, ((high - low) / 2).clamp(min=1e-6)
        quantizer.set_range(middle, width)
        fit_share(x, quantizer)
        return quantizer.to(session.device)

    def _levels(self, bits: int) -> str:
        return "paper" if bits == MAX_BITS else self.levels


def _log(session: Session, x: Tensor, bits: int) -> LogSqrt2Quantizer:
    quantizer = LogSqrt2Quantizer(bits, paper_exact=session.recipe.paper_exact)
    fit_log(quantizer, x, REPQ_PERCENTILES)
    return quantizer.to(session.device)


@torch.no_grad()
def fold_groups(session: Session, sites: list[str]) -> list[str]:
    """Let one step do for all channels of the linears among `sites`: in the norm before, where it feeds nothing else,
    or in the site itself. Returns those whose weight changed, and has to be quantized again."""
    grouped: dict[str, tuple[QuantLinear, GroupwiseQuantizer]] = {}
    for name in sites:
        module = site_module(session.model, name)
        quantizer = module.quantizer("input") if isinstance(module, QuantLinear) else None
        if isinstance(module, QuantLinear) and isinstance(quantizer, GroupwiseQuantizer) and quantizer.groups > 1:
            grouped[name] = (module, quantizer)
    done: set[str] = set()
    for norm, readers in reparameterizable(session).items():
        first = grouped.get(readers[0])
        alike = first is not None and all(
            name in grouped and torch.equal(grouped[name][1].steps, first[1].steps) for name in readers
        )
        if first is not None and alike:
            steps = first[1].steps
            folded = fold_channels(
                session, norm, readers, steps, torch.zeros_like(steps), torch.full_like(steps, float("nan")),
                round_zero_point=True,
            )  # fmt: skip
            for name in readers:
                one = grouped[name][1].merged()
                one.scale = folded.scale.reshape(())
                grouped[name][0].set_quantizer("input", one)
            done |= set(readers)
    for name, (module, quantizer) in grouped.items():
        if name not in done:
            _scale_input(session, name, module, quantizer)
    return list(grouped)


def _scale_input(session: Session, site: str, module: QuantLinear, quantizer: GroupwiseQuantizer) -> None:
    """Let a linear divide its input by what its groups' steps are to the largest, and give its weight that back."""
    shares = quantizer.shares
    session.edit("track_scale", site=site)
    session.edit("scale_input", site=site)
    assert module.input_scale is not None
    assert module.folded_scale is not None
    module.input_scale.div_(shares)
    module.rescale_weight(shares)
    module.folded_scale.mul_(shares)
    module.set_quantizer("input", quantizer.merged())


@torch.no_grad()
def fit_weight(module: WeightedSite, bits: int, rule: str) -> None:
    """Give a weight its steps by one of the rules `WEIGHTS`."""
    weight = module.float_weight()
    if rule == "rows":
        by_row = LsqQuantizer(bits, axis=0)
        by_row.set_step(least_squares_step(weight.detach(), bits, axis=0))
        module.set_quantizer("weight", by_row.to(weight.device))
        return
    quantizer = GroupwiseQuantizer(bits, clips_gradient=False).to(weight.device)
    if rule == "kl":
        quantizer.set_ranges(weight.new_tensor([kl_threshold(weight, bits)]))
    else:
        largest = weight.abs().amax().clamp(min=1e-12).reshape(1)
        quantizer.set_ranges(largest)
        fit_share(weight, quantizer)
    module.set_quantizer("weight", quantizer)


def fitted(x: Tensor, quantizer: GroupwiseQuantizer) -> GroupwiseQuantizer:
    """The quantizer with the least squared error of a sample of `x` among those with a share of this one's ranges and,
    where it is one-sided, so many levels below zero that they reach the least value at the step of some group."""
    rows = _sample(x)
    if quantizer.signed or float(rows.amin()) >= 0:
        fit_share(rows, quantizer)
        return quantizer
    group, ranges = quantizer.group if quantizer.groups > 1 else None, quantizer.calibrated(quantizer.scale).view(-1)
    depths = (-rows.amin() / ranges).ceil().clamp(max=quantizer.levels // 2).int()
    best = None
    for below in sorted({0, *depths.tolist(), *(depths // 2 + 1).tolist()}):
        other = GroupwiseQuantizer(
            quantizer.bits, quantizer.groups, signed=False, below=below, levels=quantizer.level_rule
        )
        other.set_ranges(ranges * quantizer.high, group)
        error = fit_share(rows, other)
        best = (error, other) if best is None or error < best[0] else best
    assert best is not None
    return best[1]


def fit_share(x: Tensor, quantizer: GroupwiseQuantizer | CentredQuantizer) -> float:
    """Let a quantizer take the share of its range with the least squared error of a sample of `x`, which is returned.
    What lies at the lower end of attention maps counts most: a range around a centre shrinks towards zero."""
    rows = _sample(x)
    scale, middle = quantizer.calibrated(quantizer.scale), getattr(quantizer, "middle", None)

    def take(share: float) -> None:
        quantizer.scale = scale * share
        if isinstance(quantizer, CentredQuantizer) and middle is not None:
            quantizer.middle = middle * share

    errors = []
    for share in SHRINKS:
        take(share)
        errors.append(float((quantizer(rows) - rows).square().mean()))
    take(SHRINKS[errors.index(min(errors))])
    return min(errors)


def _sample(x: Tensor) -> Tensor:
    rows = x.flatten(0, -2)
    return rows[:: -(-rows.numel() // MOST)]
