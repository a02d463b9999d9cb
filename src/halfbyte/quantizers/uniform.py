"""Uniform quantizers: affine or symmetric, with one scale for a tensor, a channel or a head."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from halfbyte.quantizers.base import Quantizer

# Below this share of its magnitude a range is treated as a single value: the zero point would leave int32.
CONSTANT_RANGE = 2.0**-20


class UniformQuantizer(Quantizer):
    """code = clip(round(x / scale) + zero_point, 0, 2**bits - 1); value = scale * (code - zero_point).

    The quotient is rounded half to even first, then the zero point is added (RepQ-ViT and AdaLog). `axis` is the
    dimension that has one scale an index (None: one for the tensor); scale and zero_point then have as many dimensions
    as the tensor, all but that one 1. `symmetric` fixes the zero point at 2**(bits - 1). `covers_zero` widens each
    range to contain 0. `fractional` keeps a zero point that is no whole number, as RepQ-ViT's code does (simulation
    only).
    """

    kind: ClassVar[str] = "uniform"
    zero_point: Tensor | None

    def __init__(
        self,
        bits: int,
        axis: int | None = None,
        *,
        symmetric: bool = False,
        covers_zero: bool = False,
        fractional: bool = False,
    ) -> None:
        super().__init__(bits)
        self.axis = axis
        self.symmetric = symmetric
        self.covers_zero = covers_zero
        self.fractional = fractional
        self.register_buffer("zero_point", None)
        self._numbers_of: tuple[Tensor, Tensor, tuple[float, float, float]] | None = None

    @property
    def exact_integers(self) -> bool:
        return not self.fractional

    @property
    def factor(self) -> Tensor:
        return self._parameters_set()[0]

    @property
    def largest(self) -> float:
        low, high = self._limits()
        return float(torch.maximum(low.abs(), high.abs()).max())

    def set_parameters(self, scale: Tensor, zero_point: Tensor) -> None:
        """Take `scale` (float, > 0) and `zero_point` (any shape broadcastable against the tensor).

        Raises `ValueError` where a scale is not positive and finite.
        """
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise ValueError("a scale must be positive and finite")
        self.scale = scale.detach().float().clone()
        self.zero_point = zero_point.detach().float() if self.fractional else torch.round(zero_point.detach()).int()

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Spread the codes over [`low`, `high`], tensors in the shape that `scale` shall have.

        An empty range becomes one in which its single value is a code, so constant tensors stay exact.
        """
        if self.covers_zero:
            low, high = low.clamp(max=0), high.clamp(min=0)
        if self.symmetric:
            half = self.levels // 2
            magnitude = torch.maximum(-low / half, high / (half - 1))
            scale = torch.where(magnitude > 0, magnitude, torch.ones_like(magnitude))
            self.set_parameters(scale, torch.full_like(scale, half))
            return
        scale = (high - low) / (self.levels - 1)
        zero_point = torch.round(-low / scale)
        magnitude = torch.maximum(low.abs(), high.abs())
        # So near to zero that the scale would not be a normal number, a range is a single value too.
        tiny = torch.finfo(torch.float32).tiny
        constant = (high - low <= CONSTANT_RANGE * magnitude) | (scale < tiny)
        one_value = torch.where(magnitude >= tiny, magnitude, torch.ones_like(magnitude))
        scale = torch.where(constant, one_value, scale)
        zero_point = torch.where(constant, (high < 0).float(), zero_point)
        self.set_parameters(scale, zero_point)

    def quantize(self, x: Tensor) -> Tensor:
        scale, zero_point = self._parameters_set()
        codes = torch.round(x / scale).add_(zero_point).clamp_(0, self.levels - 1)
        return codes if self.fractional else codes.to(torch.uint8)

    def centre(self, codes: Tensor) -> Tensor:
        return codes.float() - self._parameters_set()[1]

    def dequantize(self, codes: Tensor) -> Tensor:
        return self.centre(codes).mul_(self._parameters_set()[0])

    def centred(self, x: Tensor) -> Tensor:
        if self._is_wide(x):
            return torch.round(x / self._parameters_set()[0]).clamp_(*self._limits())
        steps, low, high = self._numbers()
        return x.div(steps).round_().clamp_(low, high)

    def inside(self, x: Tensor) -> Tensor:
        if self._is_wide(x):
            low, high = self._limits()
            steps = torch.round(x / self._parameters_set()[0])
        else:
            scale, low, high = self._numbers()  # type: ignore[assignment]
            steps = x.div(scale).round_()
        return ((steps >= low) & (steps <= high)).to(x.dtype)

    def spec(self) -> dict[str, Any]:
        flags = {"symmetric": self.symmetric, "covers_zero": self.covers_zero, "fractional": self.fractional}
        return {**super().spec(), "axis": self.axis, **{key: True for key, value in flags.items() if value}}

    def _is_wide(self, x: Tensor) -> bool:
        """Whether the scale has to be a tensor. One pass with a Python number is three times as fast as broadcasting a
        tensor of one element; only the CPU divides by it exactly (other devices multiply by its reciprocal)."""
        return self._parameters_set()[0].numel() > 1 or x.device.type != "cpu"

    def _numbers(self) -> tuple[float, float, float]:
        scale, zero_point = self._parameters_set()
        if self._numbers_of is None or self._numbers_of[0] is not scale or self._numbers_of[1] is not zero_point:
            low, high = self._limits()
            self._numbers_of = (scale, zero_point, (float(scale), float(low), float(high)))
        return self._numbers_of[2]

    def _limits(self) -> tuple[Tensor, Tensor]:
        low = -self._parameters_set()[1].float()
        return low, low + (self.levels - 1)

    def _parameters_set(self) -> tuple[Tensor, Tensor]:
        return self.calibrated(self.scale), self.calibrated(self.zero_point)
