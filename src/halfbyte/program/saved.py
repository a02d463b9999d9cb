"""The program of an artifact that is saved; `load.py` reads it back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from safetensors.numpy import load as load_arrays

from halfbyte.errors import HalfbyteError
from halfbyte.program.store import to_bytes

if TYPE_CHECKING:
    from torch import nn

    from halfbyte.families.layout import Layout


def lowered(
    model: nn.Module, layout: Layout, facts: Mapping[str, Any], tensors: bytes
) -> tuple[dict[str, Any], bytes | None]:
    """What quantization.json says of a model's program, and the file; `tensors` is the artifact's model.safetensors.

    A model that integers cannot compute is `{"refused": why}`, without a file: its artifact is a good one all the same.
    `"approximate"` lists what the program rounds otherwise than torch does (`Program.facts`).
    """
    from halfbyte.program.lower import lower

    known = {"architecture": facts["source"]["architecture"], "preprocessing": facts["preprocessing"]}
    try:
        if facts.get("paper_exact"):
            raise HalfbyteError("paper_exact is a simulation, without integers; quantize without it")
        program = lower(model, layout, known)
        content = to_bytes(program, load_arrays(tensors))
    except HalfbyteError as error:
        return {"refused": str(error)}, None
    except Exception as error:  # hours of quantization must not be lost to a module that nobody has seen before
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return {"refused": f"its forward pass cannot be recorded ({reason})"}, None
    approximate = {key: value for key, value in program.facts.items() if key == "approximate"}
    return {"sha256": hashlib.sha256(content).hexdigest(), **approximate}, content
