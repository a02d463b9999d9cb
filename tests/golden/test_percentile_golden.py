"""The percentile quantizers and layers of QwT's and QLA's reference code: their own numbers."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from halfbyte.calibrate.percentile import fit_log, fit_uniform
from halfbyte.layers.conv import QuantConv2d
from halfbyte.layers.linear import QuantLinear
from halfbyte.layers.site import WeightedSite
from halfbyte.prepare import set_default_quantizers, set_state
from halfbyte.quantizers.log import LogSqrt2Quantizer
from halfbyte.quantizers.uniform import UniformQuantizer

GOLDEN = json.loads((Path(__file__).parent / "percentile.json").read_text())
UNIFORM = GOLDEN["percentile_uniform_quantizer"]
LOG = GOLDEN["log_sqrt2_quantizer"]


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def assert_near(got: Tensor, expected: object) -> None:
    # The reference computes the rank of a quantile in float32, ours in float64.
    tolerance = 1e-5
    wanted = tensor(expected)
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


@pytest.mark.parametrize("case", UNIFORM["cases"], ids=lambda case: f"{case['kind']}-{case['n_bits']}")
def test_uniform_ranges(case) -> None:
    quantizer = UniformQuantizer(case["n_bits"], axis=case["channel_axis"] if case["channel_wise"] else None)
    x = tensor(case["x"])
    fit_uniform(quantizer, x)
    assert quantizer.scale is not None
    assert quantizer.zero_point is not None
    assert_near(quantizer.scale, case["delta"])
    assert torch.equal(quantizer.zero_point.float(), tensor(case["zero_point"]))
    assert_near(quantizer(x), case["out"])


def test_a_range_stays_what_the_first_batch_made_it() -> None:
    case = UNIFORM["static_after_first_call"]
    quantizer = fit_uniform(UniformQuantizer(4), tensor(case["first"]))
    assert_near(quantizer(tensor(case["second"])), case["second_out"])


@pytest.mark.parametrize("case", LOG["cases"], ids=lambda case: str(case["n_bits"]))
def test_log_sqrt2_levels(case) -> None:
    quantizer = LogSqrt2Quantizer(case["n_bits"], paper_exact=True)
    x = tensor(case["x"])
    fit_log(quantizer, x)
    assert quantizer.scale is not None
    assert_near(quantizer.scale, case["delta"])
    assert_near(quantizer(x), case["out"])


def test_log_sqrt2_of_the_smallest_and_the_largest() -> None:
    case = LOG["edge"]
    quantizer = LogSqrt2Quantizer(case["n_bits"], paper_exact=True)
    quantizer.set_scale(tensor(case["delta"]))
    assert_near(quantizer(tensor(case["x"])), case["out"])


def fitted(module: WeightedSite, bits: tuple[int, int], x: Tensor) -> WeightedSite:
    assert module.weight is not None
    set_default_quantizers(module, *bits)
    fit_uniform(module.quantizer("weight"), module.weight.detach())  # type: ignore[arg-type]
    fit_uniform(module.quantizer("input"), x)  # type: ignore[arg-type]
    set_state(module, "quantized")
    return module


@torch.no_grad()
def test_quantized_linear() -> None:
    case = GOLDEN["quant_linear"]
    x, weight = tensor(case["x"]), tensor(case["weight"])
    linear = nn.Linear(*reversed(weight.shape))
    linear.weight.copy_(weight)
    linear.bias.copy_(tensor(case["bias"]))
    module = fitted(QuantLinear(linear), (4, 4), x)
    assert_near(module.quantizer("weight").scale, case["w_delta"])  # type: ignore[arg-type]
    assert_near(module.quantizer("input").scale, case["a_delta"])  # type: ignore[arg-type]
    assert_near(module(x), case["out"])


@pytest.mark.parametrize("name", ["quant_conv_qwt_official_input8", "quant_conv_qla_input_abits"])
@torch.no_grad()
def test_quantized_convolution(name: str) -> None:
    case = GOLDEN[name]
    x, weight = tensor(case["x"]), tensor(case["weight"])
    outputs, groups = len(weight), case["groups"]
    conv = nn.Conv2d(weight.shape[1] * groups, outputs, 3, padding=case["padding"], groups=groups, bias=False)
    conv.weight.copy_(weight)
    module = fitted(QuantConv2d(conv), (case["w_bits"], case["effective_a_bits"]), x)
    assert_near(module.quantizer("weight").scale, case["w_delta"])  # type: ignore[arg-type]
    assert_near(module.quantizer("input").scale, case["a_delta"])  # type: ignore[arg-type]
    assert_near(module(x), case["out"])
