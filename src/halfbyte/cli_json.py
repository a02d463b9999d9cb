"""The option --json, which every command has."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from halfbyte.errors import HalfbyteError
from halfbyte.files import LABELS, TABLE, real_path
from halfbyte.progress import Progress

Json = Annotated[Path | None, typer.Option("--json", help="Also write the facts to this file.")]


def check_writable(
    file: Path | None, option: str = "--json", out: Path | None = None, writes: Sequence[Path] = ()
) -> None:
    """Raise `HalfbyteError` before any work where an option's file cannot be written, is `--out` or another file that
    the command `writes`, or would replace a file of a run, of labels or of a table, or something of another kind."""
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
    if real in map(real_path, writes):
        raise HalfbyteError(f"{option} {file}: the command writes a file of its own there; choose another place")
    _check_replaceable(real, f"{option} {file}", b"{" if option == "--json" else b"<!DOCTYPE html>", out)


def _check_replaceable(real: Path, name: str, begins: bytes, out: Path | None) -> None:
    """`begins`: with what a file of this kind begins; an empty one may be anything."""
    from halfbyte.artifact_files import ARTIFACT, QUANTIZATION, printed_into
    from halfbyte.run_files import BENCH, FINDINGS, LOG, METRICS, RECIPE, REPORT

    ours = any((real.parent / mark).is_file() for mark in (QUANTIZATION, METRICS, LOG, LABELS))
    ours = ours or (out is not None and real.parent == real_path(out))
    if ours and real.name in (*ARTIFACT, BENCH, FINDINGS, LOG, METRICS, RECIPE, REPORT, LABELS, *TABLE):
        raise HalfbyteError(f"{name} is the name of one of Halfbyte's own files there; choose another place")
    if not real.is_file() or printed_into(real) is not None:
        return
    try:
        with real.open("rb") as stream:
            first = stream.read(len(begins))
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
