"""Kernels on contiguous NumPy arrays. A wrong shape, dtype, layout or value is a ValueError that names the argument.

`out`, where given, is filled and returned. `threads` is the most that take part; the results do not depend on it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

class PackedWeight:
    """Weight codes [N, K] as the kernels read them."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def bits(self) -> int: ...
    @property
    def activation_bits(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def nbytes(self) -> int: ...

def isa() -> str:
    """The instruction set in use."""

def isas() -> list[str]:
    """Those that this processor has."""

def choose_isa(name: str) -> None:
    """Use another one from now on; weights that were packed before keep theirs."""

def return_memory() -> None:
    """Give the system back what was freed, where the C library can (a program's tensors, once a plan is built)."""

def multiply_add_peak(kind: str) -> float:
    """Billions of multiply-adds a second, one thread, of "bytes", "words" or "floats" in registers; 0: not measured."""

def pair_steps(weight_bits: int, activation_bits: int) -> int:
    """How many sums of two products of such codes may be added up in 16 bits."""

def pack_weight(codes: Codes, bits: int, zero: int | Ints, activation_bits: int = 8) -> PackedWeight:
    """Codes [N, K] with one zero point, or one a row [N], for activations of so many bits."""

def linear(
    codes: Codes,
    packed: PackedWeight,
    za: int,
    scale: Floats | None = None,
    bias: Floats | None = None,
    out: npt.NDArray[Any] | None = None,
    threads: int = 1,
) -> npt.NDArray[Any]:
    """sums[m, n] of (codes[m, k] - za)(w[n, k] - zero[n]), int32; or float32(sums) * scale[n] + bias[n]."""

def matmul(
    left: Codes,
    right: Codes,
    left_bits: int,
    right_bits: int,
    left_zero: int,
    right_zero: int,
    scale: float | None = None,
    transposed: bool = False,
    out: npt.NDArray[Any] | None = None,
    threads: int = 1,
) -> npt.NDArray[Any]:
    """left [H, M, K] times right [H, K, N] (`transposed`: [H, N, K]): int32, or float32 times `scale`."""

def matmul_levels(
    left: Codes,
    table: npt.NDArray[np.int16],
    right: Codes,
    right_bits: int,
    right_zero: int,
    scale: float | None = None,
    out: npt.NDArray[Any] | None = None,
    threads: int = 1,
) -> npt.NDArray[Any]:
    """table[left] [H, M, K] times right [H, K, N]; the levels are from 0 to 32767. Sums may pass 2^31 with a scale."""

def quantize(
    x: Floats, scale: float, zero: int, bits: int, offset: float = 0.0, out: Codes | None = None, threads: int = 1
) -> Codes:
    """clip(rint((x - offset) / scale) + zero, 0, 2^bits - 1), each step in float32; NaN gives 0."""

def quantize_table(x: Floats, table: Codes, shift: float = 0.0, out: Codes | None = None, threads: int = 1) -> Codes:
    """table[upper 16 bits of float32(x + shift)], for a table of 65536 codes."""

def gelu(x: Floats, out: Floats | None = None, threads: int = 1) -> Floats: ...
def gelu_quantize(
    x: Floats, scale: float, zero: int, bits: int, offset: float = 0.0, out: Codes | None = None, threads: int = 1
) -> Codes: ...
def gelu_quantize_table(
    x: Floats, table: Codes, shift: float = 0.0, out: Codes | None = None, threads: int = 1
) -> Codes: ...
def layer_norm(
    x: Floats, weight: Floats, bias: Floats, eps: float, out: Floats | None = None, threads: int = 1
) -> Floats:
    """Over the last dimension, in float64, rounded once; sums in eight lanes (element i in lane i mod 8)."""

def layer_norm_quantize(
    x: Floats,
    weight: Floats,
    bias: Floats,
    eps: float,
    scale: float,
    zero: int,
    bits: int,
    offset: float = 0.0,
    out: Codes | None = None,
    threads: int = 1,
) -> Codes: ...
def softmax(x: Floats, factor: float = 1.0, out: Floats | None = None, threads: int = 1) -> Floats:
    """Of float32(x * factor) over the last dimension, in float64, rounded once."""

def softmax_quantize(
    x: Floats,
    scale: float,
    zero: int,
    bits: int,
    factor: float = 1.0,
    offset: float = 0.0,
    out: Codes | None = None,
    threads: int = 1,
) -> Codes: ...
def softmax_quantize_table(
    x: Floats,
    table: Codes,
    factor: float = 1.0,
    shift: float = 0.0,
    out: Codes | None = None,
    threads: int = 1,
) -> Codes: ...
def add(x: Floats, y: Floats, out: Floats | None = None, threads: int = 1) -> Floats: ...
