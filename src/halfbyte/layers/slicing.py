"""Tokens in groups, between which no attention passes (SReT, Shen et al., ECCV 2022, section 3.3)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


def slicing(attention: nn.Module, x: Tensor, repetition: int) -> tuple[int, Tensor | None]:
    """The number of groups of a run and the order of the tokens in them (None: as they come)."""
    groups = cast("tuple[int, int]", attention.groups)[repetition]
    if repetition == 0 or groups == 1:
        return groups, None
    if attention.training:
        return groups, torch.randperm(x.shape[1], device=x.device)
    return groups, cast(Tensor, attention.permutation)


def slice_tokens(x: Tensor, groups: int, order: Tensor | None) -> Tensor:
    """Tokens `[B, N, C]`, put in an order first, cut into groups of neighbours: `[B * groups, N / groups, C]`."""
    x = x if order is None else x[:, order]
    return x.reshape(len(x) * groups, -1, x.shape[-1])


def join_tokens(x: Tensor, groups: int, order: Tensor | None) -> Tensor:
    """What `slice_tokens` cut, together again and in the old order: `[B, N, C]`."""
    x = x.reshape(len(x) // groups, -1, x.shape[-1])
    return x if order is None else x[:, torch.argsort(order)]


def fix_orders(model: nn.Module) -> None:
    """Let a model in training put its tokens in the orders that it has at evaluation."""
    for module in model.modules():
        if hasattr(module, "permutation"):
            module.training = False
