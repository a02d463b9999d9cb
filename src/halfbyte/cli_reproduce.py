"""The verb `reproduce` of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from halfbyte.cli_json import Json, check_writable, write_json

FAILED = 1


def add_to(app: typer.Typer) -> None:
    """Give `app` the command of this module."""
    app.command()(reproduce)


def reproduce(
    table: Annotated[
        str | None, typer.Argument(help="A table's name or file.", show_default="all that come with halfbyte")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Only list the rows.")] = False,
    rows: Annotated[list[str] | None, typer.Option(help="Only rows such as 'deit_tiny*' or 'repq/*-w4a4'.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="ImageNet: a folder with train and val, or imagenet_calib and imagenet_val.")
    ] = None,
    calib: Annotated[
        Path | None, typer.Option(help="Images to calibrate and train with, else those of --data.")
    ] = None,
    val: Annotated[Path | None, typer.Option(help="Images for evaluation, else those of --data.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Soft labels of the training images.")] = None,
    weights_dir: Annotated[
        Path | None, typer.Option(help="Float weights, CHECKPOINT.safetensors or .pth, before the hub is asked.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Bound a step, where a recipe has it: step.key=value.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Evaluate on this many images, drawn evenly.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    crop_pct: Annotated[float | None, typer.Option(help="In the place of the tables' own.")] = None,
    interpolation: Annotated[str | None, typer.Option(help="In the place of the tables' own.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that read images.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    out: Annotated[Path, typer.Option(help="The folder of the table and of its rows' runs.")] = Path("runs/reproduce"),
    resume: Annotated[bool, typer.Option("--resume", help="Keep finished rows, run what is missing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write into --out whatever it holds.")] = False,
    json_file: Json = None,
) -> None:
    """Run the papers' tables, and put what was published beside what comes out; exit code 1: a row failed."""
    given: dict[str, Any] = locals()
    from halfbyte.reproduce.show import listed, print_facts, print_rows
    from halfbyte.reproduce.table import chosen_rows, load_tables

    given = {key: value for key, value in given.items() if key not in ("table", "list_", "rows", "set_", "json_file")}
    names, patterns = (table,) if table else (), tuple(rows or ())
    check_writable(json_file, out=out)
    if list_:
        chosen = chosen_rows(load_tables(names), patterns)
        print_rows(chosen)
        write_json(json_file, {"schema": 1, "rows": [listed(row) for row in chosen]})
        return
    from halfbyte.distributed import leads
    from halfbyte.reproduce.plan import Request
    from halfbyte.reproduce.run import reproduce as run

    facts = run(Request(names, patterns, settings=tuple(set_ or ()), **given))
    if leads():
        print_facts(facts)
        write_json(json_file, facts)
    if any(entry["status"] == "failed" for entry in facts["rows"]):
        raise typer.Exit(FAILED)
