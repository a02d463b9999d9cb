"""The quantized product of two activations, as attention needs it twice."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from halfbyte.layers.site import SiteModule, exact_dtype, rescale


class QuantMatMul(SiteModule):
    """left `[..., M, K]` @ right `[..., K, N]`; scales are per tensor or per head (dimension 1)."""

    operands: ClassVar[tuple[str, str]] = ("left", "right")

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        if self.state == "float":
            return left @ right
        if self.state == "observe":
            return self.seen("left", left) @ self.seen("right", right)
        a, b = self.quantizer("left"), self.quantizer("right")
        dtype = exact_dtype(left.shape[-1] * a.largest * b.largest, a.exact_integers and b.exact_integers)
        sums = torch.matmul(a.centred(left).to(dtype), b.centred(right).to(dtype))
        return rescale(sums, (a.factor.double() * b.factor.double()).float(), None)
