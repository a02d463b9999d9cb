"""The reference implementations' own numbers: codes exact, values to float32 accuracy."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from halfbyte.calibrate.percentile import fit_log, fit_uniform
from halfbyte.layers.linear import QuantLinear
from halfbyte.quantizers.log import Log2Quantizer, LogQuantizer, LogSqrt2Quantizer
from halfbyte.quantizers.uniform import UniformQuantizer
from halfbyte.steps.reparameterize import reparameterize

CASES = {case["name"]: case for case in json.loads((Path(__file__).parent / "ptq.json").read_text())["cases"]}


def named(*prefixes: str) -> list[str]:
    found = [name for name in CASES if name.startswith(prefixes)]
    assert found
    return found


def tensor(value: object) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32)


def assert_near(got: torch.Tensor, expected: object, tolerance: float = 2e-6) -> None:
    wanted = tensor(expected)
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


@pytest.mark.parametrize("name", named("hand_uniform_", "rand_uniform_"))
def test_uniform_codes_and_values(name: str) -> None:
    case = CASES[name]
    parameters, x = case["parameters"], tensor(case["inputs"]["x"])
    symmetric = parameters.get("symmetric", False)
    quantizer = UniformQuantizer(parameters["bits"], axis=0 if "channel" in name else None, symmetric=symmetric)
    half = 2 ** (parameters["bits"] - 1)
    quantizer.set_parameters(tensor(parameters["scale"]), tensor(parameters.get("zero_point", half)))
    # The reference writes symmetric codes around zero.
    expected = tensor(case["outputs"]["code"]) + (half if symmetric else 0)
    assert torch.equal(quantizer.quantize(x).float(), expected)
    assert_near(quantizer(x), case["outputs"]["dequant"])


@pytest.mark.parametrize("name", named("hand_log2_", "hand_logsqrt2_", "hand_repq_logsqrt2_", "rand_logsqrt2_"))
def test_log_codes_and_values_as_the_papers_code_has_them(name: str) -> None:
    case = CASES[name]
    quantizer = log_quantizer(name, paper_exact=True)
    x, codes = tensor(case["inputs"]["x"]), tensor(case["outputs"]["code"])
    zero = quantizer.symbols - 1
    expected = torch.where(codes < 0, torch.full_like(codes, zero), codes)
    assert torch.equal(quantizer.quantize(x).float(), expected)
    assert_near(quantizer(x), case["outputs"]["dequant"])


@pytest.mark.parametrize("name", named("hand_log2_", "hand_logsqrt2_", "hand_repq_logsqrt2_", "rand_logsqrt2_"))
def test_deployable_log_codes_differ_only_in_the_last_code(name: str) -> None:
    case = CASES[name]
    quantizer = log_quantizer(name, paper_exact=False)
    x, codes = tensor(case["inputs"]["x"]), tensor(case["outputs"]["code"])
    last = quantizer.levels - 1
    above = (codes >= 0) & (codes < last)
    expected = torch.where(above, codes, last)
    # Within 0.4 % of a threshold, and nowhere else, a code may be the neighbour's.
    steps = float(quantizer.steps_per_octave(np.array(quantizer.base)))
    ratio = torch.log2(x / quantizer.scale) * steps
    clear = ((ratio - 0.5).round() - (ratio - 0.5)).abs() > 0.006 * steps
    assert float(clear.float().mean()) > 0.8
    assert torch.equal(quantizer.quantize(x).float()[clear], expected[clear])
    # A level is a whole number of units of scale / (2**15 - 1).
    kept = clear & above
    error = (quantizer(x) - tensor(case["outputs"]["dequant"]))[kept].abs()
    assert not len(error) or float(error.max()) <= 0.5001 * float(quantizer.factor) + 1e-7


def log_quantizer(name: str, paper_exact: bool) -> LogQuantizer:
    parameters = CASES[name]["parameters"]
    kind = Log2Quantizer if "_log2_" in name else LogSqrt2Quantizer
    quantizer = kind(parameters["bits"], paper_exact=paper_exact)
    quantizer.set_scale(tensor(parameters.get("scale", parameters.get("delta"))))
    return quantizer


@pytest.mark.parametrize("name", named("repq_uniform_"))
def test_percentile_search(name: str) -> None:
    case = CASES[name]
    axis = None if "tensor" in name else -1 if "lastdim" in name else 0
    x, outputs = tensor(case["inputs"]["x"]), case["outputs"]
    quantizer = fit_uniform(UniformQuantizer(case["parameters"]["bits"], axis), x)
    assert_near(quantizer.scale.flatten() if axis is not None else quantizer.scale, outputs["delta"], 1e-5)
    assert torch.equal(quantizer.zero_point.flatten().float(), tensor(outputs["zero_point"]).flatten())
    assert_near(quantizer(x), outputs["dequant"], 1e-5)


@pytest.mark.parametrize("name", named("repq_logsqrt2_init_"))
def test_log_percentile_search(name: str) -> None:
    case = CASES[name]
    quantizer = LogSqrt2Quantizer(case["parameters"]["bits"], paper_exact=True)
    fit_log(quantizer, tensor(case["inputs"]["x"]))
    assert_near(quantizer.scale, case["outputs"]["delta"], 1e-6)
    assert_near(quantizer(tensor(case["inputs"]["x"])), case["outputs"]["dequant"], 1e-5)


@pytest.mark.parametrize("name", named("repq_reparam_"))
@torch.no_grad()
def test_reparameterization(name: str) -> None:
    case = CASES[name]
    inputs, outputs, bits = case["inputs"], case["outputs"], case["parameters"]["bits"]
    norm, linear = nn.LayerNorm(8, eps=inputs["ln_eps"]), nn.Linear(8, 5)
    norm.weight.copy_(tensor(inputs["ln_weight"]))
    norm.bias.copy_(tensor(inputs["ln_bias"]))
    linear.weight.copy_(tensor(inputs["weight"]))
    linear.bias.copy_(tensor(inputs["bias"]))
    site = QuantLinear(linear)
    h = tensor(inputs["h"])
    before = site(norm(h))
    assert_near(before, outputs["fp_before"], 1e-5)
    per_channel = fit_uniform(UniformQuantizer(bits, axis=-1), norm(h))
    assert_near(per_channel.scale.flatten(), outputs["channel_delta"], 1e-5)
    assert np.array_equal(per_channel.zero_point.flatten(), outputs["channel_zero_point"])
    scale, zero_point, *_ = reparameterize(
        norm, [site], per_channel.scale.flatten(), per_channel.zero_point.flatten(), round_zero_point=False
    )
    assert float(scale) == pytest.approx(outputs["target_delta"], rel=1e-6)
    assert float(zero_point) == pytest.approx(outputs["target_zero_point"])
    assert_near(norm.weight, outputs["ln_weight_new"], 1e-5)
    assert_near(norm.bias, outputs["ln_bias_new"], 1e-4)
    assert_near(site.weight, outputs["weight_new"], 1e-5)
    assert_near(site.bias, outputs["bias_new"], 1e-4)
    weights = fit_uniform(UniformQuantizer(bits, axis=0), site.weight)
    assert_near(weights.scale.flatten(), outputs["weight_delta_recalibrated"], 1e-5)
    assert np.array_equal(weights.zero_point.flatten(), outputs["weight_zero_point_recalibrated"])
    assert_near(site(norm(h)), outputs["fp_after"], 1e-5)
    activations = UniformQuantizer(bits, fractional=True)
    activations.set_parameters(scale, zero_point)
    site.set_quantizer("input", activations)
    site.set_quantizer("weight", weights)
    site.state = "quantized"
    assert_near(site(norm(h)), outputs["quant_out"], 1e-5)


@torch.no_grad()
def test_rounded_zero_point_leaves_the_function_unchanged() -> None:
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(16), nn.Linear(16, 6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.weight[3] = 0.0
    site, h = QuantLinear(linear), torch.randn(4, 20, 16) * 3
    before = site(norm(h))
    fitted = fit_uniform(UniformQuantizer(4, axis=-1), norm(h))
    constant = torch.full((16,), float("nan"))
    constant[3] = norm.bias[3]
    scale, zero_point, *_ = reparameterize(
        norm, [site], fitted.scale.flatten(), fitted.zero_point.flatten(), round_zero_point=True, constant=constant
    )
    assert float(zero_point) == round(float(zero_point))
    assert float((site(norm(h)) - before).abs().max()) < 1e-5 * float(before.abs().max())
    # The constant channel is a code, so that it is represented exactly.
    assert float(norm(h)[0, 0, 3] / scale) == pytest.approx(-float(zero_point), abs=1e-4)
