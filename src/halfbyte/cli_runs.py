"""The commands about finished runs: their reports, and how they compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from halfbyte.cli_json import Json, check_writable, write_json, write_text
from halfbyte.errors import HalfbyteError
from halfbyte.progress import Progress
from halfbyte.terminal import print_comparison


def add_to(app: typer.Typer) -> None:
    """Give `app` the commands of this module."""
    app.command()(compare)
    app.command()(report)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="The folders of finished runs.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Also write a page with charts to this file.")] = None,
    json_file: Json = None,
) -> None:
    """Compare finished runs: accuracy over size and speed, and where sites and classes differ."""
    from halfbyte import run_files
    from halfbyte.report.compare import render_comparison

    check_writable(out, "--out")
    check_writable(json_file, out=out)
    facts = run_files.compare(runs)
    print_comparison(facts)
    if out is not None:
        write_text(out, run_files.page_bytes(render_comparison(facts)), "--out")
    write_json(json_file, facts)


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    json_file: Json = None,
) -> None:
    """Make the report of a finished run again, of the files in its folder."""
    from halfbyte.run_files import REPORT, read_run, write_report

    check_writable(json_file)
    found = read_run(run)
    write_report(found)
    Progress().say(f"wrote {run / REPORT}")
    write_json(json_file, {"metrics": found.metrics, "findings": found.findings, "bench": found.bench})


def keep_bench(target: Path, facts: dict[str, Any]) -> None:
    """Keep times of engines with the run that was timed; where that cannot be, say so."""
    from halfbyte.run_files import BENCH, keep_bench

    try:
        if keep_bench(target, facts):
            Progress().say(f"wrote {target / BENCH}; the report shows it")
    except HalfbyteError as error:
        Progress().say(f"the times are not kept with the run: {error}")
