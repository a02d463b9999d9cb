"""Quantformer's quantizers (Wang et al., TPAMI 2023): symmetric steps for groups of channels, and ranges around a
learned centre for attention."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from halfbyte.errors import HalfbyteError
from halfbyte.quantizers.base import Quantizer

# `paper`: no more than 2**bits codes. `released`: what the authors' code gives, one more bit on two-sided tensors.
LEVELS = ("paper", "released")
MOST_GROUPS = 64


def largest_level(bits: int, signed: bool, levels: str = "paper") -> int:
    """How many steps a range has on each of its sides.

    Raises `HalfbyteError` for levels of another name, and for those whose codes need more than 8 bits.
    """
    if levels not in LEVELS:
        raise HalfbyteError(f"the levels of a group-wise quantizer must be one of {', '.join(LEVELS)}, not {levels!r}")
    if signed and levels == "released":
        if bits > 7:
            raise HalfbyteError("levels: released has one bit more on two-sided tensors: at most 7 bits; take paper")
        return (1 << bits) - 1
    return (1 << bits - 1) - 1 if signed else (1 << bits) - 1


class GroupwiseQuantizer(Quantizer):
    """Levels k s with k from -n to n (`signed`) or from -`below` to n - `below`, n = `largest_level`; a value is
    clipped, then rounded. What follows a GELU needs levels below zero: without them all that is negative is lost.

    With more than one group, `scale` `[groups]` holds their steps, `group` `[C]`, uint8, says which one a channel (the
    last dimension) takes, and the quantizer is a simulation: its codes have no common factor. `merged` gives the one of
    a single step that it becomes where each channel's values are divided by `shares` first.

    `clips_gradient` False passes the gradient of clipped values too, as the paper does for weights.
    """

    kind: ClassVar[str] = "groupwise"
    group: Tensor | None

    def __init__(
        self,
        bits: int,
        groups: int = 1,
        *,
        signed: bool = True,
        below: int = 0,
        levels: str = "paper",
        clips_gradient: bool = True,
    ) -> None:
        super().__init__(bits)
        if isinstance(groups, bool) or not isinstance(groups, int) or not 1 <= groups <= MOST_GROUPS:
            raise HalfbyteError(f"groups must be from 1 to {MOST_GROUPS}, not {groups!r}")
        self.groups, self.signed, self.level_rule, self.clips_gradient = groups, signed, levels, clips_gradient
        count = largest_level(bits, signed, levels)
        if isinstance(below, bool) or not isinstance(below, int) or not 0 <= below < (1 if signed else count):
            raise HalfbyteError(f"below must be from 0 to {count - 1}, and 0 where both sides are alike, not {below!r}")
        self.low, self.high = (-count, count) if signed else (-below, count - below)
        if groups > 1:
            self.register_buffer("group", None)

    @property
    def below(self) -> int:
        """How many levels a one-sided range has below zero."""
        return 0 if self.signed else -self.low

    @property
    def exact_integers(self) -> bool:
        return self.groups == 1 and self.high - self.low < self.levels

    @property
    def last_code(self) -> int:
        return self.high - self.low

    @property
    def factor(self) -> Tensor:
        return self.calibrated(self.scale).amax()

    @property
    def largest(self) -> float:
        return float(max(self.high, -self.low))

    @property
    def steps(self) -> Tensor:
        """The step of each channel `[C]`, or of all `[]`."""
        scale = self.calibrated(self.scale)
        return scale[self.calibrated(self.group).long()] if self.groups > 1 else scale.reshape(())

    @property
    def shares(self) -> Tensor:
        """Each channel's step as a share of the largest, `[C]` or `[]`."""
        return self.steps / self.factor

    def set_ranges(self, ranges: Tensor, group: Tensor | None = None) -> None:
        """Take the largest magnitude of each group `[groups]`, and the group of every channel `[C]`.

        Raises `ValueError` where they do not fit, or a range is not positive and finite.
        """
        if ranges.numel() != self.groups or not bool((torch.isfinite(ranges) & (ranges > 0)).all()):
            raise ValueError(f"{self.groups} ranges are needed, positive and finite")
        self.scale = (ranges.detach().float() / self.high).reshape((self.groups,) if self.groups > 1 else ())
        if self.groups > 1:
            if group is None or not bool(((group >= 0) & (group < self.groups)).all()):
                raise ValueError(f"every channel needs a group from 0 to {self.groups - 1}")
            self.group = group.detach().to(torch.uint8)

    def merged(self) -> GroupwiseQuantizer:
        """The quantizer with the largest step for all."""
        one = GroupwiseQuantizer(
            self.bits, signed=self.signed, below=self.below, levels=self.level_rule, clips_gradient=self.clips_gradient
        )
        one.scale = self.factor.clone()
        return one

    def quantize(self, x: Tensor) -> Tensor:
        return self._levels(x).sub_(self.low).to(torch.uint8)

    def centre(self, codes: Tensor) -> Tensor:
        levels = codes.float().add_(self.low)
        return levels.mul_(self.shares) if self.groups > 1 else levels

    def dequantize(self, codes: Tensor) -> Tensor:
        return codes.float().add_(self.low).mul_(self.steps)

    def inside(self, x: Tensor) -> Tensor | None:
        if not self.clips_gradient:
            return None
        units = x / self.steps
        return ((units >= self.low) & (units <= self.high)).to(x.dtype)

    def spec(self) -> dict[str, Any]:
        plain = super().spec() | {"groups": self.groups, "signed": self.signed, "levels": self.level_rule}
        plain |= {"below": self.below} if self.below else {}
        return plain | ({} if self.clips_gradient else {"clips_gradient": False})

    def _levels(self, x: Tensor) -> Tensor:
        return (x / self.steps).clamp_(self.low, self.high).round_()


class CentredQuantizer(Quantizer):
    """Levels k s within `half_width` of `centre`; both are learned. They are not moved with the centre, which only says
    which of them there are: from round((c - d) / s) to round((c + d) / s), at most 2**bits for `levels: paper`."""

    kind: ClassVar[str] = "centred"
    middle: Tensor | None

    def __init__(self, bits: int, *, levels: str = "paper") -> None:
        super().__init__(bits)
        self.level_rule = levels
        self.count = largest_level(bits, True, levels)
        self.register_buffer("middle", None)
        self._bounds: tuple[Tensor, Tensor, tuple[float, float]] | None = None

    @property
    def exact_integers(self) -> bool:
        return 2 * self.count < self.levels

    @property
    def factor(self) -> Tensor:
        return self.calibrated(self.scale)

    @property
    def largest(self) -> float:
        return max(map(abs, self.bounds))

    @property
    def half_width(self) -> Tensor:
        """How far the range reaches to either side, a scalar."""
        return self.factor * self.count

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest level."""
        scale, middle = self.factor, self.calibrated(self.middle)
        if self._bounds is None or self._bounds[0] is not scale or self._bounds[1] is not middle:
            edges = (float(((middle + side * self.half_width) / scale).round()) for side in (-1, 1))
            self._bounds = (scale, middle, (next(edges), next(edges)))
        return self._bounds[2]

    def set_range(self, middle: Tensor, half_width: Tensor) -> None:
        """Take the centre and the half-width, scalars.

        Raises `ValueError` where the half-width is not positive, or one is not finite.
        """
        if not bool(torch.isfinite(middle) & torch.isfinite(half_width) & (half_width > 0)):
            raise ValueError("a centre must be finite, and a half-width positive and finite")
        self.scale = (half_width.detach().float() / self.count).reshape(())
        self.middle = middle.detach().float().reshape(()).clone()

    def quantize(self, x: Tensor) -> Tensor:
        return self.centred(x).sub_(self.bounds[0]).to(torch.uint8)

    def centre(self, codes: Tensor) -> Tensor:
        return codes.float().add_(self.bounds[0])

    def centred(self, x: Tensor) -> Tensor:
        return (x / self.factor).round_().clamp_(*self.bounds)

    def dequantize(self, codes: Tensor) -> Tensor:
        return self.centre(codes).mul_(self.factor)

    def inside(self, x: Tensor) -> Tensor:
        return ((x - self.calibrated(self.middle)).abs() <= self.half_width).to(x.dtype)

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), "levels": self.level_rule}
