"""The option --json, which every command has."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from halfbyte.errors import HalfbyteError
from halfbyte.files import real_path
from halfbyte.progress import Progress

Json = Annotated[Path | None, typer.Option("--json", help="Also write the facts to this file.")]


def check_writable(file: Path | None, option: str = "--json", out: Path | None = None) -> None:
    """Raise `HalfbyteError` before any work where an option's file cannot be written, is `--out` as well, or would
    replace something else than an earlier file of its kind."""
    if file is None:
        return
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise HalfbyteError(f"{option} {file}: give a file in a folder that exists")
    # A regular file is replaced; a device or a pipe is opened.
    real = real_path(file)
    asked, needed = (real, os.W_OK) if real.exists() and not real.is_file() else (real.parent, os.W_OK | os.X_OK)
    if not os.access(asked, needed):
        raise HalfbyteError(f"{option} {file}: no permission there, or a read-only disk; choose another {option}")
    if out is not None and real == real_path(out):
        raise HalfbyteError(f"--out and {option} are both {file}; give two files")
    _check_replaceable(real, f"{option} {file}", b"{" if option == "--json" else b"<")


def _check_replaceable(real: Path, name: str, begins: bytes) -> None:
    """`begins`: with what a file of this kind begins; an empty one may be anything."""
    from halfbyte.artifact_files import ARTIFACT, QUANTIZATION, printed_into
    from halfbyte.run_files import BENCH, FINDINGS, LOG, METRICS, RECIPE, REPORT

    finished = any((real.parent / own).is_file() for own in (QUANTIZATION, METRICS))
    if finished and real.name in (*ARTIFACT, BENCH, FINDINGS, LOG, METRICS, RECIPE, REPORT):
        raise HalfbyteError(f"{name} would replace a file of the run there; choose another place")
    if not real.is_file() or printed_into(real) is not None:
        return
    try:
        with real.open("rb") as stream:
            first = stream.read(1)
    except OSError as error:
        raise HalfbyteError(f"{name}: cannot look at what is there ({error.strerror}); choose another place") from None
    if first not in (b"", begins):
        raise HalfbyteError(f"{name} is there and is something else; choose another place, or remove it")


def write_json(file: Path | None, facts: dict[str, Any]) -> None:
    """Write the facts of a command where they were asked for."""
    if file is not None:
        write_text(file, json.dumps(facts, indent=2).encode(), "--json")


def write_text(file: Path, content: bytes, option: str) -> None:
    """Write an option's file; raises `HalfbyteError` where that fails."""
    from halfbyte.artifact_files import write_option

    write_option(file, content, option)
    Progress().say(f"wrote {file}")
