"""Peak memory of a recipe on a model of some size, with random weights: what is kept does not depend on them.

    python benchmarks/peak_memory.py MODEL --calib DIR --recipe NAME [--calib-images N] [--set step.key=value ...] \
        --out FACTS.json

The whole process is measured, model, images and libraries included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

import halfbyte

FACTS = ("model", "recipe", "bits", "images", "seconds", "peak_rss_bytes", "environment")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--recipe", default="halfbyte-best")
    parser.add_argument("--calib-images", type=int, default=256)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "random.safetensors"
        torch.manual_seed(0)
        save_file(timm.create_model(options.model, pretrained=False).state_dict(), weights)
        metrics = halfbyte.quantize(
            model=options.model, weights=weights, calib=options.calib, calib_images=options.calib_images,
            recipe=options.recipe, settings=tuple(options.settings), out=Path(folder) / "run",
        ).metrics  # fmt: skip
    facts = {"settings": options.settings, **{fact: metrics[fact] for fact in FACTS}}
    options.out.write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{options.model}, {options.recipe}: {metrics['peak_rss_bytes'] / 1e9:.2f} GB at most")


if __name__ == "__main__":
    main()
