"""The recipes of our own, cut short, on the embedded models: against those on which they build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import halfbyte

FEW = ("adalog.images=16", "adalog.candidates=64", "refit.images=64", "qwt.images=64")
SHORT = ("reconstruct.images=64", "reconstruct.iterations=200")


def quantized(model: str, recipe: str, bits: int, out: Path, *settings: str) -> dict[str, Any]:
    result = halfbyte.quantize(
        model=model, recipe=recipe, w_bits=bits, a_bits=bits, settings=settings, calib_images=64, limit=500,
        workers=0, out=out,
    )  # fmt: skip
    return result.metrics


# Points that it may lose at 4 bits; and of the KL divergence of `repq`, what it may leave.
@pytest.mark.parametrize(
    ("model", "lost", "left"),
    [
        ("fashion_vit", 2.0, 0.7),
        pytest.param("fashion_resnet", 2.0, 0.9, marks=pytest.mark.slow),
        pytest.param("fashion_swin", 1.0, 0.9, marks=pytest.mark.slow),
    ],
)
def test_the_default_is_better_than_repq(model: str, lost: float, left: float, tmp_path: Path) -> None:
    found = quantized(model, "halfbyte-fast", 4, tmp_path / "fast", *FEW)
    plain = quantized(model, "repq", 4, tmp_path / "repq")
    assert found["quantized"]["top1"] >= found["float"]["top1"] - lost
    assert found["quantized"]["kl"] < left * plain["quantized"]["kl"]
    done = {step["step"]: "left_out" not in step for step in found["steps"]}
    assert done["rotate"] == (model != "fashion_resnet")
    assert done["bn_recalibrate"] == (model == "fashion_resnet")


@pytest.mark.slow
# On fashion_vit the closed forms leave so little that training lowers the blocks' errors, not the divergence.
@pytest.mark.parametrize("model", ["fashion_swin", "fashion_resnet"])
def test_training_the_blocks_gains_at_three_bits(model: str, tmp_path: Path) -> None:
    fast = quantized(model, "halfbyte-fast", 3, tmp_path / "fast", *FEW)
    best = quantized(model, "halfbyte-best", 3, tmp_path / "best", *FEW, *SHORT)
    assert best["quantized"]["kl"] < fast["quantized"]["kl"]
