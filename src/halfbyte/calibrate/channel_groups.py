"""Ranges of channels, and channels in groups of like range (Quantformer, Wang et al., TPAMI 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

# Published: the share of a channel's values inside its range, and the largest range.
SHARE, PUBLISHED_CAP = 0.9999, 6.0
LEAST_RANGE = 1e-6


def channel_ranges(values: Tensor, cap: float = float("inf"), share: float = SHARE) -> Tensor:
    """Of `[n, C]` the magnitude that the given share of each channel's values does not pass, at most `cap`: `[C]`."""
    magnitudes = values.detach().abs()
    place = min(len(magnitudes) - 1, int(len(magnitudes) * share))
    return magnitudes.kthvalue(place + 1, dim=0).values.clamp(max=cap)


def grouped_ranges(ranges: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The range of each group `[groups]` and the group of each channel `[C]`.

    What lies between the least and the largest range of the channels is cut in equal parts; a group takes the largest
    of its own, and where it has none, the upper end of its part.
    """
    ranges = ranges.float().clamp(min=LEAST_RANGE)
    least, largest = ranges.min(), ranges.max()
    span = largest - least
    place = ((ranges - least) / span * groups).long().clamp(max=groups - 1) if float(span) > 0 else ranges.long() * 0
    ends = least + span * torch.arange(1, groups + 1, device=ranges.device) / groups
    found = torch.stack([ranges[place == number].amax() if bool((place == number).any()) else ends[number]
                         for number in range(groups)])  # fmt: skip
    return found, place
