"""Running an artifact on its integers: NumPy in, NumPy out, without torch."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from halfbyte.errors import HalfbyteError
from halfbyte.program.check import check
from halfbyte.program.load import load_program
from halfbyte.program.ops import Program, checked_images
from halfbyte.runtime.compile import build
from halfbyte.runtime.native import kernels

Images = npt.NDArray[np.float32]
MOST_THREADS = 256


class Engine:
    """An artifact's folder, or a `Program`, made ready for the native kernels.

    Several threads of a process may call one engine at once: each call has memory of its own, which the next one takes
    over. `threads`: how many cores a call uses (None: all that the process may use); results do not depend on it.
    Raises `HalfbyteError` for a damaged artifact, one without a program, and where the kernels are missing.
    """

    def __init__(self, artifact: str | Path | Program, *, threads: int | None = None) -> None:
        self.threads = checked_threads(threads)
        if isinstance(artifact, Program):
            check(program := artifact)
        else:
            program = load_program(artifact)
        self.input_shape = program.input_shape
        self.facts = program.facts
        native = kernels()
        try:
            self._plan, self._result = build(program, native)
        except MemoryError:
            raise HalfbyteError("there is not enough memory for the program") from None
        except HalfbyteError as error:
            raise HalfbyteError(f"{error}; use --engine interpreter") from None
        # The program's tensors are needed no more.
        del program
        native.return_memory()

    def __call__(self, images: Images) -> Images:
        """Logits `[B, classes]`, float32, of preprocessed images `[B, C, H, W]`.

        Floats of other widths are rounded, arrays with gaps are copied. Raises `HalfbyteError` for images of another
        shape, and for pixels that are whole numbers: nobody has preprocessed them.
        """
        images = checked_images(images, self.input_shape)
        try:
            logits: Images = self._plan.run(images, list(self._result), self.threads)
        except MemoryError:
            raise HalfbyteError(f"there is not enough memory for {self.threads} threads") from None
        return logits


def checked_threads(threads: int | None) -> int:
    """The number of threads that is meant; raises `HalfbyteError` for one that cannot be."""
    if threads is None:
        return min(MOST_THREADS, available_cores())
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
        raise HalfbyteError(f"threads must be from 1 to {MOST_THREADS}, not {threads!r}")
    return threads


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
