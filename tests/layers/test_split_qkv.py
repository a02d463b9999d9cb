"""A packed projection made three: the same function in every state, saved and loaded."""

from __future__ import annotations

import pytest
import torch

from halfbyte.data.images import EMBEDDED_CALIBRATION, open_images
from halfbyte.edits import Edit
from halfbyte.errors import HalfbyteError
from halfbyte.families.describe import describe
from halfbyte.models.builtin import create_builtin
from halfbyte.models.sret import create_sret
from halfbyte.prepare import model_state, prepare
from halfbyte.quantizers.uniform import UniformQuantizer
from halfbyte.recipe import BitPlan


@pytest.mark.parametrize("name", ["fashion_vit", "fashion_swin"])
def test_nothing_is_lost(name):
    torch.manual_seed(0)
    model = create_builtin(name).eval()
    layout = prepare(model, describe(model), BitPlan())
    generator = torch.Generator().manual_seed(0)
    for site in layout.sites:
        module = model.get_submodule(site.name)
        for operand in site.operands:
            quantizer = module.quantizer(operand)
            assert isinstance(quantizer, UniformQuantizer)
            if operand == "weight":
                rows = module.weight.flatten(1)
                shape = (-1, *[1] * (module.weight.ndim - 1))
                quantizer.set_range(rows.amin(1).view(shape).detach(), rows.amax(1).view(shape).detach())
            else:
                quantizer.set_range(torch.tensor(-3.0), torch.tensor(3.0))
    attentions = [site.name.removesuffix(".qkv") for site in layout.sites if site.role == "qkv"]
    # One of them has codes that are not those of its weight.
    odd = model.get_submodule(f"{attentions[0]}.qkv")
    odd.weight_codes = odd.codes() ^ (torch.rand(odd.weight.shape, generator=generator) < 0.1).to(torch.uint8)
    images = open_images(EMBEDDED_CALIBRATION, model.pretrained_cfg, num_classes=None)
    batch = torch.stack([images[i][0] for i in range(4)])

    def outputs():
        with torch.no_grad():
            found = {}
            for state in ("float", "quantized"):
                with model_state(model, state):
                    found[state] = model(batch)
        return found

    before, macs = outputs(), sum(site.macs for site in layout.sites)
    for attention in attentions:
        layout = Edit("split_qkv", {"attention": attention}).apply(model, layout)
    after = outputs()
    assert torch.equal(after["quantized"], before["quantized"])
    torch.testing.assert_close(after["float"], before["float"], atol=1e-5, rtol=1e-4)
    parts = [site for site in layout.sites if site.role == "qkv"]
    assert [site.name for site in parts[:3]] == [f"{attentions[0]}.{part}_proj" for part in "qkv"]
    assert len(parts) == 3 * len(attentions)
    assert all(site.norm == parts[0].norm for site in parts[:3])
    assert sum(site.macs for site in layout.sites) == macs
    with pytest.raises(HalfbyteError, match="has no packed projection"):
        Edit("split_qkv", {"attention": attentions[0]}).apply(model, layout)


def test_of_sliced_attention_too():
    model = create_sret("sret_t").eval()
    layout = prepare(model, describe(model), BitPlan())
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), model_state(model, "float"):
        before = model(images)
        layout = Edit("split_qkv", {"attention": "stages.0.blocks.1.attn"}).apply(model, layout)
        torch.testing.assert_close(model(images), before, atol=1e-4, rtol=1e-4)
