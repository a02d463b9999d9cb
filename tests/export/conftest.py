"""Embedded models quantized by a recipe, their programs and exports, and what others make of these."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata, resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from halfbyte import api
from halfbyte.export.onnx import OnnxForm, to_onnx
from halfbyte.program.interpret import Interpreter
from halfbyte.program.load import load_program
from halfbyte.program.ops import Program

Array = npt.NDArray[np.float32]
IMAGES = 100
# AdaLog with a short search: log quantizers also behind GELU, a scale for each head.
ADALOG = """
name: short-adalog
bits: {weight: 4, activation: 4}
steps:
  - adalog: {images: 2, candidates: 64, steps: 1, rounds: 1}
"""


@dataclass(frozen=True)
class Case:
    """A model, its recipe and widths, and how it is written."""

    model: str
    recipe: str
    bits: int
    form: OnnxForm = field(default_factory=OnnxForm)

    @property
    def name(self) -> str:
        own = "".join(f"-{value}" for key, value in vars(self.form).items() if value != getattr(OnnxForm(), key))
        return f"{self.model}-{self.recipe}-{self.bits}{own}"


CASES = (
    *(Case(f"fashion_{kind}", "repq", 4) for kind in ("vit", "swin", "resnet")),
    *(Case(f"fashion_{kind}", "repq", 8) for kind in ("vit", "resnet")), Case("fashion_vit", "adalog", 4),
)  # fmt: skip
# ONNX Runtime 1.23, the last for Python 3.10, has no integer convolution of weights whose zero points differ.
FUSES = tuple(int(part) for part in metadata.version("onnxruntime").split(".")[:2]) >= (1, 31)
# The other ways to write a model, and what takes longest; slow.
FORMS = (
    Case("fashion_swin", "repq", 8),
    Case("fashion_vit", "repq", 4, OnnxForm(opset=21)), Case("fashion_swin", "adalog", 4, OnnxForm(opset=21)),
    Case("fashion_resnet", "repq", 8, OnnxForm(convolutions="integer")),
    *(Case("fashion_resnet", "repq", bits, OnnxForm(convolutions="fused")) for bits in (4, 8) if FUSES),
    Case("fashion_vit", "repq", 4, OnnxForm(opset=19, gelu="erf")),
)  # fmt: skip


@pytest.fixture(scope="session")
def artifact(tmp_path_factory) -> Callable[[str, str, int], Path]:
    """The folder of a quantized model."""

    @cache
    def make(model: str, recipe: str, bits: int) -> Path:
        out = tmp_path_factory.mktemp("export") / f"{model}-{recipe}-{bits}"
        known = recipe
        if recipe == "adalog":
            known = str(out.parent / "recipe.yaml")
            Path(known).write_text(ADALOG)
        api.quantize(model=model, recipe=known, w_bits=bits, a_bits=bits, limit=4, workers=0, out=out)
        return out

    return make


@pytest.fixture(scope="session")
def program(artifact) -> Callable[[Case], Program]:
    return cache(lambda case: load_program(artifact(case.model, case.recipe, case.bits)))


@pytest.fixture(scope="session")
def pictures() -> tuple[Array, npt.NDArray[np.int64]]:
    """Images `[B, 1, 28, 28]`, preprocessed as the embedded models want it, and their classes."""
    with resources.files("halfbyte").joinpath("assets/fashion_test.npz").open("rb") as file, np.load(file) as found:
        pixels, classes = found["x"][:IMAGES], found["y"][:IMAGES]
    return ((pixels.astype(np.float32) / 255 - 0.286) / 0.353)[:, None].astype(np.float32), classes.astype(np.int64)


@pytest.fixture(scope="session")
def interpreted(program, pictures) -> Callable[[Case], Array]:
    """The interpreter's logits."""
    by_artifact = cache(lambda model, recipe, bits: Interpreter(program(Case(model, recipe, bits)))(pictures[0]))
    return lambda case: by_artifact(case.model, case.recipe, case.bits)


Logits = dict[str, Array]


def run_outside(images: Array, models: dict[str, Path], folder: Path, timeout: float = 900) -> Logits:
    """What outside.py finds for models by name, in a process of its own that puts its files into `folder` and takes at
    most `timeout` seconds.

    Runtimes warn on stderr of what they do not like in a file, such as constants that nothing reads: not a word is let
    pass.
    """
    np.save(folder / "images.npy", images)
    command = [sys.executable, str(Path(__file__).parent / "outside.py"), str(folder / "images.npy")]
    command += [str(folder / "logits.npz"), *(f"{name}={path}" for name, path in models.items())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert (done.returncode, done.stderr) == (0, "")
    with np.load(folder / "logits.npz") as found:
        return dict(found)


@pytest.fixture(scope="session")
def outside(program, artifact, pictures, tmp_path_factory) -> Callable[[Case | None], Logits]:
    """Logits of a case's model, and of those beside it in the list, from a process without halfbyte, see outside.py;
    None: of one by OpenVINO's converter, as `converted`."""

    @cache
    def run(cases: tuple[Case, ...]) -> Logits:
        folder = tmp_path_factory.mktemp("outside")
        models = {}
        for case in cases:
            path = models[case.name] = folder / f"{case.name}.onnx"
            path.write_bytes(to_onnx(program(case), case.form).model.SerializeToString())
        if not cases:
            models["converted"] = folder / "converted.xml"
            api.export(artifact("fashion_vit", "repq", 8), "openvino", models["converted"])
        return run_outside(pictures[0], models, folder)

    return lambda case: run(() if case is None else CASES if case in CASES else FORMS)
