"""Training from start to end on the embedded models."""

from __future__ import annotations

from pathlib import Path

import pytest

RECIPE = """name: t
bits: {weight: 3, activation: 3}
steps:
  - learned_steps: {images: 16}
  - train: {batch_size: 8, crops: 2, epochs: 3, lr: 0.0005, save_every: 2, average: 0.9, drop_path: 0.2, rule: vvtq,
            regularizer: 0.01, freeze: 0.001}
"""


# Eight steps an epoch, and before the first one the held-out loss: in the first epoch, behind it, in the last one.
@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 5, 11])
def test_killed_anywhere_it_goes_on_to_the_same_bytes(parts: int, tmp_path: Path, survives_sigkill) -> None:
    (tmp_path / "t.yaml").write_text(RECIPE)
    survives_sigkill(
        "fashion_vit", "--recipe", tmp_path / "t.yaml", "--calib-images", 64, "--limit", 16, parts=parts, verb="train"
    )
