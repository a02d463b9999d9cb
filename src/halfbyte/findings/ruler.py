"""The line on which the values of an operand lie beside the levels of its quantizer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from halfbyte.quantizers.base import Quantizer
from halfbyte.quantizers.groupwise import GroupwiseQuantizer
from halfbyte.quantizers.log import LogQuantizer


@dataclass(frozen=True)
class Ruler:
    """Where values lie, and the levels among them, ascending.

    A quantizer with one scale is drawn over the values themselves; one with a scale for each channel or head over
    `codes`, in which its levels are whole numbers everywhere. `shift` was added to all, levels too, as a logarithmic
    quantizer does before it takes the logarithm.
    """

    quantizer: Quantizer
    levels: Tensor
    codes: bool
    shift: float = 0.0

    @property
    def logarithmic(self) -> bool:
        """Whether distances between levels are equal as ratios."""
        return isinstance(self.quantizer, LogQuantizer)

    @property
    def limits(self) -> tuple[float, float]:
        """Below and above which values are clipped: half the distance of the outer levels beyond them."""
        low, high = float(self.levels[0]), float(self.levels[-1])
        if len(self.levels) < 2:
            return low, high
        if self.logarithmic:
            return -math.inf, high * math.sqrt(high / float(self.levels[-2]))
        return low - float(self.levels[1] - self.levels[0]) / 2, high + float(self.levels[-1] - self.levels[-2]) / 2

    def places(self, x: Tensor) -> Tensor:
        """Where the values of the operand `x` lie, in its shape."""
        if not self.codes:
            return x + self.shift if self.shift else x
        quantizer = self.quantizer
        if isinstance(quantizer, GroupwiseQuantizer):
            return x / quantizer.steps - quantizer.low
        first = quantizer.centre(torch.zeros(1, dtype=torch.uint8, device=x.device))
        return (x - quantizer.offset) / quantizer.factor - first


def ruler(quantizer: Quantizer) -> Ruler:
    """The line for a fitted quantizer."""
    scale = quantizer.calibrated(quantizer.scale)
    count = quantizer.symbols if isinstance(quantizer, LogQuantizer) else quantizer.last_code + 1
    codes = torch.arange(count, device=scale.device)
    if scale.numel() > 1:
        return Ruler(quantizer, codes.double(), codes=True)
    values = quantizer.dequantize(codes.view(-1, *[1] * scale.ndim))
    if not isinstance(quantizer, LogQuantizer):
        # A kind may have fewer levels than codes: what is none comes out as the nearest.
        return Ruler(quantizer, torch.unique(quantizer(values)).double(), codes=False)
    levels = values.double().flatten() + quantizer.shift
    # The shift is taken off in float32: the level that is zero comes back as what rounding left.
    levels = levels.where(levels.abs() > 1e-6 * levels.max(), torch.zeros_like(levels))
    return Ruler(quantizer, torch.unique(levels), codes=False, shift=quantizer.shift)


def outer_levels(line: Ruler) -> tuple[float, float]:
    """The smallest and the largest level, of all channels, as values."""
    if not line.codes:
        return float(line.levels[0]) - line.shift, float(line.levels[-1]) - line.shift
    quantizer = line.quantizer
    steps = quantizer.steps if isinstance(quantizer, GroupwiseQuantizer) else quantizer.calibrated(quantizer.scale)
    codes = torch.zeros_like(steps, dtype=torch.uint8)
    first, last = quantizer.dequantize(codes), quantizer.dequantize(codes + quantizer.last_code)
    return float(first.min()), float(last.max())
