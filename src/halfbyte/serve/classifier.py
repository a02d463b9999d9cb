"""An artifact that answers for image files what they show: an engine, its preprocessing, its classes' names."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from halfbyte.artifact_files import class_labels, read_facts
from halfbyte.data.preprocessing import Preprocessing
from halfbyte.errors import HalfbyteError, did_you_mean
from halfbyte.form import misfit, nullable, whole
from halfbyte.program.interpret import Interpreter
from halfbyte.program.load import load_program
from halfbyte.progress import Progress
from halfbyte.runtime import Engine
from halfbyte.runtime.engine import checked_threads
from halfbyte.runtime.native import available, isa, kernels
from halfbyte.serve.gate import Share
from halfbyte.serve.picture import Limits, checked_pixels, read_picture

Floats = npt.NDArray[np.float32]
NATIVE, INTERPRETER = "native", "interpreter"
ENGINES = (NATIVE, INTERPRETER)
TOP = 5
_MOST_BITS = 64
_LARGE = 2**22


@dataclass(frozen=True)
class Answer:
    """The most probable classes, best first, each "label", "probability" and "index"; and the milliseconds it took to
    prepare the image and to run the model."""

    top: list[dict[str, Any]]
    prepare: float
    engine: float


class Classifier:
    """The artifact in a folder, ready to be called by several threads at once.

    `engine` is native or interpreter; None is native, and where the kernels were not built the interpreter, of which
    `progress` then tells. `threads` are those of the native engine for one image (None: all cores). Raises
    `HalfbyteError` for a folder that is no artifact, is damaged or has no program, for an engine that cannot run it.
    """

    def __init__(
        self, folder: Path, limits: Limits, engine: str | None = None, threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        facts, config = read_facts(folder)
        self.preprocessing = Preprocessing.of(facts["preprocessing"])
        self.limits = limits
        self.classes = int(config["num_classes"])
        self.labels = _sayable(class_labels(config))
        self.engine = chosen_engine(engine, progress or Progress())
        self._threads = checked_threads(threads)
        # One picture of the largest size at once, or smaller ones that make no more together.
        self._decoded = Share(limits.pixels)
        self.facts = _sayable(self._facts(facts, folder))
        self._run = self._start(folder)
        logits = self._run(np.zeros((1, *self.preprocessing.input_size), np.float32))
        if logits.shape != (1, self.classes):
            raise HalfbyteError(f"{folder}: the program gives {list(logits.shape[1:])}, not {self.classes} classes")

    def _start(self, folder: Path) -> Callable[[Floats], Floats]:
        run: Engine | Interpreter
        if self.engine == NATIVE:
            run = Engine(folder, threads=self._threads)
            shape = run.input_shape
        else:
            run = Interpreter(load_program(folder))
            shape = run.program.input_shape
        # The facts may be edited, and what they say of the images is not yet believed to be small.
        if shape != self.preprocessing.input_size:
            size = list(self.preprocessing.input_size)
            raise HalfbyteError(f"{folder} is damaged: it prepares images {size}, and its program takes {list(shape)}")
        return run

    def logits(self, content: bytes) -> Floats:
        """Of an image file's bytes, float32 `[classes]`; raises `RefusedError` for what is no image to be taken."""
        return self._logits(self._prepared(content)[0])

    def __call__(self, content: bytes) -> Answer:
        """The most probable classes of an image file's bytes; raises `RefusedError` as `logits`."""
        pixels, prepare = self._prepared(content)
        start = time.perf_counter()
        logits = self._logits(pixels)
        return Answer(self.top(logits), prepare, 1000 * (time.perf_counter() - start))

    def top(self, logits: Floats) -> list[dict[str, Any]]:
        """The most probable classes by logits `[classes]`: softmax in float64, of equal ones the lower index first."""
        wide = np.exp(logits.astype(np.float64) - np.max(logits))
        shares = wide / wide.sum()
        best = np.argsort(-logits, kind="stable")[:TOP]
        return [{"label": self.label(int(i)), "probability": float(shares[i]), "index": int(i)} for i in best]

    def label(self, index: int) -> str:
        """What a class is called; its number where the artifact does not say."""
        return f"class {index}" if self.labels is None else self.labels[index]

    def _prepared(self, content: bytes) -> tuple[Floats, float]:
        """An image, and the milliseconds this took without waiting for memory."""
        start = time.perf_counter()
        size = checked_pixels(content, self.preprocessing, self.limits)
        asked = time.perf_counter()
        with self._decoded.taken(size):
            begun = time.perf_counter()
            pixels = self.preprocessing(read_picture(content, self.preprocessing.input_size[0]))
            # Each thread would keep what its largest picture took for the next one.
            if size >= _LARGE and available():
                kernels().return_memory()
        return pixels, 1000 * (time.perf_counter() - begun + asked - start)

    def _logits(self, pixels: Floats) -> Floats:
        logits: Floats = self._run(pixels[None])[0]
        return logits

    def _facts(self, facts: dict[str, Any], folder: Path) -> dict[str, Any]:
        source, recipe = facts["source"], facts.get("recipe") or {}
        bits = known if isinstance(known := recipe.get("bits"), dict) else {}
        bits = {operand: bits.get(operand) for operand in ("weight", "activation")}
        if wrong := misfit(bits, dict.fromkeys(bits, nullable(_width)), "recipe.bits"):
            raise HalfbyteError(f"{folder} is damaged: {wrong} is no number of bits")
        return {
            "model": source["architecture"],
            "weights": {"tag": source["tag"], "sha256": source["sha256"]},
            "recipe": recipe.get("name"),
            "bits": bits,
            "classes": self.classes,
            "preprocessing": facts["preprocessing"],
            "engine": self.engine,
            "instructions": isa() if self.engine == NATIVE else None,
            "threads": self._threads if self.engine == NATIVE else None,
            "limits": {"upload_bytes": self.limits.upload, "pixels": self.limits.pixels},
            "halfbyte": metadata.version("halfbyte"),
        }


def chosen_engine(engine: str | None, progress: Progress) -> str:
    """The engine that is meant; raises `HalfbyteError` for one that is not there."""
    if engine is None:
        if available():
            return NATIVE
        progress.say(
            "the native kernels were not built with this installation: serving with --engine interpreter, much slower"
        )
        return INTERPRETER
    if engine not in ENGINES:
        raise HalfbyteError(f"--engine {engine!r} cannot serve{did_you_mean(engine, ENGINES)}")
    return engine


def _width(value: Any) -> bool:
    return whole(1)(value) and value <= _MOST_BITS


def _sayable(value: Any) -> Any:
    """Texts of which UTF-8 has every sign, also within lists and dicts: JSON may hold halves of signs."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_sayable(part) for part in value]
    if isinstance(value, dict):
        return {_sayable(key): _sayable(part) for key, part in value.items()}
    return value
