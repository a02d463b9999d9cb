"""Arithmetic in float as ONNX nodes. A runtime computes it in float32 in its own way; only GELU is spelled out."""

from __future__ import annotations

import math

import numpy as np

from halfbyte.export.graph import Graph
from halfbyte.gelu import CLIP, DENOMINATOR, NUMERATOR
from halfbyte.program.ops import Array, Op

_BINARY = {"add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div"}


def _source(graph: Graph, op: Op) -> str:
    return graph.name(op.inputs[0])


def _binary(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    inputs = [graph.name(name) for name in op.inputs]
    if len(inputs) == 1:
        inputs.append(graph.scalar(op.attributes["scalar"], op.output))
    graph.node(_BINARY[op.kind], inputs, graph.name(op.output))


def along(tensor: Array, axis: int, ndim: int) -> Array:
    """A vector in the shape that broadcasts along `axis` of `ndim` dimensions."""
    return tensor.reshape([-1 if place == axis else 1 for place in range(ndim)])


def _affine(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    axis, ndim = op.attributes["axis"], len(graph.shapes[op.inputs[0]])
    scale, shift = (graph.constant(along(tensors[role], axis, ndim), op.output) for role in ("scale", "shift"))
    scaled = graph.inner("Mul", [_source(graph, op), scale], op.output)
    graph.node("Add", [scaled, shift], graph.name(op.output))


def _relu(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    graph.node("Relu", [_source(graph, op)], graph.name(op.output))


def _clip(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    low, high = (graph.scalar(op.attributes[end], op.output) for end in ("low", "high"))
    if graph.opset < 21:
        graph.node("Clip", [_source(graph, op), low, high], graph.name(op.output))
        return
    # ONNX Runtime 1.31 refuses a model with a Clip before a QuantizeLinear to 4 bits.
    raised = graph.inner("Max", [_source(graph, op), low], op.output)
    graph.node("Min", [raised, high], graph.name(op.output))


def _gelu(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    """x (1/2 + c P(c^2) / Q(c^2)), each operation one node, so that every runtime rounds as the program does."""
    x, owner = _source(graph, op), op.output
    ends = [graph.scalar(end, owner) for end in (-CLIP, CLIP)]
    clipped = graph.inner("Clip", [x, *ends], owner)
    square = graph.inner("Mul", [clipped, clipped], owner)
    numerator = graph.inner("Mul", [_horner(graph, square, NUMERATOR, owner), clipped], owner)
    ratio = graph.inner("Div", [numerator, _horner(graph, square, DENOMINATOR, owner)], owner)
    share = graph.inner("Add", [ratio, graph.scalar(0.5, owner)], owner)
    graph.node("Mul", [share, x], graph.name(op.output))


def _horner(graph: Graph, x: str, coefficients: tuple[float, ...], owner: str) -> str:
    value = graph.inner("Mul", [x, graph.scalar(coefficients[-1], owner)], owner)
    value = graph.inner("Add", [value, graph.scalar(coefficients[-2], owner)], owner)
    for coefficient in reversed(coefficients[:-2]):
        value = graph.inner("Mul", [value, x], owner)
        value = graph.inner("Add", [value, graph.scalar(coefficient, owner)], owner)
    return value


def _gelu_erf(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    """x / 2 * (1 + erf(x / sqrt(2))) in the form that runtimes know and replace by one kernel."""
    x, owner = _source(graph, op), op.output
    scaled = graph.inner("Div", [x, graph.scalar(math.sqrt(2), owner)], owner)
    share = graph.inner("Add", [graph.inner("Erf", [scaled], owner), graph.scalar(1, owner)], owner)
    product = graph.inner("Mul", [x, share], owner)
    graph.node("Mul", [product, graph.scalar(0.5, owner)], graph.name(op.output))


def _sigmoid(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    graph.node("Sigmoid", [_source(graph, op)], graph.name(op.output))


def _tanh(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    graph.node("Tanh", [_source(graph, op)], graph.name(op.output))


def _silu(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    share = graph.inner("Sigmoid", [_source(graph, op)], op.output)
    graph.node("Mul", [_source(graph, op), share], graph.name(op.output))


def _gelu_tanh(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    x, owner = _source(graph, op), op.output
    cube = graph.inner("Mul", [graph.inner("Mul", [x, x], owner), x], owner)
    inside = graph.inner("Add", [x, graph.inner("Mul", [cube, graph.scalar(0.044715, owner)], owner)], owner)
    bent = graph.inner("Mul", [inside, graph.scalar(math.sqrt(2 / math.pi), owner)], owner)
    share = graph.inner("Add", [graph.inner("Tanh", [bent], owner), graph.scalar(1, owner)], owner)
    half = graph.inner("Mul", [x, graph.scalar(0.5, owner)], owner)
    graph.node("Mul", [half, share], graph.name(op.output))


def _hard(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    """hardsigmoid and hardswish. ONNX's own HardSigmoid multiplies by a sixth, which is no float32 number."""
    x, owner = _source(graph, op), op.output
    raised = graph.inner("Add", [x, graph.scalar(3, owner)], owner)
    clipped = graph.inner("Clip", [raised, graph.scalar(0, owner), graph.scalar(6, owner)], owner)
    if op.kind == "hardswish":
        clipped = graph.inner("Mul", [x, clipped], owner)
    graph.node("Div", [clipped, graph.scalar(6, owner)], graph.name(op.output))


def _softmax(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    graph.node("Softmax", [_source(graph, op)], graph.name(op.output), axis=op.attributes["axis"])


def _layer_norm(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    channels = graph.shapes[op.inputs[0]][-1][1]
    parts = [tensors.get("weight", np.ones(channels, np.float32))]
    parts += [tensors["bias"]] if "bias" in tensors else []
    inputs = [_source(graph, op), *(graph.constant(part, op.output) for part in parts)]
    graph.node("LayerNormalization", inputs, graph.name(op.output), axis=-1, epsilon=op.attributes["eps"])


def _rms_norm(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    x, owner = _source(graph, op), op.output
    mean = _reduce_mean(graph, graph.inner("Mul", [x, x], owner), [-1], True, owner, None)
    raised = graph.inner("Add", [mean, graph.scalar(op.attributes["eps"], owner)], owner)
    value = graph.inner("Div", [x, graph.inner("Sqrt", [raised], owner)], owner)
    _scaled(graph, op, value, tensors, -1)


def _group_norm(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    groups, owner = op.attributes["groups"], op.output
    flat = graph.constant(np.array([0, groups, -1], np.int64), owner)
    grouped = graph.inner("Reshape", [_source(graph, op), flat], owner)
    ones, zeros = (graph.constant(np.full(groups, number, np.float32), owner) for number in (1, 0))
    normed = graph.inner("InstanceNormalization", [grouped, ones, zeros], owner, epsilon=op.attributes["eps"])
    shape = [-1 if slope else plus for slope, plus in graph.shapes[op.output]]
    value = graph.inner("Reshape", [normed, graph.constant(np.array(shape, np.int64), owner)], owner)
    _scaled(graph, op, value, tensors, 1)


def _scaled(graph: Graph, op: Op, value: str, tensors: dict[str, Array], axis: int) -> None:
    """`value` * weight + bias as the operation's output."""
    ndim = len(graph.shapes[op.output])
    steps = [(kind, tensors[role]) for kind, role in (("Mul", "weight"), ("Add", "bias")) if role in tensors]
    for kind, tensor in steps:
        value = graph.inner(kind, [value, graph.constant(along(tensor, axis % ndim, ndim), op.output)], op.output)
    graph.node("Identity", [value], graph.name(op.output))


def _mean(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    _reduce_mean(graph, _source(graph, op), op.attributes["axes"], op.attributes["keep"], op.output, op)


def _reduce_mean(graph: Graph, x: str, axes: list[int], keep: bool, owner: str, op: Op | None) -> str:
    """As the output of `op`, or in the middle of it where None."""
    # Its axes were an attribute before opset 18, and are an input since.
    inputs, attributes = [x], {"axes": axes}
    if graph.opset >= 18:
        inputs, attributes = [x, graph.constant(np.array(axes, np.int64), owner)], {}
    if op is None:
        return graph.inner("ReduceMean", inputs, owner, keepdims=int(keep), **attributes)
    return graph.node("ReduceMean", inputs, graph.name(op.output), keepdims=int(keep), **attributes)


def onnx_pads(pads: list[list[int]]) -> list[int]:
    """[[top, bottom], [left, right]] as ONNX wants it: top, left, bottom, right."""
    return [*(before for before, _ in pads), *(behind for _, behind in pads)]


def _pool(graph: Graph, op: Op, tensors: dict[str, Array]) -> None:
    attributes = op.attributes
    common = {
        "kernel_shape": attributes["kernel"],
        "strides": attributes["strides"],
        "pads": onnx_pads(attributes["pads"]),
    }
    kind, own = "AveragePool", {"count_include_pad": 1}
    if op.kind == "max_pool":
        kind, own = "MaxPool", {"dilations": attributes["dilations"]}
    graph.node(kind, [_source(graph, op)], graph.name(op.output), **common, **own)


WRITERS = {
    **dict.fromkeys(_BINARY, _binary), "affine": _affine, "relu": _relu, "clip": _clip, "gelu": _gelu,
    "sigmoid": _sigmoid, "silu": _silu, "tanh": _tanh, "gelu_tanh": _gelu_tanh, "hardsigmoid": _hard,
    "hardswish": _hard, "softmax": _softmax, "layer_norm": _layer_norm, "rms_norm": _rms_norm,
    "group_norm": _group_norm, "mean": _mean, "average_pool": _pool, "max_pool": _pool,
}  # fmt: skip
# One kernel instead of some twenty nodes; up to 1.1e-6 away from the program's.
FAST_GELU = _gelu_erf
