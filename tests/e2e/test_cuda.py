"""The same code on a CUDA device, where there is one."""

from pathlib import Path

import pytest
import torch

import halfbyte

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("recipe", ["repq", "adalog"])
@pytest.mark.parametrize("model", ["fashion_vit", "fashion_swin", "fashion_resnet"])
def test_a_device_quantizes_as_well_as_the_processor(recipe: str, model: str, tmp_path: Path) -> None:
    options = {"model": model, "recipe": recipe, "calib_images": 32, "limit": 500, "workers": 0}
    found = {
        device: halfbyte.quantize(device=device, out=tmp_path / device, **options).metrics["quantized"]["top1"]
        for device in ("cpu", "cuda")
    }
    assert abs(found["cuda"] - found["cpu"]) <= 2.0


@pytest.mark.parametrize("model", ["fashion_vit", "fashion_swin", "fashion_resnet"])
def test_a_loaded_artifact_gives_the_processors_logits(model: str, tmp_path: Path) -> None:
    folder = halfbyte.quantize(
        model=model, recipe="repq", device="cpu", limit=10, calib_images=32, out=tmp_path / "run"
    ).folder
    images = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = halfbyte.load(folder)(images)
        got = halfbyte.load(folder).cuda()(images.cuda()).cpu()
    # Sums are exact on both; a device's square root and exponential may differ in the last bit and flip a code.
    assert float((got - expected).abs().median()) < 1e-3 * float(expected.std())
