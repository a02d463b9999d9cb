"""Reconstruction from start to end on the embedded models."""

from __future__ import annotations

from pathlib import Path

import pytest

import halfbyte

RECIPE = """name: r
bits: {weight: 3, activation: 3}
steps:
  - percentile: {images: 32}
  - reconstruct: {images: 64, iterations: 20, batch_size: 16, lr: 0.0002, lr_scale: 0.001, lr_bias: 0.001}
"""


@pytest.mark.parametrize(
    ("model", "floor"),
    [pytest.param("fashion_vit", 80.0, marks=pytest.mark.slow), ("fashion_resnet", 88.0)],
)
def test_it_gains_on_its_calibration(model: str, floor: float, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    result = halfbyte.quantize(
        model=model, recipe=tmp_path / "r.yaml", out=tmp_path / "run", calib_images=64, limit=1000, workers=0
    )
    (tmp_path / "plain.yaml").write_text(RECIPE[: RECIPE.index("  - reconstruct")])
    plain = halfbyte.quantize(
        model=model, recipe=tmp_path / "plain.yaml", out=tmp_path / "plain", calib_images=64, limit=1000, workers=0
    )
    before, after = plain.metrics["quantized"], result.metrics["quantized"]
    assert after["kl"] < 0.9 * before["kl"]
    assert after["top1"] >= floor
    stored = {key: result.metrics["bytes"][key] for key in ("artifact", "shipped")}
    assert result.metrics["bytes"] == plain.metrics["bytes"] | stored


@pytest.mark.slow
def test_killed_within_a_block_it_goes_on_to_the_same_bytes(tmp_path: Path, survives_sigkill) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    # Ten parts a block: 13 lie in the second one.
    survives_sigkill("fashion_vit", "--recipe", tmp_path / "r.yaml", "--calib-images", 64, "--limit", 16, parts=13)
