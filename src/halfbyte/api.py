"""Quantize, load and evaluate from Python; the command line calls nothing else."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halfbyte.artifact import Artifact, edits_as_dicts, is_artifact, load_artifact, round_leftovers, save_artifact
from halfbyte.coverage import coverage
from halfbyte.data.images import ImageSet, calibration_subset, limit, open_images
from halfbyte.distributed import world
from halfbyte.errors import HalfbyteError
from halfbyte.evaluate import Metrics, evaluate, site_sqnr
from halfbyte.facts import describe_sites, environment, operations, peak_rss_bytes
from halfbyte.families.describe import describe
from halfbyte.models.load import LoadedModel, load_model
from halfbyte.prepare import model_state, prepare
from halfbyte.progress import Progress
from halfbyte.recipe import Recipe, load_recipe
from halfbyte.report.run import render_run
from halfbyte.run_folder import Found, RunFolder
from halfbyte.session import Session, StepReport
from halfbyte.steps.catalog import resolve, with_defaults

DEFAULT_RECIPE = "repq"
SQNR_IMAGES = 8
DEFAULT_CALIBRATION_IMAGES = 1024


@dataclass(frozen=True)
class Options:
    """What `quantize` is asked for; the fields are the options of the command (DESIGN: contracts)."""

    model: str | None = None
    weights: Path | None = None
    calib: Path | None = None
    val: Path | None = None
    recipe: str | Path = DEFAULT_RECIPE
    w_bits: int | None = None
    a_bits: int | None = None
    settings: tuple[str, ...] = ()
    calib_images: int | None = None
    limit: int | None = None
    batch_size: int = 32
    device: str = "auto"
    crop_pct: float | None = None
    interpolation: str | None = None
    workers: int = 2
    seed: int = 0
    out: Path | None = None
    resume: bool = False
    force: bool = False


@dataclass
class Result:
    """A finished run: its folder, its metrics, and the quantized model (None where the run was already there)."""

    folder: Path
    metrics: dict[str, Any]
    model: nn.Module | None = None


@dataclass
class _Inputs:
    """Everything that a run reads, checked before its folder is made."""

    loaded: LoadedModel
    recipe: Recipe
    calibration: ImageSet
    validation: ImageSet | None
    device: torch.device
    skipped: dict[str, list[str]] = field(default_factory=dict)


def quantize(options: Options | None = None, *, progress: Progress | None = None, **keywords: Any) -> Result:
    """Run a recipe on a model and write the run folder.

    Give `Options`, or its fields as keywords. Raises `HalfbyteError` for anything wrong with the inputs, before the
    folder is made.
    """
    options = options or Options(**keywords)
    progress = progress or Progress()
    recipe = resolved_recipe(options)
    folder = _folder(options, recipe)
    found = folder.admit(options.resume, options.force)
    if found is Found.FINISHED:
        return Result(folder.path, folder.metrics())
    inputs = _read_inputs(options, recipe, progress)
    session = _session(inputs, options, progress)
    done = session.restore_state(folder.path) if found is Found.UNFINISHED else 0
    if not done:
        folder.start(recipe.as_yaml())
    for number, (name, step) in enumerate(resolve(recipe)):
        if number < done:
            continue
        start = time.perf_counter()
        figures = step.run(session)
        session.reports.append(StepReport(name, round(time.perf_counter() - start, 3), figures))
        session.save_state(folder.path)
        folder.log("step", step=name, seconds=session.reports[-1].seconds, **figures)
    metrics = _finish(session, inputs, options, folder)
    return Result(folder.path, metrics, session.model)


def load(folder: str | Path) -> nn.Module:
    """The quantized model of an artifact, ready to run: images `[B, C, H, W]` to logits.

    Its `pretrained_cfg` holds the preprocessing for timm's `resolve_model_data_config`; `quantization` what the
    artifact says of itself. Needs neither the original weights nor the network.
    """
    artifact = load_artifact(folder)
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
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Metrics of an artifact or of a float model, in the form of `metrics.json`.

    For an artifact, options that are not given come from it; with `weights` the agreement with the float model is
    measured too. Under torchrun the images are shared out among the processes and the result is the same.
    """
    progress = progress or Progress()
    chosen = pick_device(device)
    artifact = load_artifact(target) if is_artifact(Path(target)) or Path(target).is_dir() else None
    given = {"crop_pct": crop_pct, "interpolation": interpolation}
    if artifact is None:
        loaded = load_model(target, weights, **given)  # type: ignore[arg-type]
        model, teacher, config, source = loaded.model, None, loaded.data_config, loaded.source.as_dict()
    else:
        source = artifact.facts["source"]
        teacher = _teacher(artifact, weights)
        config = {**artifact.facts["preprocessing"], **{key: value for key, value in given.items() if value is not None}}
        model, batch_size = artifact.model, batch_size or int(artifact.facts.get("batch_size", 32))
    images = _validation(val, source, config, model, limit_images, workers, progress)
    if images is None:
        raise HalfbyteError(f"{source['architecture']} comes without images; give --val DIR")
    with world() as processes:
        shared = {"batch_size": batch_size or 32, "workers": workers, "device": chosen, "world": processes,
                  "progress": progress}  # fmt: skip
        reference = None if teacher is None else evaluate(teacher.to(chosen), images, label="float model", **shared)[1]
        start = time.perf_counter()
        found, _ = evaluate(model.to(chosen), images, reference=reference, **shared)
        seconds = round(time.perf_counter() - start, 3)
    key = "float" if artifact is None else "quantized"
    return {
        "schema": 1, "model": source["architecture"], "weights": _weights_facts(source), "engine": "torch",
        "images": {"evaluation": len(images), "skipped": len(images.skipped)},
        key: accuracy(found), "seconds": {"evaluate": seconds},
    }  # fmt: skip


def inspect_model(target: str, weights: Path | None = None) -> dict[str, Any]:
    """The sites of an artifact or of a model with what is known of each, and which arithmetic is left in float."""
    if is_artifact(Path(target)) or Path(target).is_dir():
        artifact = load_artifact(target)
        return {
            "model": artifact.facts["source"]["architecture"],
            "recipe": artifact.facts["recipe"]["name"],
            "sites": describe_sites(artifact.model, artifact.layout, artifact.facts["sites"]),
            "coverage": artifact.facts["coverage"],
            "edits": len(artifact.facts["edits"]),
        }
    from halfbyte.models.load import create_architecture
    from halfbyte.models.names import resolve as resolve_name

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


def resolved_recipe(options: Options) -> Recipe:
    """The recipe of the options with their bit widths and parameters, every default written out."""
    recipe = load_recipe(options.recipe).with_bits(options.w_bits, options.a_bits)
    for assignment in options.settings:
        recipe = recipe.with_parameter(assignment)
    return with_defaults(recipe)


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; raises `HalfbyteError` for a device that is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise HalfbyteError(f"--device must be auto, cpu or cuda, not {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise HalfbyteError("--device cuda: no CUDA device was found; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def accuracy(found: Metrics) -> dict[str, float | None]:
    """The part of `metrics.json` that tells how good a model is."""
    return {"top1": found.top1, "top5": found.top5, "agreement": found.agreement, "kl": found.kl}


def _folder(options: Options, recipe: Recipe) -> RunFolder:
    model = options.model or "fashion_vit"
    default = Path("runs") / f"{model.replace('/', '_')}-{recipe.name}-w{recipe.bits.weight}a{recipe.bits.activation}"
    settings = {
        "model": model, "weights": options.weights and str(options.weights), "recipe": recipe.as_dict(),
        "calib": options.calib and str(options.calib), "val": options.val and str(options.val),
        "calib_images": options.calib_images, "limit": options.limit, "seed": options.seed,
        "crop_pct": options.crop_pct, "interpolation": options.interpolation,
    }  # fmt: skip
    return RunFolder(options.out or default, settings)


def _read_inputs(options: Options, recipe: Recipe, progress: Progress) -> _Inputs:
    for name, value, least in (("--batch-size", options.batch_size, 1), ("--workers", options.workers, 0),
                               ("--limit", options.limit, 1), ("--calib-images", options.calib_images, 1)):  # fmt: skip
        if value is not None and value < least:
            raise HalfbyteError(f"{name} must be at least {least}, not {value}")
    device = pick_device(options.device)
    loaded = load_model(options.model, options.weights, crop_pct=options.crop_pct, interpolation=options.interpolation)
    if loaded.source.note:
        progress.say(f"{loaded.source.architecture}.{loaded.source.tag}: {loaded.source.note}")
    source, config, shared = loaded.source.as_dict(), loaded.data_config, {"progress": progress, "workers": options.workers}
    calib: Path | str | None = options.calib or _embedded(source, "embedded:calibration")
    if calib is None:
        raise HalfbyteError(f"{loaded.source.architecture} comes without images; give --calib DIR")
    pool = open_images(calib, config, num_classes=None, **shared)
    count = options.calib_images or min(len(pool), DEFAULT_CALIBRATION_IMAGES)
    validation = _validation(options.val, source, config, loaded.model, options.limit, options.workers, progress)
    skipped = {"calibration": pool.skipped, "evaluation": [] if validation is None else validation.skipped}
    return _Inputs(loaded, recipe, calibration_subset(pool, count, options.seed), validation, device, skipped)


def _embedded(source: dict[str, Any], which: str) -> str | None:
    return which if str(source["architecture"]).startswith("fashion_") else None


def _validation(
    val: Path | None,
    source: dict[str, Any],
    config: dict[str, Any],
    model: nn.Module,
    count: int | None,
    workers: int,
    progress: Progress,
) -> ImageSet | None:
    where: Path | str | None = val or _embedded(source, "embedded:test")
    if where is None:
        return None
    classes = int(model.num_classes)  # type: ignore[arg-type]
    images = open_images(where, config, num_classes=classes, progress=progress, workers=workers)
    return images if count is None or count >= len(images) else limit(images, count)


def _session(inputs: _Inputs, options: Options, progress: Progress) -> Session:
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    teacher = copy.deepcopy(inputs.loaded.model)
    model = inputs.loaded.model
    layout = prepare(model, describe(model), inputs.recipe.bits)
    return Session(
        model.to(inputs.device), teacher.to(inputs.device), layout, inputs.recipe, inputs.calibration, inputs.device,
        generator, progress, options.batch_size, options.workers,
    )  # fmt: skip


def _finish(session: Session, inputs: _Inputs, options: Options, folder: RunFolder) -> dict[str, Any]:
    round_leftovers(session.model)
    start = time.perf_counter()
    floats, quantized = _compare(session, inputs, options)
    evaluation_seconds = round(time.perf_counter() - start, 3)
    left = coverage(session.model, session.layout)
    sqnr = site_sqnr(session.model, session.layout, next(session.images(min(SQNR_IMAGES, len(inputs.calibration)))))
    bits = {site.name: inputs.recipe.bits.of(site) for site in session.layout.sites}
    sites = [
        {"name": site.name, "role": site.role, "sqnr_db": sqnr[site.name],
         "bits": {"weight": None if site.role in ("qk", "pv") else bits[site.name][0], "activation": bits[site.name][1]}}
        for site in session.layout.sites
    ]  # fmt: skip
    source = inputs.loaded.source.as_dict()
    facts = {
        "source": source, "preprocessing": _plain(inputs.loaded.data_config), "recipe": inputs.recipe.as_dict(),
        "paper_exact": inputs.recipe.paper_exact, "edits": edits_as_dicts(session.edits), "sites": sites,
        "coverage": left, "batch_size": options.batch_size,
    }  # fmt: skip
    size = save_artifact(session.model, session.layout, folder.path, facts)
    parameters = sum(tensor.numel() for tensor in session.teacher.parameters())
    seconds = {report.step: report.seconds for report in session.reports}
    metrics = {
        "schema": 1, "model": source["architecture"], "weights": _weights_facts(source), "recipe": inputs.recipe.name,
        "paper_exact": inputs.recipe.paper_exact,
        "bits": {"weight": inputs.recipe.bits.weight, "activation": inputs.recipe.bits.activation},
        "images": {"calibration": len(inputs.calibration),
                   "evaluation": 0 if inputs.validation is None else len(inputs.validation)},
        "skipped_images": inputs.skipped, "float": floats, "quantized": quantized,
        "bytes": {"float": 4 * parameters, "artifact": size},
        "operations": operations(session.layout, bits, left),
        "seconds": {**seconds, "evaluate": evaluation_seconds, "total": round(sum(seconds.values()), 3)},
        "peak_rss_bytes": peak_rss_bytes(), "sites": sites, "coverage": left, "environment": environment(session.device),
    }  # fmt: skip
    folder.finish(metrics, render_run(metrics, inputs.recipe.as_yaml()))
    return metrics


def _compare(session: Session, inputs: _Inputs, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    empty: dict[str, Any] = {"top1": None, "top5": None}
    if inputs.validation is None:
        return empty, {**empty, "agreement": None, "kl": None}
    shared = {"batch_size": options.batch_size, "workers": options.workers, "device": session.device,
              "progress": session.progress}  # fmt: skip
    floats, reference = evaluate(session.teacher, inputs.validation, label="float model", **shared)  # type: ignore[arg-type]
    with model_state(session.model, "quantized"):
        quantized, _ = evaluate(
            session.model, inputs.validation, reference=reference, label="quantized model", **shared  # type: ignore[arg-type]
        )  # fmt: skip
    return {"top1": floats.top1, "top5": floats.top5}, accuracy(quantized)


def _teacher(artifact: Artifact, weights: Path | None) -> nn.Module | None:
    source = artifact.facts["source"]
    if weights is None and source["weights"] != "embedded":
        return None
    name = source["architecture"] if source["tag"] is None or source["weights"] == "embedded" else source["name"]
    loaded = load_model(name, weights)
    if loaded.source.sha256 != source["sha256"]:
        raise HalfbyteError(f"--weights {weights} are not the weights from which the artifact was made (sha256 differs)")
    return loaded.model


def _weights_facts(source: dict[str, Any]) -> dict[str, Any]:
    return {"source": source["weights"], "tag": source["tag"], "sha256": source["sha256"]}


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Logits `[B, classes]` of images `[B, C, H, W]`, without gradients."""
    with torch.inference_mode():
        result: Tensor = model(images)
    return result
