"""What can run an artifact: torch, or its program by an engine. Each is a function of a batch of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from halfbyte.errors import HalfbyteError, check_installed, did_you_mean
from halfbyte.program.interpret import Interpreter
from halfbyte.program.load import load_program
from halfbyte.runtime import Engine

TORCH = "torch"
# Images `[B, C, H, W]` to logits `[B, classes]`, float32, on the CPU.
Run = Callable[[Tensor], Tensor]


def _interpreter(folder: Path) -> Run:
    interpreter = Interpreter(load_program(folder))
    return lambda images: torch.from_numpy(interpreter(images.numpy()))


def _native(folder: Path) -> Run:
    engine = Engine(folder)
    return lambda images: torch.from_numpy(engine(images.numpy()))


def _onnx(folder: Path) -> Run:
    # What needs the extra is imported when it is known to be there.
    from halfbyte.export.graph import LOGITS
    from halfbyte.export.onnx import to_onnx
    from halfbyte.export.runtimes import load_onnxruntime

    model = load_onnxruntime(to_onnx(load_program(folder)).model.SerializeToString(), threads=0)
    return lambda images: torch.from_numpy(model(images.numpy())[LOGITS])


# How each engine but torch itself begins with an artifact's folder; "onnx" is what is exported, in ONNX Runtime.
ENGINES: dict[str, Callable[[Path], Run]] = {"interpreter": _interpreter, "native": _native, "onnx": _onnx}
# The packages and the extra of ours that engines need.
_NEEDS = {"onnx": (("onnx", "onnxruntime"), "onnx")}


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
    if engine in _NEEDS:
        check_installed(f"--engine {engine}", *_NEEDS[engine])


def start_engine(engine: str, folder: Path) -> Run:
    """An engine other than torch, ready to run the artifact in `folder`.

    Raises `HalfbyteError` for an artifact without a program, which says why it has none.
    """
    return ENGINES[engine](folder)
