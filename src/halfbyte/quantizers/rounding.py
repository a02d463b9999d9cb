"""AdaRound: whether a weight is rounded up or down, as something that can be learned (Nagel et al., ICML 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

# The sigmoid is stretched to [-0.1, 1.1] and clipped, so that it reaches 0 and 1.
LOWEST, HIGHEST = -0.1, 1.1


def soft_share(alpha: Tensor) -> Tensor:
    """h(alpha) in [0, 1]: how much of a step a weight is rounded up by."""
    return (torch.sigmoid(alpha) * (HIGHEST - LOWEST) + LOWEST).clamp(0, 1)


def initial_alpha(share: Tensor) -> Tensor:
    """The alpha whose `soft_share` is `share` (in [0, 1): what rounding down leaves of a weight, in steps)."""
    return -torch.log((HIGHEST - LOWEST) / (share - LOWEST) - 1)


def rounded_up(alpha: Tensor) -> Tensor:
    """The decision at the end: boolean."""
    return alpha >= 0


def undecided(alpha: Tensor, power: float) -> Tensor:
    """Sum of 1 - |2 h - 1|^power: zero once every weight is decided."""
    return (1 - (2 * soft_share(alpha) - 1).abs().pow(power)).sum()


def power_at(progress: float, warmup: float = 0.2, first: float = 20.0, last: float = 2.0) -> float:
    """The power of `undecided` after a share `progress` of all steps: `first` up to the share `warmup`, then falling
    linearly to `last`."""
    return last + (first - last) * min(1.0, max(0.0, (1 - progress) / (1 - warmup)))
