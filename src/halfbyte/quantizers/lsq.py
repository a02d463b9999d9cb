"""Learned steps: LSQ (Esser et al., ICLR 2020) and the rules of VVTQ (Huang et al., TMLR 2024): clip, then round."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from halfbyte.quantizers.base import Quantizer

# The fixed point of a weight's step is reached long before.
ROUNDS = 200
_CONVERGED = 1e-5


def bounds(bits: int, signed: bool) -> tuple[int, int]:
    """The smallest and the largest level: -2^(b-1) and 2^(b-1) - 1, or 0 and 2^b - 1."""
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


class LearnedStep(torch.autograd.Function):
    """x to k s + beta with k = round(clip((x - beta) / s, low, high)), for a step s and an offset beta.

    Backwards, where nothing is clipped, x has the gradient G and s has G (k - u), u = (x - beta) / s; where it is, beta
    has G and s has G k; the step's is multiplied by `multiplier`. Levels are computed again instead of kept.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, beta: Tensor | None, multiplier: Tensor | float, low: int, high: int
    ) -> Tensor:
        ctx.save_for_backward(x, step, beta)
        ctx.multiplier, ctx.low, ctx.high = multiplier, low, high
        quantized = _units(x, step, beta).clamp_(low, high).round_().mul_(step)
        return quantized if beta is None else quantized.add_(beta)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, step, beta = ctx.saved_tensors
        (gradient,) = gradients
        units = _units(x, step, beta)
        clipped = units.clamp(ctx.low, ctx.high)
        inside = (units == clipped).to(gradient.dtype)
        passed = gradient * inside
        by_step = by_beta = None
        if ctx.needs_input_grad[1]:
            residue = clipped.round().sub_(units.mul_(inside))
            by_step = residue.mul_(gradient).sum_to_size(step.shape) * ctx.multiplier
        if beta is not None and ctx.needs_input_grad[2]:
            by_beta = (gradient - passed).sum_to_size(beta.shape)
        return passed if ctx.needs_input_grad[0] else None, by_step, by_beta, None, None, None


def _units(x: Tensor, step: Tensor, beta: Tensor | None) -> Tensor:
    return (x if beta is None else x - beta) / step


def weight_multiplier(weight: Tensor, high: int) -> Tensor:
    """VVTQ's for the step of a weight: 1 / sqrt(sum |W| high)."""
    return (weight.detach().abs().sum() * high).rsqrt()


def activation_multiplier(count: int, high: int) -> float:
    """VVTQ's for the step of an activation of `count` elements: 1 / (sqrt(count) high)."""
    return 1 / (math.sqrt(count) * high)


def lsq_multiplier(count: int, high: int) -> float:
    """LSQ's own, for both: 1 / sqrt(count high)."""
    return 1 / math.sqrt(count * high)


@torch.no_grad()
def least_squares_step(x: Tensor, bits: int, signed: bool = True, axis: int | None = None) -> Tensor:
    """The step at which quantizing `x` again and fitting s to it changes nothing: s = <x, k> / <k, k>.

    One number, or with `axis` one for each index of that dimension, in a shape that broadcasts. Zeros get a step of 1.
    """
    low, high = bounds(bits, signed)
    kept = [axis] if axis is not None else []
    others = [dimension for dimension in range(x.ndim) if dimension not in kept]
    step = x.abs().amax(others, keepdim=True) / high
    step = torch.where(step > 0, step, torch.ones_like(step))
    for _ in range(ROUNDS):
        levels = (x / step).clamp_(low, high).round_()
        norm = levels.square().sum(others, keepdim=True)
        found = torch.where(norm > 0, (x * levels).sum(others, keepdim=True) / norm, step).abs()
        settled = bool(((found - step).abs() < _CONVERGED * found).all())
        step = found
        if settled:
            break
    return step if axis is not None else step.reshape(())


def published_step(x: Tensor, bits: int) -> Tensor:
    """VVTQ's first step of an activation: 2 mean |x| / sqrt(2^(b-1) - 1), of unsigned ones too."""
    return 2 * x.detach().abs().mean() / math.sqrt((1 << bits - 1) - 1)


class LsqQuantizer(Quantizer):
    """Levels k s + beta, k from `bounds(bits, signed)`, clipped before they are rounded.

    `axis`: the dimension with a step for each index (None: one for the tensor). `beta`: an offset, where `with_offset`.
    """

    kind: ClassVar[str] = "lsq"
    beta: Tensor | None

    def __init__(self, bits: int, axis: int | None = None, *, signed: bool = True, with_offset: bool = False) -> None:
        super().__init__(bits)
        self.axis, self.signed, self.with_offset = axis, signed, with_offset
        self.low, self.high = bounds(self.bits, signed)
        if with_offset:
            self.register_buffer("beta", None)
        self._offset: tuple[Tensor, float] | None = None

    @property
    def factor(self) -> Tensor:
        return self.calibrated(self.scale)

    @property
    def offset(self) -> float:
        if not self.with_offset:
            return 0.0
        beta = self.calibrated(self.beta)
        if self._offset is None or self._offset[0] is not beta:
            self._offset = (beta, float(beta))
        return self._offset[1]

    @property
    def largest(self) -> float:
        return float(max(-self.low, self.high))

    def set_step(self, step: Tensor, beta: Tensor | None = None) -> None:
        """Take a step and, where there is one, the offset (a scalar).

        Raises `ValueError` where a step is not positive and finite, or beta is not finite.
        """
        if not bool((torch.isfinite(step) & (step > 0)).all()):
            raise ValueError("a step must be positive and finite")
        self.scale = step.detach().float().clone()
        if self.with_offset:
            beta = torch.zeros_like(self.scale) if beta is None else beta.detach().float().clone()
            if not bool(torch.isfinite(beta).all()):
                raise ValueError("an offset must be finite")
            self.beta = beta

    def quantize(self, x: Tensor) -> Tensor:
        return self.centred(x).sub_(self.low).to(torch.uint8)

    def centre(self, codes: Tensor) -> Tensor:
        return codes.float().add_(self.low)

    def centred(self, x: Tensor) -> Tensor:
        beta = self.calibrated(self.beta) if self.with_offset else None
        return _units(x, self.factor, beta).clamp_(self.low, self.high).round_()

    def dequantize(self, codes: Tensor) -> Tensor:
        value = self.centre(codes).mul_(self.factor)
        return value.add_(self.offset) if self.with_offset else value

    def inside(self, x: Tensor) -> Tensor:
        beta = self.calibrated(self.beta) if self.with_offset else None
        units = _units(x, self.factor, beta)
        return ((units >= self.low) & (units <= self.high)).to(x.dtype)

    def spec(self) -> dict[str, Any]:
        flags = {"with_offset": self.with_offset} if self.with_offset else {}
        return {**super().spec(), "axis": self.axis, "signed": self.signed, **flags}
