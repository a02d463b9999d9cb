"""What each operation of an exported model computes in a runtime, against the interpreter given the same inputs.

Of what one kernel is to compute nothing in the middle is looked at, since it would then be computed in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from halfbyte.export.onnx import Written
from halfbyte.program import integers
from halfbyte.program.interpret import compute
from halfbyte.program.ops import INPUT, Array, Op, Program, readers

# A model's bytes and the images `[B, C, H, W]` to its outputs by name.
Run = Callable[[bytes, Array], dict[str, Array]]
_QUANTIZERS, _PRODUCTS = ("quantize", "quantize_log"), ("linear", "conv", "matmul")
_FLOAT, _BYTES = TensorProto.FLOAT, TensorProto.UINT8


@dataclass(frozen=True)
class Findings:
    """Shares over all quantizers, and the site with the most codes that differ; the largest error of a product, as a
    share of its largest value, and where."""

    codes: int
    different: int
    worst_codes: str | None
    product_error: float
    worst_product: str | None


def probe(written: Written, images: Array, run: Run) -> Findings:
    """Run a copy of the model that also puts out what quantizers and products take and make."""
    model, shown = _probed(written)
    values = run(model.SerializeToString(), images)
    known = {name: values[output] for name, output in shown.items()} | {INPUT: images}
    inside = _inside(written)
    codes = different = 0
    worst_codes: tuple[float, str | None] = (0.0, None)
    worst_product: tuple[float, str | None] = (0.0, None)
    for op, found in _found(written, known, inside):
        if op.kind in _QUANTIZERS:
            quantize = integers.quantize if op.kind == "quantize" else integers.quantize_log
            wrong = int((quantize(known[op.inputs[0]], op.attributes) != found).sum())
            codes, different = codes + found.size, different + wrong
            worst_codes = max(worst_codes, (wrong / found.size, op.output), key=lambda entry: entry[0])
        else:
            wanted = _product(written.program, op, [known[name] for name in op.inputs])
            error = float(np.abs(found - wanted).max()) / max(float(np.abs(wanted).max()), 1e-30)
            worst_product = max(worst_product, (error, op.output), key=lambda entry: entry[0])
    return Findings(codes, different, worst_codes[1], worst_product[0], worst_product[1])


def _probed(written: Written) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model with further outputs, and their names by the program's."""
    model = onnx.ModelProto()
    model.CopyFrom(written.model)
    inside = _inside(written)
    convolutions = {op.output for op in written.program.ops if op.kind == "conv"}
    made = {name for node in model.graph.node for name in node.output}
    given = {value.name for value in model.graph.output}
    shown: dict[str, str] = {}
    for op in written.program.ops:
        if op.kind not in (*_QUANTIZERS, *_PRODUCTS):
            continue
        for name in (*op.inputs, op.output):
            own = written.names[name]
            if name in shown or name in inside or own not in made:
                continue
            grid = written.grids.get(name)
            if grid is not None and grid.small:
                # 4-bit values do not leave a runtime as such.
                own = f"{own}/probe"
                model.graph.node.append(helper.make_node("Cast", [written.names[name]], [own], to=_BYTES))
            elif name in convolutions:
                _guard(model.graph, own)
            shown[name] = own
            if own not in given:
                given.add(own)
                info = helper.make_tensor_value_info(own, _FLOAT if grid is None else _BYTES, None)
                model.graph.output.append(info)
    return model, shown


def _guard(graph: onnx.GraphProto, name: str) -> None:
    """Put behind a convolution what products.py has where several read it: whoever looks at it is a further reader."""
    place, node = next((place, node) for place, node in enumerate(graph.node) if name in node.output)
    lowest, raw = f"{name}/probe/lowest", f"{name}/probe/raw"
    node.output[0] = raw
    graph.initializer.append(numpy_helper.from_array(np.array(np.finfo(np.float32).min), lowest))
    graph.node.insert(place + 1, helper.make_node("Max", [raw, lowest], [name]))


def _found(written: Written, known: dict[str, Array], inside: set[str]) -> Iterator[tuple[Op, Array]]:
    """The quantizers and products whose inputs and output are known, codes brought to the program's."""
    for op in written.program.ops:
        if op.output in inside:
            if op.inputs[0] in known:
                values = [known[op.inputs[0]]]
                product = op.kind in _PRODUCTS
                known[op.output] = (
                    _product(written.program, op, values) if product else compute(op.kind, values, op.attributes, {})
                )
            continue
        if op.output in written.grids and op.output in known:
            shift = written.grids[op.output].shift
            if any(shift):
                axis, ndim = op.attributes["axis"], known[op.output].ndim
                moved = np.array(shift).reshape([-1 if place == axis else 1 for place in range(ndim)])
                known[op.output] = (known[op.output].astype(np.int64) - moved).astype(np.uint8)
        wanted = op.kind in (*_QUANTIZERS, *_PRODUCTS)
        if wanted and op.output in known and all(name in known for name in op.inputs):
            yield op, known[op.output]


def _inside(written: Written) -> set[str]:
    """Values between a product and the one quantizer behind it, where both may become one kernel: behind convolutions
    written so, and linear layers without a bias."""
    program, found = written.program, set[str]()
    read_by = readers(program)
    for op in program.ops:
        if not (op.kind == "conv" and written.form.convolutions == "fused") and not (
            op.kind == "linear" and "bias" not in op.tensors
        ):
            continue
        chain, behind = [op.output], read_by.get(op.output, [])
        while [one.kind for one in behind] in (["relu"], ["clip"]):
            chain.append(behind[0].output)
            behind = read_by.get(behind[0].output, [])
        if [one.kind for one in behind] == ["quantize"]:
            found.update(chain)
    return found


def _product(program: Program, op: Op, inputs: list[Array]) -> Array:
    if op.kind == "matmul":
        return integers.matmul(inputs[0], inputs[1], op.attributes)[1]
    tensors = {role: program.tensors[name] for role, name in op.tensors.items()}
    weights = integers.prepare_weights(op.attributes, tensors)
    product = integers.linear if op.kind == "linear" else integers.conv
    return product(inputs[0], weights, op.attributes)[1]
