"""The command as a user gives it, without the seconds that a new process takes, and the folders it leaves."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.cli.reproducing import ROWS, TABLE

from halfbyte import api
from halfbyte.__main__ import main

ARTIFACT = ("model.safetensors", "config.json", "quantization.json", "program.bin")
CONTENTS = {"recipe.yaml", "metrics.json", "report.json", "report.html", "log.jsonl", *ARTIFACT}


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


# What is refused


@pytest.fixture
def no_folder_left(tmp_path, monkeypatch):
    """The test's commands run in an empty place and are to leave no run folder, wherever they would have put one."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    yield
    assert list(place.iterdir()) == []


@pytest.fixture
def refused(quantize, tmp_path):
    """Asserts that `quantize` with these options is refused with one line and makes no folder."""

    def check(*parts: str, options: tuple[object, ...] = (), **keywords: str) -> str:
        line = quantize(*options, **keywords).refused(*parts)
        assert not (tmp_path / "out").exists()
        return line

    return check


class Bomb:
    """Pickles as a call that would make a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.fixture
def bomb(tmp_path) -> Bomb:
    """What would make the folder `ran` if it were unpickled."""
    return Bomb(tmp_path / "ran")


# Run folders


@dataclass(frozen=True)
class Run:
    """The files of a run folder as they are when they are asked for."""

    folder: Path

    @property
    def artifact(self) -> dict[str, bytes]:
        return self._bytes(ARTIFACT)

    @property
    def results(self) -> dict[str, bytes]:
        """All that a finished run leaves but its log."""
        return self._bytes(CONTENTS - {"log.jsonl"})

    @property
    def everything(self) -> dict[str, bytes]:
        return self._bytes(sorted(path.name for path in self.folder.iterdir()))

    @property
    def events(self) -> list[str]:
        entries = map(json.loads, (self.folder / "log.jsonl").read_text().splitlines())
        return [entry.get("step", entry["event"]) for entry in entries]

    def _bytes(self, names: Iterable[str]) -> dict[str, bytes]:
        return {name: (self.folder / name).read_bytes() for name in names}


@pytest.fixture
def read_run() -> Callable[[Path], Run]:
    return Run


@pytest.fixture
def contents() -> set[str]:
    """The names in the folder of a finished run."""
    return CONTENTS


@pytest.fixture
def out(tmp_path) -> Path:
    """Where `quantize` writes."""
    return tmp_path / "out"


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A finished run of the command that the fixture `quantize` gives."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    api.quantize(_options(folder))
    return folder


@pytest.fixture(scope="session")
def stopped_run(tmp_path_factory) -> Path:
    """The same, stopped before it was evaluated."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "finish", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            api.quantize(_options(folder))
    return folder


def _options(folder: Path) -> api.Options:
    return api.Options("fashion_resnet", recipe="percentile", calib_images=32, limit=16, workers=0, out=folder)


def _interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.fixture
def interrupt() -> Callable[..., None]:
    """Put in a function's place, stops the run there as by Ctrl-C."""
    return _interrupt


@pytest.fixture
def table(tmp_path) -> Path:
    (tmp_path / "rotated.yaml").write_text("name: rotated\nsteps: [rotate, percentile]")
    (tmp_path / "mine.yaml").write_text(TABLE)
    return tmp_path / "mine.yaml"


@pytest.fixture
def reproduce(halfbyte, table, out):
    """`halfbyte reproduce` of the table, with rows added to it; options given later win."""

    def run(*options: object, added: tuple[str, ...] = ()):
        table.write_text(TABLE + "".join(ROWS[name] for name in added))
        return halfbyte("reproduce", table, "--limit", 16, "--workers", 0, "--out", out, *options)

    return run


@pytest.fixture
def filled(out):
    """The table that was written, without what differs between two runs of one command."""

    def read(folder: Path = out) -> dict:
        facts = json.loads((folder / "table.json").read_text())
        for entry in facts["rows"]:
            for key in ("seconds", "peak_rss_bytes") if entry["ours"] else ():
                del entry["ours"][key]
        return facts

    return read
