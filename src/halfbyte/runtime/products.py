"""How products of codes become steps of a native plan."""

from __future__ import annotations

from typing import Any

import numpy as np

from halfbyte.errors import HalfbyteError
from halfbyte.program.integers import prepare_weights
from halfbyte.program.ops import Array, Op
from halfbyte.runtime.compile import Compiler
from halfbyte.runtime.memory import View

Attributes = dict[str, Any]
Tensors = dict[str, Array]
_LEAST_BITS = 2


def linear(c: Compiler, op: Op, a: Attributes, t: Tensors) -> None:
    """Codes `[..., I]` times a packed weight."""
    codes = c.value(op.inputs[0])
    rows, columns = codes.size // codes.shape[-1], codes.shape[-1]
    matrix = codes.reshape((rows, columns))
    if matrix is None or (columns > 1 and matrix.strides[1] != 1):
        matrix = c.copied(codes).reshape((rows, columns))
    assert matrix is not None
    table, zero = _numbers(a["input"], op)
    out = c.memory.make(4, (*codes.shape[:-1], len(t["weight"])))
    flat = out.reshape((rows, len(t["weight"])))
    c.call(
        "linear", matrix, flat, t["weight"], max(_LEAST_BITS, a["bits"]), t["zero"], _bits(c, op, 0), zero, table,
        t["scale"], t.get("bias"),
    )  # fmt: skip
    c.views[op.output] = out


def conv(c: Compiler, op: Op, a: Attributes, t: Tensors) -> None:
    """Maps of codes; the result lies in memory with its channels innermost."""
    images = c.value(op.inputs[0])
    if images.shape[0] != 1:
        raise HalfbyteError(f"{op.output}: the native engine has no convolution of {images.shape[0]} maps of one image")
    codes = images.select(0, 0)
    table, zero = _numbers(a["input"], op)
    padded = any(map(any, a["pads"]))
    if table is not None or (padded and not 0 <= zero <= 255):
        raise HalfbyteError(f"{op.output}: the native engine has no convolution of such codes")
    # What pads is a code as well, and may be a larger one than all others.
    bits = max(_bits(c, op, 0), zero.bit_length() if padded else 0)
    weight, kernel = t["weight"], list(t["weight"].shape[2:])
    sizes = [
        (size + sum(pad) - dilation * (length - 1) - 1) // stride + 1
        for size, pad, dilation, length, stride in zip(
            codes.shape[1:], a["pads"], a["dilations"], kernel, a["strides"], strict=True
        )
    ]
    out = c.memory.make(4, (1, len(weight), *sizes), [0, 2, 3, 1])
    groups, depthwise = a["groups"], None
    if groups > 1 and weight.shape[1] == 1 and len(weight) == groups:
        codes = codes if codes.strides[0] == 1 else c.copied(codes, [1, 2, 0])
        numbers = prepare_weights(a, t).numbers.astype(np.int32)
        depthwise = np.ascontiguousarray(numbers[:, 0].transpose(1, 2, 0))
    by_tap = np.ascontiguousarray(weight.transpose(0, 2, 3, 1)).reshape(groups, len(weight) // groups, -1)
    zeros = t["zero"].reshape(groups, -1)
    c.call(
        "conv", codes, out.select(0, 0), list(by_tap) if depthwise is None else [], max(_LEAST_BITS, a["bits"]),
        list(zeros) if depthwise is None else [], kernel, list(a["strides"]), list(a["dilations"]),
        [pad[0] for pad in a["pads"]], bits, zero, t["scale"], t.get("bias"), depthwise,
    )  # fmt: skip
    c.views[op.output] = out


def matmul(c: Compiler, op: Op, a: Attributes, t: Tensors) -> None:
    """Products of two activations, head by head."""
    left, right = (c.value(name) for name in op.inputs)
    if left.shape[-1] > 1 and left.strides[-1] != 1:
        left = c.copied(left)
    shape = (*left.shape[:-1], right.shape[-1])
    out = c.memory.make(4, shape, _order(c, op, len(shape)))
    operands = [a["left"], a["right"]]
    widest = max(len(a["scale"]), *(len(operand.get("zero", [0])) for operand in operands))
    for index in range(widest):
        views = [view.select(1, index) if widest > 1 else view for view in (left, right, out)]
        numbers = [_numbers(operand, op, index) for operand in operands]
        scale = a["scale"][index if len(a["scale"]) > 1 else 0]
        _heads(c, op, views, numbers, scale)
    c.views[op.output] = out


def _heads(c: Compiler, op: Op, views: list[View], numbers: list[tuple[Array | None, int]], scale: float) -> None:
    merged = [view.reshape((view.size // (view.shape[-1] * view.shape[-2]), *view.shape[-2:])) for view in views]
    if any(view is None for view in merged):
        for index in range(views[0].shape[0]):
            _heads(c, op, [view.select(0, index) for view in views], numbers, scale)
        return
    (table, left_zero), (right_table, right_zero) = numbers
    if right_table is not None:
        raise HalfbyteError(f"{op.output}: the native engine has no levels on the right of a product")
    c.call("heads", *merged, _bits(c, op, 0), _bits(c, op, 1), left_zero, right_zero, table, scale)


def _numbers(operand: dict[str, Any], op: Op, index: int = 0) -> tuple[Array | None, int]:
    """A table of 256 levels, or the zero point of codes (of the head `index`, where each has one)."""
    if "zero" in operand:
        zeros = operand["zero"]
        return None, int(zeros[index if len(zeros) > 1 else 0])
    levels = operand["levels"]
    if min(levels) < 0 or max(levels) > 2**15 - 1:
        raise HalfbyteError(f"{op.output}: levels must be from 0 to {2**15 - 1}")
    table = np.zeros(256, np.int16)
    table[: len(levels)] = levels
    return table, 0


def _bits(c: Compiler, op: Op, number: int) -> int:
    return max(_LEAST_BITS, c.bits[op.inputs[number]])


def _order(c: Compiler, op: Op, dimensions: int) -> list[int] | None:
    """The order that lets the transposition behind a product, if that is all that reads it, be a view without gaps."""
    if c.alone(op.output, "transpose"):
        axes = list(c.consumers[op.output][0].attributes["axes"])
        if axes[-1] == dimensions - 1:
            return axes
    return None
