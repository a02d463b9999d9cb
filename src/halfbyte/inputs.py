"""What a run is asked for, and everything that it reads, checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from halfbyte.continuation import artifact_plan, artifact_source, check_weights, source_name
from halfbyte.data.images import ImageSet, calibration_subset, limit, open_images
from halfbyte.data.published_labels import open_labels
from halfbyte.data.soft_labels import SoftLabels
from halfbyte.errors import HalfbyteError
from halfbyte.models.builtin import BUILTIN_MODELS
from halfbyte.models.guide import Guide
from halfbyte.models.load import LoadedModel, load_model
from halfbyte.progress import Progress
from halfbyte.recipe import Recipe, StepCall, load_recipe
from halfbyte.session import Step
from halfbyte.steps.catalog import from_scratch, resolve, with_defaults
from halfbyte.steps.mixed import Mixed
from halfbyte.steps.train import Train

DEFAULT_RECIPE = "halfbyte-fast"
DEFAULT_CALIBRATION_IMAGES = 1024
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Options:
    """What `quantize` is asked for; the fields are the options of the command (DESIGN: contracts).

    `start` is `--from`: the artifact with whose quantizers and edits the run begins. `budget`, such as 4.0bits or
    3.2MB, gives sites widths of their own (the step `mixed`). What trains sees the images `data` (None: those for
    calibration) and learns from `labels`, else from the model `teacher`, else from the float model; its figures are
    also written for `tensorboard`. `stage` is the one of the recipe's stages that is wanted.
    """

    model: str | None = None
    weights: Path | None = None
    calib: Path | None = None
    val: Path | None = None
    recipe: str | Path = DEFAULT_RECIPE
    w_bits: int | None = None
    a_bits: int | None = None
    budget: str | None = None
    settings: tuple[str, ...] = ()
    calib_images: int | None = None
    limit: int | None = None
    batch_size: int = 32
    device: str = "auto"
    crop_pct: float | None = None
    interpolation: str | None = None
    workers: int = 2
    seed: int = 0
    start: Path | None = None
    data: Path | None = None
    teacher: str | None = None
    labels: Path | None = None
    tensorboard: bool = False
    stage: str | None = None
    out: Path | None = None
    resume: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        for name in ("weights", "calib", "val", "out", "start", "data", "labels"):
            if isinstance(given := getattr(self, name), str):
                object.__setattr__(self, name, Path(given))


@dataclass
class Inputs:
    """Everything that a run reads, checked before its folder is made."""

    loaded: LoadedModel
    recipe: Recipe
    calibration: ImageSet
    validation: ImageSet | None
    device: torch.device
    training: ImageSet | None = None
    soft_labels: SoftLabels | None = None
    teacher: nn.Module | None = None
    skipped: dict[str, list[str]] = field(default_factory=dict)


def resolved_recipe(options: Options) -> Recipe:
    """The recipe of the options with their bit widths and parameters, every default written out."""
    recipe = load_recipe(options.recipe)
    if options.stage is not None:
        recipe = with_defaults(recipe).with_stage(options.stage)
    if options.start is None:
        recipe = recipe.with_bits(options.w_bits, options.a_bits)
    else:
        recipe = _from_artifact(recipe, options)
    if options.budget is not None:
        recipe = _within(options.budget, recipe)
    for assignment in options.settings:
        recipe = recipe.with_parameter(assignment)
    steps = [step for _, step in resolve(recipe)]
    if options.start is None and not any(step.calibrates or trains_float(step) for step in steps):
        raise HalfbyteError(
            f"{recipe.source}: no step calibrates; begin with one such as repq, or go on from an artifact with --from"
        )
    return with_defaults(recipe)


def trains_float(step: Step) -> bool:
    """Whether a step leaves a float model."""
    return isinstance(step, Train) and not step.quantize


def _within(budget: str, recipe: Recipe) -> Recipe:
    """The recipe with widths within a budget: by its own step `mixed`, else by one before it calibrates."""
    steps = resolve(recipe)
    if not any(step.calibrates for _, step in steps):
        raise HalfbyteError(f"--budget {budget}: {recipe.source} does not calibrate; choose a recipe that does")
    if "mixed" not in [name for name, _ in steps]:
        first = next(number for number, (_, step) in enumerate(steps) if step.calibrates)
        recipe = replace(recipe, steps=(*recipe.steps[:first], StepCall("mixed"), *recipe.steps[first:]))
    return recipe.with_parameter(f"mixed.budget={budget}")


def budget_of(recipe: Recipe) -> str | None:
    """The budget within which the recipe gives sites widths of their own; None where it does not."""
    found = [step.budget for _, step in resolve(recipe) if isinstance(step, Mixed)]
    return found[0] if found else None


def _from_artifact(recipe: Recipe, options: Options) -> Recipe:
    """The recipe with the bit widths of the artifact from which the run starts: its quantizers have them already."""
    assert options.start is not None
    for name, given in (("--w-bits", options.w_bits), ("--a-bits", options.a_bits)):
        if given is not None:
            raise HalfbyteError(f"{name}: the widths come from --from {options.start}; leave {name} out")
    for name, step in resolve(recipe):
        if (what := from_scratch(step)) is not None:
            raise HalfbyteError(
                f"{recipe.source}: {name} {what}, but --from {options.start} is calibrated; choose a recipe of later "
                "steps, or leave --from out"
            )
    plan, paper_exact = artifact_plan(options.start)
    if paper_exact != recipe.paper_exact:
        which = "is" if paper_exact else "is not"
        raise HalfbyteError(f"--from {options.start} {which} paper_exact, {recipe.source} differs; use a recipe alike")
    return replace(recipe, bits=plan)


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; raises `HalfbyteError` for a device that is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise HalfbyteError(f"--device must be auto, cpu or cuda, not {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise HalfbyteError("--device cuda: no CUDA device was found; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def check_at_least(least: int, **values: int | None) -> None:
    """Raise `HalfbyteError` for a number below `least`, under the name of its option; None is one not given."""
    for name, value in values.items():
        if value is not None and value < least:
            raise HalfbyteError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")


def checked_device(options: Options) -> torch.device:
    """The device of a run; raises `HalfbyteError` for it and for numbers that no run can have."""
    check_at_least(0, workers=options.workers, seed=options.seed)
    check_at_least(1, batch_size=options.batch_size, limit=options.limit, calib_images=options.calib_images)
    if options.seed > MAX_SEED:
        raise HalfbyteError(f"--seed must be at most {MAX_SEED}, not {options.seed}")
    return pick_device(options.device)


def read_inputs(options: Options, recipe: Recipe, progress: Progress) -> Inputs:
    device = checked_device(options)
    loaded = _load(options)
    if loaded.source.note:
        progress.say(f"{loaded.source.architecture}.{loaded.source.tag}: {loaded.source.note}")
    source, config = loaded.source.as_dict(), loaded.data_config
    calib: Path | str | None = options.calib or embedded_images(source, "embedded:calibration")
    if calib is None:
        raise HalfbyteError(f"{loaded.source.architecture} comes without images; give --calib DIR")
    pool = open_images(calib, config, num_classes=None, progress=progress, workers=options.workers)
    count = options.calib_images or min(len(pool), DEFAULT_CALIBRATION_IMAGES)
    calibration = calibration_subset(pool, count, options.seed)
    recipe = _with_images(recipe, count, progress)
    validation = validation_images(options.val, source, config, loaded.model, options.limit, options.workers, progress)
    skipped = {"calibration": pool.skipped, "evaluation": [] if validation is None else validation.skipped}
    inputs = Inputs(loaded, recipe, calibration, validation, device, skipped=skipped)
    _read_training(options, inputs, progress)
    return inputs


def _read_training(options: Options, inputs: Inputs, progress: Progress) -> None:
    """What a training sees and learns from."""
    loaded, classes = inputs.loaded, int(inputs.loaded.model.num_classes)  # type: ignore[arg-type]
    if options.data is not None:
        images = open_images(
            options.data, loaded.data_config, num_classes=None, progress=progress, workers=options.workers
        )
        inputs.training = calibration_subset(images, len(images), options.seed)
        inputs.skipped["training"] = images.skipped
    if options.labels is not None:
        inputs.soft_labels = open_labels(options.labels, options.data, classes)
        images = inputs.training or inputs.calibration
        inputs.soft_labels.of(images.names[0])
    if options.teacher is not None:
        teacher = load_model(options.teacher)
        given = int(teacher.model.num_classes)  # type: ignore[arg-type]
        if given != classes:
            raise HalfbyteError(f"--teacher {options.teacher} has {given} classes, the model has {classes}")
        inputs.teacher = Guide(teacher.model, loaded.data_config, teacher.data_config)


def _load(options: Options) -> LoadedModel:
    if options.start is None:
        return load_model(
            options.model, options.weights, crop_pct=options.crop_pct, interpolation=options.interpolation
        )
    source, images = artifact_source(options.start)
    loaded = load_model(
        options.model or source_name(source), options.weights,
        crop_pct=options.crop_pct or images["crop_pct"], interpolation=options.interpolation or images["interpolation"],
    )  # fmt: skip
    if loaded.source.architecture != source["architecture"]:
        raise HalfbyteError(f"--from {options.start} is a {source['architecture']}, not a {loaded.source.architecture}")
    check_weights(source, loaded.source.sha256, f"--weights {options.weights}")
    return loaded


def _with_images(recipe: Recipe, count: int, progress: Progress) -> Recipe:
    """The recipe, each of whose steps asks for 1 to `count` calibration images; raises `HalfbyteError` otherwise."""
    calls = []
    for call in recipe.steps:
        images = call.parameters.get("images", 1)
        if not 1 <= images <= count:
            if images < 1 or not recipe.fewer_images:
                raise HalfbyteError(
                    f"{recipe.source}: {call.name} asks for {images} calibration images, the run has {count}; give "
                    f"more with --calib and --calib-images, or set 1 to {count} with --set {call.name}.images=N"
                )
            progress.say(f"{call.name} takes the {count} calibration images that there are, not {images}")
            call = replace(call, parameters={**call.parameters, "images": count})
        calls.append(call)
    try:
        return with_defaults(replace(recipe, steps=tuple(calls)))
    except HalfbyteError as error:
        raise HalfbyteError(
            f"{error}; the run has {count} for calibration, give more with --calib and --calib-images"
        ) from None  # fmt: skip


def embedded_images(source: dict[str, Any], which: str) -> str | None:
    """The embedded images `which`, where the model is an embedded one."""
    return which if source["architecture"] in BUILTIN_MODELS else None


def validation_images(
    val: Path | None,
    source: dict[str, Any],
    config: dict[str, Any],
    model: nn.Module,
    count: int | None,
    workers: int,
    progress: Progress,
) -> ImageSet | None:
    where: Path | str | None = val or embedded_images(source, "embedded:test")
    if where is None:
        return None
    classes = int(model.num_classes)  # type: ignore[arg-type]
    images = open_images(where, config, num_classes=classes, progress=progress, workers=workers)
    return images if count is None or count >= len(images) else limit(images, count)
