"""Quantize a timm model with weights from a file, load the artifact again and classify an image with it.

    python examples/own_model.py deit_tiny_patch16_224 deit_tiny_patch16_224.safetensors imagenet_calib imagenet_val

Calibration and evaluation images are folders with one folder a class.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

import halfbyte


def main(name: str, weights: Path, calibration: Path, evaluation: Path, out: Path = Path("runs/own")) -> None:
    """Write the run folder `out`, print accuracies, and the class of the first evaluation image."""
    result = halfbyte.quantize(
        model=name, weights=weights, calib=calibration, val=evaluation, recipe="repq", w_bits=4, a_bits=4, out=out
    )
    for kind in ("float", "quantized"):
        print(f"{kind}: top-1 {result.metrics[kind]['top1']:.1f} %")

    # From here on neither the weights nor the network are needed, and the model is a plain torch module.
    model = halfbyte.load(out)
    prepared = create_transform(**resolve_model_data_config(model), is_training=False)
    path = sorted(path for path in evaluation.glob("*/*") if path.is_file())[0]
    with Image.open(path) as image, torch.no_grad():
        logits = model(prepared(image.convert("RGB"))[None])
    print(f"{path.name}: class {int(logits.argmax())}")


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
