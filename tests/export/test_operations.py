"""Every kind of operation as ONNX, alone, against the interpreter."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto

from halfbyte.export import floats, places
from halfbyte.export.onnx import OnnxForm, to_onnx
from halfbyte.export.probe import probe
from halfbyte.export.products import SAFE_WEIGHT, pack
from halfbyte.export.runtimes import RUNTIMES, Runtime
from halfbyte.program.interpret import compute, run
from halfbyte.program.kinds import KINDS
from halfbyte.program.ops import INPUT, Op, Program, at_batch

BATCH = {"batch": 1, "plus": 0}
SHAPE = (4, 6, 6)
PADS, NONE = [[1, 1], [0, 2]], [[0, 0], [0, 0]]
WINDOW = {"kernel": [3, 3], "strides": [2, 1], "pads": [[1, 1], [0, 1]]}
NORM = {"weight": np.linspace(0.5, 2, 6, dtype=np.float32), "bias": np.linspace(-1, 1, 6, dtype=np.float32)}
CHANNELS = {"weight": np.linspace(0.5, 2, 4, dtype=np.float32), "bias": np.linspace(-1, 1, 4, dtype=np.float32)}
TOKEN = np.arange(36, dtype=np.float32).reshape(1, 1, 6, 6)
INDEX = {"index": np.array([3, 0, 0, 2, 1], np.int32)}
ALONE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *((kind, {"scalar": 1.625}, {}) for kind in ("add", "subtract", "multiply", "divide")),
    ("affine", {"axis": 1}, {"scale": CHANNELS["weight"], "shift": CHANNELS["bias"]}),
    ("clip", {"low": -0.5, "high": 1.25}, {}),
    *((kind, {}, {}) for kind in (
        "relu", "gelu", "sigmoid", "silu", "tanh", "gelu_tanh", "hardsigmoid", "hardswish")),
    ("softmax", {"axis": 3}, {}), ("softmax", {"axis": 1}, {}),
    *((kind, {"eps": 1e-6}, tensors) for kind in ("layer_norm", "rms_norm") for tensors in ({}, NORM)),
    ("layer_norm", {"eps": 1e-6}, {"bias": NORM["bias"]}), ("group_norm", {"eps": 1e-5, "groups": 2}, CHANNELS),
    ("mean", {"axes": [2, 3], "keep": False}, {}), ("mean", {"axes": [1], "keep": True}, {}),
    ("average_pool", WINDOW, {}), ("max_pool", {**WINDOW, "dilations": [1, 2]}, {}),
    ("reshape", {"shape": [BATCH, 24, 6]}, {}), ("reshape", {"shape": [{"batch": 4, "plus": 0}, 36]}, {}),
    ("transpose", {"axes": [0, 2, 3, 1]}, {}),
    ("slice", {"axis": 2, "start": 1, "stop": 6, "step": 2}, {}),
    ("slice", {"axis": 3, "start": 0, "stop": 4, "step": 3}, {}),
    ("select", {"axis": 1, "index": 2}, {}), ("select", {"axis": 3, "index": 5}, {}),
    ("repeat", {"times": [1, 1, 1, 2, 1]}, {}),
    ("pad", {"pads": [[0, 0], [0, 0], [1, 2], [0, 3]], "value": 0.25}, {}),
    ("roll", {"shifts": [2, -1], "axes": [2, 3]}, {}), ("roll", {"shifts": [6], "axes": [2]}, {}),
    ("gather", {"axis": 1}, INDEX),
]  # fmt: skip


def program_of(ops: list[Op], tensors: dict[str, Any], last: str, elements: Any) -> Program:
    """`ops` and then what makes logits `[B, n]` of the value `last`."""
    tail = Op("reshape", (last,), "flat", {"shape": [BATCH, elements]})
    return Program((*ops, tail), tensors, SHAPE, "flat")


def check_alike(
    program: Program, form: OnnxForm | None = None, tolerance: float = 1e-6, runtimes: Sequence[Runtime] = RUNTIMES[:1]
) -> None:
    for count, runtime in itertools.product((1, 3), runtimes):
        images = np.random.default_rng(count).standard_normal((count, *SHAPE)).astype(np.float32)
        wanted = run(program, images)
        found = runtime.run(to_onnx(program, form).model.SerializeToString(), images)["logits"]
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize(("kind", "attributes", "tensors"), ALONE, ids=[f"{e[0]}-{n}" for n, e in enumerate(ALONE)])
def test_alone(kind, attributes, tensors, opset):
    op = Op(kind, (INPUT,), "y", attributes, {role: role for role in tensors})
    one = compute(kind, [np.zeros((1, *SHAPE), np.float32)], at_batch(attributes, 1), tensors)
    check_alike(program_of([op], tensors, "y", one.size), OnnxForm(opset))


def test_expand_constant_and_concat():
    ops = [
        Op("constant", (), "token", {}, {"value": "token"}),
        Op("expand", ("token",), "tokens", {"shape": [BATCH, 1, 6, 6]}),
        Op("concat", ("tokens", INPUT, "tokens"), "y", {"axis": 1}),
    ]
    check_alike(program_of(ops, {"token": TOKEN}, "y", 6 * 36), tolerance=0)


def test_repeat_for_each_image():
    ops = [
        Op("constant", (), "token", {}, {"value": "token"}),
        Op("repeat", ("token",), "y", {"times": [BATCH, 2, 1, 1]}),
    ]
    check_alike(program_of(ops, {"token": TOKEN}, "y", 72), tolerance=0)


def test_the_fast_gelu_is_near():
    program = program_of([Op("gelu", (INPUT,), "y")], {}, "y", 144)
    check_alike(program, OnnxForm(gelu="erf"), 2e-6)
    check_alike(program, tolerance=0)


def test_every_kind_has_a_writer():
    special = {"quantize", "quantize_log", "linear", "conv", "matmul"}
    assert set(floats.WRITERS) | set(places.WRITERS) | special == set(KINDS)
    assert {entry[0] for entry in ALONE} | special | {"constant", "expand", "concat"} == set(KINDS)


def quantizer(scale=(0.25,), zero=(0,), last=15, beta=0.0, axis=None):
    return "quantize", {"scale": list(scale), "zero": list(zero), "beta": beta, "last": last, "axis": axis}


HEADS = (0.25, 0.5, 0.125, 1.0)
QUANTIZERS = [
    *(quantizer(zero=(zero,), last=last) for last in (1, 3, 15, 127, 255) for zero in (0, 1, last, 300, -7)),
    quantizer((0.099609375,), (3,), beta=-0.171875), quantizer((0.00099945068359375,), (128,), 255),
    *(quantizer(HEADS, zero, last, axis=1) for last in (3, 15) for zero in ((0, 1, 3, 2), (0, 0, 0, -5))),
    quantizer(HEADS, (0, 255, 3, 9), 255, axis=1),
    *(("quantize_log", {"shift": shift, "thresholds": thresholds})
      for shift in (0.0, 0.171875)
      for thresholds in ([0x3F80], [0x3FC0, 0x3F80, 0x3F00], [0x7F90, 0x4000, 0x4000, 0x0001, 0],
                         list(range(0x4000, 0x3C00, -8))[:15], list(range(0x4000, 0x3000, -16))[:255])),
]  # fmt: skip


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize(("kind", "attributes"), QUANTIZERS)
def test_codes_for_all_sorts_of_numbers(kind, attributes, opset):
    program = program_of([Op(kind, (INPUT,), "codes", attributes), Op("relu", (INPUT,), "y")], {}, "y", 144)
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, (64, *SHAPE), np.uint32).view(np.float32)
    halves = (generator.integers(-1200, 1200, (64, *SHAPE)) / 8 * 0.25).astype(np.float32)  # many between two codes
    special = np.array([np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38], np.float32)
    images = np.concatenate([np.where(np.isnan(bits), np.float32(1), bits), halves, halves / 16])
    images.reshape(-1)[: len(special)] = special
    with np.errstate(all="ignore"):
        found = probe(to_onnx(program, OnnxForm(opset)), images, RUNTIMES[0].run)
    assert found.codes == images.size
    assert found.different == 0


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize(
    ("kind", "attributes"),
    [("concat", {"axis": 1}), ("relu", {}), ("add", {"scalar": 0.25}), ("roll", {"shifts": [1], "axes": [1]})],
)
def test_what_runtimes_move_past_quantizers(kind, attributes, opset):
    """ONNX Runtime leaves a Relu before codes of 4 bits out, OpenVINO joins such codes wrongly: neither may come to."""
    tensors = weights((6, 6), 4, 5)
    ops = [
        Op("reshape", (INPUT,), "x", {"shape": [BATCH, 24, 6]}),
        Op("slice", ("x",), "first", {"axis": 1, "start": 0, "stop": 1, "step": 1}),
        Op("slice", ("x",), "others", {"axis": 1, "start": 1, "stop": 24, "step": 1}),
        Op("sigmoid", ("others",), "changed", {}),
        Op("concat", ("first", "changed"), "joined", {"axis": 1}),
        Op(kind, ("joined", "joined") if kind == "concat" else ("joined",), "moved", attributes),
        Op("quantize", ("moved",), "codes", quantizer(zero=(7,))[1]),
        Op("linear", ("codes",), "y", {"bits": 4, "input": {"zero": [7]}}, {role: role for role in tensors}),
    ]
    check_alike(program_of(ops, tensors, "y", 144 * (2 if kind == "concat" else 1)), OnnxForm(opset), 1e-5, RUNTIMES)


GRIDS = [[7], [0], [255], [300], [-3], [3, 5, 0, 9], [0, 300, 1, 2]]


@pytest.mark.parametrize("zero", GRIDS, ids=str)
@pytest.mark.parametrize("levels", [False, True])
def test_products_of_activations(zero, levels):
    heads = None if len(zero) == 1 else 1
    scales = HEADS[: len(zero)]
    left = ("quantize_log", {"shift": 0.0, "thresholds": [0x3F80, 0x3F00, 0x3E80]})
    operand: dict[str, Any] = {"levels": [32767, 16384, 8192, 0]}
    if not levels:
        left, operand = quantizer(scales, zero, axis=heads), {"zero": zero}
    ops = [
        Op(left[0], (INPUT,), "left", left[1]),
        Op(*("quantize", (INPUT,), "right", quantizer(scales, zero, axis=heads)[1])),
        Op(
            "matmul",
            ("left", "right"),
            "y",
            {"left": operand, "right": {"zero": zero}, "scale": [s / 64 for s in scales]},
        ),
    ]
    program = program_of(ops, {}, "y", 144)
    for opset in (17, 21):
        check_alike(program, OnnxForm(opset))


WEIGHTS = [(4, 8), (4, 0), (4, 40), (7, 0), (8, 128), (8, 60), (8, 700)]


@pytest.mark.parametrize("form", [OnnxForm(), OnnxForm(convolutions="integer"), OnnxForm(opset=21)], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("bits", "zero"), WEIGHTS)
def test_convolutions(bits, zero, groups, form):
    tensors = weights((8, 4 // groups, 3, 3), bits, zero)
    attributes = {"bits": bits, "input": {"zero": [7]}, "strides": [2, 1], "pads": PADS, "dilations": [1, 2],
                  "groups": groups}  # fmt: skip
    ops = [
        Op("quantize", (INPUT,), "codes", quantizer(zero=(7,))[1]),
        Op("conv", ("codes",), "y", attributes, {role: role for role in tensors}),
    ]
    program = program_of(ops, tensors, "y", 8 * 3 * 4)
    check_alike(program, form, 1e-5)
    graph = to_onnx(program, form).model.graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    integer = [node for node in graph.node if node.op_type == "ConvInteger"]
    assert bool(integer) == (form.convolutions == "integer")
    # Of other weights ONNX Runtime 1.23 has no such kernel.
    assert {kinds[name] for node in integer for name in (node.input[1], node.input[3])} <= {TensorProto.UINT8}


@pytest.mark.parametrize("form", [OnnxForm(), OnnxForm(opset=21)], ids=str)
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("operand", [[7], [300], None], ids=str)
@pytest.mark.parametrize(("bits", "zero"), WEIGHTS)
def test_linear_layers(bits, zero, operand, rows, form):
    columns = 144 if rows else 6
    tensors = weights((5, columns), bits, zero)
    kind, attributes = quantizer(zero=operand) if operand else ("quantize_log", {"shift": 0.0, "thresholds": [0x3F80]})
    numbers = {"zero": operand} if operand else {"levels": [32767, 0]}
    ops = [
        Op("reshape", (INPUT,), "x", {"shape": [BATCH, 144] if rows else [BATCH, 24, 6]}),
        Op(kind, ("x",), "codes", attributes),
        Op("linear", ("codes",), "y", {"bits": bits, "input": numbers}, {role: role for role in tensors}),
    ]
    check_alike(program_of(ops, tensors, "y", 5 if rows else 120), form, 1e-5)


def weights(shape: tuple[int, ...], bits: int, zero: int) -> dict[str, Any]:
    generator = np.random.default_rng(bits)
    return {
        "weight": generator.integers(0, 2**bits, shape).astype(np.uint8),
        "zero": np.maximum(zero - np.arange(shape[0]), 0).astype(np.int32),
        "scale": (generator.random(shape[0]) / 256 + 1e-3).astype(np.float32),
        "bias": generator.standard_normal(shape[0]).astype(np.float32),
    }


@given(st.integers(2, 7), st.data())
@settings(max_examples=50, deadline=None)
def test_weights_of_seven_bits_never_overflow_pairs(bits, data):
    codes = data.draw(arrays.arrays(np.uint8, (4, 6), elements=st.integers(0, 2**bits - 1)))
    zero = data.draw(arrays.arrays(np.int32, 4, elements=st.integers(-400, 400)))
    packed = pack(codes, zero, bits, False)
    assert np.abs(packed.codes.astype(int)).max() <= SAFE_WEIGHT
    wanted = codes.astype(int) - zero[:, None]
    assert (packed.codes.astype(int) - packed.zero[:, None] == wanted).all()
