"""Quantize a fine-tuned model: an architecture of timm with classes of its own.

    python examples/own_classes.py finetuned.safetensors images/train images/val

A name of timm stands for its configuration, 1,000 classes for most. A fine-tuned model is registered under another name
in the process that quantizes, loads or evaluates it; engines, exports and the server run its integer program and know
no names.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import register_model

import halfbyte

ARCHITECTURE, CLASSES = "deit_tiny_patch16_224", 12


@register_model
def finetuned(pretrained: bool = False, **options: Any) -> torch.nn.Module:
    """The architecture with as many classes as it was fine-tuned for."""
    return timm.create_model(ARCHITECTURE, pretrained=False, **{"num_classes": CLASSES, **options})


def main(weights: Path, calibration: Path, evaluation: Path, out: Path = Path("runs/finetuned")) -> None:
    """Write the run folder `out`, and print its accuracy and the number of its classes."""
    result = halfbyte.quantize(
        model="finetuned",
        weights=weights,
        calib=calibration,
        val=evaluation,
        recipe="repq",
        w_bits=4,
        a_bits=4,
        out=out,
    )
    print(f"top-1 {result.metrics['quantized']['top1']:.1f} %")
    model = halfbyte.load(out)
    print(f"{model.num_classes} classes")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
