"""The interpreter: what a program means, to the bit, in NumPy. Engines are checked against it.

Exponentials and sums in float64 may differ in their last bit between libraries; rounded to float32 once, they differ in
one value of some hundred millions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from halfbyte.errors import HalfbyteError
from halfbyte.program import floats, integers
from halfbyte.program.check import check
from halfbyte.program.ops import INPUT, Array, Op, Program, at_batch, checked_images

_BINARY: dict[str, Callable[..., Array]] = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide,
}  # fmt: skip
_WIDE = {*floats.ELEMENTWISE, "softmax", "layer_norm", "rms_norm", "group_norm", "mean", "average_pool"}
_INTEGER = ("linear", "conv", "matmul")


class Interpreter:
    """Runs a program; weights are made ready once. Raises `HalfbyteError` for a program that cannot run."""

    def __init__(self, program: Program) -> None:
        check(program)
        self.program = program
        self._last_use = {name: number for number, op in enumerate(program.ops) for name in op.inputs}
        self._last_use[program.output] = len(program.ops)
        self._weights = {
            op.output: integers.prepare_weights(op.attributes, self._tensors(op))
            for op in program.ops
            if op.kind in ("linear", "conv")
        }

    def __call__(self, images: Array, values: dict[str, Array] | None = None) -> Array:
        """Logits `[B, classes]`, float32, of images `[B, C, H, W]`.

        `values` is filled with every value by its name, and with the integer sums of a product under its name with
        ` sums` behind it (in float32 or float64, whole). Raises `HalfbyteError` for images of another shape, and for
        pixels that are whole numbers.
        """
        images = checked_images(images, self.program.input_shape)
        known: dict[str, Array] = {INPUT: images}
        with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
            for number, op in enumerate(self.program.ops):
                inputs = [known[name] for name in op.inputs]
                try:
                    result = self._run(op, inputs, len(images), values)
                except (ValueError, IndexError) as error:
                    raise HalfbyteError(f"the operation {op.kind} {op.output!r} cannot run: {error}") from None
                known[op.output] = result
                if values is not None:
                    values[op.output] = result
                for name in {*op.inputs, op.output}:
                    if self._last_use.get(name, -1) <= number:
                        del known[name]
        return known[self.program.output]

    def _tensors(self, op: Op) -> dict[str, Array]:
        return {role: self.program.tensors[name] for role, name in op.tensors.items()}

    def _run(self, op: Op, inputs: list[Array], batch: int, values: dict[str, Array] | None) -> Array:
        attributes = at_batch(op.attributes, batch)
        if op.kind in _INTEGER:
            if op.kind == "matmul":
                sums, result = integers.matmul(inputs[0], inputs[1], attributes)
            else:
                product = integers.linear if op.kind == "linear" else integers.conv
                sums, result = product(inputs[0], self._weights[op.output], attributes)
            if values is not None:
                values[f"{op.output} sums"] = sums
            return result
        return compute(op.kind, inputs, attributes, self._tensors(op))


def run(program: Program, images: Array, values: dict[str, Array] | None = None) -> Array:
    """Logits of `images`; see `Interpreter`, which is faster for more than one batch."""
    return Interpreter(program)(images, values)


def compute(kind: str, inputs: list[Array], attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Array:
    """One operation other than an integer product, its sizes resolved."""
    if kind in _BINARY:
        other = inputs[1] if len(inputs) == 2 else np.float32(attributes["scalar"])
        return _BINARY[kind](inputs[0], other)
    if kind in _WIDE:
        return _wide(kind, inputs[0].astype(np.float64), attributes, tensors).astype(np.float32)
    if kind == "concat":
        return np.concatenate(inputs, axis=attributes["axis"])
    if kind == "constant":
        return tensors["value"]
    return _PLAIN[kind](inputs[0], attributes, tensors)


def _wide(kind: str, x: Array, attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Array:
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if kind in floats.ELEMENTWISE:
        return floats.ELEMENTWISE[kind](x)
    if kind == "softmax":
        return floats.softmax(x, attributes["axis"])
    if kind == "layer_norm":
        return floats.layer_norm(x, attributes["eps"], weight, bias)
    if kind == "rms_norm":
        return floats.rms_norm(x, attributes["eps"], weight, bias)
    if kind == "group_norm":
        return floats.group_norm(x, attributes["eps"], attributes["groups"], weight, bias)
    if kind == "mean":
        return np.asarray(x.mean(axis=tuple(attributes["axes"]), keepdims=attributes["keep"]))
    return floats.average_pool(x, attributes)


def _affine(x: Array, attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Array:
    shape = [-1 if axis == attributes["axis"] else 1 for axis in range(x.ndim)]
    result = x * tensors["scale"].reshape(shape)
    result += tensors["shift"].reshape(shape)
    return np.asarray(result)


def _slice(x: Array, attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Array:
    own = slice(attributes["start"], attributes["stop"], attributes["step"])
    return np.asarray(x[(slice(None),) * attributes["axis"] + (own,)])


def _pad(x: Array, attributes: Mapping[str, Any], tensors: Mapping[str, Array]) -> Array:
    return np.pad(x, attributes["pads"], constant_values=np.float32(attributes["value"]))


_PLAIN: dict[str, Callable[[Array, Mapping[str, Any], Mapping[str, Array]], Array]] = {
    "quantize": lambda x, attributes, _: integers.quantize(x, attributes),
    "quantize_log": lambda x, attributes, _: integers.quantize_log(x, attributes),
    "affine": _affine,
    "relu": lambda x, attributes, _: np.maximum(x, np.float32(0)),
    "clip": lambda x, attributes, _: np.clip(x, np.float32(attributes["low"]), np.float32(attributes["high"])),
    "gelu": lambda x, attributes, _: floats.gelu(x),
    "max_pool": lambda x, attributes, _: floats.max_pool(x, attributes),
    "reshape": lambda x, attributes, _: x.reshape(attributes["shape"]),
    "transpose": lambda x, attributes, _: x.transpose(attributes["axes"]),
    "slice": _slice,
    "select": lambda x, attributes, _: x.take(attributes["index"], axis=attributes["axis"]),
    "expand": lambda x, attributes, _: np.broadcast_to(x, attributes["shape"]),
    "repeat": lambda x, attributes, _: np.tile(x, attributes["times"]),
    "pad": _pad,
    "roll": lambda x, attributes, _: np.roll(x, attributes["shifts"], axis=attributes["axes"]),
    "gather": lambda x, attributes, tensors: x.take(tensors["index"], axis=attributes["axis"]),
}
