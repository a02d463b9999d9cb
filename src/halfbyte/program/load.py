"""The program of an artifact's folder, read without torch."""

from __future__ import annotations

from pathlib import Path

from halfbyte.artifact_files import PROGRAM, read_arrays, read_checked, read_facts
from halfbyte.errors import HalfbyteError
from halfbyte.program.ops import Program
from halfbyte.program.store import from_bytes


def load_program(folder: str | Path) -> Program:
    """The program of an artifact's folder, without torch.

    Raises `HalfbyteError` for a folder that is no artifact or is damaged, and for an artifact without a program: why.
    """
    folder = Path(folder)
    facts, _ = read_facts(folder)
    known = facts.get("program")
    if not known:
        raise HalfbyteError(f"{folder} was saved without a program; quantize again, or use --engine torch")
    if (reason := known.get("refused")) is not None or known.get("sha256") is None:
        raise HalfbyteError(f"{folder} has no program: {reason or 'nobody says why'}")
    content = read_checked(folder, PROGRAM, known["sha256"])
    return from_bytes(content, read_arrays(folder, facts["tensors_sha256"]), str(folder / PROGRAM))
