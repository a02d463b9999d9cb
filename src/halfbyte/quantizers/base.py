"""What every quantizer is: a map from a tensor to integer codes and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from halfbyte.errors import HalfbyteError

MIN_BITS, MAX_BITS = 2, 8


def check_bits(bits: object, what: str = "bits") -> int:
    """`bits` as an int from 2 to 8; anything else raises `HalfbyteError` that names `what`."""
    if isinstance(bits, int) and not isinstance(bits, bool) and MIN_BITS <= bits <= MAX_BITS:
        return bits
    raise HalfbyteError(f"{what} must be a whole number from {MIN_BITS} to {MAX_BITS}, not {bits!r}")


class Quantizer(nn.Module, ABC):
    """Maps a float tensor to codes `0 .. 2**bits - 1` and back.

    `forward(x)` equals `dequantize(quantize(x))` bit for bit and has a straight-through gradient. Integer
    arithmetic uses the same codes in centred form: `forward(x) == centred(x) * factor + offset` up to one rounding,
    where `centred(x)` holds whole numbers (unless `exact_integers` is false: a paper's own defect, kept to compare).
    """

    kind: ClassVar[str]
    scale: Tensor | None

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = check_bits(bits)
        self.register_buffer("scale", None)

    @property
    def fitted(self) -> bool:
        """Whether calibration has set the scale."""
        return self.scale is not None

    @property
    def levels(self) -> int:
        """The number of codes, 2**bits."""
        return 1 << self.bits

    @property
    def last_code(self) -> int:
        """The largest code in use."""
        return self.levels - 1

    @property
    def exact_integers(self) -> bool:
        """Whether the centred codes are whole numbers, so that sums of their products are exact."""
        return True

    @property
    @abstractmethod
    def factor(self) -> Tensor:
        """float32, broadcastable against the quantized tensor: what one unit of a centred code is worth."""

    @property
    def offset(self) -> float:
        """What is added to every value beside the centred code; a site folds it into its bias."""
        return 0.0

    @property
    @abstractmethod
    def largest(self) -> float:
        """The largest magnitude that a centred code can have."""

    @abstractmethod
    def quantize(self, x: Tensor) -> Tensor:
        """The codes of `x`: uint8, of the same shape."""

    @abstractmethod
    def dequantize(self, codes: Tensor) -> Tensor:
        """The values, float32, that `codes` stand for."""

    @abstractmethod
    def centre(self, codes: Tensor) -> Tensor:
        """The centred form, float32, of `codes`."""

    def centred(self, x: Tensor) -> Tensor:
        """The centred codes of `x`, float32, of the same shape."""
        return self.centre(self.quantize(x))

    def calibrated(self, parameter: Tensor | None) -> Tensor:
        """`parameter`, one of this quantizer's; raises `HalfbyteError` where calibration has not set it."""
        if parameter is None:
            raise HalfbyteError("a quantizer was used before it was calibrated; begin with a calibration step")
        return parameter

    def inside(self, x: Tensor) -> Tensor | None:
        """1 where the straight-through gradient passes, 0 where a value is clipped, in the dtype of `x`; None: it
        passes everywhere."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        seen = x.detach()
        if self.exact_integers:
            # The same bits without the detour over stored codes.
            quantized = self.centred(seen).mul_(self.factor)
            quantized = quantized.add_(self.offset) if self.offset else quantized
        else:
            quantized = self.dequantize(self.quantize(seen))
        if torch.is_grad_enabled() and x.requires_grad:
            passed: Tensor = StraightThrough.apply(x, quantized, self.inside(seen))
            return passed
        return quantized

    def spec(self) -> dict[str, Any]:
        """Plain values from which `build_quantizer` makes an unfitted quantizer of the same kind."""
        return {"kind": self.kind, "bits": self.bits}

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.spec().items())


class StraightThrough(torch.autograd.Function):
    """Gives the quantized value and, backwards, the gradient where nothing was clipped (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor, inside: Tensor | None) -> Tensor:
        ctx.save_for_backward(inside)
        return quantized

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] if inside is None else gradients[0] * inside, None, None
