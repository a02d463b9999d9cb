"""Run a recipe of one's own beside a published one, on an embedded model, and compare what they cost.

    python examples/own_recipe.py

The recipe is examples/own_recipe.yaml. From the command line:

    halfbyte quantize --recipe examples/own_recipe.yaml
"""

from __future__ import annotations

from pathlib import Path

import halfbyte

RECIPE = Path(__file__).with_name("own_recipe.yaml")


def main(runs: Path = Path("runs"), images: int = 1000) -> None:
    """Quantize `fashion_vit` by both recipes into folders of `runs`, evaluating that many images."""
    for recipe in ("repq", RECIPE):
        out = runs / f"fashion_vit-{Path(recipe).stem}"
        found = halfbyte.quantize(model="fashion_vit", recipe=recipe, w_bits=4, a_bits=4, limit=images, out=out).metrics
        cost, size = found["quantized"], found["bytes"]["artifact"] / 1e6
        print(f"{found['recipe']}: top-1 {cost['top1']:.1f} %, KL {cost['kl']:.3f}, {size:.2f} MB")


if __name__ == "__main__":
    main()
