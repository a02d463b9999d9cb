"""Weights whose level goes back and forth between two steps of training (Nagel et al., ICML 2022; VVTQ)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# A weight with more turns than this, as a moving average, oscillates.
OSCILLATES = 0.005
_STATE = ("last", "average", "direction", "turns", "frozen", "frozen_level")


class OscillationTracker:
    """Counts, for each weight of a tensor, how often its integer level turns, as a moving average.

    freeze: above this average a weight is frozen to the rounded average of its level (None: never).
    """

    def __init__(self, levels: Tensor, momentum: float = 0.001, freeze: float | None = None) -> None:
        self.momentum, self.threshold = momentum, freeze
        self.last = levels.detach().float().clone()
        self.average = self.last.clone()
        self.direction = torch.zeros_like(self.last)
        self.turns = torch.zeros_like(self.last)
        self.frozen = torch.zeros_like(self.last, dtype=torch.bool)
        self.frozen_level = torch.zeros_like(self.last)

    @torch.no_grad()
    def update(self, levels: Tensor) -> Tensor:
        """Take the levels of a step; returns them, those of frozen weights replaced by what they are frozen to."""
        levels = torch.where(self.frozen, self.frozen_level, levels.detach().float())
        moved = torch.sign(self.last - levels)
        turned = (self.direction * moved == -1).float()
        self.turns.mul_(1 - self.momentum).add_(self.momentum * turned)
        self.direction = torch.where(moved != 0, moved, self.direction)
        self.last = levels
        if self.threshold is not None:
            late = self.turns > self.threshold
            self.frozen |= late
            self.frozen_level = torch.where(late, self.average.round(), self.frozen_level)
        self.average.mul_(1 - self.momentum).add_(self.momentum * levels)
        return levels

    def tensors(self) -> dict[str, Tensor]:
        """All that a continuation needs."""
        return {name: getattr(self, name) for name in _STATE}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` gave."""
        for name in _STATE:
            setattr(self, name, state[name].to(self.last.device))

    def share(self) -> float:
        """The share of the weights that oscillate."""
        return float((self.turns > OSCILLATES).float().mean())
