"""The shape of each operation's output, which is where inputs, attributes and tensors are seen to fit together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from halfbyte.program.ops import Array

Shape = tuple[int, ...]
# The attributes, sizes resolved; the tensors by role.
Rule = Callable[[list[Shape], Mapping[str, Any], Mapping[str, Array]], Shape]


class MisfitError(ValueError):
    """Shapes, attributes and tensors that do not fit together."""


def _require(fits: bool, what: str) -> None:
    if not fits:
        raise MisfitError(what)


def _same(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    return inputs[0]


def _axis(attributes: Mapping[str, Any], shape: Shape) -> int:
    axis = int(attributes["axis"])
    _require(axis < len(shape), f"axis {axis} of {list(shape)}")
    return axis


def _quantize(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    numbers = 1 if attributes["axis"] is None else inputs[0][_axis(attributes, inputs[0])]
    for name in ("scale", "zero"):
        _require(len(attributes[name]) in (1, numbers), f"{len(attributes[name])} numbers as {name}")
    return inputs[0]


def _weights(tensors: Mapping[str, Array], bits: int, ndim: int) -> Shape:
    weight = tensors["weight"]
    _require(weight.ndim == ndim and weight.size > 0, f"a weight {list(weight.shape)}")
    for role in ("zero", "scale", "bias"):
        if role in tensors:
            _require(tensors[role].shape == weight.shape[:1], f"a {role} {list(tensors[role].shape)}")
    _require(int(weight.max()) < 2**bits, f"weight codes of more than {bits} bits")
    return weight.shape


def _linear(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    rows, columns = _weights(tensors, attributes["bits"], 2)
    _one_operand(attributes["input"])
    _require(len(inputs[0]) >= 2 and inputs[0][-1] == columns, f"{columns} columns for {list(inputs[0])}")
    return (*inputs[0][:-1], rows)


def _one_operand(operand: Mapping[str, Any]) -> None:
    _require("levels" in operand or len(operand["zero"]) == 1, "an input with more than one zero")


def _conv(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    rows, columns, *kernel = _weights(tensors, attributes["bits"], 4)
    _one_operand(attributes["input"])
    groups, shape = attributes["groups"], inputs[0]
    _require(len(shape) == 4 and shape[1] == columns * groups, f"{columns} x {groups} channels for {list(shape)}")
    _require(rows % groups == 0, f"{rows} outputs in {groups} groups")
    return (shape[0], rows, *_window(shape, kernel, attributes["strides"], attributes["pads"], attributes["dilations"]))


def _window(shape: Shape, kernel: Any, strides: Any, pads: Any, dilations: Any) -> list[int]:
    sizes = []
    for size, extent, stride, pad, dilation in zip(shape[2:], kernel, strides, pads, dilations, strict=True):
        room = size + sum(pad) - dilation * (extent - 1) - 1
        _require(room >= 0, f"a window {list(kernel)} on {list(shape)}")
        sizes.append(room // stride + 1)
    return sizes


def _matmul(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    left, right = inputs
    _require(len(left) == len(right) >= 3 and left[:-2] == right[:-2], f"{list(left)} times {list(right)}")
    _require(left[-1] == right[-2], f"{list(left)} times {list(right)}")
    heads = {1, left[1]} if len(left) > 3 else {1}
    for numbers in (attributes["scale"], attributes["left"].get("zero", [0]), attributes["right"].get("zero", [0])):
        _require(len(numbers) in heads, f"{len(numbers)} numbers for {list(left)}")
    return (*left[:-1], right[-1])


def _broadcast(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    scalar = attributes.get("scalar")
    _require((len(inputs) == 1) == (scalar is not None), "one input takes a scalar, two take none")
    return tuple(np.broadcast_shapes(*inputs))


def _affine(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    wanted = (inputs[0][_axis(attributes, inputs[0])],)
    _require(all(tensor.shape == wanted for tensor in tensors.values()), f"scale and shift must be {list(wanted)}")
    return inputs[0]


def _norm(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    channels = 1 if "groups" in attributes else -1
    _require(len(inputs[0]) >= 2, f"a norm of {list(inputs[0])}")
    wanted = inputs[0][channels]
    _require(all(tensor.shape == (wanted,) for tensor in tensors.values()), f"weight and bias must be [{wanted}]")
    _require(wanted % attributes.get("groups", 1) == 0, "groups that do not divide the channels")
    return inputs[0]


def _softmax(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    _axis(attributes, inputs[0])
    return inputs[0]


def _mean(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    axes, shape = set(attributes["axes"]), inputs[0]
    _require(max(axes) < len(shape), f"axes {sorted(axes)} of {list(shape)}")
    _require(len(axes) == len(attributes["axes"]), "an axis twice")
    kept = [1 if axis in axes else size for axis, size in enumerate(shape) if attributes["keep"] or axis not in axes]
    return tuple(kept)


def _pool(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    shape, kernel = inputs[0], attributes["kernel"]
    _require(len(shape) == 4, f"a pool of {list(shape)}")
    dilations = attributes.get("dilations", [1, 1])
    _require(
        all(2 * max(pad) <= size for pad, size in zip(attributes["pads"], kernel, strict=True)),
        "padding wider than half the window",
    )
    return (*shape[:2], *_window(shape, kernel, attributes["strides"], attributes["pads"], dilations))


def _constant(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    return tensors["value"].shape


def _reshape(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    shape = tuple(attributes["shape"])
    _require(min(shape) >= 0 and math.prod(shape) == math.prod(inputs[0]), f"{list(inputs[0])} as {list(shape)}")
    return shape


def _transpose(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    axes = attributes["axes"]
    _require(sorted(axes) == list(range(len(inputs[0]))), f"axes {axes} of {list(inputs[0])}")
    return tuple(inputs[0][axis] for axis in axes)


def _slice(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    axis, start, stop = _axis(attributes, inputs[0]), attributes["start"], attributes["stop"]
    _require(0 <= start < stop <= inputs[0][axis], f"{start} to {stop} of {list(inputs[0])}")
    return (*inputs[0][:axis], len(range(start, stop, attributes["step"])), *inputs[0][axis + 1 :])


def _select(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    axis = _axis(attributes, inputs[0])
    _require(0 <= attributes["index"] < inputs[0][axis], f"entry {attributes['index']} of {list(inputs[0])}")
    return (*inputs[0][:axis], *inputs[0][axis + 1 :])


def _concat(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    axis = _axis(attributes, inputs[0])
    rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in inputs}
    _require(len({len(shape) for shape in inputs}) == 1 and len(rest) == 1, f"{[list(shape) for shape in inputs]}")
    return (*inputs[0][:axis], sum(shape[axis] for shape in inputs), *inputs[0][axis + 1 :])


def _expand(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    shape = tuple(attributes["shape"])
    _require(min(shape) >= 0 and np.broadcast_shapes(inputs[0], shape) == shape, f"{list(inputs[0])} to {list(shape)}")
    return shape


def _repeat(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    times, shape = attributes["times"], inputs[0]
    _require(len(times) >= len(shape) and min(times) >= 1, f"{list(shape)} repeated {times}")
    padded = (1,) * (len(times) - len(shape)) + shape
    return tuple(size * count for size, count in zip(padded, times, strict=True))


def _pad(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    pads = attributes["pads"]
    _require(len(pads) == len(inputs[0]), f"{len(pads)} pads of {list(inputs[0])}")
    return tuple(size + sum(pad) for size, pad in zip(inputs[0], pads, strict=True))


def _roll(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    axes = attributes["axes"]
    _require(len(axes) == len(attributes["shifts"]) and max(axes) < len(inputs[0]), f"axes {axes}")
    return inputs[0]


def _gather(inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    axis, index = _axis(attributes, inputs[0]), tensors["index"]
    _require(index.ndim == 1 and index.size > 0, f"an index {list(index.shape)}")
    _require(int(index.min()) >= 0 and int(index.max()) < inputs[0][axis], f"an index outside {list(inputs[0])}")
    return (*inputs[0][:axis], index.size, *inputs[0][axis + 1 :])


RULES: dict[str, Rule] = {
    "quantize": _quantize, "linear": _linear, "conv": _conv, "matmul": _matmul, "add": _broadcast,
    "subtract": _broadcast, "multiply": _broadcast, "divide": _broadcast, "affine": _affine, "softmax": _softmax,
    "layer_norm": _norm, "rms_norm": _norm, "group_norm": _norm, "mean": _mean, "average_pool": _pool,
    "max_pool": _pool, "constant": _constant, "reshape": _reshape, "transpose": _transpose, "slice": _slice,
    "select": _select, "concat": _concat, "expand": _expand, "repeat": _repeat, "pad": _pad, "roll": _roll,
    "gather": _gather,
}  # fmt: skip


def output_shape(kind: str, inputs: list[Shape], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Shape:
    """The shape of an operation's output; raises `ValueError` where its parts do not fit together."""
    return RULES.get(kind, _same)(inputs, attributes, tensors)
