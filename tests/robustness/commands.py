"""Commands as processes of their own, and what must be true of the end of each."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Far more than any command here takes.
SECONDS = 600.0
# A file that is larger has been made so, and is not read.
LARGE = 2**30


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit code, or the negative number of the signal, and what it wrote."""

    code: int
    out: str
    err: str

    def well(self) -> None:
        """Assert that it did what it was asked for."""
        assert self.code == 0, self
        assert "Traceback" not in self.err

    def refused(self, *parts: str) -> str:
        """Assert exit code 2, one line that holds `parts`, and nothing else; returns the line."""
        assert self.code == 2, self
        assert self.out == ""
        line = self.told(*parts)
        assert self.err.count("\n") == 1, self
        return line

    def told(self, *parts: str) -> str:
        """The same, where it had said what it was at before it failed; the line is the last one."""
        assert self.code == 2, self
        assert "Traceback" not in self.err
        line = self.err.splitlines()[-1]
        assert line.startswith("halfbyte: "), self
        assert len(line) < 1500
        for part in parts:
            assert part in line
        return line


class Running:
    """A command at work."""

    def __init__(self, commands: Commands, number: int, out: Path, err: Path) -> None:
        self._commands, self.number, self._out, self._err = commands, number, out, err
        self._code: int | None = None

    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        if self._code is None:
            self._code = self._commands.ask(self.number)
        return self._code

    def kill(self) -> None:
        """Kill it, if it still runs; returns when it is dead."""
        if self.code() is None:
            os.kill(self.number, 9)
            self.wait()

    def wait(self, seconds: float = SECONDS) -> Done:
        """What it left."""
        deadline = time.monotonic() + seconds
        while self.code() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"still at work after {seconds} s: {self._err.read_text()}")
            time.sleep(0.002)
        code = self.code()
        assert code is not None
        return Done(code, *(path.read_text("utf-8", "surrogateescape") for path in (self._out, self._err)))


class Commands:
    """Starts commands, with these variables in their environment; to be closed."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.robustness.server"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        self._outputs = tempfile.TemporaryDirectory(prefix="halfbyte-outputs-")
        self._count = 0
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"

    def ask(self, question: Any) -> Any:
        """The server's answer."""
        server = self._server
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(question) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    def start(
        self,
        *arguments: object,
        folder: Path = ROOT,
        plain: bool = False,
        largest_file: int | None = None,
        die_before: int | None = None,
        out: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Running:
        """Begin `halfbyte ARGUMENTS...` in `folder`.

        `plain`: as a user for whom permissions count. `largest_file`: the most bytes that it may write into one.
        `die_before`: it is killed right before it changes something below the folder for the so-many-th time. `out`:
        what takes its standard output.
        """
        self._count += 1
        output, err = (Path(self._outputs.name) / f"{self._count}.{name}" for name in ("out", "err"))
        asked = {
            "arguments": [str(argument) for argument in arguments], "folder": str(folder), "plain": plain,
            "out": str(out or output), "err": str(err), "largest_file": largest_file,
            "die_before": die_before, "environment": dict(environment or {}),
        }  # fmt: skip
        for path in (output, err):
            path.touch()
        return Running(self, self.ask(asked), output, err)

    def run(self, *arguments: object, seconds: float = SECONDS, **circumstances: Any) -> Done:
        """The same, to its end."""
        return self.start(*arguments, **circumstances).wait(seconds)

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()
        self._outputs.cleanup()


def tree(folder: Path) -> dict[str, str]:
    """Everything below a folder, to the byte: what kind of thing it is, its mode, and what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        held = os.readlink(path) if stat.S_ISLNK(mode) else _digest(path) if stat.S_ISREG(mode) else ""
        found[str(path.relative_to(folder))] = f"{stat.filemode(mode)} {held}"
    return found


def _digest(path: Path) -> str:
    size = path.stat().st_size
    return f"{size} bytes" if size > LARGE else hashlib.sha256(path.read_bytes()).hexdigest()
