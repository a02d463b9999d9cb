"""Steps by least squares: forms and widths by role, a fair accuracy before any training, and artifacts that load."""

from __future__ import annotations

import pytest
import torch

from halfbyte import api
from halfbyte.prepare import model_state, site_module
from halfbyte.quantizers.lsq import LsqQuantizer
from halfbyte.steps.learned_steps import LearnedSteps, chosen_step

RECIPE = """name: l
bits: {{weight: {bits}, activation: {bits}}}
{more}steps: [learned_steps: {{images: 32, scheme: {scheme}}}]
"""


@pytest.fixture
def run(tmp_path):
    def quantize(model="fashion_vit", bits=4, scheme="vvtq", more="", limit=500):
        (tmp_path / "l.yaml").write_text(RECIPE.format(bits=bits, scheme=scheme, more=more))
        out = tmp_path / f"{model}{bits}{scheme}{bool(more)}"
        return api.quantize(model=model, recipe=tmp_path / "l.yaml", out=out, calib_images=32, limit=limit, workers=0)

    return quantize


def quantizers(result):
    return {
        (name.removesuffix(f".{operand}_quantizer"), operand): module
        for name, module in result.model.named_modules()
        if isinstance(module, LsqQuantizer)
        for operand in [name.rpartition(".")[2].removesuffix("_quantizer")]
    }


def test_the_forms_of_the_scheme(run):
    result = run(limit=4)
    found = quantizers(result)
    names = {name for name, _ in found}
    assert {f"blocks.0.attn.{part}_proj" for part in "qkv"} <= names
    assert all(quantizer.axis is None for quantizer in found.values())
    for (name, operand), quantizer in found.items():
        ends = name in ("patch_embed.proj", "head")
        assert quantizer.bits == (8 if ends else 4)
        assert quantizer.signed == (not name.endswith("mlp.fc2") and not name.endswith("attn.pv")) or operand != "input"
        assert quantizer.with_offset == (name.endswith("mlp.fc2") and operand == "input")
    assert not found["blocks.0.attn.pv", "left"].signed
    assert found["blocks.0.attn.pv", "right"].signed
    assert found["blocks.0.mlp.fc2", "weight"].signed
    assert -0.2 < found["blocks.0.mlp.fc2", "input"].offset < -0.1


@pytest.mark.parametrize(("scheme", "floor"), [("vvtq", 80.0), pytest.param("lsq", 82.0, marks=pytest.mark.slow)])
def test_the_first_guess_is_better_than_the_published_one(run, scheme, floor):
    ours = run(scheme=scheme).metrics["quantized"]["top1"]
    assert ours >= floor
    published = run(scheme=scheme, more="paper_exact: true\n").metrics["quantized"]["top1"]
    assert published < ours - 4


@pytest.mark.parametrize("model", ["fashion_resnet", pytest.param("fashion_swin", marks=pytest.mark.slow)])
def test_saved_and_loaded(run, model):
    result = run(model, scheme="lsq", limit=4)
    images = torch.randn(4, 1, 28, 28)
    with torch.no_grad(), model_state(result.model, "quantized"):
        expected = result.model(images)
    with torch.inference_mode():
        assert torch.equal(api.load(result.folder)(images), expected)
    site = site_module(result.model, result.model.pretrained_cfg["classifier"])
    assert site.quantizer("weight").scale.shape == (10, 1)


def test_a_step_is_the_best_of_many():
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    for bits, signed, shifted in ((2, True, False), (4, True, False), (3, False, True)):
        quantizer = LsqQuantizer(bits, signed=signed, with_offset=shifted)
        quantizer.set_step(*chosen_step(values, quantizer))
        found = (quantizer(values) - values).square().mean()
        for factor in (0.8, 0.9, 1.1, 1.25):
            other = LsqQuantizer(bits, signed=signed, with_offset=shifted)
            other.set_step(quantizer.scale * factor, quantizer.beta if shifted else None)
            assert found <= (other(values) - values).square().mean() * 1.001
    nothing = LsqQuantizer(4)
    nothing.set_step(*chosen_step(torch.zeros(10), nothing))
    assert torch.equal(nothing(torch.zeros(3)), torch.zeros(3))


@pytest.mark.parametrize("wrong", [{"scheme": "best"}, {"images": 0}])
def test_wrong_parameters_are_told(wrong):
    with pytest.raises(ValueError, match=r"scheme must be one of lsq, vvtq|images must be at least 1"):
        LearnedSteps(**wrong)
