"""Codes of whole models, given the codes before them.

A runtime computes what is between codes in its own way, and few-bit networks make one code that fell on the other side
of a border into thousands: so the interpreter goes on from the codes that the runtime found.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper

from halfbyte.export.floats import along
from halfbyte.export.onnx import Written
from halfbyte.export.probe import Run
from halfbyte.program.interpret import Interpreter
from halfbyte.program.ops import Array, Op

_QUANTIZERS = ("quantize", "quantize_log")


@dataclass
class Codes:
    """How many codes were compared; for each that differs how far its value lies from the border of the two codes, in
    steps, or of a logarithmic quantizer as a share of the border."""

    compared: int = 0
    distances: list[float] = field(default_factory=list)


def follow(written: Written, images: Array, run: Run) -> Codes:
    """The codes that a runtime finds in a model against the interpreter's, given the codes that it found before."""
    model, quantizers = onnx.ModelProto(), [op for op in written.program.ops if op.kind in _QUANTIZERS]
    model.CopyFrom(written.model)
    for op in quantizers:
        # 4-bit values do not leave a runtime as such.
        name = written.names[op.output]
        model.graph.node.append(helper.make_node("Cast", [name], [f"{name}/shown"], to=TensorProto.UINT8))
        model.graph.output.append(helper.make_tensor_value_info(f"{name}/shown", TensorProto.UINT8, None))
    found = run(model.SerializeToString(), images)
    interpreter = _Following(written, {op.output: found[f"{written.names[op.output]}/shown"] for op in quantizers})
    interpreter(images)
    return interpreter.codes


class _Following(Interpreter):
    def __init__(self, written: Written, found: dict[str, Array]) -> None:
        super().__init__(written.program)
        self.grids, self.found, self.codes = written.grids, found, Codes()

    def _run(self, op: Op, inputs: list[Array], batch: int, values: dict[str, Array] | None) -> Array:
        own = super()._run(op, inputs, batch, values)
        if op.kind not in _QUANTIZERS:
            return own
        shift = _spread(self.grids[op.output].shift, op, own.ndim)
        found = (self.found[op.output] - shift).astype(np.uint8)
        places = np.nonzero(own != found)
        self.codes.compared += own.size
        distance = _units if op.kind == "quantize" else _share
        self.codes.distances += distance(op, inputs[0].astype(np.float64), own, found)[places].tolist()
        return found


def _units(op: Op, x: Array, own: Array, found: Array) -> Array:
    scale, zero = (_spread(op.attributes[name], op, x.ndim) for name in ("scale", "zero"))
    return np.abs((x - op.attributes["beta"]) / scale + zero - (own + found.astype(np.float64)) / 2)


def _share(op: Op, x: Array, own: Array, found: Array) -> Array:
    bits = np.append(np.array(op.attributes["thresholds"], np.uint32) << 16 | 0xFFFF, 0).astype(np.uint32)
    border = bits.view(np.float32).astype(np.float64)[np.minimum(own, found)]
    # Codes further apart than neighbours have more borders between them.
    far = np.abs(own.astype(np.int64) - found) > 1
    return np.where(far, np.inf, np.abs(x + op.attributes["shift"] - border) / np.maximum(border, 1e-30))


def _spread(numbers: tuple[float, ...] | list[float], op: Op, ndim: int) -> Array:
    array = np.array(numbers)
    return array.reshape(()) if array.size == 1 else along(array, op.attributes["axis"], ndim)
