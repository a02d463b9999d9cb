"""The command line: parses, calls the API, prints."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from halfbyte import cli_reproduce, cli_runs, cli_share
from halfbyte.cli_json import Json, check_writable, write_json
from halfbyte.terminal import open_console, print_bench, print_evaluation, print_export, print_run, print_sites

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Weights = Annotated[Path | None, typer.Option(help="Weights of the float model: .safetensors or .pth.")]
Images = Annotated[Path | None, typer.Option(help="Images for evaluation: one folder a class, or .npz.")]
CropPct = Annotated[float | None, typer.Option(help="Share of the resized image that the centre crop keeps.")]
Interpolation = Annotated[str | None, typer.Option(help="Resampling filter of the resize.")]
Limit = Annotated[int | None, typer.Option(help="Evaluate on this many images, drawn evenly.")]
Workers = Annotated[int, typer.Option(help="Processes that read images.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Target = Annotated[str, typer.Argument(help="The folder of an artifact, or a model's name.", show_default=False)]


Model = Annotated[
    str | None,
    typer.Argument(
        help="A timm name, with or without tag, a short name of the papers, or an embedded model.",
        show_default="fashion_vit",
    ),
]
Start = Annotated[Path | None, typer.Option("--from", help="Go on from this artifact.")]
Calib = Annotated[Path | None, typer.Option(help="Images for calibration: one folder a class, or .npz.")]
RecipeName = Annotated[str, typer.Option(help="A recipe's name or file; see `halfbyte recipes`.")]
WeightBits = Annotated[int | None, typer.Option(help="Bits of the weights, 2 to 8.")]
ActivationBits = Annotated[int | None, typer.Option(help="Bits of the activations, 2 to 8.")]
Budget = Annotated[str | None, typer.Option(help="Widths of each site's own: 4.0bits an average, or 3.2MB.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="A step's parameter: step.key=value.")]
CalibImages = Annotated[int | None, typer.Option(help="Calibration images that the run may use.")]
BatchSize = Annotated[int, typer.Option(help="Images at a time.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Out = Annotated[Path | None, typer.Option(help="The run's folder; runs/MODEL-RECIPE-wWaA without it.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")]
Force = Annotated[bool, typer.Option("--force", help="Write into --out whatever it holds.")]


def _version(asked: bool) -> None:
    if asked:
        print(f"halfbyte {version('halfbyte')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Turn a trained vision model into a few-bit one, and see what that cost."""


@app.command()
def quantize(
    model: Model = None,
    weights: Weights = None,
    start: Start = None,
    calib: Calib = None,
    val: Images = None,
    recipe: RecipeName = "halfbyte-fast",
    w_bits: WeightBits = None,
    a_bits: ActivationBits = None,
    budget: Budget = None,
    set_: Settings = None,
    calib_images: CalibImages = None,
    limit: Limit = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    crop_pct: CropPct = None,
    interpolation: Interpolation = None,
    workers: Workers = 2,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = False,
    force: Force = False,
    json_file: Json = None,
) -> None:
    """Quantize a model by a recipe: a packed artifact, its metrics and a report; under torchrun, shared out."""
    given = locals()
    _run(given)


@app.command()
def train(
    model: Model = None,
    weights: Weights = None,
    start: Start = None,
    data: Annotated[Path | None, typer.Option(help="Images to train on, else those for calibration.")] = None,
    teacher: Annotated[str | None, typer.Option(help="A model to learn from, else the float model itself.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Soft labels to learn from, of --data.")] = None,
    stage: Annotated[str | None, typer.Option(help="Only this stage of the recipe, such as search.")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write curves for TensorBoard.")] = False,
    calib: Calib = None,
    val: Images = None,
    recipe: RecipeName = "vvtq",
    w_bits: WeightBits = None,
    a_bits: ActivationBits = None,
    budget: Budget = None,
    set_: Settings = None,
    calib_images: CalibImages = None,
    limit: Limit = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    crop_pct: CropPct = None,
    interpolation: Interpolation = None,
    workers: Workers = 2,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = False,
    force: Force = False,
    json_file: Json = None,
) -> None:
    """Train a quantized model by a teacher or by soft labels: as quantize, for recipes with the step train."""
    given = locals()
    _run(given)


def _run(given: dict[str, Any]) -> None:
    """A run with the options of a command, named as `Options` names them."""
    from halfbyte import api
    from halfbyte.distributed import leads
    from halfbyte.inputs import Options

    json_file, settings = given.pop("json_file"), given.pop("set_")
    if leads():
        check_writable(json_file, out=given["out"])
    result = api.quantize(Options(**given, settings=tuple(settings or ())))
    if leads():
        print_run(result.metrics, result.folder)
        write_json(json_file, result.metrics)


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
    engine: Annotated[str, typer.Option(help="What runs the model: torch, native, interpreter or onnx.")] = "torch",
    json_file: Json = None,
) -> None:
    """Measure the accuracy of an artifact or of a float model; under torchrun the images are shared out."""
    from halfbyte import api
    from halfbyte.distributed import leads

    if leads():
        check_writable(json_file)
    facts = api.evaluate_model(
        target, weights=weights, val=val, crop_pct=crop_pct, interpolation=interpolation, batch_size=batch_size,
        limit_images=limit, workers=workers, device=device, engine=engine,
    )  # fmt: skip
    if leads():
        print_evaluation(facts)
        write_json(json_file, facts)


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

    check_writable(json_file, out=out)
    facts = make_labels(
        LabelOptions(teacher, out, weights, data, crops, top, temperature, least_area, seed, device, workers, resume)
    )
    size = f"{facts['bytes_per_image']:.0f} bytes an image"
    print(f"{facts['images']} images, {facts['crops']} crops each, the {facts['top']} best classes: {size}, in {out}")
    write_json(json_file, facts)


@app.command()
def export(
    artifact: Annotated[Path, typer.Argument(help="The folder of an artifact.", show_default=False)],
    to: Annotated[str, typer.Option(help="onnx, openvino or torchao (scales of linear layers).")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="The file; without it, one in the artifact's folder.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Run it in the installed runtimes, and compare.")] = False,
    val: Annotated[Path | None, typer.Option(help="Images to verify with: one folder a class, or .npz.")] = None,
    opset: Annotated[int, typer.Option(help="ONNX opset, 17 to 21; at 21 few bits become INT4 and UINT4.")] = 17,
    gelu: Annotated[str, typer.Option(help="exact, or erf: faster in most runtimes, not to the bit.")] = "exact",
    convolutions: Annotated[
        str, typer.Option(help="qdq; fused: integer kernels in ONNX Runtime; integer: exact everywhere, slow.")
    ] = "qdq",
    force: Annotated[bool, typer.Option("--force", help="Replace --out where it exists.")] = False,
    json_file: Json = None,
) -> None:
    """Write an artifact for another runtime."""
    from halfbyte import api
    from halfbyte.export.files import export_places

    check_writable(json_file, out=out, writes=export_places(artifact, to, out))
    exported = api.export(
        artifact, to, out, verify=verify, force=force, val=val, opset=opset, gelu=gelu, convolutions=convolutions
    )
    facts = exported.as_dict()
    print_export(facts)
    write_json(json_file, facts)


@app.command()
def bench(
    target: Annotated[Path, typer.Argument(help="The folder of an artifact.", show_default=False)],
    against: Annotated[
        str | None,
        typer.Option(help="torch,onnxruntime,openvino or some of them.", show_default="those installed"),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of every engine.", show_default="all cores")] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 1,
    rounds: Annotated[int, typer.Option(help="How often every engine has its turn.")] = 15,
    json_file: Json = None,
) -> None:
    """Time an artifact by the native engine, and its architecture in float and int8 by others."""
    from halfbyte.bench import bench as measure

    check_writable(json_file)
    facts = measure(target, against=against, threads=threads, batch_size=batch_size, rounds=rounds)
    print_bench(facts)
    cli_runs.keep_bench(target, facts)
    write_json(json_file, facts)


@app.command()
def inspect(target: Target, weights: Weights = None, json_file: Json = None) -> None:
    """List the sites of an artifact or of a model, and the arithmetic that is left in float."""
    from halfbyte import api

    check_writable(json_file)
    facts = api.inspect_model(target, weights)
    print_sites(facts)
    write_json(json_file, facts)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe.", show_default=False)] = None,
    json_file: Json = None,
) -> None:
    """List the recipes that come with halfbyte, or print one."""
    from halfbyte.recipe import builtin_recipes, load_recipe

    check_writable(json_file)
    if name is not None:
        recipe = load_recipe(name)
        print(recipe.as_yaml(), end="")
        write_json(json_file, recipe.as_dict())
        return
    found = {known: load_recipe(known) for known in builtin_recipes()}
    table = Table("recipe", "weight bits", "activation bits", "steps")
    for known, recipe in found.items():
        steps = ", ".join(call.name for call in recipe.steps)
        table.add_row(known, str(recipe.bits.weight), str(recipe.bits.activation), steps)
    open_console().print(table)
    write_json(json_file, {known: recipe.as_dict() for known, recipe in found.items()})


for module in (cli_runs, cli_reproduce, cli_share):
    module.add_to(app)
