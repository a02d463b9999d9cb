"""What a row of a table needs, its recipe, its float weights, its images, and why it cannot be run here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from halfbyte.continuation import TRAINS
from halfbyte.data.preprocessing import checked_preprocessing
from halfbyte.data.sources import EMBEDDED_CALIBRATION, open_source
from halfbyte.errors import HalfbyteError
from halfbyte.inputs import Options, checked_device, resolved_recipe
from halfbyte.models.builtin import BUILTIN_MODELS
from halfbyte.models.names import resolve
from halfbyte.models.pretrained import fetch_weights
from halfbyte.models.weights import PICKLE_SUFFIXES
from halfbyte.recipe import Recipe, load_recipe
from halfbyte.reproduce.table import Row
from halfbyte.run_folder import Found, RunFolder

# How folders of ImageNet are laid out: images to calibrate and train with, and those of the evaluation.
LAYOUTS = (("train", "val"), ("imagenet_calib", "imagenet_val"))
SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)


class MissingError(HalfbyteError):
    """What a row needs is not here; it is skipped, and the message says what would help."""


@dataclass(frozen=True)
class Request:
    """What `halfbyte reproduce` is asked for; the fields are the options of the command.

    tables: names or files, none for all that come with the package. rows: glob patterns on the rows' names. data: a
    folder in one of `LAYOUTS`, in the place of `calib` (also what a training sees) and `val`. settings: change steps
    that a row's recipe has. crop_pct, interpolation: in the place of the row's own.
    """

    tables: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    data: Path | None = None
    calib: Path | None = None
    val: Path | None = None
    labels: Path | None = None
    weights_dir: Path | None = None
    settings: tuple[str, ...] = ()
    limit: int | None = None
    batch_size: int = 32
    device: str = "auto"
    crop_pct: float | None = None
    interpolation: str | None = None
    workers: int = 2
    seed: int = 0
    out: Path = Path("runs/reproduce")
    resume: bool = False
    force: bool = False

    def run(self) -> Options:
        """What every row's run has in common."""
        return Options(
            limit=self.limit, batch_size=self.batch_size, device=self.device, workers=self.workers, seed=self.seed,
            resume=True,
        )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The run of a row, and what is other in it than the row says."""

    options: Options
    changed: tuple[str, ...]


class Planner:
    """Plans rows; raises `HalfbyteError` for anything in the request that would be wrong for every row."""

    def __init__(self, request: Request, rows: list[Row]) -> None:
        self.request = request
        self.device = checked_device(request.run())
        checked_preprocessing(request.crop_pct, request.interpolation)
        folder = request.weights_dir
        if folder is not None and not folder.is_dir():
            raise HalfbyteError(f"--weights-dir {folder}: no such folder")
        self.calib, self.val = _images(request)
        if not (self.calib and self.val) and any(row.model.checkpoint not in BUILTIN_MODELS for row in rows):
            raise HalfbyteError("the rows need images; give --data DIR (with train and val), or --calib and --val")
        self._hub: dict[str, MissingError | None] = {}
        self._available: dict[Path | None, int] = {}
        if self.val is not None:
            open_source(self.val)
        if self.calib is not None:
            self._count(self.calib)
        fitting = {setting for row in rows for setting in self._fitting(row)}
        for row in rows:
            recipe = self.recipe(row)
            if row.long is not None and not _amounts(row, recipe):
                raise HalfbyteError(f"{row.table}/{row.name}: bounded_by names no parameter of its recipe's steps")
        for setting in request.settings:
            if setting not in fitting:
                raise HalfbyteError(f"--set {setting}: no row's recipe has such a step; give step.key=value")

    def recipe(self, row: Row) -> Recipe:
        """The recipe of a row with every parameter; raises `HalfbyteError` for what does not fit its steps."""
        return resolved_recipe(self._named(row))

    def plan(self, row: Row, out: Path) -> Plan:
        """The run of a row into the folder `out`; raises `MissingError` for what is not here, unless it is finished."""
        options, recipe = self._named(row), self.recipe(row)
        published = resolved_recipe(replace(options, settings=row.settings))
        changed = [*self._fitting(row)] if recipe.as_dict() != published.as_dict() else []
        trains = any(call.name in TRAINS for call in recipe.steps)
        asked = [(call.name, call.parameters.get("images", 1)) for call in recipe.steps]
        most = max(images for _, images in asked)
        available = self._count(self.calib)
        weights = self._weights_file(row)
        if RunFolder(out, {}).found() is not Found.FINISHED:
            if row.long is not None and self.device.type == "cpu" and not _bounded(row, recipe, published):
                raise MissingError(
                    f"{row.long}: too long without a GPU; bound it by --set, of {' or '.join(row.bounded_by)}"
                )
            if trains and row.labels is not None and self.request.labels is None:
                raise MissingError(f"needs {row.labels}; give --labels DIR")
            if most > available and not recipe.fewer_images:
                bounds = [f"--set {step}.images={available}" for step, images in asked if images > available]
                raise MissingError(
                    f"needs {most} calibration images, and there are {available}; bound it by {' '.join(bounds)}"
                )
            if weights is None and row.model.checkpoint not in BUILTIN_MODELS:
                self._ask_hub(row.model.checkpoint)
        if most > available:
            changed.append(f"{available} calibration images")
        options = replace(
            options, calib=self.calib, val=self.val, calib_images=min(most, available), weights=weights, out=out,
            data=self.calib if trains else None, labels=self.request.labels if trains else None,
            crop_pct=self.request.crop_pct or row.model.crop_pct,
            interpolation=self.request.interpolation or row.model.interpolation,
        )  # fmt: skip
        return Plan(options, tuple(changed))

    def _named(self, row: Row) -> Options:
        return replace(
            self.request.run(), model=row.model.checkpoint, recipe=row.recipe, w_bits=row.weight_bits,
            a_bits=row.activation_bits, settings=(*row.settings, *self._fitting(row)),
        )  # fmt: skip

    def _fitting(self, row: Row) -> tuple[str, ...]:
        """Those of the request's settings that are for a step of the row's recipe."""
        steps = [call.name for call in load_recipe(row.recipe).steps]
        return tuple(setting for setting in self.request.settings if setting.partition(".")[0] in steps)

    def _count(self, images: Path | None) -> int:
        if images not in self._available:
            self._available[images] = len(open_source(images or EMBEDDED_CALIBRATION).names)
        return self._available[images]

    def _weights_file(self, row: Row) -> Path | None:
        """The file of a row's float weights, where it is among the user's."""
        checkpoint, folder = row.model.checkpoint, self.request.weights_dir
        if folder is None or checkpoint in BUILTIN_MODELS:
            return None
        # The tag is the surest; a file that is named for less is what the user says it is.
        stems = dict.fromkeys((checkpoint, row.model.name, checkpoint.partition(".")[0]))
        places = [folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
        return next((place for place in places if place.is_file()), None)

    def _ask_hub(self, checkpoint: str) -> None:
        """Raise `MissingError` where the hub's weights cannot be had; else they lie in its cache now."""
        if checkpoint not in self._hub:
            self._hub[checkpoint] = _absent(checkpoint, self.request.weights_dir is not None)
        if (missing := self._hub[checkpoint]) is not None:
            raise missing


def _bounded(row: Row, recipe: Recipe, published: Recipe) -> bool:
    """Whether the recipe has less than the published of what makes its run long."""

    whole = _amounts(row, published)
    return any(amount < whole[key] for key, amount in _amounts(row, recipe).items())


def _amounts(row: Row, recipe: Recipe) -> dict[str, float]:
    """Of the recipe's parameters, those that bound the row's run, where 0 (of minutes, of images) is no bound."""
    given = ((f"{call.name}.{key}", value) for call in recipe.steps for key, value in call.parameters.items())
    return {key: value or math.inf for key, value in given if key in row.bounded_by}


def _absent(checkpoint: str, searched: bool) -> MissingError | None:
    """Why the hub's weights cannot be had; None where they can, and now lie in its cache."""
    name = resolve(checkpoint)
    try:
        fetch_weights(name)
    except HalfbyteError as error:
        # What the network says differs from time to time; tables do not.
        why = "the hub cannot be reached" if error.__cause__ is not None else "none can be fetched"
        where = "--weights-dir has no" if searched else "give --weights-dir with"
        return MissingError(f"{where} {checkpoint}.safetensors or .pth, and {why}")
    return None


def _images(request: Request) -> tuple[Path | None, Path | None]:
    """Where the images of calibration and evaluation lie."""
    if request.data is None:
        return request.calib, request.val
    for calib, val in LAYOUTS:
        if (request.data / calib).is_dir() and (request.data / val).is_dir():
            return request.calib or request.data / calib, request.val or request.data / val
    known = " nor ".join(" and ".join(layout) for layout in LAYOUTS)
    raise HalfbyteError(f"--data {request.data} holds neither {known}; give --calib and --val")
