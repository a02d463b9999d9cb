"""Halfbyte: few-bit integers for trained vision models.

    import halfbyte
    result = halfbyte.quantize(model="fashion_vit", recipe="repq", out=Path("run"))
    model = halfbyte.load("run")

Importing the package loads neither torch nor timm; the functions do when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from halfbyte.errors import HalfbyteError

if TYPE_CHECKING:
    from halfbyte.api import Result, evaluate_model, export, inspect_model, load, quantize
    from halfbyte.hub import pull, push
    from halfbyte.inputs import Options
    from halfbyte.run_files import compare

__all__ = [
    "HalfbyteError", "Options", "Result", "compare", "evaluate_model", "export", "inspect_model", "load", "pull",
    "push", "quantize",
]  # fmt: skip

_ELSEWHERE = {"Options": "inputs", "compare": "run_files", "pull": "hub", "push": "hub"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'halfbyte' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"halfbyte.{_ELSEWHERE.get(name, 'api')}"), name)
