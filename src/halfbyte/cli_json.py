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


def check_writable(file: Path | None, option: str = "--json") -> None:
    """Raise `HalfbyteError` before any work where an option's file cannot be written."""
    if file is None:
        return
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise HalfbyteError(f"{option} {file}: give a file in a folder that exists")
    # A regular file is replaced; a device or a pipe is opened.
    real = real_path(file)
    asked, needed = (real, os.W_OK) if real.exists() and not real.is_file() else (real.parent, os.W_OK | os.X_OK)
    if not os.access(asked, needed):
        raise HalfbyteError(f"{option} {file}: no permission there, or a read-only disk; choose another {option}")


def write_json(file: Path | None, facts: dict[str, Any]) -> None:
    """Write the facts of a command where they were asked for."""
    if file is not None:
        write_text(file, json.dumps(facts, indent=2).encode(), "--json")


def write_text(file: Path, content: bytes, option: str) -> None:
    """Write an option's file; raises `HalfbyteError` where that fails."""
    from halfbyte.artifact_files import write_option

    write_option(file, content, option)
    Progress().say(f"wrote {file}")
