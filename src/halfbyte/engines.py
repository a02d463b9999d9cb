"""What can run an artifact: torch, or its program by an engine. Each is a function of a batch of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from halfbyte.errors import HalfbyteError, did_you_mean
from halfbyte.program.interpret import Interpreter
from halfbyte.program.saved import load_program

TORCH = "torch"
# Images `[B, C, H, W]` to logits `[B, classes]`, float32, on the CPU.
Run = Callable[[Tensor], Tensor]


def _interpreter(folder: Path) -> Run:
    interpreter = Interpreter(load_program(folder))
    return lambda images: torch.from_numpy(interpreter(images.numpy()))


# How each engine but torch itself begins with an artifact's folder.
ENGINES: dict[str, Callable[[Path], Run]] = {"interpreter": _interpreter}


def check_engine(engine: str, target: str, device: str) -> None:
    """Raise `HalfbyteError` unless `engine` exists and can run `target`, an artifact's folder or a model's name."""
    known = (TORCH, *ENGINES)
    if engine not in known:
        raise HalfbyteError(f"--engine {engine!r} is not available{did_you_mean(engine, known)}")
    if engine == TORCH:
        return
    if not Path(target).is_dir():
        raise HalfbyteError(f"--engine {engine} runs artifacts; {target} is none, so evaluate it with --engine torch")
    if device not in ("auto", "cpu"):
        raise HalfbyteError(f"--engine {engine} runs on the CPU; leave --device {device} out")


def start_engine(engine: str, folder: Path) -> Run:
    """An engine other than torch, ready to run the artifact in `folder`.

    Raises `HalfbyteError` for an artifact without a program, which says why it has none.
    """
    return ENGINES[engine](folder)
