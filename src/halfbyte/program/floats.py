"""What runs between the integers: GELU in float32, everything else in float64 and rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from halfbyte.gelu import CLIP, DENOMINATOR, NUMERATOR
from halfbyte.program.integers import windows
from halfbyte.program.ops import Array


def gelu(x: Array) -> Array:
    """x * (1/2 + c P(c^2) / Q(c^2)), c = x clipped, each operation rounded to float32."""
    clipped = np.clip(x, np.float32(-CLIP), np.float32(CLIP))
    square = clipped * clipped
    result = _horner(square, NUMERATOR) * clipped
    result /= _horner(square, DENOMINATOR)
    result += np.float32(0.5)
    result *= x
    return np.asarray(result)


def _horner(x: Array, coefficients: tuple[float, ...]) -> Array:
    value = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value *= x
        value += np.float32(coefficient)
    return value


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))))


def _hard(x: Array) -> Array:
    return np.asarray(np.clip(x + 3, 0, 6))


# Functions of one float64 number.
ELEMENTWISE: dict[str, Callable[[Array], Array]] = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "gelu_tanh": _gelu_tanh,
    "hardsigmoid": lambda x: _hard(x) / 6,
    "hardswish": lambda x: x * _hard(x) / 6,
}


def softmax(x: Array, axis: int) -> Array:
    """Of float64 along `axis`."""
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    powers /= powers.sum(axis=axis, keepdims=True)
    return np.asarray(powers)


def layer_norm(x: Array, eps: float, weight: Array | None, bias: Array | None) -> Array:
    """Of float64 over the last dimension."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return _scaled(centred / np.sqrt(variance + eps), weight, bias, -1)


def rms_norm(x: Array, eps: float, weight: Array | None, bias: Array | None) -> Array:
    """Of float64 over the last dimension."""
    return _scaled(x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + eps), weight, bias, -1)


def group_norm(x: Array, eps: float, groups: int, weight: Array | None, bias: Array | None) -> Array:
    """Of float64 `[B, C, ...]`, each group of channels by itself."""
    grouped = x.reshape(x.shape[0], groups, -1)
    return _scaled(layer_norm(grouped, eps, None, None).reshape(x.shape), weight, bias, 1)


def average_pool(x: Array, attributes: Mapping[str, Any]) -> Array:
    """Of float64 maps `[B, C, H, W]`."""
    padded = np.pad(x, ((0, 0), (0, 0), *map(tuple, attributes["pads"])))
    return np.asarray(windows(padded, attributes["kernel"], attributes["strides"], [1, 1]).mean(axis=(4, 5)))


def max_pool(x: Array, attributes: Mapping[str, Any]) -> Array:
    """Of float32 maps `[B, C, H, W]`."""
    padded = np.pad(x, ((0, 0), (0, 0), *map(tuple, attributes["pads"])), constant_values=-np.inf)
    seen = windows(padded, attributes["kernel"], attributes["strides"], attributes["dilations"])
    return np.asarray(seen.max(axis=(4, 5)))


def _scaled(x: Array, weight: Array | None, bias: Array | None, axis: int) -> Array:
    shape = [-1 if dimension == axis % x.ndim else 1 for dimension in range(x.ndim)]
    if weight is not None:
        x = x * weight.astype(np.float64).reshape(shape)
    return x if bias is None else x + bias.astype(np.float64).reshape(shape)
