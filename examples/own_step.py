"""A step of one's own: weights far out in their row are clipped before anything is calibrated.

    python examples/own_step.py

A step is a frozen dataclass of parameters with a `run`. Registered, it can stand in a recipe like any other; its
parameters are checked, settings reach them, and the report shows its figures and seconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

import halfbyte
from halfbyte.layers.site import WeightedSite
from halfbyte.prepare import site_module
from halfbyte.session import Session
from halfbyte.steps.catalog import STEPS

RECIPE = """
name: clipped
bits: {weight: 3, activation: 8}
steps:
  - clip_rows: {deviations: 3.5}
  - percentile: {images: 32}
"""


# --8<-- [start:step]
@STEPS.register("clip_rows")
@dataclass(frozen=True)
class ClipRows:
    """Clip every row of every weight at so many of its standard deviations.

    deviations: where it is clipped; the range that is left is finer.
    Changes the trained weights, so it comes before calibration.
    """

    prepares: ClassVar[bool] = True
    calibrates: ClassVar[bool] = False
    deviations: float = 4.0

    def __post_init__(self) -> None:
        if self.deviations <= 0:
            raise ValueError("deviations must be above 0")

    def run(self, session: Session) -> dict[str, Any]:
        """Clip; the figures tell how many weights were moved."""
        moved = 0
        for site in session.layout.sites:
            module = site_module(session.model, site.name)
            if isinstance(module, WeightedSite):
                moved += self._clip(module)
        return {"moved": moved}

    @torch.no_grad()
    def _clip(self, module: WeightedSite) -> int:
        assert module.weight is not None
        rows = module.weight.flatten(1)
        limit = self.deviations * rows.std(1, keepdim=True)
        clipped = torch.clamp(rows, -limit, limit)
        moved = int((clipped != rows).sum())
        module.weight.copy_(clipped.view_as(module.weight))
        return moved


# --8<-- [end:step]


def main(out: Path = Path("runs/clipped"), images: int = 1000) -> None:
    """Quantize `fashion_vit` by a recipe with the step into the folder `out`, and print what it found."""
    out.parent.mkdir(parents=True, exist_ok=True)
    recipe = out.with_suffix(".yaml")
    recipe.write_text(RECIPE)
    result = halfbyte.quantize(model="fashion_vit", recipe=recipe, limit=images, out=out)
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    (found,) = (event for event in events if event["event"] == "step" and event["step"] == "clip_rows")
    print(f"{found['moved']} weights moved in {found['seconds']:.1f} s")
    print(f"top-1 {result.metrics['quantized']['top1']:.1f} % (float {result.metrics['float']['top1']:.1f} %)")


if __name__ == "__main__":
    main()
