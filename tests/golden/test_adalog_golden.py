"""The AdaLog reference's own numbers: codes exact, searches no worse than theirs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from halfbyte.calibrate.alternate import WeightSearch, search_linear, search_product
from halfbyte.calibrate.grids import Candidates
from halfbyte.calibrate.operands import LogOperand, Operand, Settings, UniformOperand
from halfbyte.calibrate.own_error import OwnError
from halfbyte.layers.linear import QuantLinear
from halfbyte.quantizers.log import GELU_SHIFT, AdaLogQuantizer
from halfbyte.quantizers.twin import TwinUniformQuantizer
from halfbyte.steps.reparameterize import reparameterize

CASES = {case["name"]: case for case in json.loads((Path(__file__).parent / "adalog.json").read_text())["cases"]}
# Tied candidates may differ: what counts is the error that the committed parameters make.
NO_WORSE = 1 + 1e-4
PUBLISHED = Settings.make(128, 6, 3, paper_exact=True, race=False)


def named(prefix: str) -> list[str]:
    found = [name for name in CASES if name.startswith(prefix)]
    assert found
    return found


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def adalog(name: str, **options: float) -> AdaLogQuantizer:
    parameters = CASES[name]["parameters"]
    quantizer = AdaLogQuantizer(parameters["bits"], base=parameters["q"], paper_exact=True, **options)
    quantizer.set_scale(tensor(parameters["scale"]))
    return quantizer


def assert_codes(quantizer: AdaLogQuantizer, x: Tensor, expected: object) -> None:
    codes = tensor(expected)
    wanted = torch.where(codes < 0, quantizer.symbols - 1, codes)
    got = quantizer.quantize(x).float()
    # Exactly between two codes (a base of two octaves has such inputs) either is right.
    place = -torch.log2((x.double() + quantizer.shift).clamp(min=1e-300) / quantizer.scale) * 37 / quantizer.base
    tie = ((place - place.floor()) - 0.5).abs() < 1e-5
    assert torch.equal(got[~tie], wanted[~tie])
    assert bool(((got - wanted).abs() <= 1)[tie].all())


def assert_near(got: Tensor, expected: object, tolerance: float = 2e-6) -> None:
    wanted = tensor(expected)
    assert float((got - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


@pytest.mark.parametrize("name", named("hand_adalog_") + named("rand_adalog_"))
def test_adalog_codes_tables_and_values(name: str) -> None:
    case, quantizer = CASES[name], adalog(name)
    x, outputs = tensor(case["inputs"]["x"]), case["outputs"]
    assert_codes(quantizer, x, outputs["code"])
    same = quantizer.quantize(x).float() == torch.where(
        tensor(outputs["code"]) < 0, quantizer.symbols - 1, tensor(outputs["code"])
    )
    assert_near(quantizer(x)[same], tensor(outputs["dequant"])[same].tolist())
    if "table2_mantissa_int" in outputs:
        mantissas, octaves = quantizer.mantissas_and_octaves(np.array([quantizer.base]))
        assert mantissas[0, :-1].tolist() == outputs["table2_mantissa_int"]
        assert octaves[0, :-1].tolist() == outputs["table1_shift"]


@pytest.mark.parametrize("name", named("rand_shiftadalog_"))
def test_shifted_adalog_before_and_after_its_shift_went_into_the_bias(name: str) -> None:
    case = CASES[name]
    quantizer = adalog(name, shift=case["parameters"]["shift"])
    x, outputs = tensor(case["inputs"]["x"]), case["outputs"]
    assert_codes(quantizer, x, outputs["code"])
    assert_near(quantizer(x), outputs["dequant"])
    assert_near(quantizer.centred(x) * quantizer.factor, outputs["dequant_after_bias_reparam"])


@pytest.mark.parametrize("name", named("rand_twin_uniform_"))
def test_twin_uniform(name: str) -> None:
    case = CASES[name]
    quantizer = TwinUniformQuantizer(case["parameters"]["bits"])
    quantizer.set_scales(tensor(case["parameters"]["scale_neg"]), tensor(case["parameters"]["scale_pos"]))
    assert_near(quantizer(tensor(case["inputs"]["x"])), case["outputs"]["dequant"])


def _squared(error: Tensor) -> float:
    return float(error.double().square().mean())


def _bits(name: str) -> int:
    return int(name[-1])


@pytest.mark.parametrize("name", named("fpcs_linear_") + named("fpcs_postgelu_linear_"))
def test_search_of_a_linear(name: str) -> None:
    case, bits = CASES[name], _bits(name)
    x, weight = tensor(case["inputs"]["x"]).flatten(0, 1), tensor(case["inputs"]["weight"])
    values = x[None, None]
    inputs: Operand = UniformOperand(values, bits, PUBLISHED)
    if "postgelu" in name:
        like = AdaLogQuantizer(bits, paper_exact=True, shift=GELU_SHIFT)
        inputs = LogOperand(values, like, PUBLISHED, search_scale=True)
    search = WeightSearch(weight[None], bits, PUBLISHED)
    rows, quantizer = search_linear(inputs, search)
    exact = x @ weight.T
    got = quantizer(x) @ (weight + search.change(rows)[0]).T - exact
    reference = tensor(case["outputs"]["quant_out"]).flatten(0, 1) - exact - tensor(case["inputs"]["bias"])
    assert _squared(got) <= NO_WORSE * _squared(reference)


@pytest.mark.parametrize("name", named("fpcs_postln_linear_"))
@torch.no_grad()
def test_search_of_a_linear_behind_a_norm(name: str) -> None:
    case, bits = CASES[name], _bits(name)
    inputs, outputs = case["inputs"], case["outputs"]
    norm, linear = nn.LayerNorm(8, eps=inputs["ln_eps"]), nn.Linear(8, 6)
    for target, key in ((norm.weight, "ln_weight"), (norm.bias, "ln_bias"), (linear.weight, "weight")):
        target.copy_(tensor(inputs[key]))
    linear.bias.copy_(tensor(inputs["bias"]))
    site, h = QuantLinear(linear), tensor(inputs["h"])
    channels = norm(h).flatten(0, 1).T[:, None, None]
    found = UniformOperand(channels, bits, PUBLISHED).by_own_error()
    reference_of = Candidates(tensor(outputs["channel_scale"])[None], tensor(outputs["channel_zero_point"])[None])
    assert bool((found.error <= NO_WORSE * OwnError(channels.flatten(1), bits)(reference_of)[0]).all())
    reparameterize(norm, [site], reference_of.scale[0], reference_of.other[0], round_zero_point=True)
    assert_near(norm.weight, outputs["ln_weight_new"], 1e-4)
    x, weight, bias = norm(h).flatten(0, 1), site.weight, site.bias
    search = WeightSearch(weight[None], bits, PUBLISHED)
    rows, quantizer = search_linear(UniformOperand(x[None, None], bits, PUBLISHED), search)
    got = quantizer(x) @ (weight + search.change(rows)[0]).T + bias - tensor(outputs["raw_out"]).flatten(0, 1)
    reference = tensor(outputs["quant_out"]) - tensor(outputs["raw_out"])
    assert _squared(got) <= NO_WORSE * _squared(reference)


@pytest.mark.parametrize("name", named("fpcs_matmul"))
def test_search_of_a_product(name: str) -> None:
    case, bits = CASES[name], _bits(name)
    left, right = tensor(case["inputs"]["A"]), tensor(case["inputs"]["B"])
    one: Operand = UniformOperand(left.transpose(0, 1), bits, PUBLISHED, of_product=True)
    if "matmul2" in name:
        maps = left.flatten(0, 1)[None]
        one = LogOperand(maps, AdaLogQuantizer(bits, paper_exact=True), PUBLISHED, search_scale=False)
    other = UniformOperand(right.permute(1, 0, 3, 2), bits, PUBLISHED, of_product=True)
    quantizers = search_product(one, other)
    exact = left @ right
    got = quantizers[0](left) @ quantizers[1](right) - exact
    assert _squared(got) <= NO_WORSE * _squared(tensor(case["outputs"]["quant_out"]) - exact)


@pytest.mark.parametrize("name", named("fpcs_patchconv_"))
def test_search_of_a_convolution(name: str) -> None:
    case, bits = CASES[name], _bits(name)
    weight, size = tensor(case["inputs"]["weight"]).flatten(1), case["parameters"]["kernel"]
    x = F.unfold(tensor(case["inputs"]["x"]), size, stride=size).transpose(1, 2).flatten(0, 1)
    search = WeightSearch(weight[None], bits, PUBLISHED, of_convolution=True)
    found = search.improved(search.error([(x[None], x[None])]), search.initial())
    got = x @ search.change(found)[0].T
    reference = tensor(case["outputs"]["quant_out"]).flatten(2).transpose(1, 2).flatten(0, 1)
    reference = reference - tensor(case["inputs"]["bias"]) - x @ weight.T
    assert _squared(got) <= NO_WORSE * _squared(reference)
