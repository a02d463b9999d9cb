"""The command line: parses, calls the API, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from halfbyte.errors import HalfbyteError
from halfbyte.progress import Progress

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turn a trained vision model into a few-bit one, and see what that cost.",
)

Weights = Annotated[Path | None, typer.Option(help="Weights of the float model: .safetensors or .pth.")]
Images = Annotated[Path | None, typer.Option(help="Images for evaluation: one folder a class, or .npz.")]
CropPct = Annotated[float | None, typer.Option(help="Share of the resized image that the centre crop keeps.")]
Interpolation = Annotated[str | None, typer.Option(help="Resampling filter of the resize.")]
Limit = Annotated[int | None, typer.Option(help="Evaluate on this many images, drawn evenly.")]
Workers = Annotated[int, typer.Option(help="Processes that read images.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the facts to this file.")]
Target = Annotated[str, typer.Argument(help="The folder of an artifact, or a model's name.", show_default=False)]


@app.command()
def quantize(
    model: Annotated[str | None, typer.Argument(help="A timm name, with or without tag, a short name of the papers,"
                     " or an embedded model.", show_default="fashion_vit")] = None,
    weights: Weights = None,
    start: Annotated[Path | None, typer.Option("--from", help="Go on from this artifact.")] = None,
    calib: Annotated[Path | None, typer.Option(help="Images for calibration: one folder a class, or .npz.")] = None,
    val: Images = None,
    recipe: Annotated[str, typer.Option(help="A recipe's name or file; see `halfbyte recipes`.")] = "halfbyte-fast",
    w_bits: Annotated[int | None, typer.Option(help="Bits of the weights, 2 to 8.")] = None,
    a_bits: Annotated[int | None, typer.Option(help="Bits of the activations, 2 to 8.")] = None,
    budget: Annotated[str | None, typer.Option(help="Widths of each site's own: 4.0bits an average, or 3.2MB.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A step's parameter: step.key=value.")] = None,
    calib_images: Annotated[int | None, typer.Option(help="Calibration images that the run may use.")] = None,
    limit: Limit = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 32,
    device: Device = "auto",
    crop_pct: CropPct = None,
    interpolation: Interpolation = None,
    workers: Workers = 2,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/MODEL-RECIPE-wWaA without it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write into --out whatever it holds.")] = False,
    json_file: Json = None,
) -> None:  # fmt: skip
    """Quantize a model by a recipe: a packed artifact, its metrics and a report; under torchrun, shared out."""
    from halfbyte import api
    from halfbyte.distributed import leads
    from halfbyte.inputs import Options

    if leads():
        _writable(json_file)
    options = Options(
        model, weights, calib, val, recipe, w_bits, a_bits, budget, tuple(set_ or ()), calib_images, limit, batch_size,
        device, crop_pct, interpolation, workers, seed, start, out, resume, force,
    )  # fmt: skip
    result = api.quantize(options)
    if leads():
        _print_run(result.metrics, result.folder)
        _write_json(json_file, result.metrics)


@app.command(name="eval")
def evaluate(
    target: Target,
    weights: Weights = None,
    val: Images = None,
    crop_pct: CropPct = None,
    interpolation: Interpolation = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at a time.")] = None,
    limit: Limit = None,
    workers: Workers = 2,
    device: Device = "auto",
    engine: Annotated[str, typer.Option(help="What runs the model: torch.")] = "torch",
    json_file: Json = None,
) -> None:
    """Measure the accuracy of an artifact or of a float model; under torchrun the images are shared out."""
    from halfbyte import api
    from halfbyte.distributed import leads

    if engine != "torch":
        raise HalfbyteError(f"--engine {engine!r} is not available; this version evaluates with torch")
    if leads():
        _writable(json_file)
    facts = api.evaluate_model(
        target, weights=weights, val=val, crop_pct=crop_pct, interpolation=interpolation, batch_size=batch_size,
        limit_images=limit, workers=workers, device=device,
    )  # fmt: skip
    if leads():
        _print_evaluation(facts)
        _write_json(json_file, facts)


@app.command()
def labels(
    teacher: Annotated[str, typer.Option(help="The model that labels: as for quantize.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The folder of the labels.", show_default=False)],
    weights: Weights = None,
    data: Annotated[Path | None, typer.Option(help="Images to label: one folder a class, or .npz.")] = None,
    crops: Annotated[int, typer.Option(help="Random crops of each image.")] = 16,
    top: Annotated[int, typer.Option(help="Classes that are kept, the most probable ones.")] = 5,
    temperature: Annotated[float, typer.Option(help="Of the teacher's softmax.")] = 1.0,
    least_area: Annotated[float, typer.Option(help="Of a crop, as a share of its image's.")] = 0.08,
    seed: Annotated[int, typer.Option(help="Seed of the crops.")] = 0,
    device: Device = "auto",
    workers: Workers = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Continue labels that were not finished.")] = False,
    json_file: Json = None,
) -> None:
    """Label random crops of images by a teacher, for training; readable by any later version."""
    from halfbyte.labels import LabelOptions, make_labels

    _writable(json_file)
    facts = make_labels(
        LabelOptions(teacher, out, weights, data, crops, top, temperature, least_area, seed, device, workers, resume)
    )
    size = f"{facts['bytes_per_image']:.0f} bytes an image"
    print(f"{facts['images']} images, {facts['crops']} crops each, the {facts['top']} best classes: {size}, in {out}")
    _write_json(json_file, facts)


@app.command()
def inspect(target: Target, weights: Weights = None, json_file: Json = None) -> None:
    """List the sites of an artifact or of a model, and the arithmetic that is left in float."""
    from halfbyte import api

    _writable(json_file)
    facts = api.inspect_model(target, weights)
    _print_sites(facts)
    _write_json(json_file, facts)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe.", show_default=False)] = None,
    json_file: Json = None,
) -> None:
    """List the recipes that come with halfbyte, or print one."""
    from halfbyte.recipe import builtin_recipes, load_recipe

    _writable(json_file)
    if name is not None:
        recipe = load_recipe(name)
        print(recipe.as_yaml(), end="")
        _write_json(json_file, recipe.as_dict())
        return
    found = {known: load_recipe(known) for known in builtin_recipes()}
    table = Table("recipe", "weight bits", "activation bits", "steps")
    for known, recipe in found.items():
        steps = ", ".join(call.name for call in recipe.steps)
        table.add_row(known, str(recipe.bits.weight), str(recipe.bits.activation), steps)
    _console().print(table)
    _write_json(json_file, {known: recipe.as_dict() for known, recipe in found.items()})


def _console() -> Console:
    # Names and paths come from the user: brackets and colons in them are no markup.
    return Console(markup=False, emoji=False)


def _print_run(metrics: dict[str, Any], folder: Path) -> None:
    from halfbyte.report.wording import bit_widths

    bits, size, seconds = metrics["bits"], metrics["bytes"], metrics["seconds"]
    # Folders of earlier versions lack the budget.
    widths = bit_widths(bits["weight"], bits["activation"], metrics.get("budget"))
    title = f"{metrics['model']}, {metrics['recipe']}, {widths}"
    table = Table("", "float", "quantized", title=title)
    images = metrics["images"]["evaluation"]
    if images:
        for key, label in (("top1", "top-1 %"), ("top5", "top-5 %")):
            table.add_row(label, _figure(metrics["float"][key]), _figure(metrics["quantized"][key]))
        table.add_row("agreement with float %", "", _figure(metrics["quantized"]["agreement"]))
    table.add_row("megabytes", f"{size['float'] / 1e6:.2f}", f"{size['artifact'] / 1e6:.2f}")
    console = _console()
    console.print(table)
    weights = metrics["weights"]
    tag = f", tag {weights['tag']}" if weights["tag"] else ""
    console.print(f"weights: {weights['source']}{tag}, sha256 {str(weights['sha256'])[:12]}", highlight=False)
    measured = f"evaluated on {images} images; " if images else "not evaluated (give --val DIR); "
    console.print(f"{measured}quantized in {seconds['total']:.1f} s; report: {folder / 'report.html'}", highlight=False)


def _print_evaluation(facts: dict[str, Any]) -> None:
    found = facts.get("quantized") or facts["float"]
    table = Table("model", "images", "top-1 %", "top-5 %", "agreement %", "KL")
    agreement, kl = found["agreement"], found["kl"]
    table.add_row(
        facts["model"], str(facts["images"]["evaluation"]), f"{found['top1']:.2f}", f"{found['top5']:.2f}",
        _figure(agreement), _figure(kl, 4),
    )  # fmt: skip
    _console().print(table)


def _print_sites(facts: dict[str, Any]) -> None:
    table = Table(title=facts["model"])
    for heading in ("site", "role", "activation", "weight", "MMACs", "bytes", "SQNR dB"):
        table.add_column(heading, no_wrap=True)
    for row in facts["sites"]:
        # Short, so that a terminal of 80 columns shows them whole.
        activations = "\n".join(row[key].replace(" per_", "/") for key in ("input", "left", "right") if row.get(key))
        weight = "" if "left" in row else (row["weight"] or "float").replace(" per_", "/")
        sqnr = _figure(row["sqnr_db"], 1)
        macs = f"{row['macs'] / 1e6:.2f}"
        table.add_row(row["name"], row["role"], activations or "float", weight, macs, str(row["bytes"]), sqnr)
    console = _console()
    console.print(table)
    covered = facts["coverage"]
    console.print(
        f"{covered['quantized_macs_percent']:.2f} % of the multiply-accumulates are in sites", highlight=False
    )
    _print_costs(facts, console)
    for entry in covered["float"]:
        console.print(f"in float: {entry['operation']} in {entry['where']}, {entry['macs']:,} MACs", highlight=False)


def _print_costs(facts: dict[str, Any], console: Console) -> None:
    """What an artifact takes; where something stands beside its blocks, also that, and the rest without it."""
    if "operations" not in facts:
        return
    size, operations = facts["bytes"], facts["operations"]
    whole = (size["artifact"], operations["macs"], operations["bit_operations"])
    beside = (size["side"], operations["side_macs"], operations["side_bit_operations"])
    rows = {"the whole": whole}
    if beside[1]:
        without = tuple(all_of - part for all_of, part in zip(whole, beside, strict=True))
        rows = {"without compensation": without, "compensation": beside, **rows}
    table = Table("", "megabytes", "MMACs per image", "Gbit operations per image")
    for name, (stored, macs, bit_operations) in rows.items():
        table.add_row(name, f"{stored / 1e6:.3f}", f"{macs / 1e6:.1f}", f"{bit_operations / 1e9:.3f}")
    console.print(table)


def _figure(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _writable(json_file: Path | None) -> None:
    if json_file is not None and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
        raise HalfbyteError(f"--json {json_file}: give a file in a folder that exists")


def _write_json(json_file: Path | None, facts: dict[str, Any]) -> None:
    if json_file is not None:
        try:
            json_file.write_text(json.dumps(facts, indent=2))
        except OSError as error:
            raise HalfbyteError(f"cannot write --json {json_file}: {error.strerror}") from None
        Progress().say(f"wrote {json_file}")
