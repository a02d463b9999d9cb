"""Quantizers as ONNX nodes: from float32 values to codes, the same ones as the program's for every number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import TensorProto

from halfbyte.export.floats import along
from halfbyte.export.graph import Graph
from halfbyte.program.ops import Array, Op

LARGEST_CODE = 255
_SMALL_CODES = 16


@dataclass(frozen=True)
class Grid:
    """How the codes of a value lie in the file: whole number = code in the file - `zero`, times `scale`.

    `zero` None: codes are the program's, and what they stand for is the consumer's to say (level tables; zero points
    beyond the container). `shift` is what the file's codes have more than the program's, one number or one a head.
    `small`: the container is UINT4.
    """

    scale: float = 1.0
    zero: int | None = None
    shift: tuple[int, ...] = (0,)
    small: bool = False

    def unscaled(self) -> Grid:
        """The same codes, taken for whole numbers."""
        return replace(self, scale=1.0)


def quantize(graph: Graph, op: Op) -> Grid:
    """Write a uniform quantizer; codes of fewer than 8 bits are held to 0..last, where the container would go on."""
    attributes = op.attributes
    x, name = graph.name(op.inputs[0]), graph.name(op.output)
    if attributes["beta"]:
        x = graph.inner("Sub", [x, graph.scalar(attributes["beta"], op.output)], op.output)
    zero, last = attributes["zero"], attributes["last"]
    if len(attributes["scale"]) == len(zero) == 1 and 0 <= zero[0] <= LARGEST_CODE:
        return _per_tensor(graph, x, name, attributes)
    common = max(0, *zero)
    fits = max(common, common - min(zero) + last) <= LARGEST_CODE
    return _shifted(graph, op, x, common) if fits else _spelled_out(graph, op, x)


def _per_tensor(graph: Graph, x: str, name: str, attributes: Mapping[str, Any]) -> Grid:
    scale, zero, last = attributes["scale"][0], attributes["zero"][0], attributes["last"]
    factor = graph.scalar(scale, name)
    if graph.opset >= 21 and last < _SMALL_CODES and zero < _SMALL_CODES:
        # No runtime clips 4-bit codes, so the value is clipped: (last - zero) * scale rounds to the code `last`. Also
        # where that is the last of 4 bits: of what stands right before a quantizer to 4 bits ONNX Runtime 1.31 leaves
        # a Relu out, and OpenVINO 2026.4 joins the parts of a Concat wrongly.
        high = float(np.float32(last - zero) * np.float32(scale))
        x = graph.inner("Min", [x, graph.scalar(high, name)], name)
        place = graph.constant(np.array(zero, np.int8), name, TensorProto.UINT4)
        graph.node("QuantizeLinear", [x, factor, place], name)
        return Grid(scale, zero, small=True)
    place = graph.scalar(zero, name, np.uint8)
    if last == LARGEST_CODE:
        graph.node("QuantizeLinear", [x, factor, place], name)
    else:
        codes = graph.inner("QuantizeLinear", [x, factor, place], name)
        ends = [graph.scalar(end, name, np.uint8) for end in (0, last)]
        graph.node("Clip", [codes, *ends], name)
    return Grid(scale, zero)


def _shifted(graph: Graph, op: Op, x: str, common: int) -> Grid:
    """Codes shifted to one zero point: for heads with steps of their own, or where 0 lies below all codes.

    Runtimes multiply integers only where one zero point and one scale hold for a whole tensor.
    """
    attributes, owner = op.attributes, op.output
    zero, last = attributes["zero"], attributes["last"]
    units = graph.inner("Div", [x, _spread(graph, op, np.array(attributes["scale"], np.float32))], owner)
    numbers = np.array(zero, np.float32)
    units = graph.inner("Max", [units, _spread(graph, op, -numbers)], owner)
    units = graph.inner("Min", [units, _spread(graph, op, np.float32(last) - numbers)], owner)
    one, place = graph.scalar(1, owner), graph.scalar(common, owner, np.uint8)
    graph.node("QuantizeLinear", [units, one, place], graph.name(op.output))
    return Grid(1.0, common, tuple(common - number for number in zero))


def _spelled_out(graph: Graph, op: Op, x: str) -> Grid:
    """The definition in single operations, for zero points that no container holds."""
    attributes, owner = op.attributes, op.output
    units = graph.inner("Div", [x, _spread(graph, op, np.array(attributes["scale"], np.float32))], owner)
    rounded = graph.inner("Round", [units], owner)
    moved = graph.inner("Add", [rounded, _spread(graph, op, np.array(attributes["zero"], np.float32))], owner)
    ends = [graph.scalar(end, owner) for end in (0, attributes["last"])]
    clipped = graph.inner("Clip", [moved, *ends], owner)
    graph.node("Cast", [clipped], graph.name(op.output), to=TensorProto.UINT8)
    return Grid()


def _spread(graph: Graph, op: Op, numbers: Array) -> str:
    """A list as a constant that broadcasts along the quantizer's axis."""
    if numbers.size == 1:
        return graph.constant(numbers.reshape(()), op.output)
    return graph.constant(along(numbers, op.attributes["axis"], len(graph.shapes[op.inputs[0]])), op.output)


def quantize_log(graph: Graph, op: Op) -> Grid:
    """Write a logarithmic quantizer: the number of thresholds not below x, found by halving.

    The program compares the upper 16 bits; a number's are at most h just if it is at most the float whose upper bits
    are h and whose lower bits are ones, so comparing floats gives the same codes, for infinity and -0.0 too.
    """
    owner = op.output
    x = graph.name(op.inputs[0])
    if op.attributes["shift"]:
        x = graph.inner("Add", [x, graph.scalar(op.attributes["shift"], owner)], owner)
    # Nothing is below zero but what counts as zero; a threshold that nothing reaches fills the table up.
    x = graph.inner("Max", [x, graph.scalar(0, owner)], owner)
    thresholds = _float_thresholds(op.attributes["thresholds"])
    step = 1 << max(0, len(thresholds).bit_length() - 1)
    table = np.full(2 * step, -1, np.float32)
    table[: len(thresholds)] = thresholds
    code: str | None = None
    while step:
        # The threshold that decides whether the code is at least `step` more than is known so far.
        if code is None:
            bound = graph.scalar(table[step - 1], owner)
        else:
            bound = graph.inner("Gather", [graph.constant(table[step - 1 :], owner), code], owner, axis=0)
        above = graph.inner("LessOrEqual", [x, bound], owner)
        more = graph.inner("Cast", [above], owner, to=TensorProto.INT32)
        if step > 1:
            more = graph.inner("Mul", [more, graph.scalar(step, owner, np.int32)], owner)
        code = more if code is None else graph.inner("Add", [code, more], owner)
        step //= 2
    assert code is not None
    graph.node("Cast", [code], graph.name(op.output), to=TensorProto.UINT8)
    return Grid()


def _float_thresholds(halves: list[int]) -> Array:
    """The largest number with each upper half; from that of infinity on, every number is below."""
    bits = np.array(halves, np.uint32) << 16 | 0xFFFF
    return np.where(np.array(halves) >= 0x7F80, np.float32(np.inf), bits.view(np.float32)).astype(np.float32)
