"""An ONNX graph under construction: nodes, constants that are stored once, sizes that depend on the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from halfbyte.errors import HalfbyteError
from halfbyte.program.ops import INPUT, Array

# The IR version of the first ONNX release with the opset, so that old readers take the file.
IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10}
LOGITS = "logits"
Sizes = tuple[tuple[int, int], ...]


class Graph:
    """Nodes in order and initializers by content. Values keep the program's names, but the output is `logits`."""

    def __init__(
        self, opset: int, output: str, shapes: dict[str, Sizes], convolutions: str, shared: frozenset[str]
    ) -> None:
        """`shapes` hold every value's sizes as pairs (a, c) that stand for a * B + c; `convolutions` is that of
        `OnnxForm`; `shared` are the values that several operations read."""
        if opset not in IR_VERSIONS:
            raise HalfbyteError(f"opset {opset} is not one of {', '.join(map(str, IR_VERSIONS))}")
        self.opset = opset
        self.shapes = shapes
        self.convolutions = convolutions
        self.shared = shared
        self._output = output
        self._aliases: dict[str, str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[tuple[Any, ...], onnx.TensorProto] = {}
        self._used: dict[str, int] = {}
        self._batch: str | None = None

    def name(self, value: str) -> str:
        """The ONNX name of a value of the program."""
        return self._aliases.get(value, LOGITS if value == self._output else value)

    def alias(self, value: str, existing: str) -> None:
        """Let a value of the program be a tensor that is there already."""
        self._aliases[value] = existing

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node whose one output, and own name, is `output`; returns that."""
        given = {key: value for key, value in attributes.items() if value is not None}
        self._nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **given))
        return output

    def inner(self, kind: str, inputs: Sequence[str], owner: str, **attributes: Any) -> str:
        """Add a node in the middle of what becomes of the operation `owner`; returns the name of its output."""
        return self.node(kind, inputs, self._fresh(f"{owner}/{kind}"), **attributes)

    def rename_last(self, value: str, output: str) -> None:
        """Let the node that was added last make `output` instead of `value`."""
        last = self._nodes[-1]
        assert list(last.output) == [value]
        last.output[0] = last.name = output

    def constant(self, array: Array, owner: str, dtype: int | None = None) -> str:
        """An initializer; `dtype` is given for types that NumPy lacks (INT4, UINT4), whose values come as int8."""
        array = np.array(array, order="C")
        key = (dtype, array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest())
        if key not in self._initializers:
            name = self._fresh(f"{owner}/constant")
            if dtype is None:
                tensor = numpy_helper.from_array(array, name)
            else:
                tensor = helper.make_tensor(name, dtype, array.shape, _nibbles(array), raw=True)
            self._initializers[key] = tensor
        return str(self._initializers[key].name)

    def scalar(self, value: float, owner: str, dtype: Any = np.float32) -> str:
        return self.constant(np.array(value, dtype), owner)

    def sizes(self, wanted: Sequence[Any], owner: str) -> str:
        """An int64 tensor of sizes; those that depend on the batch are computed from the input's shape."""
        if not any(isinstance(size, dict) for size in wanted):
            return self.constant(np.array(wanted, np.int64), owner)
        parts = [self._size(size, owner) for size in wanted]
        return parts[0] if len(parts) == 1 else self.inner("Concat", parts, owner, axis=0)

    def _size(self, size: Any, owner: str) -> str:
        if not isinstance(size, dict):
            return self.constant(np.array([size], np.int64), owner)
        if self._batch is None:
            self._batch = self.inner("Shape", [INPUT], "batch", start=0, end=1)
        value = self._batch
        for kind, number, nothing in (("Mul", size["batch"], 1), ("Add", size["plus"], 0)):
            if number != nothing:
                value = self.inner(kind, [value, self.constant(np.array([number], np.int64), owner)], owner)
        return value

    def model(self, metadata: dict[str, str], producer_version: str) -> onnx.ModelProto:
        """The finished model. The same calls in the same order give the same bytes."""
        inputs, outputs = (
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, self._declared(value))]
            for name, value in ((INPUT, INPUT), (LOGITS, self._output))
        )
        if LOGITS not in {output for node in self._nodes for output in node.output}:
            self.node("Identity", [self.name(self._output)], LOGITS)
        graph = helper.make_graph(self._nodes, "halfbyte", inputs, outputs, list(self._initializers.values()))
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=IR_VERSIONS[self.opset],
            producer_name="halfbyte", producer_version=producer_version,
        )  # fmt: skip
        helper.set_model_props(model, dict(sorted(metadata.items())))
        return model

    def _declared(self, value: str) -> list[str | int]:
        return ["batch" if slope else plus for slope, plus in self.shapes[value]]

    def _fresh(self, wanted: str) -> str:
        count = self._used[wanted] = self._used.get(wanted, 0) + 1
        return wanted if count == 1 else f"{wanted}_{count}"


def _nibbles(array: Array) -> bytes:
    """Two 4-bit numbers a byte, the first in the lower half, as ONNX stores them."""
    flat = array.reshape(-1).astype(np.uint8) & 15
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8).tobytes()
