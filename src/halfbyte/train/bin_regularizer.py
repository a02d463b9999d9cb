"""VVTQ's regularizer of a weight's distribution in its bins (Huang et al., TMLR 2024), with bins by integer levels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from halfbyte.quantizers.lsq import bounds

# The share of the training without it, and its weight at the end.
START, LARGEST = 0.25, 0.01


def bin_spread(weight: Tensor, step: Tensor, multiplier: Tensor | float, bits: int) -> Tensor:
    """mean((sg(Wq) - Wc)^2) + sum over the levels j of Var(Wc where k = j), of a weight and its step, a scalar each.

    Wc is the weight clipped, Wq quantized; variances are unbiased, of bins with two members and more. The gradient of
    the step is multiplied by `multiplier`. The published code finds members by comparing floats and misses some.
    """
    spread: Tensor = _BinSpread.apply(weight, step, multiplier, bits)
    return spread


class _BinSpread(torch.autograd.Function):
    """With the gradients written out: of the clipped weight's distance d from its level, in a bin of n weights with
    the mean m, 2 d / N + 2 (d - m) / (n - 1). The weight has it where nothing is clipped, the step where it is."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor, multiplier: Tensor | float, bits: int) -> Tensor:
        low, high = bounds(bits, signed=True)
        units = (weight / step).flatten()
        levels = units.round().clamp_(low, high)
        # Within a bin the distance from the level varies as the weight does, without the digits that cancel.
        distance = (units.clamp(low, high) - levels).mul_(step)
        bins = levels.sub_(low).long()
        zeros = distance.new_zeros(high - low + 1)
        count = zeros.scatter_add(0, bins, torch.ones_like(distance))
        total, squares = zeros.scatter_add(0, bins, distance), zeros.scatter_add(0, bins, distance.square())
        mean, others = total / count.clamp(min=1), (count - 1).clamp(min=1)
        variance = torch.where(count > 1, (squares - total * mean) / others, 0.0)
        ctx.save_for_backward(units, distance, bins, mean, torch.where(count > 1, 2 / others, 0.0))
        ctx.multiplier, ctx.low, ctx.high, ctx.shape = multiplier, low, high, weight.shape
        return squares.sum() / len(units) + variance.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        units, distance, bins, mean, share = ctx.saved_tensors
        by_clipped = (
            (distance - mean.index_select(0, bins))
            .mul_(share.index_select(0, bins))
            .add_(distance, alpha=2 / len(units))
            .mul_(gradients[0])
        )
        beyond = units.clamp(ctx.low, ctx.high)
        inside = units == beyond
        by_weight = (by_clipped * inside).view(ctx.shape)
        by_step = None
        if ctx.needs_input_grad[1]:
            by_step = beyond.mul_(by_clipped).masked_fill_(inside, 0.0).sum() * ctx.multiplier
        return by_weight, by_step, None, None


def strength(progress: float, start: float = START, largest: float = LARGEST) -> float:
    """The regularizer's weight after a share `progress` of the training: 0 up to `start`, then half a cosine."""
    if progress < start:
        return 0.0
    return largest * 0.5 * (1 - math.cos(math.pi * (progress - start) / (1 - start)))
