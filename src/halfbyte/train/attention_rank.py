"""Keeping the order of attention: the self-attention rank consistency of Quantformer (Wang et al., TPAMI 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

POWERS = range(1, 5)


def rank_loss(teacher: Tensor, student: Tensor, power: float) -> Tensor:
    """The mean squared difference of attention maps `[B, ...]`, each image's of unit length, the teacher's raised to
    `power` element by element before."""
    mine, wanted = student.flatten(1), teacher.detach().pow(power).flatten(1)
    return (_unit(wanted) - _unit(mine)).square().mean()


def _unit(x: Tensor) -> Tensor:
    return nn.functional.normalize(x, dim=1, eps=torch.finfo(x.dtype).tiny)


def concentration(entropies: Tensor) -> int:
    """The power for attention maps of these entropies, shares of the largest possible: 1 where they are
    uniform, 4 where they hold next to nothing but one place, in equal steps between.

    The paper says that the power follows from the entropy of the self-attention and gives no rule.
    """
    mean = float(entropies.mean())
    return POWERS[max(0, min(len(POWERS) - 1, math.floor((1 - mean) * len(POWERS))))]


def relative_entropy(maps: Tensor) -> Tensor:
    """The entropy of each row of `[..., N]` as a share of log N; 0 where there is one place."""
    if maps.shape[-1] == 1:
        return maps.new_zeros(maps.shape[:-1])
    return -(maps * maps.clamp_min(torch.finfo(maps.dtype).tiny).log()).sum(-1) / math.log(maps.shape[-1])
