"""Attention maps: of the float model as it is, of the quantized one as it multiplies."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from halfbyte.findings.attention import CELLS, _Grid, attention_findings

IMAGES = 2


def find(made, names):
    return attention_findings(
        made.teacher, made.model, made.layout, names, made.pixels[:IMAGES], made.preprocessing
    )  # fmt: skip


def test_a_map_of_a_vit_is_where_the_class_token_looks(vit) -> None:
    (row,) = find(vit, ["blocks.5.attn.pv"])
    assert row["kind"] == "class token"
    assert len(row["images"]) == IMAGES
    attention = vit.teacher.blocks[5].attn
    fused, attention.fused_attn = attention.fused_attn, False
    seen = []
    handle = attention.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        vit.teacher(vit.pixels[:1])
    handle.remove()
    attention.fused_attn = fused
    expected = seen[0][0, :, 0, 1:].mean(0).view(7, 7)
    assert torch.tensor(row["images"][0]["float"]) == pytest.approx(expected, rel=6e-3)
    for image in row["images"]:
        assert 0.5 < image["similarity"] < 1
        assert 0 < image["zeros"] < 100
        assert image["picture"].startswith("data:image/png;base64,")


def test_registers_are_no_class_token() -> None:
    for class_token, kind in ((True, "class token"), (False, "all tokens")):
        pool = "token" if class_token else "avg"
        model = VisionTransformer(
            28, 7, 1, num_classes=10, embed_dim=16, depth=1, num_heads=2, class_token=class_token, reg_tokens=4,
            global_pool=pool,
        )  # fmt: skip
        prefix = model.num_prefix_tokens
        assert prefix == 4 + class_token
        weights = torch.rand(1, 2, 16 + prefix, 16 + prefix)
        found, cells = _Grid(model).drawn(weights)
        assert found == kind
        looks = weights[0, :, 0] if class_token else weights[0].mean(1)
        assert torch.equal(cells, looks.mean(0)[prefix:].view(4, 4))


def test_windows_are_drawn_as_queries_and_keys(swin) -> None:
    names = [site.name for site in swin.layout.sites if site.role == "pv"]
    rows = find(swin, [names[0], names[-1]])
    assert rows[0]["kind"] == "queries and keys"
    for row in rows:
        for image in row["images"]:
            for key in ("float", "quantized"):
                assert len(image[key]) <= CELLS
                assert all(len(line) == len(image[key][0]) <= CELLS for line in image[key])
    # Each query's weights sum to one, so does the mean of a pooled map's columns by their width.
    cells = torch.tensor(rows[0]["images"][0]["float"])
    assert float(cells.mean()) == pytest.approx(1 / 49, rel=0.02)


def test_the_float_model_stays_as_it_is(vit) -> None:
    before = copy.deepcopy(vit.teacher.state_dict())
    with torch.no_grad():
        logits = vit.teacher(vit.pixels)
    find(vit, ["blocks.0.attn.pv"])
    with torch.no_grad():
        assert torch.equal(vit.teacher(vit.pixels), logits)
    assert before.keys() == vit.teacher.state_dict().keys()


def test_a_site_that_the_float_model_lacks_is_left_out(vit) -> None:
    assert find(vit, ["no.such.site"]) == []
