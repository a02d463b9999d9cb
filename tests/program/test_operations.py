"""Each kind of operation against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from halfbyte.layers.activation import exact_gelu
from halfbyte.program import integers
from halfbyte.program.interpret import compute
from halfbyte.program.kinds import KINDS
from halfbyte.program.ops import at_batch
from halfbyte.program.shapes import RULES, output_shape
from halfbyte.quantizers.groupwise import CentredQuantizer, GroupwiseQuantizer
from halfbyte.quantizers.log import AdaLogQuantizer, Log2Quantizer, LogSqrt2Quantizer
from halfbyte.quantizers.lsq import LsqQuantizer
from halfbyte.quantizers.uniform import UniformQuantizer

MAPS = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
WIDE = MAPS.double()
POOL = {"kernel": [3, 2], "strides": [2, 1], "pads": [[1, 1], [0, 0]]}


def _float32(x: torch.Tensor) -> np.ndarray:
    return x.float().numpy()


EXACT = {
    "add": ({"scalar": 0.5}, lambda: MAPS + 0.5),
    "subtract": ({"scalar": 0.25}, lambda: MAPS - 0.25),
    "multiply": ({"scalar": float(np.float32(0.1))}, lambda: MAPS * 0.1),
    "divide": ({"scalar": 3.0}, lambda: MAPS / 3.0),
    "relu": ({}, lambda: F.relu(MAPS)),
    "clip": ({"low": 0.0, "high": 0.5}, lambda: MAPS.clamp(0, 0.5)),
    "gelu": ({}, lambda: exact_gelu(MAPS)),
    "max_pool": (POOL | {"dilations": [1, 2]}, lambda: F.max_pool2d(MAPS, (3, 2), (2, 1), (1, 0), (1, 2))),
    "reshape": ({"shape": [2, 24, 6]}, lambda: MAPS.reshape(2, 24, 6)),
    "transpose": ({"axes": [0, 2, 3, 1]}, lambda: MAPS.permute(0, 2, 3, 1)),
    "slice": ({"axis": 2, "start": 1, "stop": 6, "step": 2}, lambda: MAPS[:, :, 1::2]),
    "select": ({"axis": 1, "index": 2}, lambda: MAPS[:, 2]),
    "concat": ({"axis": 1}, lambda: MAPS),
    "expand": ({"shape": [3, 2, 4, 6, 6]}, lambda: MAPS.expand(3, 2, 4, 6, 6)),
    "repeat": ({"times": [2, 1, 3, 1]}, lambda: MAPS.repeat(2, 1, 3, 1)),
    "pad": ({"pads": [[0, 0], [1, 0], [0, 2], [3, 1]], "value": 0.5},
            lambda: F.pad(MAPS, (3, 1, 0, 2, 1, 0), value=0.5)),
    "roll": ({"shifts": [-1, 2], "axes": [2, 3]}, lambda: MAPS.roll((-1, 2), (2, 3))),
}  # fmt: skip
ROUNDED_ONCE = {
    "sigmoid": ({}, lambda: WIDE.sigmoid()),
    "silu": ({}, lambda: F.silu(WIDE)),
    "tanh": ({}, lambda: WIDE.tanh()),
    "gelu_tanh": ({}, lambda: F.gelu(WIDE, approximate="tanh")),
    "hardsigmoid": ({}, lambda: F.hardsigmoid(WIDE)),
    "hardswish": ({}, lambda: F.hardswish(WIDE)),
    "softmax": ({"axis": 3}, lambda: WIDE.softmax(3)),
    "layer_norm": ({"eps": 1e-6}, lambda: F.layer_norm(WIDE, (6,), eps=1e-6)),
    "rms_norm": ({"eps": 1e-6}, lambda: F.rms_norm(WIDE, (6,), eps=1e-6)),
    "group_norm": ({"eps": 1e-5, "groups": 2}, lambda: F.group_norm(WIDE, 2, eps=1e-5)),
    "mean": ({"axes": [2, 3], "keep": True}, lambda: WIDE.mean((2, 3), keepdim=True)),
    "average_pool": (POOL, lambda: F.avg_pool2d(WIDE, (3, 2), (2, 1), (1, 0))),
}
BY_TENSORS = {"quantize", "quantize_log", "linear", "conv", "matmul", "affine", "constant", "gather"}


def test_every_kind_is_tested_and_has_a_rule_or_keeps_its_shape():
    assert EXACT.keys() | ROUNDED_ONCE.keys() | BY_TENSORS == KINDS.keys()
    assert RULES.keys() <= KINDS.keys()
    assert all(kind.meaning for kind in KINDS.values())


@pytest.mark.parametrize("kind", EXACT)
def test_exact_operations_are_torchs(kind):
    attributes, expected = EXACT[kind]
    found = compute(kind, [MAPS.numpy()], attributes, {})
    np.testing.assert_array_equal(found, _float32(expected()))
    assert found.dtype == np.float32
    assert output_shape(kind, [tuple(MAPS.shape)], attributes, {}) == found.shape


@pytest.mark.parametrize("kind", ROUNDED_ONCE)
def test_other_arithmetic_is_float64_rounded_once(kind):
    attributes, expected = ROUNDED_ONCE[kind]
    found = compute(kind, [MAPS.numpy()], attributes, {})
    # One unit in the last place: that of a library's own exponential and sum in float64.
    np.testing.assert_allclose(found, _float32(expected()), rtol=1.2e-7, atol=1e-12)
    assert found.dtype == np.float32
    assert output_shape(kind, [tuple(MAPS.shape)], attributes, {}) == found.shape


def test_norms_scale_and_shift_along_their_channels():
    weight, bias = torch.rand(6), torch.rand(6)
    tensors = {"weight": weight.numpy(), "bias": bias.numpy()}
    expected = _float32(F.layer_norm(WIDE, (6,), weight.double(), bias.double(), 1e-6))
    np.testing.assert_allclose(compute("layer_norm", [MAPS.numpy()], {"eps": 1e-6}, tensors), expected, rtol=1.2e-7)
    few = {role: tensor[:4] for role, tensor in tensors.items()}
    expected = _float32(F.group_norm(WIDE, 2, weight[:4].double(), bias[:4].double(), 1e-6))
    found = compute("group_norm", [MAPS.numpy()], {"eps": 1e-6, "groups": 2}, few)
    np.testing.assert_allclose(found, expected, rtol=1.2e-7, atol=1e-7)
    affine = {"scale": few["weight"], "shift": few["bias"]}
    expected = MAPS * weight[:4].view(-1, 1, 1) + bias[:4].view(-1, 1, 1)
    np.testing.assert_array_equal(compute("affine", [MAPS.numpy()], {"axis": 1}, affine), expected.numpy())


def test_constant_gather_and_concat_of_two():
    value = {"value": MAPS.numpy()}
    np.testing.assert_array_equal(compute("constant", [], {}, value), MAPS.numpy())
    index = {"index": np.array([2, 0, 2], np.int32)}
    np.testing.assert_array_equal(compute("gather", [MAPS.numpy()], {"axis": 1}, index), MAPS[:, [2, 0, 2]].numpy())
    both = compute("concat", [MAPS.numpy(), MAPS.numpy()], {"axis": 2}, {})
    np.testing.assert_array_equal(both, torch.cat((MAPS, MAPS), 2).numpy())


def _uniform(bits: int) -> UniformQuantizer:
    quantizer = UniformQuantizer(bits)
    quantizer.set_range(torch.tensor(-0.7), torch.tensor(2.1))
    return quantizer


def _lsq(bits: int) -> LsqQuantizer:
    quantizer = LsqQuantizer(bits, signed=False, with_offset=True)
    quantizer.set_step(torch.tensor(0.11), torch.tensor(-0.17))
    return quantizer


def _groupwise(bits: int) -> GroupwiseQuantizer:
    quantizer = GroupwiseQuantizer(bits, signed=False, below=1)
    quantizer.set_ranges(torch.tensor([1.7]))
    return quantizer


def _centred(bits: int) -> CentredQuantizer:
    quantizer = CentredQuantizer(bits)
    quantizer.set_range(torch.tensor(0.4), torch.tensor(1.3))
    return quantizer


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("make", [_uniform, _lsq, _groupwise, _centred])
def test_every_even_quantizer_is_a_quantize(make, bits, recorded):
    quantizer = make(bits)
    scale = float(quantizer.factor)
    # Halves between two codes, where the rounding decides, beside what comes.
    x = torch.cat((MAPS.flatten(), (torch.arange(-40, 40) + 0.5) * scale))[None]
    kind, attributes, operand = recorded(quantizer, x)
    assert kind == "quantize"
    codes = integers.quantize(x.numpy(), attributes)
    np.testing.assert_array_equal(codes, quantizer.quantize(x).numpy())
    numbers = integers.whole_numbers(codes, operand, np.float32)
    np.testing.assert_array_equal(numbers, quantizer.centred(x).numpy())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("kind", [Log2Quantizer, LogSqrt2Quantizer, AdaLogQuantizer])
def test_log_quantizers_are_tables(kind, zero, bits, recorded):
    quantizer = kind(bits, zero=zero, shift=0.17)
    quantizer.set_scale(torch.tensor(0.83))
    edges = torch.from_numpy(quantizer.thresholds().copy()) - 0.17
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), -1.0, 1e-38, 3e38])
    x = torch.cat((MAPS.flatten(), torch.rand(5000), edges, special))[None]
    name, attributes, operand = recorded(quantizer, x)
    assert name == "quantize_log"
    codes = integers.quantize_log(x.numpy(), attributes)
    np.testing.assert_array_equal(codes, quantizer.quantize(x).numpy())
    numbers = integers.whole_numbers(codes, operand, np.float32)
    np.testing.assert_array_equal(numbers, quantizer.centred(x).numpy())


def test_a_scale_for_every_head(recorded):
    quantizer = UniformQuantizer(4, axis=1)
    low = torch.tensor([-1.0, -0.1, 0.2, -2.0]).view(1, 4, 1, 1)
    quantizer.set_range(low, low + torch.tensor([2.0, 1.0, 0.5, 4.0]).view(1, 4, 1, 1))
    _, attributes, operand = recorded(quantizer, MAPS)
    codes = integers.quantize(MAPS.numpy(), attributes)
    np.testing.assert_array_equal(codes, quantizer.quantize(MAPS).numpy())
    numbers = integers.whole_numbers(codes, operand, np.float32)
    np.testing.assert_array_equal(numbers, quantizer.centred(MAPS).numpy())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_convolutions_are_exact(data):
    groups = data.draw(st.sampled_from([1, 2, 4]))
    rows, columns = groups * data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    kernel = [data.draw(st.integers(1, 3)) for _ in range(2)]
    pads = [data.draw(st.integers(0, 2)) for _ in range(4)]
    strides, dilations = ([data.draw(st.integers(1, 2)) for _ in range(2)] for _ in range(2))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    codes = generator.integers(0, 256, (2, columns * groups, 7, 6)).astype(np.uint8)
    zero = data.draw(st.sampled_from([0, 7, -300, 2**20]))
    tensors = {
        "weight": generator.integers(0, 16, (rows, columns, *kernel)).astype(np.uint8),
        "zero": generator.integers(-3, 20, rows).astype(np.int32),
        "scale": generator.random(rows, np.float32), "bias": generator.random(rows, np.float32),
    }  # fmt: skip
    attributes = {
        "bits": 4, "input": {"zero": [zero]}, "strides": strides, "dilations": dilations, "groups": groups,
        "pads": [pads[:2], pads[2:]],
    }  # fmt: skip
    sums, result = integers.conv(codes, integers.prepare_weights(attributes, tensors), attributes)
    x = F.pad(torch.from_numpy(codes.astype(np.float64) - zero), (pads[2], pads[3], pads[0], pads[1]))
    weight = torch.from_numpy(tensors["weight"].astype(np.float64) - tensors["zero"][:, None, None, None])
    expected = F.conv2d(x, weight, None, strides, 0, dilations, groups)
    np.testing.assert_array_equal(sums, expected.numpy())
    scaled = expected.float() * torch.from_numpy(tensors["scale"]).view(-1, 1, 1)
    np.testing.assert_array_equal(result, (scaled + torch.from_numpy(tensors["bias"]).view(-1, 1, 1)).numpy())
    assert output_shape("conv", [codes.shape], attributes, tensors) == result.shape


def test_what_depends_on_the_batch():
    assert at_batch({"shape": [{"batch": 4, "plus": 1}, 7]}, 3) == {"shape": [13, 7]}
