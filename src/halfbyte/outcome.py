"""The end of a run: evaluate, save the artifact, put the metrics together."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor

from halfbyte.artifact import edits_as_dicts, round_leftovers, save_artifact, side_bytes
from halfbyte.artifact_files import read_facts, remove_artifact, stored_bytes, write_files
from halfbyte.coverage import coverage
from halfbyte.data.classes import IMAGENET_CLASSES, imagenet_descriptions
from halfbyte.errors import HalfbyteError
from halfbyte.evaluate import Loop, Metrics, evaluate, site_sqnr
from halfbyte.facts import environment, operations, peak_rss_bytes, site_bits
from halfbyte.findings.gather import model_findings
from halfbyte.findings.predictions import prediction_findings
from halfbyte.inputs import Inputs, budget_of
from halfbyte.layers.site import State
from halfbyte.prepare import model_state, settle, site_module
from halfbyte.run_folder import RunFolder
from halfbyte.session import Session, StepReport

SQNR_IMAGES, RANGE_IMAGES = 8, 4
# Of a trained float model: its file, and the width that its metrics name.
WEIGHTS, FLOAT_BITS = "weights.safetensors", 32


@dataclass(frozen=True)
class Evaluated:
    """The accuracies of the float model and of the one that the run made, and what the report shows of them."""

    floats: dict[str, Any]
    quantized: dict[str, Any]
    findings: dict[str, Any]


def finish(session: Session, inputs: Inputs, folder: RunFolder) -> dict[str, Any]:
    """Evaluate the session's model, write artifact, metrics and report into `folder`; returns the metrics.

    Of several processes all evaluate, one writes, and all return what it wrote.
    """
    if not is_calibrated(session):
        return _finish_float(session, inputs, folder)
    round_leftovers(session.model)
    session.layout = settle(session.model, session.layout)
    start = time.perf_counter()
    evaluated = _compare(session, inputs)
    seconds = time.perf_counter() - start
    metrics = None
    with session.world.agreed():
        if folder.writes:
            metrics = _write(session, inputs, folder, evaluated, seconds)
    written: dict[str, Any] = session.world.gather(metrics)[0]
    return written


def is_calibrated(session: Session) -> bool:
    """Whether the run leaves integers, or (a training without quantizers) a float model."""
    return any(
        site_module(session.model, site.name).quantizer(operand).fitted
        for site in session.layout.sites
        for operand in site.operands
    )


def _finish_float(session: Session, inputs: Inputs, folder: RunFolder) -> dict[str, Any]:
    """The end of the training of a float model: its weights, under the names of the model that it began as."""
    start = time.perf_counter()
    evaluated = _compare(session, inputs, "float")
    seconds = time.perf_counter() - start
    metrics = None
    with session.world.agreed():
        if folder.writes:
            state, names = session.model.state_dict(), session.teacher.state_dict()
            if missing := sorted(names.keys() - state.keys()):
                raise HalfbyteError(
                    f"the trained model has no {missing[0]}: its family cannot be trained in float here"
                )
            blob = save_tensors({name: state[name].detach().cpu().contiguous() for name in names})
            write_files(folder.path, {WEIGHTS: blob})
            # Of a model that was here before nothing may stand beside the figures of this one.
            remove_artifact(folder.path)
            metrics = _metrics(session, inputs, evaluated, seconds, {"artifact": len(blob)}, [], {}) | {
                "bits": {"weight": FLOAT_BITS, "activation": FLOAT_BITS}
            }
            folder.finish(inputs.recipe.as_yaml(), metrics, evaluated.findings)
    written: dict[str, Any] = session.world.gather(metrics)[0]
    return written


def _write(
    session: Session,
    inputs: Inputs,
    folder: RunFolder,
    evaluated: Evaluated,
    evaluation: float,
) -> dict[str, Any]:
    """Artifact, metrics and report; `evaluation` are the seconds that it took."""
    left = coverage(session.model, session.layout)
    images = next(session.images(min(SQNR_IMAGES, len(inputs.calibration))))
    sites = _sites(session, images)
    findings = evaluated.findings | model_findings(
        session.teacher, session.model, session.layout, sites, inputs.validation or inputs.calibration,
        images[:RANGE_IMAGES], inputs.loaded.data_config,
    )  # fmt: skip
    _name_classes(session.model, inputs)
    save_artifact(session.model, session.layout, folder.path, _facts(session, inputs, sites, left))
    (folder.path / WEIGHTS).unlink(missing_ok=True)
    size = stored_bytes(folder.path)
    costs = operations(session.model, session.layout, left)
    metrics = _metrics(session, inputs, evaluated, evaluation, size, sites, costs) | {
        "coverage": left, "tensors_sha256": read_facts(folder.path)[0]["tensors_sha256"],
    }  # fmt: skip
    folder.finish(inputs.recipe.as_yaml(), metrics, findings)
    return metrics


def _name_classes(model: Any, inputs: Inputs) -> None:
    """Let the model's configuration say what its classes are called, where the images or the weights' tag tell."""
    config, tag = model.pretrained_cfg, inputs.loaded.source.tag
    sets = [images for images in (inputs.validation, inputs.calibration) if images is not None]
    found = [names for images in sets if (names := images.class_folders) and len(names) == model.num_classes]
    described = imagenet_descriptions() if model.num_classes == IMAGENET_CLASSES else {}
    if described and not found and tag is not None and tag.endswith("in1k"):
        found = [list(described)]
    if found and "label_names" not in config:
        meant = {"label_descriptions": described} if found[0] == list(described) else {}
        model.pretrained_cfg = {**config, "label_names": found[0], **meant}


def _metrics(
    session: Session,
    inputs: Inputs,
    evaluated: Evaluated,
    evaluation: float,
    size: dict[str, int],
    sites: list[dict[str, Any]],
    costs: dict[str, Any],
) -> dict[str, Any]:
    """What `metrics.json` holds, the coverage apart."""
    seconds: dict[str, float] = {}
    for report in session.reports:
        seconds[report.step] = round(seconds.get(report.step, 0.0) + report.seconds, 3)
    total = round(sum(report.seconds for report in session.reports), 3)
    recipe, source = inputs.recipe, inputs.loaded.source
    return {
        "schema": 1,
        "model": source.architecture,
        "weights": weights_facts(source.as_dict()),
        "recipe": recipe.name,
        "paper_exact": recipe.paper_exact,
        "bits": {"weight": recipe.bits.weight, "activation": recipe.bits.activation},
        "budget": budget_of(recipe),
        "images": {"calibration": len(inputs.calibration), "evaluation": len(inputs.validation or ())},
        "dataset": None if inputs.validation is None else inputs.validation.dataset,
        "skipped_images": inputs.skipped,
        "float": evaluated.floats,
        "quantized": evaluated.quantized,
        "bytes": {
            "float": 4 * sum(tensor.numel() for tensor in session.teacher.parameters()),
            **size,
            "side": side_bytes(session.model, session.layout),
        },
        "operations": costs,
        **_stages(session, evaluated.quantized),
        "seconds": {**seconds, "evaluate": round(evaluation, 3), "total": total},
        "steps": [{"step": report.step, **report.figures} for report in session.reports],
        "peak_rss_bytes": peak_rss_bytes(),
        "sites": sites,
        "environment": environment(session.device),
    }


def _stages(session: Session, quantized: dict[str, Any]) -> dict[str, Any]:
    """Of a training run, what each of its trainings came to."""
    trained = [report for report in session.reports if "optimizer_steps" in report.figures]
    stages = {
        _stage(report): {"top1": None, "steps": report.figures["optimizer_steps"], "seconds": report.seconds}
        for report in trained
    }
    if trained and session.reports[-1] is trained[-1]:
        stages[_stage(trained[-1])]["top1"] = quantized["top1"]
    return {"stages": stages} if stages else {}


def _stage(report: StepReport) -> str:
    return str(report.figures.get("stage", report.step))


def accuracy(found: Metrics) -> dict[str, float | None]:
    """The part of `metrics.json` that tells how good a model is."""
    return {"top1": found.top1, "top5": found.top5, "agreement": found.agreement, "kl": found.kl}


def weights_facts(source: dict[str, Any]) -> dict[str, Any]:
    """The part of `metrics.json` that tells which weights were quantized."""
    return {"source": source["weights"], "tag": source["tag"], "sha256": source["sha256"]}


def _sites(session: Session, images: Tensor) -> list[dict[str, Any]]:
    sqnr = site_sqnr(session.model, session.layout, images)
    rows = []
    for site in session.layout.sites:
        weight, activation = site_bits(session.model, site)
        bits = {"weight": weight if "weight" in site.operands else None, "activation": activation}
        rows.append({"name": site.name, "role": site.role, "bits": bits, "sqnr_db": sqnr[site.name]})
    return rows


def _facts(session: Session, inputs: Inputs, sites: list[dict[str, Any]], left: dict[str, Any]) -> dict[str, Any]:
    """What quantization.json says besides the quantizers; nothing that differs between two runs of one command."""
    config = inputs.loaded.data_config
    return {
        "source": inputs.loaded.source.as_dict(),
        "preprocessing": {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()},
        "recipe": {**inputs.recipe.as_dict(), "bits": session.bits.as_dict()},
        "paper_exact": inputs.recipe.paper_exact,
        "edits": edits_as_dicts(session.edits),
        "sites": sites,
        "coverage": left,
        "batch_size": session.batch_size,
    }


def _compare(session: Session, inputs: Inputs, state: State = "quantized") -> Evaluated:
    empty: dict[str, Any] = {"top1": None, "top5": None}
    if inputs.validation is None:
        return Evaluated(empty, {**empty, "agreement": None, "kl": None}, {"schema": 1})
    loop = Loop(session.batch_size, session.workers, session.device, session.world, session.progress)
    floats, reference = evaluate(session.teacher, inputs.validation, loop, label="float model")
    with model_state(session.model, state):
        quantized, logits = evaluate(session.model, inputs.validation, loop, reference, "quantized model")
    findings: dict[str, Any] = {"schema": 1}
    with session.world.agreed():
        if session.world.leads:
            config = inputs.loaded.data_config
            findings |= prediction_findings(inputs.validation, reference, logits, session.teacher, config)
    return Evaluated({"top1": floats.top1, "top5": floats.top5}, accuracy(quantized), findings)
