"""AdaRound, its annealing, and the losses of reconstruction against the reference implementations' own numbers."""

import json
from pathlib import Path

import pytest
import torch

from halfbyte.calibrate.mse import fit_uniform_mse
from halfbyte.calibrate.percentile import MINMAX, fit_uniform
from halfbyte.layers.linear import QuantLinear
from halfbyte.layers.site import WeightedSite
from halfbyte.quantizers.rounding import initial_alpha, power_at, rounded_up, soft_share, undecided
from halfbyte.quantizers.uniform import UniformQuantizer
from halfbyte.train.block_losses import LOSSES, Extra
from halfbyte.train.soft_quantization import SoftQuantization

CASES = {
    case["name"]: case for case in json.loads((Path(__file__).parent / "reconstruction.json").read_text())["cases"]
}


def tensor(value: object) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32)


def assert_near(got: torch.Tensor, expected: object, tolerance: float = 2e-6) -> None:
    wanted, got = tensor(expected), got.detach()
    assert float((got.reshape(wanted.shape) - wanted).abs().max()) <= tolerance * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("name", [name for name in CASES if "adaround" in name])
def test_adaround(name):
    """The published start: the weight itself, of which our site has no codes yet."""
    case = CASES[name]
    inputs, parameters, outputs = case["inputs"], case["parameters"], case["outputs"]
    weight = tensor(inputs["w"])
    weight = weight.flatten(0, 1) if name.startswith("adaround_adalog") else weight.flatten(1)
    quantizer = UniformQuantizer(parameters["bits"], axis=0)
    scale = tensor(parameters.get("scale", parameters.get("delta"))).reshape(-1, 1)
    quantizer.set_parameters(scale, tensor(parameters["zero_point"]).reshape(-1, 1))
    floor = torch.floor(weight / scale)
    alpha = initial_alpha(weight / scale - floor)
    assert_near(alpha, outputs["alpha_init"], 1e-5)
    assert_near(soft_share(alpha), outputs["h_init"], 1e-5)
    perturbed = tensor(inputs["alpha_perturbed"]).reshape(weight.shape)
    assert_near(soft_share(perturbed), outputs["h_perturbed"])
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight.data = weight
    site = QuantLinear(linear)
    site.set_quantizer("weight", quantizer)
    soft = soft_of(site)
    weights = soft.weights[site]
    assert_near(weights.parameters["alpha"], outputs["alpha_init"], 2e-2)
    weights.floor = floor
    weights.parameters["alpha"].data = perturbed
    assert_near(weights.value().detach(), outputs["soft_dequant_perturbed"])
    assert_near(quantizer.dequantize(weights.codes()), outputs["hard_dequant_perturbed"])
    assert torch.equal(rounded_up(perturbed), perturbed >= 0)
    for power, expected in outputs.get("round_loss_weight0p01_at_b", {}).items():
        assert float(0.01 * undecided(perturbed, float(power))) == pytest.approx(expected, rel=1e-5)


def soft_of(site: WeightedSite) -> SoftQuantization:
    return SoftQuantization(
        {"": site}, rounding="adaround", weight_scales=False, activation_scales=False, drop=0.0,
        generator=torch.Generator(),
    )  # fmt: skip


def test_annealing():
    case = CASES["temp_decay_20000_w0.2_20_2"]
    for step, expected in zip(case["inputs"]["t"], case["outputs"]["b"], strict=True):
        assert power_at(step / 20000) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "loss", "output", "divisor"),
    [
        ("rec_loss_mse_adalog", "mse", "loss", 10),
        ("rec_loss_kl_head", "kl", "loss", 1),
        ("brecq_rec_losses", "mse", "mse", 1),
        ("brecq_rec_losses", "fisher_diag", "fisher_diag", 1),
        ("brecq_rec_losses", "fisher_full", "fisher_full", 1),
    ],
)
def test_losses(name, loss, output, divisor):
    case = CASES[name]
    inputs = case["inputs"]
    # The vectors hold |gradient| + 1.
    gradient = tensor(inputs["grad"]) - 1 if "grad" in inputs else None
    got = LOSSES.get(loss)()(tensor(inputs["pred"]), tensor(inputs["tgt"]), Extra(gradient)) / divisor
    assert float(got) == pytest.approx(case["outputs"][output], rel=2e-6)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("brecq_uaq")])
def test_brecqs_first_ranges(name):
    case = CASES[name]
    x, parameters, outputs = tensor(case["inputs"]["x"]), case["parameters"], case["outputs"]
    bits, method = parameters["bits"], parameters["scale_method"]
    quantizer = UniformQuantizer(bits, axis=0 if "_ch_" in name else None, covers_zero=True)
    if method == "mse":
        fit_uniform_mse(quantizer, x, power=2.4)
    elif parameters["symmetric"]:
        x = x.flatten(1)
        largest = x.abs().amax(1, keepdim=True)
        fit_uniform(quantizer, torch.cat([x, largest, -largest], 1), MINMAX)
    else:
        fit_uniform(quantizer, x, MINMAX)
    if method == "max_scale":
        quantizer.set_parameters(quantizer.scale * (bits + 2) / 8, quantizer.zero_point)
    assert_near(quantizer.scale, outputs["delta"])
    off = (quantizer.zero_point.flatten() - tensor(outputs["zero_point"]).flatten()).abs()
    # A range around zero has its middle between two codes; which one the reference takes is up to a rounding error.
    assert float(off.max()) <= (1 if parameters.get("symmetric") else 0)
    if not float(off.max()):
        assert_near(quantizer(x), outputs["dequant"])
