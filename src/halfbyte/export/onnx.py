"""A program as an ONNX model, operation by operation."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import onnx

from halfbyte.errors import HalfbyteError
from halfbyte.export import codes, floats, places, products
from halfbyte.export.fold import fold_affine
from halfbyte.export.graph import Graph, Sizes
from halfbyte.program.check import check, value_shapes
from halfbyte.program.ops import INPUT, Array, Op, Program, readers

_Writer = Callable[[Graph, Op, dict[str, Array]], None]
LARGEST_FILE = 2**31
SAFE_BITS = 7
CONVOLUTIONS = ("qdq", "fused", "integer")
_WRITERS: dict[str, _Writer] = {**floats.WRITERS, **places.WRITERS}
# Operations that leave codes as they are.
_PLACES = frozenset(places.WRITERS) - {"constant", "pad"}


@dataclass(frozen=True)
class OnnxForm:
    """How a model is written.

    `opset` 17 to 21; from 21 on codes and weights of at most 4 bits are INT4 and UINT4, before they lie in 8 bits.
    `gelu` "exact": the program's own formula in some twenty nodes; "erf": one kernel in most runtimes, up to 1.1e-6
    away. `convolutions` "qdq": a Conv of dequantized operands; "fused": the same with the bias inside, so that ONNX
    Runtime computes it and a quantizer behind it with integers, the bias rounded to steps of the sums; "integer":
    ConvInteger, whose sums are exact in every runtime, and which ONNX Runtime computes slower than float.
    """

    opset: int = 17
    gelu: str = "exact"
    convolutions: str = "qdq"


@dataclass(frozen=True)
class Written:
    """A model, and the program that it computes operation by operation, in a form: where its values are in the model
    (their ONNX names), and how codes lie there."""

    model: onnx.ModelProto
    program: Program
    form: OnnxForm
    names: dict[str, str]
    grids: dict[str, codes.Grid]


def to_onnx(program: Program, form: OnnxForm | None = None, facts: dict[str, Any] | None = None) -> Written:
    """The ONNX model of a program: `input` float32 `[batch, C, H, W]`, preprocessed, to `logits` `[batch, classes]`.

    `facts` become its metadata, each a string or JSON. The same program and facts give the same bytes. Raises
    `HalfbyteError`, which names the operation, for a program that cannot run or cannot be written.
    """
    form = form or OnnxForm()
    if form.gelu not in ("exact", "erf") or form.convolutions not in CONVOLUTIONS:
        raise HalfbyteError(f"an ONNX form has gelu exact or erf, and convolutions {', '.join(CONVOLUTIONS)}")
    check(program)
    program = fold_affine(program)
    shared = frozenset(name for name, ops in readers(program).items() if len(ops) > 1)
    graph = Graph(form.opset, program.output, _sizes(program), form.convolutions, shared)
    grids: dict[str, codes.Grid] = {}
    for op in program.ops:
        _write(graph, op, {role: program.tensors[name] for role, name in op.tensors.items()}, grids, form)
    version = metadata.version("halfbyte")
    said = {**program.facts, **(facts or {}), "halfbyte": version, "onnx_form": vars(form)}
    model = graph.model({key: _text(value) for key, value in said.items()}, version)
    if model.ByteSize() >= LARGEST_FILE:
        raise HalfbyteError("ONNX files hold less than 2 GB; this model is larger")
    onnx.checker.check_model(model)
    names = {name: graph.name(name) for name in (INPUT, *(op.output for op in program.ops))}
    return Written(model, program, form, names, grids)


def unsafe_sites(program: Program, form: OnnxForm) -> list[str]:
    """Sites whose weights of 8 bits may overflow 16-bit sums on processors that lack VNNI."""
    # Integer convolutions have no signs, and their sums more bits.
    signed = ("linear",) if form.convolutions == "integer" else ("linear", "conv")
    wide = [op for op in program.ops if op.kind in signed and op.attributes["bits"] > SAFE_BITS]
    return [op.output for op in wide if np.abs(_centred(program, op)).max() > products.SAFE_WEIGHT]


def _centred(program: Program, op: Op) -> Array:
    weight, zero = (program.tensors[op.tensors[role]] for role in ("weight", "zero"))
    return products.pack(weight, zero, op.attributes["bits"], False).codes.astype(np.int64)


def _write(graph: Graph, op: Op, tensors: dict[str, Array], grids: dict[str, codes.Grid], form: OnnxForm) -> None:
    kind = op.kind
    if kind == "quantize":
        grids[op.output] = codes.quantize(graph, op)
    elif kind == "quantize_log":
        grids[op.output] = codes.quantize_log(graph, op)
    elif kind == "linear":
        products.linear(graph, op, tensors, grids[op.inputs[0]])
    elif kind == "conv":
        products.conv(graph, op, tensors, grids[op.inputs[0]])
    elif kind == "matmul":
        products.matmul(graph, op, grids[op.inputs[0]], grids[op.inputs[1]])
    elif kind == "gelu" and form.gelu == "erf":
        floats.FAST_GELU(graph, op, tensors)
    elif kind in _WRITERS:
        _WRITERS[kind](graph, op, tensors)
        _pass_on(op, grids)
    else:
        raise HalfbyteError(f"ONNX cannot write the operation {kind} {op.output!r}")


def _pass_on(op: Op, grids: dict[str, codes.Grid]) -> None:
    """Codes that only moved lie as before."""
    found = {grids[name] for name in op.inputs if name in grids}
    if not found:
        return
    if op.kind not in _PLACES or len(found) > 1 or any(grid.shift != (0,) for grid in found):
        raise HalfbyteError(f"ONNX cannot write the operation {op.kind} {op.output!r} of codes that lie differently")
    grids[op.output] = found.pop()


def _sizes(program: Program) -> dict[str, Sizes]:
    """The sizes of every value as pairs (a, c) for a * B + c, from those at two batches."""
    one, two = (value_shapes(program, batch) for batch in (1, 2))
    return {
        name: tuple((b - a, 2 * a - b) for a, b in zip(shape, two[name][0], strict=True))
        for name, (shape, _) in one.items()
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
