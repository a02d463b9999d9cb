"""Damaged files are refused in one line, or give what the interpreter gives; nothing crashes or hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from tests.program.conftest import random_model

from halfbyte.artifact import save_artifact
from halfbyte.artifact_files import QUANTIZATION
from halfbyte.runtime import native

# Seconds of the processor that one file may take.
LIMIT = 2
# What all may take: the process's own start, and what files take on a busy machine or with a sanitizer's code.
STARTING, BUSY = 300, 1.0
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _run(seed: int, count: int, artifacts: tuple[Path, ...]) -> dict[str, int]:
    """The ends of so many files, in a process that a crash may end."""
    command = [sys.executable, "-m", "tests.program.fuzz", str(seed), str(count), str(LIMIT), *map(str, artifacts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=STARTING + count * BUSY)
    assert done.returncode == 0, f"at the file {done.stderr[-4000:]}"
    ends: dict[str, int] = json.loads(done.stdout)
    return ends


def _damaged(seed: int, count: int, *artifacts: Path, usual: str = "equal") -> None:
    """Damage files, in a process a core; `usual` is the end of a sound one."""
    cuts = [seed + count * core // CORES for core in range(CORES + 1)]
    with ThreadPoolExecutor(CORES) as pool:
        shares = [pool.submit(_run, start, stop - start, artifacts) for start, stop in pairwise(cuts)]
        ends = sum((Counter(share.result()) for share in shares), Counter[str]())
    print(dict(ends))
    assert sum(ends.values()) == count
    # Damage that is never noticed, or always at the door, would test nothing.
    assert ends["not loaded"] > count / 4
    assert ends[usual if native.available() else "refused by the engine"] > count / 8
    assert ends["equal but for a rounding"] <= count / 100


def test_some_hundred_damaged_programs():
    _damaged(0, 300)


def test_a_hundred_damaged_artifacts(artifact):
    _damaged(0, 60, artifact("fashion_resnet", "repq"), artifact("fashion_vit", "repq"))


# Ten thousand in all.


@pytest.mark.slow
def test_thousands_of_damaged_programs():
    _damaged(100_000, 5_700)


@pytest.mark.slow
def test_thousands_of_damaged_artifacts(artifact):
    """Program files, and the tensors that they share; parts of one file in another."""
    models = (
        ("fashion_vit", "repq"),
        ("fashion_swin", "repq"),
        ("fashion_resnet", "repq"),
        ("fashion_vit", "adalog-qwt"),
    )
    _damaged(200_000, 4_000, *(artifact(*model) for model in models))


@pytest.mark.slow
def test_hundreds_of_damaged_artifacts_of_deit_tinys_size(lowered, tmp_path):
    model, layout = random_model("deit_tiny_patch16_224", img_size=224)
    facts = json.loads((lowered("fashion_vit", "repq").folder / QUANTIZATION).read_text())
    save_artifact(model, layout, tmp_path, facts | {"edits": []})
    _damaged(300_000, 300, tmp_path, usual="run by the engine alone")
