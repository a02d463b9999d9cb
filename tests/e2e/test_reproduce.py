"""The papers' rows of DeiT-Tiny on real weights and images, killed on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="real models and images are not beside this checkout"),
]
ROWS = ["deit_tiny-repq-paper-w4a4", "deit_tiny-repq-w4a4"]
IMAGES = 96


@pytest.fixture
def command(monkeypatch, tmp_path) -> list[str]:
    """The command, for DeiT-Tiny and a model whose weights are not there, but for its folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    options = ("--data", DATA, "--weights-dir", DATA / "weights", "--rows", "repq/deit_tiny-*w4a4", "--rows",
               "repq/deit_small-repq-w4a4", "--crop-pct", 0.985, "--limit", IMAGES, "--workers", 0)  # fmt: skip
    return [sys.executable, "-m", "halfbyte", "reproduce", "repq", *map(str, options), "--out"]


def table(folder: Path) -> list[dict]:
    """The rows without what differs between two runs of one command."""
    rows = json.loads((folder / "table.json").read_text())["rows"]
    for row in rows:
        for key in ("seconds", "peak_rss_bytes") if row["ours"] else ():
            del row["ours"][key]
    return rows


def test_the_rows_of_deit_tiny_fill_in_spite_of_sigkill(
    command: list[str], tmp_path: Path, kill_when: Callable[..., None]
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    first, second = (killed / "repq" / row for row in ROWS)
    # In the calibration of the first row, behind it, and in the second row, which has begun.
    for resume, reached in (
        ([], (first / "log.jsonl").exists),
        (["--resume"], lambda: '"step"' in (first / "log.jsonl").read_text()),
        (["--resume"], (second / "log.jsonl").exists),
    ):
        kill_when([*command, str(killed), *resume], reached, seconds=1800)
        assert not (second / "metrics.json").exists()
    kept = (first / "model.safetensors").stat().st_mtime_ns
    resumed = subprocess.run([*command, str(killed), "--resume"], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert (first / "model.safetensors").stat().st_mtime_ns == kept
    assert subprocess.run([*command, str(whole)], capture_output=True).returncode == 0
    assert table(killed) == table(whole)
    for row in ROWS:
        for name in ("model.safetensors", "quantization.json"):
            assert (killed / "repq" / row / name).read_bytes() == (whole / "repq" / row / name).read_bytes()
    rows = {row["row"]: row for row in table(whole)}
    for name in ROWS:
        ours = rows[name]["ours"]
        assert ours["images"] == {"calibration": 32, "evaluation": IMAGES}
        assert ours["weights"]["source"] == "deit_tiny_patch16_224.safetensors"
        assert rows[name]["published"]["top1"] == 57.43
        # Published: 14.8 points lost of 72.2; these images are easier.
        assert 3 <= ours["float"]["top1"] - ours["quantized"]["top1"] <= 20
    absent = rows["deit_small-repq-w4a4"]
    assert (absent["status"], absent["ours"]) == ("skipped", None)
    assert "deit_small_patch16_224.fb_in1k.safetensors" in absent["reason"]
