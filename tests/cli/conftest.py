"""The command as a user gives it, without the seconds that a new process takes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfbyte.__main__ import main


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    def refused(self, *parts: str) -> str:
        """Assert one line that holds `parts`, exit code 2 and nothing else; returns the line."""
        assert self.code == 2, self
        assert self.out == ""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("halfbyte: ")
        assert "Traceback" not in lines[0]
        assert len(lines[0]) < 1000
        for part in parts:
            assert part in lines[0]
        return lines[0]


Command = Callable[..., Outcome]


@pytest.fixture
def halfbyte(monkeypatch, capsys) -> Command:
    """Runs `halfbyte ARGUMENTS...` in this process; an exception that would be a traceback fails the test."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["halfbyte", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code: object = 0
        except SystemExit as stop:
            code = stop.code
        assert isinstance(code, int)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def quantize(halfbyte, tmp_path) -> Command:
    """`halfbyte quantize` of the fast embedded model; options given later win."""

    def run(*arguments: object, model: str = "fashion_resnet") -> Outcome:
        return halfbyte(
            "quantize", model, "--recipe", "percentile", "--calib-images", 32, "--limit", 16, "--workers", 0,
            "--out", tmp_path / "out", *arguments,
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of ten class folders with twenty small greyscale pictures each."""
    root = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 256, (10, 20, 28, 28), np.uint8)
    for label, group in enumerate(pixels):
        (root / f"class{label}").mkdir()
        for number, picture in enumerate(group):
            Image.fromarray(picture).save(root / f"class{label}" / f"{number:02}.png")
    return root
