"""The learning rate over a training: it rises linearly, then falls along half a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """rate: the largest. warmup, total: in steps of the optimizer. last: the share of the rate that is left at the end.

    The last step is not the end: it has a rate above 0 in any case, and learns (a published schedule spends its last
    epoch at 0). cosine: false for one rate behind the warm-up.
    """

    rate: float
    total: int
    warmup: int = 0
    last: float = 0.0
    cosine: bool = True

    def at(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        if not self.cosine:
            return self.rate
        share = (step - self.warmup) / (self.total - self.warmup)
        return self.rate * (self.last + (1 - self.last) * 0.5 * (1 + math.cos(math.pi * share)))
