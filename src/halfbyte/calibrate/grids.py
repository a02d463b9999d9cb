"""Where a search for quantizer parameters begins: grids of scales and zero points (AdaLog, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halfbyte.calibrate.percentile import quantiles
from halfbyte.quantizers.uniform import UniformQuantizer

# A candidate's scale is at least this share of the largest one of its row: extrapolation must not pass zero.
_LEAST_SHARE = 1e-6


@dataclass(frozen=True)
class Candidates:
    """Parameters to be tried: `[n, R]` each, n candidates for each of R rows that are searched independently.

    `other` is what goes with the scale: a zero point, or the base of a log quantizer.
    """

    scale: Tensor
    other: Tensor

    def best(self, errors: Tensor, count: int) -> tuple[Candidates, Tensor]:
        """The `count` candidates of each row with the least errors, best first (the earlier on a tie), and these."""
        order = errors.argsort(dim=0, stable=True)[:count]
        return Candidates(self.scale.gather(0, order), self.other.gather(0, order)), errors.gather(0, order)

    def split(self, each: int) -> list[Candidates]:
        """These in groups of at most `each` a row."""
        starts = range(0, len(self.scale), each)
        return [Candidates(self.scale[i : i + each], self.other[i : i + each]) for i in starts]

    def joined(self, more: Candidates) -> Candidates:
        """These and more."""
        return Candidates(torch.cat((self.scale, more.scale)), torch.cat((self.other, more.other)))


@dataclass(frozen=True)
class Grid:
    """First candidates and the spacing `[R]` of their scales."""

    candidates: Candidates
    spacing: Tensor


def uniform_grid(
    rows: Tensor,
    bits: int,
    count: int,
    zero_points: int,
    *,
    centred_on_data: bool,
    covers_zero: bool = False,
    least_scale: float = 0.0,
) -> Grid:
    """`count` candidates for each row of `[R, m]`: scales crossed with `zero_points` neighbouring zero points.

    The scales run from the range between the 10th and the 90th percentile to the whole range. The paper's zero points
    lie around the middle code; `centred_on_data` has them around the one that fits each row's range, which matters for
    one-sided tensors at 6 bits and more. All scales of the first zero point come first.
    """
    low, tenth, ninetieth, high = quantiles(rows, (0.0, 0.1, 0.9, 1.0))
    steps = (1 << bits) - 1
    scales = max(1, count // zero_points)
    narrow, wide = (ninetieth - tenth) / steps, (high - low) / steps
    spacing = (wide - narrow) / (scales - 1) if scales > 1 else torch.zeros_like(wide)
    # A row of one value: any scale does.
    wide = torch.where(wide > 0, wide, torch.maximum(high.abs(), torch.ones_like(high)))
    ramp = torch.linspace(0, 1, scales, device=rows.device)[:, None] if scales > 1 else torch.zeros(1, 1)
    ladder = narrow + ramp.to(rows.device) * (wide - narrow)
    ladder = torch.maximum(ladder, (wide * _LEAST_SHARE).clamp(min=least_scale))
    middle = torch.full_like(wide, 1 << (bits - 1))
    if centred_on_data:
        half = zero_points // 2
        least, most = (half, (1 << bits) - half) if covers_zero else (-(1 << bits), 1 << (bits + 1))
        middle = torch.round(-low / wide).clamp(least, max(least, most))
    offsets = torch.arange(-(zero_points // 2), zero_points - zero_points // 2, device=rows.device)
    other = middle + offsets[:, None]
    return Grid(Candidates(ladder.repeat(zero_points, 1), other.repeat_interleave(scales, dim=0)), spacing)


def range_candidate(rows: Tensor, bits: int, *, covers_zero: bool) -> Candidates:
    """The one candidate `[1, R]` that spreads the codes over the whole range of each row of `[R, m]`."""
    quantizer = UniformQuantizer(bits, 0, covers_zero=covers_zero)
    quantizer.set_range(*(edge[:, None] for edge in rows.aminmax(dim=1)))
    scale, zero_point = quantizer.calibrated(quantizer.scale), quantizer.calibrated(quantizer.zero_point)
    return Candidates(scale.T, zero_point.T.float())


def log_grid(least: float, largest: float, scales: int, bases: Tensor) -> Grid:
    """Scales `least` .. `largest` crossed with `bases` `[n]`, one row; all scales of the first base come first."""
    ladder = torch.linspace(least, largest, scales, device=bases.device)
    spacing = (ladder[1] - ladder[0]).reshape(1) if scales > 1 else torch.zeros(1, device=bases.device)
    return Grid(
        Candidates(ladder.repeat(len(bases))[:, None], bases.float().repeat_interleave(scales)[:, None]), spacing
    )
