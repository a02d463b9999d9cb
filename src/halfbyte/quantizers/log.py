"""Logarithmic quantizers, for tensors of positive values such as attention maps.

Codes are defined by thresholds on the input, not by calling a logarithm: libraries' log2 differ in the last bit.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from halfbyte.quantizers.base import Quantizer

LARGEST_LEVEL = 2**15 - 1
_PREFIXES = 2**16


class LogQuantizer(Quantizer):
    """value of code k = scale * 2**(-k / steps_per_octave), and 0 for the last code.

    With n steps an octave, code k covers the inputs whose rounded logarithm is k, from `scale * 2**(-(k + 1/2) / n)`
    (not included) to `scale * 2**(-(k - 1/2) / n)`; what lies below, the last code.
    The deployed levels are a table of 2**bits whole numbers `round((2**15 - 1) * 2**(-k / n))`, the last one 0, with
    the common factor `scale / (2**15 - 1)`, and each threshold is moved by at most 0.4 % to where the upper half of a
    float32 changes, so that this half alone decides the code: quantizing is one table look-up, the same everywhere.

    `paper_exact` restores what the papers' code does: thresholds as they are, levels in float, and an exact zero beside
    2**bits levels (2**bits + 1 symbols). For simulation only.
    """

    steps_per_octave: ClassVar[int]
    # The share of the scale to which the paper's code raises smaller inputs before it takes their logarithm.
    paper_floor: ClassVar[float] = 0.0

    def __init__(self, bits: int, *, paper_exact: bool = False) -> None:
        super().__init__(bits)
        self.paper_exact = paper_exact
        self._tables: dict[str, Tensor] = {}
        self._tables_of: Tensor | None = None

    @property
    def exact_integers(self) -> bool:
        return not self.paper_exact

    @property
    def symbols(self) -> int:
        """The number of different codes: 2**bits, or one more under `paper_exact`."""
        return self.levels + int(self.paper_exact)

    @property
    def factor(self) -> Tensor:
        scale = self.calibrated(self.scale)
        return scale if self.paper_exact else (scale.double() / LARGEST_LEVEL).float()

    @property
    def largest(self) -> float:
        return 1.0 if self.paper_exact else float(LARGEST_LEVEL)

    def set_scale(self, scale: Tensor) -> None:
        """Take the largest level, a positive scalar. Raises `ValueError` where it is not positive and finite."""
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise ValueError("a scale must be positive and finite")
        self.scale = scale.detach().float().clone()

    def level_table(self) -> np.ndarray:
        """The centred level of every code, float64: whole numbers unless `paper_exact`."""
        exponents = np.arange(self.symbols) / self.steps_per_octave
        levels = 2.0**-exponents if self.paper_exact else np.rint(LARGEST_LEVEL * 2.0**-exponents)
        levels[-1] = 0.0
        return levels

    def thresholds(self) -> np.ndarray:
        """For every code but the first the largest input, float32, that gets it or a later one; from large to small."""
        middles = (np.arange(self.symbols - 1) + 0.5) / self.steps_per_octave
        exact = (float(self.calibrated(self.scale)) * 2.0**-middles).astype(np.float32)
        if self.paper_exact:
            return exact
        upper_half = (exact.view(np.uint32).astype(np.int64) + 0x8000) // 0x10000 - 1
        return (np.maximum(upper_half, 0) * 0x10000 + 0xFFFF).astype(np.uint32).view(np.float32)

    def quantize(self, x: Tensor) -> Tensor:
        if self.paper_exact:
            x = x.clamp(min=self.paper_floor * self.calibrated(self.scale))
            position = torch.bucketize(x, self._table("ascending", x.device), out_int32=True)
            return (self.symbols - 1) - position
        return self._looked_up("codes", x)

    def centre(self, codes: Tensor) -> Tensor:
        return self._table("levels", codes.device)[codes.int()]

    def centred(self, x: Tensor) -> Tensor:
        return self.centre(self.quantize(x)) if self.paper_exact else self._looked_up("levels_by_prefix", x)

    def dequantize(self, codes: Tensor) -> Tensor:
        return self.centre(codes).mul_(self.factor)

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), **({"paper_exact": True} if self.paper_exact else {})}

    def _looked_up(self, table: str, x: Tensor) -> Tensor:
        halves = x.contiguous().view(-1).view(torch.uint16).view(-1, 2)
        prefix = halves[:, 1].to(torch.int32)
        return torch.index_select(self._table(table, x.device), 0, prefix).view(x.shape)

    def _table(self, name: str, device: torch.device) -> Tensor:
        scale = self.calibrated(self.scale)
        if self._tables_of is not scale or self._tables["levels"].device != device:
            self._tables = {key: torch.from_numpy(table).to(device) for key, table in self._make_tables().items()}
            self._tables_of = scale
        return self._tables[name]

    def _make_tables(self) -> dict[str, np.ndarray]:
        levels, ascending = self.level_table().astype(np.float32), self.thresholds()[::-1].copy()
        tables = {"levels": levels, "ascending": ascending}
        if not self.paper_exact:
            prefixes = (np.arange(_PREFIXES, dtype=np.uint32) * 0x10000).view(np.float32)
            positive = np.where(np.arange(_PREFIXES) < _PREFIXES // 2, prefixes, np.float32(0))
            codes = (self.symbols - 1) - np.searchsorted(ascending, positive, side="left")
            tables |= {"codes": codes.astype(np.uint8), "levels_by_prefix": levels[codes]}
        return tables


class Log2Quantizer(LogQuantizer):
    """Powers of two (AdaLog's baseline; FQ-ViT's attention quantizer)."""

    kind: ClassVar[str] = "log2"
    steps_per_octave: ClassVar[int] = 1
    paper_floor: ClassVar[float] = 1e-15


class LogSqrt2Quantizer(LogQuantizer):
    """Powers of the square root of two (RepQ-ViT, after softmax)."""

    kind: ClassVar[str] = "log_sqrt2"
    steps_per_octave: ClassVar[int] = 2
