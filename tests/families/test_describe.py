"""What is found in real timm classes, and that preparing a model leaves its function alone."""

import pytest
import timm
import torch

from halfbyte.coverage import coverage
from halfbyte.errors import HalfbyteError
from halfbyte.families.describe import describe
from halfbyte.families.layout import ROLES, Layout
from halfbyte.models.builtin import BUILTIN_MODELS, create_builtin
from halfbyte.prepare import prepare
from halfbyte.recipe import BitPlan, Bits

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7}


def small(name: str, **options: object) -> torch.nn.Module:
    model = timm.create_model(name, **{**SMALL, **options}).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32)}
    return randomized(model)


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    """Parameters that start as zeros or ones would hide mistakes."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1 or float(parameter.detach().std()) < 0.05:
            torch.nn.init.normal_(parameter, 0.2, 0.3)
    return model


def described(model: torch.nn.Module) -> Layout:
    return prepare(model, describe(model))


def test_a_vit_block_in_the_order_in_which_it_runs() -> None:
    layout = described(create_builtin("fashion_vit").eval())
    assert [block.name for block in layout.blocks] == ["patch_embed", *(f"blocks.{i}" for i in range(6)), "head"]
    block = layout.blocks[1]
    assert [(site.name, site.role) for site in block.sites] == [
        ("blocks.0.attn.qkv", "qkv"), ("blocks.0.attn.qk", "qk"), ("blocks.0.attn.pv", "pv"),
        ("blocks.0.attn.proj", "proj"), ("blocks.0.mlp.fc1", "fc1"), ("blocks.0.mlp.fc2", "fc2"),
    ]  # fmt: skip
    assert block.sites[0].norm == "blocks.0.norm1"
    assert block.sites[4].norm == "blocks.0.norm2"
    assert block.sites[5].activation == "blocks.0.mlp.act"
    assert (layout.sites[0].role, layout.sites[-1].role) == ("stem", "head")
    assert block.sites[0].macs == 50 * 96 * 3 * 96
    assert block.sites[1].macs == 50 * 50 * 96


def test_swin_and_resnet_links() -> None:
    swin = described(create_builtin("fashion_swin").eval())
    assert swin.site("layers.1.downsample.reduction").role == "reduction"
    assert swin.site("layers.1.downsample.reduction").norm == "layers.1.downsample.norm"
    assert swin.site("layers.0.blocks.1.attn.qkv").norm == "layers.0.blocks.1.norm1"
    assert swin.site("head.fc").role == "head"
    resnet = described(create_builtin("fashion_resnet").eval())
    assert resnet.site("layer2.0.conv2").activation == "layer2.0.act1"
    assert resnet.site("conv1").role == "stem"
    assert resnet.site("fc").role == "head"
    assert resnet.site("layer2.0.downsample.0").block == "layer2.0"


def test_swin_windows_that_need_padding_are_not_linked() -> None:
    from timm.models.swin_transformer import SwinTransformer

    options = {"patch_size": 2, "embed_dim": 48, "depths": (2,), "num_heads": (3,), "num_classes": 5}
    model = SwinTransformer(img_size=20, window_size=7, strict_img_size=False, **options).eval()
    model.pretrained_cfg = {"input_size": (3, 20, 20)}
    blocks = [site for site in describe(model).sites if site.role == "qkv"]
    assert blocks
    assert all(site.norm is None for site in blocks)


@pytest.mark.parametrize("name", BUILTIN_MODELS)
def test_everything_in_the_embedded_models_is_a_site(name: str) -> None:
    model = create_builtin(name).eval()
    layout = described(model)
    found = coverage(model, layout)
    assert found["float"] == []
    assert found["quantized_macs_percent"] == 100.0
    assert {site.role for site in layout.sites} <= set(ROLES)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deit_tiny_distilled_patch16_224", {}),
        ("deit3_small_patch16_224", {"init_values": 0.3}),
        ("vit_small_patch14_reg4_dinov2", {"init_values": 0.3}),
        ("vit_tiny_patch16_224", {"qk_norm": True}),
        ("beit_base_patch16_224", {"init_values": 0.3}),
        ("eva02_tiny_patch14_224", {}),
        ("vit_medium_patch16_rope_reg1_gap_256", {}),
    ],
)
@torch.no_grad()
def test_preparing_keeps_the_function(name: str, options: dict[str, object]) -> None:
    model = small(name, **options)
    images = torch.randn(2, 3, 32, 32)
    before = model(images)
    layout = described(model)
    after = model(images)
    assert float((after - before).abs().max()) < 1e-4 * float(before.abs().max())
    products = [site.role for site in layout.sites if site.role in ("qk", "pv")]
    assert products == ["qk", "pv"] * 2
    assert coverage(model, layout)["float"] == []


def test_distilled_models_have_two_heads() -> None:
    layout = described(small("deit_tiny_distilled_patch16_224"))
    assert [site.name for site in layout.sites if site.role == "head"] == ["head", "head_dist"]


def test_a_linear_that_is_never_called_stays_in_float_and_is_listed() -> None:
    model = small("vit_tiny_patch16_224")
    attention = model.blocks[0].attn
    attention.forward = lambda x, **_: x @ attention.qkv.weight[:48].T  # type: ignore[method-assign]
    layout = describe(model)
    layout.adapters.pop("blocks.0.attn")
    layout = Layout.of([s for s in layout.sites if not s.name.startswith("blocks.0.attn.")
                        or s.name.endswith("qkv")], layout.adapters)  # fmt: skip
    prepared = prepare(model, layout)
    assert "blocks.0.attn.qkv" not in [site.name for site in prepared.sites]
    assert type(attention.qkv) is torch.nn.Linear
    assert [entry["where"] for entry in coverage(model, prepared)["float"]] == ["blocks.0.attn"]


def test_a_fused_attention_nobody_knows_is_split_and_listed() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, 4), torch.nn.Flatten(2), torch.nn.Linear(64, 8))
    model[1].forward = lambda x: torch.nn.functional.scaled_dot_product_attention(*[x.flatten(2)] * 3)
    model.pretrained_cfg = {"input_size": (3, 32, 32)}
    layout = described(model.eval())
    found = coverage(model, layout)["float"]
    assert sum(entry["macs"] for entry in found) == 2 * 8 * 8 * 64
    assert {entry["where"] for entry in found} == {"1"}


def test_bits_by_role_and_pattern() -> None:
    layout = described(create_builtin("fashion_vit").eval())
    plan = BitPlan(4, 3, {"stem": Bits(8, 8), "qkv": Bits(activation=6)}, {"blocks.0.*": Bits(weight=5)})
    assert plan.of(layout.site("patch_embed.proj")) == (8, 8)
    assert plan.of(layout.site("blocks.1.attn.qkv")) == (4, 6)
    assert plan.of(layout.site("blocks.0.attn.qkv")) == (5, 6)
    assert plan.of(layout.site("head")) == (4, 3)
    model = create_builtin("fashion_vit").eval()
    with pytest.raises(HalfbyteError, match=r"blocks\.77"):
        prepare(model, describe(model), BitPlan(sites={"blocks.77.*": Bits(4, 4)}))
    with pytest.raises(HalfbyteError, match=r"blocks\.1\.attn\.qkv"):
        layout.site("blocks.1.attn.qvk")
