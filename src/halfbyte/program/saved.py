"""The program of an artifact: made when the artifact is saved, read back without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.numpy import load as load_arrays

from halfbyte.artifact_files import PROGRAM, read_arrays, read_checked, read_facts
from halfbyte.errors import HalfbyteError
from halfbyte.program.ops import Program
from halfbyte.program.store import from_bytes, to_bytes

if TYPE_CHECKING:
    from torch import nn

    from halfbyte.families.layout import Layout


def lowered(
    model: nn.Module, layout: Layout, facts: Mapping[str, Any], tensors: bytes
) -> tuple[dict[str, Any], bytes | None]:
    """What quantization.json says of a model's program, and the file; `tensors` is the artifact's model.safetensors.

    A model that integers cannot compute is `{"refused": why}`, without a file: its artifact is a good one all the same.
    """
    from halfbyte.program.lower import lower

    known = {"architecture": facts["source"]["architecture"], "preprocessing": facts["preprocessing"]}
    try:
        if facts.get("paper_exact"):
            raise HalfbyteError("paper_exact is a simulation, without integers; quantize without it")
        content = to_bytes(lower(model, layout, known), load_arrays(tensors))
    except HalfbyteError as error:
        return {"refused": str(error)}, None
    except Exception as error:  # hours of quantization must not be lost to a module that nobody has seen before
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return {"refused": f"its forward pass cannot be recorded ({reason})"}, None
    return {"sha256": hashlib.sha256(content).hexdigest()}, content


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
