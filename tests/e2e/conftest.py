"""A run that is killed and goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ARTIFACT = ("model.safetensors", "config.json", "quantization.json")


@pytest.fixture
def survives_sigkill(tmp_path, kill_when) -> Callable[..., None]:
    """Run `halfbyte quantize`, or another verb, with these options, kill it once its state holds so many parts of a
    step, let it go on, and compare its artifact with that of a run nobody disturbed."""

    def check(*options: object, parts: int, verb: str = "quantize") -> None:
        command = [sys.executable, "-m", "halfbyte", verb, *map(str, options), "--workers", "0", "--out"]
        killed, whole = tmp_path / "killed", tmp_path / "whole"
        kill_when([*command, str(killed)], lambda: _parts(killed / "resume.safetensors") >= parts)
        assert not (killed / ARTIFACT[0]).exists()
        assert subprocess.run([*command, str(killed), "--resume"], capture_output=True).returncode == 0
        assert subprocess.run([*command, str(whole)], capture_output=True).returncode == 0
        for name in ARTIFACT:
            assert (killed / name).read_bytes() == (whole / name).read_bytes()

    return check


@pytest.fixture
def saved_parts() -> Callable[[Path], int]:
    """How many parts of its present step the state in a file holds."""
    return _parts


def _parts(state: Path) -> int:
    """How many parts of its present step a saved state holds."""
    if not state.is_file():
        return 0
    # safe_open opens a path twice, and between that the run may put another file there.
    with state.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return int(json.loads(header["__metadata__"]["facts"])["parts"])
