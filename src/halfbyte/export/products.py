"""Products of codes as ONNX nodes.

Where a container holds the codes and one zero point, the form is the ecosystem's: DequantizeLinear before MatMul and
Conv, which runtimes replace by integer kernels. Where it does not, codes become whole numbers in float32, whose sums
are exact below 2**24, and the scale follows the product, as in the program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto

from halfbyte.export.codes import Grid
from halfbyte.export.floats import along, onnx_pads
from halfbyte.export.graph import Graph
from halfbyte.program.ops import Array, Op

# What two of them times 255 may reach in the 16 bits in which processors without VNNI add them up.
SAFE_WEIGHT = 64
_INT8 = 128


class Packed(NamedTuple):
    """Weights in their container: whole number = `codes` - `zero`, one zero point for each output (int64)."""

    codes: Array
    zero: Array
    dtype: int | None


def pack(codes: Array, zero: Array, bits: int, small: bool) -> Packed:
    """Weights `[O, ...]` of `bits` bits as int8, or as INT4 where `small` and they fit.

    Around 0 where all are small enough for processors that add pairs of products in 16 bits; else the codes less
    2**(bits - 1), with a zero point for each output, which may lie beyond the container.
    """
    column = zero.astype(np.int64).reshape(-1, *[1] * (codes.ndim - 1))
    numbers = codes.astype(np.int64) - column
    half = 1 << (bits - 1)
    if small and bits <= 4 and np.max(abs(2 * (zero.astype(np.int64) - half) + 1)) < 16:
        return Packed((codes.astype(np.int64) - half).astype(np.int8), zero.astype(np.int64) - half, TensorProto.INT4)
    if np.abs(numbers).max() <= SAFE_WEIGHT:
        return Packed(numbers.astype(np.int8), np.zeros(len(zero), np.int64), None)
    return Packed((codes.astype(np.int64) - half).astype(np.int8), zero.astype(np.int64) - half, None)


def fits(zero: Array) -> bool:
    """Whether int8 holds zero points."""
    return bool((zero >= -_INT8).all() and (zero < _INT8).all())


def linear(graph: Graph, op: Op, tensors: dict[str, Array], grid: Grid) -> None:
    packed = pack(tensors["weight"], tensors["zero"], op.attributes["bits"], graph.opset >= 21)
    scale, owner, steps = tensors["scale"], op.output, list[tuple[str, Array]]()
    exact = _shares(scale, grid.scale)
    if grid.zero is not None and fits(packed.zero):
        # Runtimes make one float Gemm of a MatMul of matrices and the addition behind it before they look for integers;
        # with the scale between the two they do not.
        if exact is None or len(graph.shapes[op.output]) == 2:
            grid, exact, steps = grid.unscaled(), np.ones_like(scale), [("Mul", scale)]
        x = dequantized(graph, op.inputs[0], grid, owner)
        w = _weight(graph, Packed(packed.codes.T, packed.zero, packed.dtype), exact, 1, owner)
    else:
        x = whole_numbers(graph, op.inputs[0], grid, op.attributes["input"], owner)
        w, steps = _numbers(graph, tensors, owner, turned=True), [("Mul", scale)]
    product = graph.inner("MatMul", [x, w], owner)
    if "bias" in tensors:
        steps.append(("Add", tensors["bias"]))
    finish(graph, op, product, steps)


def matmul(graph: Graph, op: Op, left: Grid, right: Grid) -> None:
    owner, scale = op.output, np.array(op.attributes["scale"], np.float32)
    sides = [(op.inputs[0], left, op.attributes["left"]), (op.inputs[1], right, op.attributes["right"])]
    steps = [("Mul", scale)]
    if left.zero is None or right.zero is None:
        values = [whole_numbers(graph, name, grid, operand, owner) for name, grid, operand in sides]
    elif scale.size == 1 and np.float32(left.scale) * np.float32(right.scale) == scale[0]:
        values, steps = [dequantized(graph, name, grid, owner) for name, grid, _ in sides], []
    else:
        values = [dequantized(graph, name, grid.unscaled(), owner) for name, grid, _ in sides]
    finish(graph, op, graph.inner("MatMul", values, owner), steps, axis=1)


def conv(graph: Graph, op: Op, tensors: dict[str, Array], grid: Grid) -> None:
    packed = pack(tensors["weight"], tensors["zero"], op.attributes["bits"], graph.opset >= 21)
    owner, scale, window = op.output, tensors["scale"], _window(op)
    bias = [tensors["bias"]] if "bias" in tensors else []
    steps = [("Mul", scale), *(("Add", one) for one in bias)]
    if grid.zero is not None and graph.convolutions == "integer":
        plain = pack(tensors["weight"], tensors["zero"], op.attributes["bits"], False)
        product = graph.inner("Cast", [_integer_conv(graph, op, plain, grid)], owner, to=TensorProto.FLOAT)
    elif grid.zero is None or not fits(packed.zero):
        x = whole_numbers(graph, op.inputs[0], grid, op.attributes["input"], owner, plain=True)
        product = graph.inner("Conv", [x, _numbers(graph, tensors, owner)], owner, **window)
    elif graph.convolutions == "fused":
        # With all scales and the bias inside, and a quantizer behind, ONNX Runtime makes one kernel of the three.
        packed, share = _finest(packed, scale.astype(np.float64) / grid.scale)
        w = _weight(graph, packed, share.astype(np.float32), 0, owner)
        inputs = [dequantized(graph, op.inputs[0], grid, owner), w, *(graph.constant(one, owner) for one in bias)]
        product, steps = graph.inner("Conv", inputs, owner, **window), []
    else:
        x = dequantized(graph, op.inputs[0], grid.unscaled(), owner)
        w = _weight(graph, packed, np.ones_like(scale), 0, owner)
        product = graph.inner("Conv", [x, w], owner, **window)
    if op.output in graph.shared:
        # OpenVINO 2026.4 loses the scale of a convolution that a quantizer and an addition read. Behind this, which
        # changes no number, it does not move scales about.
        steps.append(("Max", np.array(np.finfo(np.float32).min)))
    finish(graph, op, product, steps, axis=1)


def _finest(packed: Packed, scale: Array) -> tuple[Packed, Array]:
    """The same weights in the finest steps that are safe, so that a bias in steps of the sums is rounded least."""
    if packed.dtype is not None or packed.zero.any():
        return packed, scale
    largest = np.abs(packed.codes.reshape(len(packed.codes), -1).astype(np.int64)).max(1)
    factor = SAFE_WEIGHT // np.clip(largest, 1, SAFE_WEIGHT)
    codes = packed.codes * factor.astype(np.int8).reshape(-1, *[1] * (packed.codes.ndim - 1))
    return packed._replace(codes=codes), scale / factor


def _integer_conv(graph: Graph, op: Op, packed: Packed, grid: Grid) -> str:
    """The int32 sums. Zero points that differ are taken off behind: z times the sum of the window's inputs, which one
    more output, of ones, gives.

    Weights are uint8: ONNX Runtime 1.23 has no other, and products of bytes without signs never overflow 16 bits.
    """
    owner, window, groups = op.output, _window(op), op.attributes["groups"]
    codes, zero = _unsigned(packed.codes), packed.zero + _INT8
    source, place = as_bytes(graph, op.inputs[0], grid, owner), graph.scalar(grid.zero or 0, owner, np.uint8)
    common = int(zero[0]) if (zero == zero[0]).all() and fits(packed.zero) else None
    if common is not None:
        inputs = [source, graph.constant(codes, owner), place, graph.scalar(common, owner, np.uint8)]
        return graph.inner("ConvInteger", inputs, owner, **window)
    nothing = graph.scalar(_INT8, owner, np.uint8)
    sums = graph.inner("ConvInteger", [source, graph.constant(codes, owner), place, nothing], owner, **window)
    ones = graph.constant(_unsigned(np.ones((groups, *codes.shape[1:]), np.int8)), owner)
    total = graph.inner("ConvInteger", [source, ones, place, nothing], owner, **window)
    if groups > 1:
        rows = np.repeat(np.arange(groups), len(codes) // groups)
        total = graph.inner("Gather", [total, graph.constant(rows, owner)], owner, axis=1)
    taken = graph.constant(along(packed.zero.astype(np.int32), 1, 4), owner)
    return graph.inner("Sub", [sums, graph.inner("Mul", [total, taken], owner)], owner)


def _unsigned(codes: Array) -> Array:
    """int8 as uint8, 128 above."""
    return (codes.astype(np.int16) + _INT8).astype(np.uint8)


def finish(graph: Graph, op: Op, value: str, steps: list[tuple[str, Array]], axis: int = -1) -> None:
    """What follows the sums, the last step as the operation's output; vectors lie along `axis`."""
    ndim = len(graph.shapes[op.output])
    for number, (kind, vector) in enumerate(steps):
        shaped = vector.reshape(()) if vector.size == 1 else along(vector, axis % ndim, ndim)
        shaped = vector if axis == -1 and vector.size > 1 else shaped
        inputs = [value, graph.constant(shaped, op.output)]
        last = number == len(steps) - 1
        value = graph.node(kind, inputs, graph.name(op.output)) if last else graph.inner(kind, inputs, op.output)
    if not steps:
        graph.rename_last(value, graph.name(op.output))


def dequantized(graph: Graph, name: str, grid: Grid, owner: str) -> str:
    """Codes as the values that they stand for."""
    dtype, kind = (np.int8, TensorProto.UINT4) if grid.small else (np.uint8, None)
    place = graph.constant(np.array(grid.zero, dtype), owner, kind)
    return graph.inner("DequantizeLinear", [graph.name(name), graph.scalar(grid.scale, owner), place], owner)


def as_bytes(graph: Graph, name: str, grid: Grid, owner: str) -> str:
    """Codes as uint8."""
    return graph.inner("Cast", [graph.name(name)], owner, to=TensorProto.UINT8) if grid.small else graph.name(name)


def whole_numbers(
    graph: Graph, name: str, grid: Grid, operand: Mapping[str, Any], owner: str, plain: bool = False
) -> str:
    """Codes as whole numbers in float32. `plain`: not by DequantizeLinear, behind which ONNX Runtime would round the
    float weights of a convolution to 8 bits of its own."""
    if "levels" in operand:
        table = graph.constant(np.array(operand["levels"], np.float32), owner)
        index = graph.inner("Cast", [graph.name(name)], owner, to=TensorProto.INT32)
        return graph.inner("Gather", [table, index], owner, axis=0)
    if grid.zero is not None and not plain:
        return dequantized(graph, name, grid.unscaled(), owner)
    zero = np.array(operand["zero"] if grid.zero is None else [grid.zero], np.float32)
    shaped = zero.reshape(()) if zero.size == 1 else along(zero, 1, len(graph.shapes[name]))
    value = graph.inner("Cast", [graph.name(name)], owner, to=TensorProto.FLOAT)
    return graph.inner("Sub", [value, graph.constant(shaped, owner)], owner)


def _weight(graph: Graph, packed: Packed, scale: Array, axis: int, owner: str) -> str:
    codes = graph.constant(packed.codes, owner, packed.dtype)
    place = graph.constant(packed.zero.astype(np.int8), owner, packed.dtype)
    return graph.inner("DequantizeLinear", [codes, graph.constant(scale, owner), place], owner, axis=axis)


def _numbers(graph: Graph, tensors: dict[str, Array], owner: str, turned: bool = False) -> str:
    """Weights as whole numbers in float32, `turned` `[I, O]`; the file holds their codes."""
    codes = tensors["weight"]
    zero = tensors["zero"].astype(np.float32).reshape(-1, *[1] * (codes.ndim - 1))
    if turned:
        codes, zero = codes.T, zero.T
    value = graph.inner("Cast", [graph.constant(codes, owner)], owner, to=TensorProto.FLOAT)
    return graph.inner("Sub", [value, graph.constant(zero, owner)], owner)


def _shares(scale: Array, known: float) -> Array | None:
    """The other factor of the scale of a product, exact in float32; None where there is none."""
    guess = (scale.astype(np.float64) / known).astype(np.float32)
    for near in (guess, np.nextafter(guess, np.float32(0)), np.nextafter(guess, np.float32(np.inf))):
        guess = np.where(guess * np.float32(known) == scale, guess, near)
    return guess if (guess * np.float32(known) == scale).all() and (guess > 0).all() else None


def _window(op: Op) -> dict[str, Any]:
    attributes = op.attributes
    return {
        "strides": attributes["strides"],
        "pads": onnx_pads(attributes["pads"]),
        "dilations": attributes["dilations"],
        "group": attributes["groups"],
    }
