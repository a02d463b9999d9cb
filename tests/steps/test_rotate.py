"""Rotations leave the float model's function as it is, on every ViT family, and come back from an artifact."""

from __future__ import annotations

import io
import json

import pytest
import timm
import torch
from torch import nn

from halfbyte import api
from halfbyte.edits import Edit
from halfbyte.errors import HalfbyteError
from halfbyte.families.describe import describe
from halfbyte.families.stream import free_heads, residual_stream
from halfbyte.hadamard import rotation
from halfbyte.layers.norm import ExactLayerNorm, ExactRMSNorm
from halfbyte.models.builtin import create_builtin
from halfbyte.models.load import load_model
from halfbyte.prepare import model_state, prepare
from halfbyte.progress import Progress
from halfbyte.recipe import load_recipe
from halfbyte.rotation import rotate_heads

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}


def a_model(name: str, **options) -> nn.Module:
    """A small model of a timm class whose norms, scales and biases all matter."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **options).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim <= 3:
                centre = 1.0 if parameter_name.endswith(("norm.weight", "norm1.weight", "norm2.weight")) else 0.0
                parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=generator))
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32)}
    return model


VITS = {
    "vit_tiny_patch16_224": {},
    "vit_small_patch14_reg4_dinov2": {"init_values": 1.0},
    "vit_base_patch16_224": {"global_pool": "avg"},
    "deit_tiny_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},
    "beit_base_patch16_224": {},
    "beitv2_base_patch16_224": {"global_pool": "token"},
    "eva02_tiny_patch14_224": {},
    "vit_base_patch16_rope_reg1_gap_256": {},
}


@pytest.mark.parametrize("name", VITS)
def test_a_vit_computes_what_it_did(name):
    model = a_model(name, **{**SMALL, **VITS[name]})
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        layout = prepare(model, describe(model))
        stream = residual_stream(model)
        assert not isinstance(stream, str), stream
        before = model.get_submodule("patch_embed.proj").weight.clone()
        arguments = {"writers": list(stream.writers), "scales": stream.scales, "tokens": list(stream.tokens),
                     "readers": {norm: list(sites) for norm, sites in stream.readers.items()}}  # fmt: skip
        Edit("rotate_stream", {**arguments, "seed": 5}).apply(model, layout)
        for heads in free_heads(model):
            rotate_heads(model, heads.name, heads.scores, heads.values, seed=6)
        found = model(images)
    assert not [norm for norm in stream.readers if not isinstance(model.get_submodule(norm), ExactRMSNorm)]
    assert not torch.allclose(model.get_submodule("patch_embed.proj").weight, before, atol=1e-2)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["fashion_swin", "fashion_vit"])
def test_heads_alone(name):
    model = create_builtin(name)
    images = torch.randn(4, 1, 28, 28)
    with torch.no_grad():
        expected = model(images)
        prepare(model, describe(model))
        found_heads = free_heads(model)
        assert len(found_heads) == 6
        assert all(heads.scores and heads.values for heads in found_heads)
        before = model.get_submodule(found_heads[0].name).qkv.weight.clone()
        for heads in found_heads:
            rotate_heads(model, heads.name, True, True, seed=3)
        found = model(images)
    after = model.get_submodule(found_heads[0].name).qkv.weight
    rows = len(before) // 3
    assert all(
        (after[part : part + rows] - before[part : part + rows]).abs().max() > 0.01 for part in (0, rows, 2 * rows)
    )
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("vit_base_patch16_clip_224", {}, "norm_pre"),
        ("vit_base_patch16_siglip_224", {}, "network of their own"),
        ("swin_tiny_patch4_window7_224", {"img_size": 28, "depths": (1, 1), "num_heads": (3, 6)}, "one width"),
        ("vit_tiny_patch16_224", {"global_pool": "avgmax"}, "mean"),
        ("vit_tiny_patch16_224", {"fc_norm": True, "final_norm": False}, "one norm"),
    ],
)  # fmt: skip
def test_a_stream_that_cannot_be_turned_is_left(name, options, reason):
    small = {} if name.startswith("swin") else SMALL
    model = timm.create_model(name, pretrained=False, **{**small, **options}).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 28, 28) if not small else (3, 32, 32)}
    prepare(model, describe(model))
    found = residual_stream(model)
    assert isinstance(found, str)
    assert reason in found


def test_rotary_embeddings_and_norms_hold_q_and_k():
    model = a_model("eva02_tiny_patch14_224", **SMALL)
    prepare(model, describe(model))
    assert [heads.scores for heads in free_heads(model)] == [False, False]
    model = a_model("vit_tiny_patch16_224", **SMALL, qk_norm=True)
    prepare(model, describe(model))
    assert [(heads.scores, heads.values) for heads in free_heads(model)] == [(False, True)] * 2


RECIPE = """name: r
bits: {{weight: 4, activation: 4}}
steps: [rotate: {{{rotate}}}, {calibrate}, refit: {{images: 16}}]
"""


@pytest.mark.parametrize(
    ("name", "calibrate"),
    [
        ("fashion_vit", "repq: {images: 8}"),
        pytest.param("fashion_swin", "percentile: {images: 8}", marks=pytest.mark.slow),
    ],
)
def test_a_rotated_model_is_quantized_saved_and_continued(name, calibrate, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE.format(rotate="", calibrate=calibrate))
    result = api.quantize(
        model=name, recipe=tmp_path / "r.yaml", out=tmp_path / "out", calib_images=16, limit=100, workers=0
    )
    assert result.metrics["quantized"]["top1"] >= result.metrics["float"]["top1"] - 12
    images = torch.randn(4, 1, 28, 28)
    with torch.no_grad(), model_state(result.model, "quantized"):
        expected = result.model(images)
    with torch.inference_mode():
        assert torch.equal(api.load(result.folder)(images), expected)
    assert result.metrics["coverage"]["float"] == []
    (tmp_path / "more.yaml").write_text("name: m\nbits: {weight: 4, activation: 4}\nsteps: [qwt: {images: 16}]\n")
    more = api.quantize(
        start=result.folder, recipe=tmp_path / "more.yaml", out=tmp_path / "more", calib_images=16, limit=100, workers=0
    )
    with torch.no_grad():
        twin = load_model(name, None).model(images)
        with model_state(more.model, "float"):
            assert torch.allclose(more.model(images), twin, atol=1e-4)


def test_what_cannot_be_rotated_is_told(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE.format(rotate="", calibrate="percentile: {images: 8}"))
    with pytest.raises(HalfbyteError, match=r"nothing in the model can be rotated.*leave the step out"):
        api.quantize(model="fashion_resnet", recipe=tmp_path / "r.yaml", out=tmp_path / "out", calib_images=16, limit=8)
    (tmp_path / "r.yaml").write_text(
        RECIPE.format(rotate="residual: false, scores: false, values: false", calibrate="percentile: {images: 8}")
    )
    with pytest.raises(HalfbyteError, match=r"rotate.*nothing is left to rotate"):
        api.quantize(model="fashion_vit", recipe=tmp_path / "r.yaml", out=tmp_path / "out", calib_images=16, limit=8)


# The matrices


@pytest.mark.parametrize("size", [1, 2, 4, 12, 20, 24, 28, 32, 36, 48, 64, 72, 80, 88, 192, 384, 768, 1024, 1152])
def test_hadamard_matrices_have_entries_of_one_magnitude(size):
    for seed in (None, 1):
        matrix = rotation(size, seed)
        assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
        assert torch.allclose(matrix.abs() * size**0.5, torch.ones_like(matrix), atol=1e-12)


@pytest.mark.parametrize("size", [3, 6, 39, 46, 50])
def test_other_sizes_get_an_orthogonal_matrix_too(size):
    matrix = rotation(size, 0)
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12)


def test_seeds_draw_signs():
    assert torch.equal(rotation(24, 1), rotation(24, 1))
    assert not torch.equal(rotation(24, 1), rotation(24, 2))
    with pytest.raises(ValueError, match="at least one channel"):
        rotation(0)


def test_rms_norm_is_a_layer_norm_of_centred_vectors():
    norm = ExactLayerNorm(nn.LayerNorm(8))
    norm.weight, norm.bias = None, None
    x = torch.randn(3, 8)
    x = x - x.mean(-1, keepdim=True)
    rms = ExactRMSNorm(norm)
    for state in ("float", "quantized"):
        norm.state = rms.state = state
        assert torch.allclose(rms(x), norm(x), atol=1e-6)


def test_a_recipe_may_leave_out_what_has_nothing_to_do(tmp_path):
    text = RECIPE.format(rotate="", calibrate="percentile: {images: 8}, bn_recalibrate: {images: 16}")
    text = text.replace(", refit: {images: 16}", "") + "if_possible: [rotate, bn_recalibrate]\n"
    (tmp_path / "r.yaml").write_text(text)
    for name, left_out, told in (
        ("fashion_vit", [False, False, True], "bn_recalibrate is left out, as the recipe says: the model has no Batch"),
        ("fashion_resnet", [True, False, False], "rotate is left out, as the recipe says: nothing in the model can be"),
    ):
        said = io.StringIO()
        result = api.quantize(
            model=name, recipe=tmp_path / "r.yaml", out=tmp_path / name, calib_images=16, limit=8, workers=0,
            progress=Progress(stream=said),
        )  # fmt: skip
        (line,) = (line for line in said.getvalue().splitlines() if "left out" in line)
        assert line.startswith(told)
        assert "leave" not in line
        steps = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
        assert ["left_out" in step for step in steps if step["event"] == "step"] == left_out
        assert load_recipe(result.folder / "recipe.yaml").if_possible == ("rotate", "bn_recalibrate")
