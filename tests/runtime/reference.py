"""What the kernels must give to the bit, in NumPy: every float32 operation by itself, sums in the stated order."""

from typing import Any

import numpy as np
import numpy.typing as npt

from halfbyte.gelu import CLIP, DENOMINATOR, NUMERATOR

Array = npt.NDArray[Any]


def product(left: Array, right: Array, left_zero: Array | int, right_zero: Array | int) -> Array:
    """left [..., M, K] times right [..., N, K], int64."""
    centred = right.astype(np.int64) - np.asarray(right_zero, np.int64)[..., None]
    return (left.astype(np.int64) - left_zero) @ np.swapaxes(centred, -1, -2)


def rescaled(sums: Array, scale: Array | float, bias: Array | None = None) -> Array:
    y = sums.astype(np.float32) * np.float32(scale)
    return y if bias is None else y + bias


def quantize(x: Array, scale: float, zero: int, bits: int, offset: float = 0.0) -> Array:
    steps = np.rint((x - np.float32(offset)) / np.float32(scale)) + np.float32(zero)
    return np.clip(np.where(np.isnan(steps), 0, steps), 0, 2**bits - 1).astype(np.uint8)


def quantize_table(x: Array, table: Array, shift: float = 0.0) -> Array:
    return table[(x + np.float32(shift)).view(np.uint32) >> 16]


def gelu(x: Array) -> Array:
    clipped = np.clip(x, np.float32(-CLIP), np.float32(CLIP))
    square = clipped * clipped
    ratio = horner(square, NUMERATOR) * clipped / horner(square, DENOMINATOR)
    return (ratio + np.float32(0.5)) * x


def horner(x: Array, coefficients: tuple[float, ...]) -> Array:
    value = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + np.float32(coefficient)
    return value


def sum_in_lanes(x: Array) -> Array:
    """Over the last dimension, float64: element i in lane i mod 8, each lane in order, then the lanes."""
    padded = np.concatenate([x, np.zeros((*x.shape[:-1], -x.shape[-1] % 8))], axis=-1)
    lane = np.zeros((*x.shape[:-1], 8))
    for eight in np.split(padded, padded.shape[-1] // 8, axis=-1):
        lane = lane + eight
    even = (lane[..., 0] + lane[..., 4]) + (lane[..., 2] + lane[..., 6])
    odd = (lane[..., 1] + lane[..., 5]) + (lane[..., 3] + lane[..., 7])
    return (even + odd)[..., None]


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    wide = x.astype(np.float64)
    mean = sum_in_lanes(wide) / x.shape[-1]
    variance = sum_in_lanes((wide - mean) ** 2) / x.shape[-1]
    return ((wide - mean) / np.sqrt(variance + eps) * weight.astype(np.float64) + bias).astype(np.float32)


def softmax(x: Array, factor: float = 1.0) -> Array:
    """With NumPy's exponential, whose last bit is not that of the kernels."""
    wide = (x * np.float32(factor)).astype(np.float64)
    powers = np.exp(wide - wide.max(-1, keepdims=True))
    return (powers / sum_in_lanes(powers)).astype(np.float32)


def log_table(bits: int, scale: float = 1.0, steps_per_octave: float = 1.0) -> Array:
    """The codes, by the upper half of a float32, of a log quantizer of powers of 2**(-1 / steps_per_octave)."""
    middles = (np.arange(2**bits - 1) + 0.5) / steps_per_octave
    limits = np.sort((scale * 2.0**-middles).astype(np.float32))
    values = (np.arange(65536, dtype=np.uint32) << 16).view(np.float32)
    positive = np.where(np.arange(65536) < 32768, values, np.float32(0))
    return (2**bits - 1 - np.searchsorted(limits, positive, side="left")).astype(np.uint8)
