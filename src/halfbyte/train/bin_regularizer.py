"""VVTQ's regularizer of a weight's distribution in its bins (Huang et al., TMLR 2024), with bins by integer levels."""

from __future__ import annotations

import math

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
    low, high = bounds(bits, signed=True)
    scaled = step * multiplier + (step - step * multiplier).detach()
    clipped = (weight / scaled).clamp(low, high)
    levels = clipped.detach().round()
    # Within a bin the distance from the level varies as the weight does, without the digits that cancel.
    distance = clipped * scaled - (levels * step).detach()
    bins = (levels - low).flatten().long()
    flat = distance.flatten()
    zeros = flat.new_zeros(high - low + 1)
    count = zeros.index_add(0, bins, torch.ones_like(flat))
    total, squares = zeros.index_add(0, bins, flat), zeros.index_add(0, bins, flat.square())
    variance = (squares - total.square() / count.clamp(min=1)) / (count - 1).clamp(min=1)
    return flat.square().mean() + torch.where(count > 1, variance, 0.0).sum()


def strength(progress: float, start: float = START, largest: float = LARGEST) -> float:
    """The regularizer's weight after a share `progress` of the training: 0 up to `start`, then half a cosine."""
    if progress < start:
        return 0.0
    return largest * 0.5 * (1 - math.cos(math.pi * (progress - start) / (1 - start)))
