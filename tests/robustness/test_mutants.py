"""Hundreds of damaged artifacts and recipes: each is read as it was, or refused in one line that names it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.robustness.commands import ROOT

pytestmark = pytest.mark.slow

SLOWEST = 3600


def _ends(module: str, *arguments: object) -> dict[str, int]:
    """What became of them; fails where one ended as none may."""
    command = [sys.executable, "-m", f"tests.robustness.{module}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SLOWEST, cwd=ROOT)
    assert done.returncode == 0, f"at {done.stderr[-6000:]}"
    found = json.loads(done.stdout)
    assert not found["wrong"], "\n\n".join(found["wrong"])
    counts: dict[str, int] = found["counts"]
    return counts


@pytest.mark.parametrize("seed", [10_000, 20_000])
def test_five_hundred_mutated_artifacts(inputs, seed):
    counts = _ends("artifacts", inputs.artifact, inputs.other, seed, 250)
    # Damage that is never noticed, or always at the door, would test nothing.
    assert counts["refused by all"] > 75
    assert counts["taken by all"] + counts["by some"] > 15


@pytest.mark.parametrize("seed", [10_000, 20_000])
def test_five_hundred_mutated_recipes(seed):
    counts = _ends("recipes", seed, 250)
    assert counts["refused"] > 50
    assert counts["done"] > 10
