"""Damaged program files are refused in one line, or give what the interpreter gives; nothing crashes or hangs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from halfbyte.runtime import native

# Seconds that one file may take.
LIMIT = 2
# What a sanitizer's code may take longer by, and the process's own start.
SLOWEST = 300


def _damaged(seed: int, count: int) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.program.fuzz", str(seed), str(count), str(LIMIT)],
        capture_output=True, text=True, timeout=SLOWEST + count / 20,
    )  # fmt: skip
    assert done.returncode == 0, f"at the file {done.stderr[-4000:]}"
    ends: dict[str, int] = json.loads(done.stdout)
    assert sum(ends.values()) == count
    # Damage that is never noticed, or always at the door, would test nothing.
    assert ends["not loaded"] > count / 4
    assert ends["equal" if native.available() else "refused by the engine"] > count / 8
    assert ends.get("equal but for a rounding", 0) <= count / 100
    return ends


def test_some_hundred_damaged_files():
    _damaged(0, 400)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [100_000, 200_000])
def test_ten_thousand_damaged_files(seed):
    _damaged(seed, 5_000)
