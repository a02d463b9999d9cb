"""The search for groups of channels: every channel is quantized by all groups at once, weighted by logits that are
learned (Quantformer, Wang et al., TPAMI 2023)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


class GroupMixture(torch.autograd.Function):
    """sum_g w_gc Q_g(x) for x `[..., C]`, weights w `[groups, C]` and steps `[groups]`, of which a range has `low` to
    `high`.

    Backwards it is sum_g w_gc clip_g(x): rounding passes everything. Steps have no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, steps: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, weights, steps)
        ctx.low, ctx.high = low, high
        total = torch.zeros_like(x)
        for weight, step in zip(weights, steps.tolist(), strict=True):
            total += x.clamp(low * step, high * step).div_(step).round_().mul_(step * weight)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, steps = ctx.saved_tensors
        (gradient,) = gradients
        passed, by_weight = torch.zeros_like(x), []
        for weight, step in zip(weights, steps.tolist(), strict=True):
            clipped = x.clamp(ctx.low * step, ctx.high * step)
            passed += (clipped == x) * weight
            by_weight.append(clipped.mul_(gradient).flatten(0, -2).sum(0))
        return passed.mul_(gradient), torch.stack(by_weight), None, None, None


def mixture(x: Tensor, logits: Tensor, steps: Tensor, low: int, high: int) -> Tensor:
    """The mixture with the softmax of `logits` `[groups, C]` over the groups as weights."""
    return cast(Tensor, GroupMixture.apply(x, logits.softmax(0), steps, low, high))


def assignment_entropy(logits: Tensor) -> Tensor:
    """The mean over all entries of -w log w, w the softmax of `[groups, C]` over the groups, in nats."""
    weights = logits.softmax(0)
    return -(weights * logits.log_softmax(0)).mean()


def centred_range(x: Tensor, middle: Tensor, half_width: Tensor, count: int) -> Tensor:
    """`x` as a `CentredQuantizer` of `count` steps a side gives it back at this centre and half-width.

    The gradient is that of clipping: the sum of the clipped values' own for the centre, with the side's sign for the
    half-width.
    """
    clipped = torch.maximum(torch.minimum(x, middle + half_width), middle - half_width)
    with torch.no_grad():
        step = half_width / count
        quantized = (clipped / step).round_().mul_(step)
    return clipped + (quantized - clipped).detach()
