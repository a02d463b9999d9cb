"""Figures of a training as curves for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halfbyte.errors import HalfbyteError


def require_tensorboard() -> None:
    """Raises `HalfbyteError` where the package is missing."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise HalfbyteError("--tensorboard needs TensorBoard; pip install 'halfbyte[tensorboard]'") from None


class ScalarLog:
    """Writes every figure of an event that names its `step` into event files in a folder.

    Unless the run continues, curves that an earlier one left there are not shown any more.
    """

    def __init__(self, folder: Path, continues: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=None if continues else 0)

    def __call__(self, event: str, **facts: Any) -> None:
        if not isinstance(step := facts.pop("step", None), int):
            return
        for name, value in facts.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(f"{event}/{name}", value, step)
        self._writer.flush()
