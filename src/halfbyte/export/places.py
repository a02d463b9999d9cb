"""What moves elements about, as ONNX nodes; of any dtype."""

from __future__ import annotations

from typing import Any

import numpy as np

from halfbyte.errors import HalfbyteError
from halfbyte.export.graph import Graph
from halfbyte.program.ops import Array, Op


def _source(graph: Graph, op: Op) -> str:
    return graph.name(op.inputs[0])


def _int64(graph: Graph, op: Op, *numbers: int) -> str:
    return graph.constant(np.array(numbers, np.int64), op.output)


def constant(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    graph.alias(op.output, graph.constant(tensors["value"], op.output))


def reshape(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    wanted: list[Any] = list(op.attributes["shape"])
    moving = [place for place, size in enumerate(wanted) if isinstance(size, dict)]
    if len(moving) == 1:
        # One size may be left to the runtime, which then needs no arithmetic on shapes.
        wanted[moving[0]] = -1
    graph.node("Reshape", [_source(graph, op), graph.sizes(wanted, op.output)], graph.name(op.output))


def transpose(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    graph.node("Transpose", [_source(graph, op)], graph.name(op.output), perm=op.attributes["axes"])


def slice_(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    ends = [graph.sizes([op.attributes[end]], op.output) for end in ("start", "stop")]
    along = [_int64(graph, op, op.attributes["axis"]), _int64(graph, op, op.attributes["step"])]
    graph.node("Slice", [_source(graph, op), *ends, *along], graph.name(op.output))


def select(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    index = op.attributes["index"]
    if isinstance(index, dict):
        place = graph.inner("Squeeze", [graph.sizes([index], op.output)], op.output)
    else:
        place = graph.scalar(index, op.output, np.int64)
    graph.node("Gather", [_source(graph, op), place], graph.name(op.output), axis=op.attributes["axis"])


def concat(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    graph.node("Concat", [graph.name(name) for name in op.inputs], graph.name(op.output), axis=op.attributes["axis"])


def expand(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    sizes = graph.sizes(op.attributes["shape"], op.output)
    graph.node("Expand", [_source(graph, op), sizes], graph.name(op.output))


def repeat(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    times, source = op.attributes["times"], _source(graph, op)
    missing = len(times) - len(graph.shapes[op.inputs[0]])
    if missing:
        source = graph.inner("Unsqueeze", [source, _int64(graph, op, *range(missing))], op.output)
    graph.node("Tile", [source, graph.sizes(times, op.output)], graph.name(op.output))


def pad(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    pads = op.attributes["pads"]
    # ONNX wants what comes before each dimension, then what comes behind each.
    ends = _int64(graph, op, *(before for before, _ in pads), *(behind for _, behind in pads))
    value = graph.scalar(op.attributes["value"], op.output)
    graph.node("Pad", [_source(graph, op), ends, value], graph.name(op.output))


def roll(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    value, shape = _source(graph, op), graph.shapes[op.inputs[0]]
    steps = []
    for axis, shift in zip(op.attributes["axes"], op.attributes["shifts"], strict=True):
        slope, size = shape[axis]
        if slope:
            raise HalfbyteError(f"ONNX cannot write the operation roll {op.output!r}: it rolls the images of a batch")
        if shift % size:
            steps.append((axis, shift % size))
    if not steps:
        graph.alias(op.output, value)
        return
    for number, (axis, shift) in enumerate(steps):
        along, cut, end = _int64(graph, op, axis), _int64(graph, op, -shift), _int64(graph, op, 2**31)
        last = graph.inner("Slice", [value, cut, end, along], op.output)
        first = graph.inner("Slice", [value, _int64(graph, op, 0), cut, along], op.output)
        ends = number == len(steps) - 1
        value = (
            graph.node("Concat", [last, first], graph.name(op.output), axis=axis)
            if ends
            else graph.inner("Concat", [last, first], op.output, axis=axis)
        )


def gather(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    index = graph.constant(tensors["index"].astype(np.int64), op.output)
    graph.node("Gather", [_source(graph, op), index], graph.name(op.output), axis=op.attributes["axis"])


WRITERS = {
    "constant": constant, "reshape": reshape, "transpose": transpose, "slice": slice_, "select": select,
    "concat": concat, "expand": expand, "repeat": repeat, "pad": pad, "roll": roll, "gather": gather,
}  # fmt: skip
