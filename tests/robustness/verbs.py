"""Every verb of the command line on something so small that a call takes a second."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from halfbyte import api
from halfbyte.artifact_files import ARTIFACT
from halfbyte.models.builtin import create_builtin

MODEL = "fashion_resnet"
# What `push` and `pull` call the artifact.
REPOSITORY = "somebody/tiny"
_FEW = ("--calib-images", "4", "--limit", "2", "--workers", "0", "--batch-size", "4")


@dataclass(frozen=True)
class Inputs:
    """What commands read, in one folder."""

    folder: Path

    @property
    def images(self) -> Path:
        """An archive of ten images, one a class."""
        return self.folder / "few.npz"

    @property
    def pictures(self) -> Path:
        """The same as files, one folder a class."""
        return self.folder / "pictures"

    @property
    def recipe(self) -> Path:
        return self.folder / "tiny.yaml"

    @property
    def training(self) -> Path:
        """A recipe that trains two steps."""
        return self.folder / "training.yaml"

    @property
    def weights(self) -> Path:
        """Those of the embedded model, in a file."""
        return self.folder / "weights.safetensors"

    @property
    def artifact(self) -> Path:
        """A finished run of `recipe`."""
        return self.folder / "artifact"

    @property
    def other(self) -> Path:
        """The same with other widths."""
        return self.folder / "other"

    @property
    def bare(self) -> Path:
        """The artifact of `artifact` without the run, into whose folder times would be written."""
        return self.folder / "bare"

    @property
    def table(self) -> Path:
        """A table for `reproduce`, of one row."""
        return self.folder / "table.yaml"


def make_inputs(folder: Path) -> Inputs:
    """Write them."""
    from safetensors.torch import save_file

    made = Inputs(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 28, 28), np.uint8)
    np.savez(made.images, x=pixels, y=np.arange(10))
    for label, picture in enumerate(pixels):
        (made.pictures / f"class {label}").mkdir(parents=True)
        Image.fromarray(picture).save(made.pictures / f"class {label}" / "a b.png")
    steps: list[Any] = [{"percentile": {"images": 4}}, {"bias_correct": {"images": 4}}]
    bits = {"weight": 4, "activation": 4}
    made.recipe.write_text(yaml.safe_dump({"name": "tiny", "bits": bits, "steps": steps}))
    train = {"batch_size": 4, "steps": 2, "save_every": 1, "lr": 0.0005}
    steps = [{"learned_steps": {"images": 4}}, {"train": train}]
    made.training.write_text(yaml.safe_dump({"name": "training", "bits": bits, "steps": steps}))
    save_file(create_builtin(MODEL).state_dict(), made.weights)
    row = {"model": "resnet", "bits": "w4a4", "top1": 1.0}
    models = {"resnet": {"checkpoint": MODEL, "top1": 1.0}}
    table = {"title": "Tiny", "source": "a paper", "measured": "nothing", "recipes": ["tiny.yaml"]}
    made.table.write_text(yaml.safe_dump({**table, "models": models, "rows": [row]}))
    few: dict[str, Any] = {"calib_images": 4, "limit": 2, "workers": 0, "batch_size": 4}
    api.quantize(model=MODEL, recipe=made.recipe, out=made.artifact, **few)
    api.quantize(model=MODEL, recipe=made.recipe, w_bits=3, a_bits=5, out=made.other, **few)
    made.bare.mkdir()
    for name in ARTIFACT:
        shutil.copy(made.artifact / name, made.bare / name)
    return made


@dataclass(frozen=True)
class Verb:
    """A row of the table: a verb with its arguments, but for what it writes.

    `out`: the name under which it writes with `--out`; None where it does not. `folder`: that is a folder, which
    `--resume` continues. `over`: the options with which it writes over what is there; None where it never does.
    """

    title: str
    arguments: Callable[[Inputs], tuple[object, ...]]
    out: str | None = None
    folder: bool = False
    over: tuple[str, ...] | None = ("--force",)

    def command(self, inputs: Inputs, out: Path | None = None) -> tuple[object, ...]:
        """The arguments behind `halfbyte`, with those of the verb in front."""
        return (*self.arguments(inputs), *(() if out is None else ("--out", out)))


VERBS = {
    verb.title: verb
    for verb in (
        Verb("quantize", lambda given: ("quantize", MODEL, "--recipe", given.recipe, *_FEW), "run", folder=True),
        Verb(
            "train",
            lambda given: ("train", MODEL, "--recipe", given.training, "--data", given.images, *_FEW),
            "run", folder=True,
        ),
        Verb(
            "labels",
            lambda given: ("labels", "--teacher", MODEL, "--data", given.images, "--crops", 2, "--workers", 0),
            "labels", folder=True, over=None,
        ),
        Verb(
            "reproduce",
            lambda given: ("reproduce", given.table, "--limit", 2, "--workers", 0, "--batch-size", 4),
            "table", folder=True,
        ),
        Verb("export onnx", lambda given: ("export", given.artifact), "model.onnx"),
        Verb("export openvino", lambda given: ("export", given.artifact, "--to", "openvino"), "model.xml"),
        Verb("export torchao", lambda given: ("export", given.artifact, "--to", "torchao"), "scales.safetensors"),
        Verb("eval", lambda given: ("eval", given.artifact, "--limit", 2, "--workers", 0)),
        Verb("compare", lambda given: ("compare", given.artifact, given.other), "page.html", over=()),
        Verb("report", lambda given: ("report", given.artifact)),
        Verb("pull", lambda given: ("pull", REPOSITORY), "pulled", over=None),
        Verb("push", lambda given: ("push", given.artifact, REPOSITORY)),
        Verb("bench", lambda given: ("bench", given.bare, "--against", "onnxruntime", "--rounds", 1)),
        Verb("inspect", lambda given: ("inspect", given.artifact)),
        Verb("recipes", lambda given: ("recipes", given.recipe)),
    )
}  # fmt: skip
WRITE = [title for title, verb in VERBS.items() if verb.out is not None]
RESUME = [title for title, verb in VERBS.items() if verb.folder]
ASK = [title for title in WRITE if VERBS[title].over != ()]
# Of a run folder: what tells of times and memory differs between two runs.
MEASURED = ("log.jsonl", "metrics.json", "report.html", "table.json", "table.md")
