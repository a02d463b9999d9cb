"""Quantize, load and evaluate from Python; the command line calls nothing else."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from halfbyte.artifact import Artifact, load_artifact, side_bytes
from halfbyte.artifact_files import stored_bytes
from halfbyte.continuation import adopt, check_weights, source_name
from halfbyte.coverage import coverage
from halfbyte.data.preprocessing import checked_preprocessing
from halfbyte.distributed import World, world
from halfbyte.engines import TORCH, check_engine, start_engine
from halfbyte.errors import HalfbyteError
from halfbyte.evaluate import Loop, evaluate
from halfbyte.export.files import Exported, ExportOptions, export_artifact, export_places
from halfbyte.facts import describe_sites, operations
from halfbyte.families.describe import describe
from halfbyte.files import real_path
from halfbyte.hub import PREFIX, cached
from halfbyte.inputs import (
    Inputs,
    Options,
    budget_of,
    check_at_least,
    pick_device,
    read_inputs,
    resolved_recipe,
    validation_images,
)
from halfbyte.models.builtin import DEFAULT_MODEL
from halfbyte.models.load import EMBEDDED, create_architecture, load_model
from halfbyte.models.names import resolve as resolve_name
from halfbyte.outcome import accuracy, finish, weights_facts
from halfbyte.prepare import prepare
from halfbyte.progress import Progress
from halfbyte.recipe import Recipe
from halfbyte.run_folder import Found, RunFolder, default_folder
from halfbyte.session import Session
from halfbyte.steps.catalog import resolve
from halfbyte.tensorboard import ScalarLog, require_tensorboard
from halfbyte.verification import verification_images


@dataclass
class Result:
    """A finished run: its folder, its metrics, and the quantized model (None where the run was already there)."""

    folder: Path
    metrics: dict[str, Any]
    model: nn.Module | None = None


def quantize(options: Options | None = None, *, progress: Progress | None = None, **keywords: Any) -> Result:
    """Run a recipe on a model and write the run folder.

    Give `Options`, or its fields as keywords. Raises `HalfbyteError` for anything wrong with the inputs, before the
    folder is made. Under torchrun every process runs the recipe, those steps that can share the images out do, and one
    process writes; all return the same.
    """
    options = options or Options(**keywords)
    with world() as processes:
        return _run(options, (progress or Progress()) if processes.leads else Progress(quiet=True), processes)


def _run(options: Options, progress: Progress, processes: World) -> Result:
    # Every process looks before one of them writes.
    with processes.agreed():
        recipe = resolved_recipe(options)
        folder = _folder(options, recipe, processes.leads)
    with folder:
        return _run_in(folder, recipe, options, progress, processes)


def _run_in(folder: RunFolder, recipe: Recipe, options: Options, progress: Progress, processes: World) -> Result:
    with processes.agreed():
        found = folder.admit(options.resume, options.force)
        if found is Found.FINISHED:
            return Result(folder.path, folder.metrics())
        inputs = read_inputs(options, recipe, progress)
        session = _session(inputs, options, progress, processes)
        steps = resolve(inputs.recipe)
        for _, step in steps:
            if (check := getattr(step, "check", None)) is not None:
                check(session)
        if options.tensorboard:
            require_tensorboard()
        continues = found is Found.UNFINISHED and session.restore_state(folder.path)
    with processes.agreed():
        if not continues:
            folder.start()
    if folder.writes:
        session.folder = folder.path
        session.recorders.append(folder.log)
        if options.tensorboard:
            session.recorders.append(ScalarLog(folder.path / "tensorboard", continues))
    for name, step in steps[len(session.reports) :]:
        report = session.run(name, step)
        folder.log("step", step=name, seconds=report.seconds, **report.figures)
    metrics = finish(session, inputs, folder)
    return Result(folder.path, metrics, session.model)


def load(folder: str | Path) -> nn.Module:
    """The quantized model of an artifact, ready to run: images `[B, C, H, W]` to logits.

    `folder` may also be the name of a repository in the model hub, as timm has it: `hf-hub:OWNER/NAME[@REVISION]`.

    Its `pretrained_cfg` holds the preprocessing for timm's `resolve_model_data_config`; `quantization` what the
    artifact says of itself. Needs neither the original weights nor the network.
    """
    artifact = load_artifact(cached(folder) if isinstance(folder, str) and folder.startswith(PREFIX) else folder)
    model: Any = artifact.model
    model.pretrained_cfg = artifact.config["pretrained_cfg"]
    model.quantization = artifact.facts
    return artifact.model


def evaluate_model(
    target: str,
    *,
    weights: Path | None = None,
    val: Path | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
    batch_size: int | None = None,
    limit_images: int | None = None,
    workers: int = 2,
    device: str = "auto",
    engine: str = TORCH,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Metrics of an artifact or of a float model, in the form of `metrics.json`.

    For an artifact, options that are not given come from it; with `weights` the agreement with the float model is
    measured too, and `engine` says what runs it: torch, or one of `engines.ENGINES`. Under torchrun the images are
    shared out among the processes and the result is the same.
    """
    with world() as processes:
        progress = (progress or Progress()) if processes.leads else Progress(quiet=True)
        with processes.agreed():
            check_at_least(0, workers=workers)
            check_at_least(1, batch_size=batch_size, limit=limit_images)
            check_engine(engine, target, device)
            chosen = pick_device(device if engine == TORCH else "cpu")
            artifact = _artifact(target)
            if artifact is None:
                loaded = load_model(target, weights, crop_pct=crop_pct, interpolation=interpolation)
                model, teacher, config, source = loaded.model, None, loaded.data_config, loaded.source.as_dict()
            else:
                source = artifact.facts["source"]
                teacher = _teacher(artifact, weights)
                given = checked_preprocessing(crop_pct, interpolation)
                config = artifact.facts["preprocessing"] | {
                    key: value for key, value in given.items() if value is not None
                }
                model, batch_size = artifact.model, batch_size or int(artifact.facts.get("batch_size", 32))
            images = validation_images(val, source, config, model, limit_images, workers, progress)
            if images is None:
                raise HalfbyteError(f"{source['architecture']} comes without images; give --val DIR")
            run = model.to(chosen) if engine == TORCH else start_engine(engine, Path(target))
        loop = Loop(batch_size or 32, workers, chosen, processes, progress)
        reference = None if teacher is None else evaluate(teacher.to(chosen), images, loop, label="float model")[1]
        start = time.perf_counter()
        found, _ = evaluate(run, images, loop, reference)
        seconds = round(time.perf_counter() - start, 3)
    key = "float" if artifact is None else "quantized"
    return {
        "schema": 1, "model": source["architecture"], "weights": weights_facts(source), "engine": engine,
        "images": {"evaluation": len(images), "skipped": len(images.skipped)},
        key: accuracy(found), "seconds": {"evaluate": seconds},
    }  # fmt: skip


def export(
    artifact: str | Path,
    to: str = "onnx",
    out: Path | None = None,
    *,
    verify: bool = False,
    force: bool = False,
    val: Path | None = None,
    opset: int = 17,
    gelu: str = "exact",
    convolutions: str = "qdq",
    progress: Progress | None = None,
) -> Exported:
    """Write an artifact for another runtime: `to` onnx, openvino or torchao (scales of linear layers), into file `out`.

    Without `out` the file lies in the artifact's folder. `verify` runs it in every installed runtime on images of
    `val`, or embedded ones, and compares it with the interpreter. `opset`, `gelu` and `convolutions` are those of
    `OnnxForm`. Raises `HalfbyteError` for an artifact without a program, what cannot be written, a file that exists
    without `force`, a missing package; the message has the remedy, and nothing is written.
    """
    progress = progress or Progress()
    folder = Path(artifact)
    if val is not None and not verify:
        raise HalfbyteError("--val has the images of --verify; give both, or neither")
    options = ExportOptions(to, export_places(folder, to, out)[0], verify, force, opset, gelu, convolutions)
    return export_artifact(folder, options, lambda: verification_images(folder, val, progress), progress)


def inspect_model(target: str, weights: Path | None = None) -> dict[str, Any]:
    """The sites of an artifact or of a model with what is known of each, and which arithmetic is left in float."""
    artifact = _artifact(target)
    if artifact is not None:
        recipe = artifact.facts.get("recipe")
        left = artifact.facts.get("coverage") or coverage(artifact.model, artifact.layout)
        return {
            "model": artifact.facts["source"]["architecture"],
            "recipe": recipe and recipe["name"],
            "sites": describe_sites(artifact.model, artifact.layout, artifact.facts["sites"]),
            "coverage": left,
            "bytes": {**stored_bytes(Path(target)), "side": side_bytes(artifact.model, artifact.layout)},
            "operations": operations(artifact.model, artifact.layout, left),
            "edits": len(artifact.facts["edits"]),
            "program": artifact.facts.get("program"),
        }
    if weights is not None:
        model, architecture = load_model(target, weights).model, resolve_name(target).architecture
    else:
        name = resolve_name(target)
        model, architecture = create_architecture(name.architecture, name.tag).eval(), name.architecture
    layout = prepare(model, describe(model))
    return {
        "model": architecture,
        "recipe": None,
        "sites": describe_sites(model, layout, []),
        "coverage": coverage(model, layout),
        "edits": 0,
    }


def _artifact(target: str) -> Artifact | None:
    """The artifact at a path; None where `target` is no path, so that it must be a model's name."""
    path = Path(target)
    if target.startswith(PREFIX):
        name = target.removeprefix(PREFIX)
        raise HalfbyteError(f"{target} is in the model hub; `halfbyte pull {name} --out DIR` fetches it first")
    if path.is_file():
        raise HalfbyteError(f"{path} is a file; give an artifact's folder, or a model's name and --weights {path}")
    if path.is_dir():
        return load_artifact(path)
    if len(path.parts) > 1:
        raise HalfbyteError(f"{path} does not exist; give the folder of an artifact, or a model's name")
    return None


def _folder(options: Options, recipe: Recipe, writes: bool) -> RunFolder:
    model = options.model or (DEFAULT_MODEL if options.start is None else real_path(options.start).name)
    widths = budget_of(recipe) or f"w{recipe.bits.weight}a{recipe.bits.activation}"
    settings = {
        "model": model, "weights": options.weights and str(options.weights), "recipe": recipe.as_dict(),
        "from": options.start and str(options.start),
        "calib": options.calib and str(options.calib), "val": options.val and str(options.val),
        "calib_images": options.calib_images, "limit": options.limit, "seed": options.seed,
        "crop_pct": options.crop_pct, "interpolation": options.interpolation, "batch_size": options.batch_size,
        "data": options.data and str(options.data), "teacher": options.teacher,
        "labels": options.labels and str(options.labels),
    }  # fmt: skip
    return RunFolder(options.out or default_folder(model, recipe.name, widths), settings, writes)


def _session(inputs: Inputs, options: Options, progress: Progress, processes: World | None = None) -> Session:
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    teacher = copy.deepcopy(inputs.loaded.model)
    model = inputs.loaded.model
    try:
        layout = prepare(model, describe(model), inputs.recipe.bits)
    except HalfbyteError as error:
        raise HalfbyteError(f"{inputs.recipe.source}: {error}") from None
    session = Session(
        model.to(inputs.device), teacher.to(inputs.device), layout, inputs.recipe, inputs.calibration, inputs.device,
        generator, progress, options.batch_size, options.workers, training=inputs.training,
        soft_labels=inputs.soft_labels, guide=inputs.teacher and inputs.teacher.to(inputs.device),
        preprocessing=inputs.loaded.data_config, world=processes or World(),
    )  # fmt: skip
    if options.start is not None:
        adopt(session, options.start)
    return session


def _teacher(artifact: Artifact, weights: Path | None) -> nn.Module | None:
    source = artifact.facts["source"]
    if weights is None and source["weights"] != EMBEDDED:
        return None
    loaded = load_model(source_name(source), weights)
    check_weights(source, loaded.source.sha256, f"--weights {weights}")
    return loaded.model
