"""Codes and the exact sums of their products: what `quantize`, `linear`, `conv` and `matmul` compute.

Products of whole numbers are summed by float32 matrix products where every partial sum stays below 2**24, else by
float64 ones below 2**53: both are exact, in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from halfbyte.errors import HalfbyteError
from halfbyte.program.ops import Array

_EXACT_FLOAT32, _EXACT_FLOAT64 = 2**24, 2**53


class Weights(NamedTuple):
    """A weight as whole numbers `[O, ...]`, in the dtype in which all its sums with the input are exact."""

    numbers: Array
    scale: Array
    bias: Array | None


def quantize(x: Array, attributes: Mapping[str, Any]) -> Array:
    """uint8 codes of float32 `x`."""
    scale, zero = (_along(attributes[name], attributes["axis"], x.ndim, np.float32) for name in ("scale", "zero"))
    units = np.rint((x - np.float32(attributes["beta"])) / scale)
    codes: Array = np.clip(units + zero, np.float32(0), np.float32(attributes["last"])).astype(np.uint8)
    return codes


def quantize_log(x: Array, attributes: Mapping[str, Any]) -> Array:
    """uint8 codes of float32 `x`, by the upper half of its bits."""
    halves = np.ascontiguousarray(x + np.float32(attributes["shift"])).view(np.uint32) >> 16
    positive = np.where(halves < 0x8000, halves, 0).astype(np.int64)
    rising = np.array(attributes["thresholds"][::-1], np.int64)
    return (len(rising) - np.searchsorted(rising, positive, side="left")).astype(np.uint8)


def prepare_weights(attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Weights:
    """What `linear` and `conv` multiply by."""
    zero = tensors["zero"].reshape(-1, *[1] * (tensors["weight"].ndim - 1))
    numbers = tensors["weight"].astype(np.int64) - zero
    largest = int(np.abs(numbers).reshape(len(numbers), -1).sum(1).max()) * largest_number(attributes["input"])
    return Weights(numbers.astype(_exact(largest)), tensors["scale"], tensors.get("bias"))


def linear(codes: Array, weights: Weights, attributes: Mapping[str, Any]) -> tuple[Array, Array]:
    """The integer sums `[..., O]` of codes `[..., I]`, and the result."""
    numbers = whole_numbers(codes, attributes["input"], weights.numbers.dtype)
    sums = (numbers.reshape(-1, codes.shape[-1]) @ weights.numbers.T).reshape(*codes.shape[:-1], -1)
    return sums, rescale(sums, weights.scale, weights.bias)


def conv(codes: Array, weights: Weights, attributes: Mapping[str, Any]) -> tuple[Array, Array]:
    """The integer sums `[B, O, H', W']` of codes `[B, I, H, W]`, and the result."""
    # Image by image: the windows take kh * kw times the space of the maps.
    sums = np.concatenate([_conv(image[None], weights.numbers, attributes) for image in codes])
    channels = (-1, 1, 1)
    bias = None if weights.bias is None else weights.bias.reshape(channels)
    return sums, rescale(sums, weights.scale.reshape(channels), bias)


def _conv(codes: Array, weight: Array, attributes: Mapping[str, Any]) -> Array:
    numbers = whole_numbers(codes, attributes["input"], weight.dtype)
    numbers = np.pad(numbers, ((0, 0), (0, 0), *map(tuple, attributes["pads"])))
    rows, columns, *kernel = weight.shape
    view = windows(numbers, kernel, attributes["strides"], attributes["dilations"])
    groups, (height, width) = attributes["groups"], view.shape[2:4]
    # [g, I / g * kh * kw, positions]
    patches = view.reshape(groups, columns, height * width, *kernel).transpose(0, 1, 3, 4, 2)
    patches = patches.reshape(groups, -1, height * width)
    sums = np.matmul(weight.reshape(groups, rows // groups, -1), patches)
    return np.asarray(sums.reshape(1, rows, height, width))


def matmul(left: Array, right: Array, attributes: Mapping[str, Any]) -> tuple[Array, Array]:
    """The integer sums `[..., M, N]` of codes `[..., M, K]` and `[..., K, N]`, and the result."""
    operands = attributes["left"], attributes["right"]
    dtype = _exact(left.shape[-1] * largest_number(operands[0]) * largest_number(operands[1]))
    sums = np.matmul(whole_numbers(left, operands[0], dtype), whole_numbers(right, operands[1], dtype))
    return sums, rescale(sums, _along(attributes["scale"], 1, sums.ndim, np.float32), None)


def windows(x: Array, kernel: Any, strides: Any, dilations: Any) -> Array:
    """A view `[B, C, H', W', kh, kw]` of every window of maps `[B, C, H, W]`."""
    extent = [dilation * (size - 1) + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, (1, 1, *extent))[:, :, :, :, 0, 0]
    return np.asarray(view[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]])


def whole_numbers(codes: Array, operand: Mapping[str, Any], dtype: Any) -> Array:
    """What the codes stand for in integer arithmetic."""
    if "levels" in operand:
        table = np.zeros(256, dtype)
        table[: len(operand["levels"])] = operand["levels"]
        return np.asarray(table[codes])
    numbers = codes.astype(dtype)
    numbers -= _along(operand["zero"], 1, codes.ndim, dtype)
    return numbers


def largest_number(operand: Mapping[str, Any]) -> int:
    """The largest magnitude that `whole_numbers` can give for codes of at most 8 bits."""
    if "levels" in operand:
        return int(max(abs(level) for level in operand["levels"]))
    return int(max(max(abs(zero), abs(255 - zero)) for zero in operand["zero"]))


def rescale(sums: Array, scale: Array, bias: Array | None) -> Array:
    """f32(f32(sums) * scale) + bias."""
    result = sums.astype(np.float32)
    result *= scale
    if bias is not None:
        result += bias
    return result


def _along(numbers: list[float], axis: int | None, ndim: int, dtype: Any) -> Array:
    """A list as an array that broadcasts along `axis` of `ndim` dimensions; one number as it is."""
    array = np.array(numbers, dtype)
    if array.size == 1:
        return array.reshape(())
    return array.reshape([-1 if dimension == axis else 1 for dimension in range(ndim)])


def _exact(largest_sum: int) -> Any:
    if largest_sum >= _EXACT_FLOAT64:
        raise HalfbyteError("integer sums of a program pass 2**53; its zero points lie too far from its codes")
    return np.float32 if largest_sum < _EXACT_FLOAT32 else np.float64
