"""AdaLog from start to end: accuracy on the embedded models, every choice of quantizer, death and continuation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import halfbyte
from halfbyte.errors import HalfbyteError
from halfbyte.prepare import set_state
from halfbyte.quantizers.log import GELU_SHIFT

# Top-1 on 500 images that must be left; the float models have 91 to 93 %.
FLOORS = {("fashion_vit", 4): 88.0, ("fashion_vit", 3): 78.0, ("fashion_swin", 4): 88.0, ("fashion_swin", 3): 78.0}
SHORT = ("adalog.images=8", "adalog.rounds=1", "adalog.candidates=64", "adalog.steps=3")
SHORTEST = ("adalog.images=4", "adalog.rounds=1", "adalog.candidates=64", "adalog.steps=2")
TENSORS = "model.safetensors"


@pytest.mark.parametrize(
    ("model", "bits"),
    [
        ("fashion_vit", 3),
        pytest.param("fashion_swin", 4, marks=pytest.mark.slow),
        pytest.param("fashion_vit", 4, marks=pytest.mark.slow),
        pytest.param("fashion_swin", 3, marks=pytest.mark.slow),
    ],
)
def test_accuracy_at_few_bits(model: str, bits: int, tmp_path: Path) -> None:
    metrics = halfbyte.quantize(
        model=model, recipe="adalog", w_bits=bits, a_bits=bits, out=tmp_path / "run", limit=500, workers=0,
        calib_images=32, settings=SHORT,
    ).metrics  # fmt: skip
    assert metrics["quantized"]["top1"] >= FLOORS[model, bits]
    assert metrics["coverage"]["float"] == []


CHOICES = {
    "adalog": False, "adalog-paper": True, "log2-paper": True, "log_sqrt2": False, "uniform": False,
    "twin_uniform": False,
}  # fmt: skip
SLOW = ("adalog", "log2-paper", "log_sqrt2", "uniform", "twin_uniform")


@pytest.mark.parametrize(
    ("name", "paper"),
    [
        pytest.param(*choice, id=choice[0], marks=pytest.mark.slow if choice[0] in SLOW else ())
        for choice in CHOICES.items()
    ],
)
def test_every_quantizer_of_attention_maps_and_gelu(name: str, paper: bool, tmp_path: Path) -> None:
    choice = name.removesuffix("-paper")
    result = halfbyte.quantize(
        model="fashion_vit", recipe="adalog-paper" if paper else "adalog", out=tmp_path / "run", limit=100, workers=0,
        calib_images=8, settings=(*SHORTEST, f"adalog.post_softmax={choice}", f"adalog.post_gelu={choice}"),
    )  # fmt: skip
    assert result.metrics["quantized"]["top1"] >= 60
    facts = json.loads((result.folder / "quantization.json").read_text())
    for site in facts["sites"]:
        if site["role"] == "pv":
            assert site["quantizers"]["left"]["kind"] == choice
        if site["role"] == "fc2":
            assert site["quantizers"]["input"]["kind"] == choice
            if "log" in choice:
                assert site["quantizers"]["input"]["shift"] == GELU_SHIFT
    loaded, images = halfbyte.load(result.folder), torch.randn(4, 1, 28, 28)
    set_state(result.model, "quantized")
    with torch.inference_mode():
        assert torch.equal(loaded(images), result.model(images))


@pytest.mark.parametrize(
    ("bits", "asked", "level_bits"),
    [(4, 0, 8), pytest.param(4, 15, 15, marks=pytest.mark.slow), pytest.param(6, 0, 15, marks=pytest.mark.slow)],
)
def test_levels_behind_gelu_are_bytes_for_few_codes(bits: int, asked: int, level_bits: int, tmp_path: Path) -> None:
    result = halfbyte.quantize(
        model="fashion_vit", recipe="adalog", w_bits=bits, a_bits=bits, out=tmp_path / "run", limit=16, workers=0,
        calib_images=8, settings=(*SHORTEST, f"adalog.gelu_level_bits={asked}"),
    )  # fmt: skip
    sites = json.loads((result.folder / "quantization.json").read_text())["sites"]
    behind = [site["quantizers"]["input"] for site in sites if site["role"] == "fc2"]
    assert behind
    assert {quantizer.get("level_bits", 15) for quantizer in behind} == {level_bits}


@pytest.mark.parametrize(
    "parameter", ["post_gelu=log3", "post_softmax=none", "candidates=8", "rounds=0", "steps=0", "gelu_level_bits=16"]
)
def test_parameters_that_cannot_be_are_refused(parameter: str, tmp_path: Path) -> None:
    with pytest.raises(HalfbyteError, match=parameter.split("=")[0]):
        halfbyte.quantize(model="fashion_vit", recipe="adalog", settings=(f"adalog.{parameter}",), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_killed_search_continues_with_the_block_where_it_stopped(survives_sigkill) -> None:
    settings = [part for setting in SHORTEST for part in ("--set", setting)]
    survives_sigkill("fashion_vit", "--recipe", "adalog", "--calib-images", 8, "--limit", 16, *settings, parts=3)
