"""Logarithmic quantizers, for tensors of positive values such as attention maps.

Codes are defined by thresholds on the input, not by calling a logarithm: libraries' log2 differ in the last bit.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from halfbyte.errors import HalfbyteError
from halfbyte.quantizers.base import Quantizer

Array = npt.NDArray[Any]
LEVEL_BITS, LEAST_LEVEL_BITS = 15, 4
MAX_SHIFT = 16
# AdaLog's bases are 2**(base / 37); its paper searches these.
STEPS, PAPER_BASES, MAX_BASE = 37, range(10, 138), 255
# The least value of GELU, taken off: the shift that AdaLog gives its post-GELU inputs.
GELU_SHIFT = 0.16997124254703522
_PREFIXES = 2**16


def level_bits_behind_gelu(bits: int) -> int:
    """Of AdaLog's levels there: for codes of at most 4 bits bytes, which move top-1 and agreement by no more than they
    scatter and cost 1 to 3 % in KL (DeiT-Tiny, W4A4)."""
    return 8 if bits <= 4 else LEVEL_BITS


class LogQuantizer(Quantizer):
    """value of code k = scale * 2**(-k / steps_per_octave), and 0 for the last code.

    With n steps an octave, code k covers the inputs whose rounded logarithm is k, from `scale * 2**(-(k + 1/2) / n)`
    (not included) to `scale * 2**(-(k - 1/2) / n)`; what lies below, the last code.
    The deployed levels are a table of 2**bits whole numbers `round(L * 2**(-k / n))`, the last one 0, with the common
    factor `scale / L`, L = 2**level_bits - 1, and each threshold is moved by at most 0.4 % to where the upper half of a
    float32 changes, so that this half alone decides the code: quantizing is one table look-up, the same everywhere.
    Levels of 8 bits can be multiplied as bytes, and round the smallest to few different numbers.

    `zero` False gives the last code the level that the rule gives it instead of 0: better where hardly an input is 0.

    `shift` is added to the input before and taken off the value behind, for inputs that reach a little below zero,
    such as GELU's (AdaLog, section 3.3).

    `paper_exact` restores what the papers' code does: thresholds as they are, levels in float, and an exact zero beside
    2**bits levels (2**bits + 1 symbols). For simulation only.
    """

    # The share of the scale to which the paper's code raises smaller inputs before it takes their logarithm.
    paper_floor: ClassVar[float] = 0.0

    def __init__(
        self, bits: int, *, paper_exact: bool = False, shift: float = 0.0, zero: bool = True,
        level_bits: int = LEVEL_BITS,
    ) -> None:  # fmt: skip
        super().__init__(bits)
        if not (isinstance(shift, (int, float)) and 0 <= shift <= MAX_SHIFT):
            raise HalfbyteError(f"the shift of a log quantizer must be from 0 to {MAX_SHIFT}, not {shift!r}")
        if type(level_bits) is not int or not LEAST_LEVEL_BITS <= level_bits <= LEVEL_BITS:
            raise HalfbyteError(
                f"the level_bits of a log quantizer must be from {LEAST_LEVEL_BITS} to {LEVEL_BITS}, not {level_bits!r}"
            )
        self.paper_exact = paper_exact
        self.level_bits = level_bits
        self.zero = zero
        self.shift = float(shift)
        self._tables: dict[str, Tensor] = {}
        self._tables_of: tuple[Tensor, int] | None = None

    @staticmethod
    def steps_per_octave(base: Array) -> Array:
        """How many codes halve the value, for bases of this kind; a kind without a choice has the one base 1."""
        raise NotImplementedError

    @classmethod
    def bases(cls, bits: int, paper_exact: bool = False) -> tuple[int, ...]:
        """The bases that a search may choose from."""
        return (1,)

    @property
    def base(self) -> int:
        """Which of the kind's bases is in use."""
        return 1

    @property
    def signed_base(self) -> int:
        """The base as a search writes it: negative where the last level is not 0."""
        return self.base if self.zero else -self.base

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
        return scale if self.paper_exact else (scale.double() / self.largest).float()

    @property
    def offset(self) -> float:
        return -self.shift

    @property
    def largest(self) -> float:
        return 1.0 if self.paper_exact else float(2**self.level_bits - 1)

    def set_scale(self, scale: Tensor) -> None:
        """Take the largest level, a positive scalar. Raises `ValueError` where it is not positive and finite."""
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise ValueError("a scale must be positive and finite")
        self.scale = scale.detach().float().clone()

    def level_table(self, base: Array | None = None) -> Array:
        """The centred levels, float64 `[n, symbols]`, for each of n bases (None: `[symbols]` for the one in use).

        A search writes a base whose last level is not to be 0 as a negative number.
        """
        if base is None:
            return np.asarray(self.level_table(np.array([self.signed_base]))[0])
        exponents = np.arange(self.symbols) / self.steps_per_octave(np.abs(base))[:, None]
        levels = self._paper_levels(np.abs(base)) if self.paper_exact else np.rint(self.largest * 2.0**-exponents)
        levels[:, -1] *= base < 0
        return levels

    def thresholds(self, scale: Array | None = None, base: Array | None = None) -> Array:
        """For every code but the first the largest input, float32, that gets it or a later one; from large to small.

        `[n, symbols - 1]` for n scales (float32) and bases; None: `[symbols - 1]` for those in use.
        """
        if scale is None or base is None:
            own = self.calibrated(self.scale).detach().cpu().numpy().reshape(1)
            return np.asarray(self.thresholds(own, np.array([self.base]))[0])
        middles = (np.arange(self.symbols - 1) + 0.5) / self.steps_per_octave(np.abs(base))[:, None]
        exact = (scale.astype(np.float64)[:, None] * 2.0**-middles).astype(np.float32)
        if self.paper_exact:
            return exact
        upper_half = (exact.view(np.uint32).astype(np.int64) + 0x8000) // 0x10000 - 1
        return (np.maximum(upper_half, 0) * 0x10000 + 0xFFFF).astype(np.uint32).view(np.float32)

    def quantize(self, x: Tensor) -> Tensor:
        if self.paper_exact:
            x = self._shifted(x).clamp(min=self.paper_floor * self.calibrated(self.scale))
            position = torch.bucketize(x, self._table("ascending", x.device), out_int32=True)
            return (self.symbols - 1) - position
        return self._looked_up("codes", x)

    def centre(self, codes: Tensor) -> Tensor:
        return self._table("levels", codes.device)[codes.int()]

    def centred(self, x: Tensor) -> Tensor:
        return self.centre(self.quantize(x)) if self.paper_exact else self._looked_up("levels_by_prefix", x)

    def dequantize(self, codes: Tensor) -> Tensor:
        value = self.centre(codes).mul_(self.factor)
        return value.sub_(self.shift) if self.shift else value

    def spec(self) -> dict[str, Any]:
        plain = super().spec() | ({"paper_exact": True} if self.paper_exact else {})
        plain |= {} if self.zero else {"zero": False}
        plain |= {} if self.level_bits == LEVEL_BITS else {"level_bits": self.level_bits}
        return plain | ({"shift": self.shift} if self.shift else {})

    def _paper_levels(self, base: Array) -> Array:
        return np.asarray(2.0 ** -(np.arange(self.symbols) / self.steps_per_octave(base)[:, None]))

    def _shifted(self, x: Tensor) -> Tensor:
        return x + self.shift if self.shift else x

    def _looked_up(self, table: str, x: Tensor) -> Tensor:
        return torch.index_select(self._table(table, x.device), 0, prefixes(self._shifted(x))).view(x.shape)

    def _table(self, name: str, device: torch.device) -> Tensor:
        scale = self.calibrated(self.scale)
        made_of = self._tables_of
        if made_of is None or made_of[0] is not scale or made_of[1] != self.base or self._tables[name].device != device:
            self._tables = {key: torch.from_numpy(table).to(device) for key, table in self._make_tables().items()}
            self._tables_of = (scale, self.base)
        return self._tables[name]

    def _make_tables(self) -> dict[str, Array]:
        levels, ascending = self.level_table().astype(np.float32), self.thresholds()[::-1].copy()
        tables = {"levels": levels, "ascending": ascending}
        if not self.paper_exact:
            first_of_prefix = (np.arange(_PREFIXES, dtype=np.uint32) * 0x10000).view(np.float32)
            positive = np.where(np.arange(_PREFIXES) < _PREFIXES // 2, first_of_prefix, np.float32(0))
            codes = (self.symbols - 1) - np.searchsorted(ascending, positive, side="left")
            tables |= {"codes": codes.astype(np.uint8), "levels_by_prefix": levels[codes]}
        return tables


def prefixes(x: Tensor) -> Tensor:
    """The upper half of every float32 of `x`, as int32 `[elements]`: all that decides a deployed log code."""
    halves = x.contiguous().view(-1).view(torch.uint16).view(-1, 2)
    return halves[:, 1].to(torch.int32)


class Log2Quantizer(LogQuantizer):
    """Powers of two (AdaLog's baseline; FQ-ViT's attention quantizer)."""

    kind: ClassVar[str] = "log2"
    paper_floor: ClassVar[float] = 1e-15

    @staticmethod
    def steps_per_octave(base: Array) -> Array:
        return np.ones(base.shape)


class LogSqrt2Quantizer(LogQuantizer):
    """Powers of the square root of two (RepQ-ViT, after softmax)."""

    kind: ClassVar[str] = "log_sqrt2"

    @staticmethod
    def steps_per_octave(base: Array) -> Array:
        return np.full(base.shape, 2.0)


class AdaLogQuantizer(LogQuantizer):
    """Powers of 2**(base / 37): a base that is searched for (Wu et al., AdaLog, ECCV 2024, section 3.2).

    `paper_exact` has the paper's two tables as levels: a mantissa of bits + 1 bits and a shift by whole octaves.
    """

    kind: ClassVar[str] = "adalog"
    paper_floor: ClassVar[float] = 1e-15

    def __init__(self, bits: int, *, base: int = STEPS, **options: Any) -> None:
        super().__init__(bits, **options)
        self.set_base(base)

    @staticmethod
    def steps_per_octave(base: Array) -> Array:
        return np.asarray(STEPS / base)

    @classmethod
    def bases(cls, bits: int, paper_exact: bool = False) -> tuple[int, ...]:
        # The paper's coarsest steps for all widths waste the codes of 6 and more bits: these get finer ones.
        finest = PAPER_BASES[0] if paper_exact else max(1, PAPER_BASES[0] >> max(0, bits - 5))
        return tuple(range(finest, finest + len(PAPER_BASES)))

    @property
    def base(self) -> int:
        return self._base

    def set_base(self, base: int) -> None:
        """Take the number of 37ths of an octave between two levels; raises `HalfbyteError` outside 1 to 255."""
        if not isinstance(base, int) or isinstance(base, bool) or not 1 <= base <= MAX_BASE:
            raise HalfbyteError(f"the base of an adalog quantizer must be from 1 to {MAX_BASE}, not {base!r}")
        self._base = base

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), "base": self.base}

    def _paper_levels(self, base: Array) -> Array:
        mantissa, octaves = self.mantissas_and_octaves(base)
        return np.asarray(mantissa / (2 * self.levels - 2) * 2.0**-octaves)

    def mantissas_and_octaves(self, base: Array) -> tuple[Array, Array]:
        """The paper's tables `[n, symbols]`: the level of code k is mantissa / (2**(bits + 1) - 2) * 2**-octaves."""
        steps = np.arange(self.symbols) * base[:, None]
        return np.rint((2 * self.levels - 2) * 2.0 ** -(steps % STEPS / STEPS)), np.floor(steps / STEPS)
