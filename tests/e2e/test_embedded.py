"""The main job from start to end on the embedded models, at every width."""

from pathlib import Path

import pytest
import torch

import halfbyte
from halfbyte.models.builtin import BUILTIN_MODELS
from halfbyte.prepare import model_state

# Points of top-1 on 300 images that a calibration alone may cost; few-bit networks scatter by a point or two.
MOST_LOST = {8: 1.5, 6: 2.5, 4: 12.0}
# The Swin, which takes longest, only by `make test-slow`.
WITHOUT_SWIN = [pytest.param(name, marks=pytest.mark.slow if name == "fashion_swin" else ()) for name in BUILTIN_MODELS]


@pytest.mark.parametrize("name", BUILTIN_MODELS)
@pytest.mark.parametrize("bits", MOST_LOST)
def test_accuracy_survives(name: str, bits: int, tmp_path: Path) -> None:
    result = halfbyte.quantize(
        model=name, recipe="repq", w_bits=bits, a_bits=bits, out=tmp_path / "run", limit=300, workers=0, calib_images=64
    )
    metrics = result.metrics
    assert metrics["quantized"]["top1"] >= metrics["float"]["top1"] - MOST_LOST[bits]
    assert metrics["bytes"]["artifact"] < metrics["bytes"]["float"] * (bits + 2.5) / 32
    assert metrics["coverage"]["float"] == []
    weighted = [site for site in metrics["sites"] if site["bits"]["weight"] is not None]
    assert {site["bits"]["weight"] for site in weighted if site["role"] in ("stem", "head")} == {8}
    assert {site["bits"]["weight"] for site in weighted if site["role"] not in ("stem", "head")} == {bits}


def test_more_bits_are_better(tmp_path: Path) -> None:
    kl = []
    for bits in (2, 3, 4, 6, 8):
        result = halfbyte.quantize(
            model="fashion_vit",
            recipe="repq",
            w_bits=bits,
            a_bits=bits,
            out=tmp_path / str(bits),
            limit=100,
            workers=0,
            calib_images=32,
        )
        kl.append(result.metrics["quantized"]["kl"])
    # One bit more may lose by chance where little is left to gain (stem and head keep 8); the next but one may not.
    assert all(more < fewer for fewer, more in zip(kl, kl[2:], strict=False))
    assert kl[-1] < kl[0] / 100


@pytest.mark.parametrize("name", WITHOUT_SWIN)
def test_a_loaded_artifact_gives_the_same_logits_for_any_batch_and_threads(name: str, tmp_path: Path) -> None:
    result = halfbyte.quantize(
        model=name, recipe="repq", w_bits=4, a_bits=4, out=tmp_path / "run", limit=20, workers=0, calib_images=32
    )
    loaded = halfbyte.load(result.folder)
    images = torch.randn(32, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    with torch.inference_mode():
        expected = loaded(images)
        for size in (1, 7, 32):
            assert torch.equal(torch.cat([loaded(batch) for batch in images.split(size)]), expected)
        for count in (1, 2):
            torch.set_num_threads(count)
            assert torch.equal(loaded(images), expected)
        torch.set_num_threads(threads)
        with model_state(result.model, "quantized"):
            assert torch.equal(result.model(images), expected)


@pytest.mark.parametrize("recipe", ["percentile", "mse", "minmax", "repq-paper"])
@pytest.mark.parametrize("name", WITHOUT_SWIN)
def test_every_recipe_runs_on_every_model_at_8_bits(recipe: str, name: str, tmp_path: Path) -> None:
    result = halfbyte.quantize(
        model=name, recipe=recipe, w_bits=8, a_bits=8, out=tmp_path / "run", limit=200, workers=0, calib_images=32
    )
    assert result.metrics["quantized"]["agreement"] > 90
    assert result.metrics["paper_exact"] is (recipe == "repq-paper")
    assert halfbyte.load(result.folder) is not None
