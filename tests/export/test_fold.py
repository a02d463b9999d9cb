"""Affine operations in the scales of the products that they follow."""

from __future__ import annotations

import numpy as np
import pytest
from tests.export.test_operations import BATCH, SHAPE, check_alike, program_of, quantizer, weights

from halfbyte.export.fold import fold_affine
from halfbyte.export.onnx import CONVOLUTIONS, OnnxForm
from halfbyte.program.interpret import run
from halfbyte.program.ops import INPUT, Op, Program

# Of each sign, none, and so small that the product of scales is no number.
FACTORS = np.array([0.5, -2, 0, 1e-44, -0.25, 1, -1e-44, 3], np.float32)
SHIFTS = np.linspace(-1, 1, 8, dtype=np.float32)


def affine(source: str, output: str, axis: int = 1) -> Op:
    return Op("affine", (source,), output, {"axis": axis}, {"scale": "factors", "shift": "shifts"})


def convolution(bits: int, bias: bool, *more: Op, last: str) -> Program:
    tensors = {**weights((8, 4, 3, 3), bits, 5), "factors": FACTORS, "shifts": SHIFTS}
    roles = {role: role for role in ("weight", "zero", "scale", "bias") if bias or role != "bias"}
    attributes = {"bits": bits, "input": {"zero": [7]}, "strides": [1, 1], "pads": [[1, 1], [1, 1]],
                  "dilations": [1, 1], "groups": 1}  # fmt: skip
    ops = [
        Op("quantize", (INPUT,), "codes", quantizer(zero=(7,))[1]),
        Op("conv", ("codes",), "sums", attributes, roles),
        *more,
    ]
    return program_of(ops, tensors, last, 8 * 36)


def close(program: Program, folded: Program) -> None:
    images = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(run(folded, images), run(program, images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_an_affine_behind_a_convolution(bits, bias):
    program = convolution(bits, bias, affine("sums", "y"), last="y")
    folded = fold_affine(program)
    assert [op.kind for op in folded.ops] == ["quantize", "conv", "reshape"]
    assert (folded.tensors["sums.folded.scale"] > 0).all()
    assert folded.tensors["sums.folded.weight"].max() < 2**bits
    close(program, folded)
    assert program.tensors["weight"] is folded.tensors["weight"]
    for form in CONVOLUTIONS:
        check_alike(program, OnnxForm(convolutions=form), 1e-5)


def test_an_affine_behind_a_linear_layer():
    parts = weights((8, 6), 4, 5)
    tensors, roles = {**parts, "factors": FACTORS, "shifts": SHIFTS}, {role: role for role in parts}
    ops = [
        Op("reshape", (INPUT,), "x", {"shape": [BATCH, 24, 6]}),
        Op("quantize", ("x",), "codes", quantizer(zero=(7,))[1]),
        Op("linear", ("codes",), "sums", {"bits": 4, "input": {"zero": [7]}}, roles),
        affine("sums", "y", 2),
    ]  # fmt: skip
    program = program_of(ops, tensors, "y", 24 * 8)
    folded = fold_affine(program)
    assert "affine" not in [op.kind for op in folded.ops]
    close(program, folded)
    check_alike(program, tolerance=1e-5)


def test_what_others_read_too_stays():
    twice = convolution(4, True, affine("sums", "scaled"), Op("add", ("scaled", "sums"), "y"), last="y")
    other = Op("affine", ("sums",), "y", {"axis": 2}, {"scale": "six", "shift": "six"})
    along_rows = convolution(4, True, other, last="y")
    along_rows.tensors["six"] = np.linspace(1, 2, 6, dtype=np.float32)
    for program in (twice, along_rows):
        assert fold_affine(program).ops == program.ops
