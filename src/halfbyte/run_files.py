"""The files of a finished run that tell of it: read with their form checked, and its report made of them.

Needs neither torch nor timm.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfbyte.artifact_files import MAX_JSON_BYTES, json_bytes, write_files
from halfbyte.errors import HalfbyteError
from halfbyte.files import read_file, real_path
from halfbyte.form import misfit, nullable, number, optional, whole
from halfbyte.report.comparison import RunFacts, compare_runs
from halfbyte.report.run import render_run

RECIPE, METRICS, REPORT, LOG = "recipe.yaml", "metrics.json", "report.html", "log.jsonl"
# What the report shows besides the metrics, and the times of engines.
FINDINGS, BENCH = "report.json", "bench.json"

_ACCURACY = {"top1": nullable(number), "top5": nullable(number)}
_METRICS = {
    "model": str, "recipe": str, "weights": {"source": nullable(str), "tag": nullable(str), "sha256": nullable(str)},
    "bits": {"weight": whole(1), "activation": whole(1)}, "images": {"evaluation": whole(0)},
    "dataset": optional(str), "float": _ACCURACY,
    "quantized": {**_ACCURACY, "agreement": nullable(number)},
    "bytes": {"float": number, "artifact": number, "shipped": optional(number)},
    "seconds": {"total": number},
}  # fmt: skip
_BENCH = {"rows": [{"engine": str, "threads": whole(1), "batch_size": whole(1), "milliseconds": number}]}
_REMOVE = "remove it"


@dataclass(frozen=True)
class RunFiles:
    """What a finished run tells of itself; runs of earlier versions have no findings, those never timed no bench."""

    folder: Path
    metrics: dict[str, Any]
    recipe: str
    findings: dict[str, Any] = field(default_factory=dict)
    bench: dict[str, Any] = field(default_factory=dict)

    def report(self) -> str:
        """The page `report.html`."""
        return render_run(self.metrics, self.recipe, self.findings, self.bench)


def read_run(folder: Path) -> RunFiles:
    """The files of the finished run in `folder`.

    Raises `HalfbyteError` where there is none, or one of the files is damaged.
    """
    if not (folder / METRICS).is_file():
        what = "does not exist" if not folder.exists() else f"holds no finished run: it has no {METRICS}"
        raise HalfbyteError(f"{folder} {what}; give the --out folder of a run that came to its end")
    metrics = read_metrics(folder)
    recipe = _read_text(folder / RECIPE, _REMOVE) if (folder / RECIPE).is_file() else ""
    findings, bench = (
        _read(folder / name, form, _REMOVE) if (folder / name).is_file() else {}
        for name, form in ((FINDINGS, {}), (BENCH, _BENCH))
    )
    return RunFiles(folder, metrics, recipe, findings, bench)


def read_metrics(folder: Path) -> dict[str, Any]:
    """The metrics of the finished run in `folder`; raises `HalfbyteError` where they are damaged."""
    return _read(folder / METRICS, _METRICS, "run again with --force")


def compare(folders: Sequence[str | Path]) -> dict[str, Any]:
    """The facts of `halfbyte compare --json` for the runs in these folders.

    Raises `HalfbyteError` where one of them holds no finished run, is damaged or is given twice, and for runs that
    cannot be compared.
    """
    places = [Path(folder) for folder in folders]
    for position, place in enumerate(places):
        if real_path(place) in (real_path(other) for other in places[:position]):
            raise HalfbyteError(f"{place} is given twice; give each run once")
    runs = [read_run(place) for place in places]
    # A folder's own name where it tells the runs apart.
    short = [real_path(place).name for place in places]
    names = short if len(set(short)) == len(short) else [str(place) for place in places]
    return compare_runs(
        [RunFacts(name, run.metrics, run.findings, run.bench) for name, run in zip(names, runs, strict=True)]
    )


def write_report(run: RunFiles) -> None:
    """Make the page `report.html` of a run again, of the files that there are now."""
    write_files(run.folder, {REPORT: page_bytes(run.report())})


def keep_bench(folder: Path, facts: dict[str, Any]) -> bool:
    """Put times of engines into the folder of a finished run, and into its report; false where it is no run's.

    Raises `HalfbyteError` where the folder cannot be written to.
    """
    if not (folder / METRICS).is_file():
        return False
    run = read_run(folder)
    timed = RunFiles(folder, run.metrics, run.recipe, run.findings, facts)
    write_files(folder, {BENCH: json_bytes(facts), REPORT: page_bytes(timed.report())})
    return True


def page_bytes(page: str) -> bytes:
    """A page as it is stored."""
    # A file's name may hold bytes that are no text; json escapes them by itself.
    return page.encode("utf-8", "backslashreplace")


def _read(place: Path, form: dict[str, Any], remedy: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(_read_text(place, remedy))
    except (ValueError, RecursionError) as error:
        raise HalfbyteError(f"{place} is damaged ({error}); {remedy}") from None
    wrong = misfit(found, form, place.stem)
    if wrong is not None:
        raise HalfbyteError(f"{place} is damaged ({wrong} is missing or wrong); {remedy}")
    return found


def _read_text(place: Path, remedy: str) -> str:
    try:
        return read_file(place, MAX_JSON_BYTES).decode()
    except (OSError, ValueError) as error:
        raise HalfbyteError(f"{place} is damaged ({error}); {remedy}") from None
