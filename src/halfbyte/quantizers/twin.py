"""Two uniform grids in one set of codes, a fine and a coarse one (Yuan et al., PTQ4ViT, ECCV 2022, section 3.2)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from halfbyte.quantizers.base import Quantizer


class TwinUniformQuantizer(Quantizer):
    """Half of the codes have the step `scale`, the other half `coarse_scale`.

    `signed`, for inputs behind GELU: negative values take the steps of `scale` (codes 2**(bits - 1) and up stand for
    -1, -2, ...), the others those of `coarse_scale`. Not signed, for attention maps: values that round to a step of
    `scale` below 2**(bits - 1) take it (the codes from 2**(bits - 1)), larger ones the steps of `coarse_scale`. Where
    one step is a whole multiple of the other, the centred codes are whole numbers of the smaller.
    """

    kind: ClassVar[str] = "twin_uniform"
    coarse_scale: Tensor | None

    def __init__(self, bits: int, *, signed: bool = True) -> None:
        super().__init__(bits)
        self.signed = signed
        self.register_buffer("coarse_scale", None)

    @property
    def exact_integers(self) -> bool:
        return all(unit == round(unit) for unit in self._units())

    @property
    def factor(self) -> Tensor:
        return torch.minimum(*self._scales())

    @property
    def largest(self) -> float:
        fine, coarse = self._units()
        half = self.levels // 2
        return max(half * fine, (half - 1) * coarse)

    def set_scales(self, scale: Tensor, coarse_scale: Tensor) -> None:
        """Take both steps, positive scalars. Raises `ValueError` where one is not positive and finite."""
        both = torch.stack((scale.detach().float(), coarse_scale.detach().float()))
        if not bool((torch.isfinite(both) & (both > 0)).all()):
            raise ValueError("a scale must be positive and finite")
        self.scale, self.coarse_scale = both[0].clone(), both[1].clone()

    def quantize(self, x: Tensor) -> Tensor:
        scale, coarse_scale = self._scales()
        half = self.levels // 2
        coarse = torch.round(x / coarse_scale).clamp_(0, half - 1)
        fine = torch.round(x / scale)
        if self.signed:
            codes = torch.where(fine < 0, half - 1 - fine.clamp(min=-half), coarse)
        else:
            codes = torch.where(fine < half, half + fine.clamp(min=0), coarse)
        return codes.to(torch.uint8)

    def centre(self, codes: Tensor) -> Tensor:
        fine_unit, coarse_unit = self._units()
        half = self.levels // 2
        steps = codes.float()
        fine = (half - 1 - steps) if self.signed else steps - half
        return torch.where(steps < half, steps * coarse_unit, fine * fine_unit)

    def dequantize(self, codes: Tensor) -> Tensor:
        return self.centre(codes).mul_(self.factor)

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), "signed": self.signed}

    def _units(self) -> tuple[float, float]:
        """What a fine and a coarse step are worth in units of the smaller."""
        scale, coarse_scale = (float(value) for value in self._scales())
        unit = min(scale, coarse_scale)
        return scale / unit, coarse_scale / unit

    def _scales(self) -> tuple[Tensor, Tensor]:
        return self.calibrated(self.scale), self.calibrated(self.coarse_scale)
