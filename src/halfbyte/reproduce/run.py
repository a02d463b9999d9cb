"""The rows of the papers' tables run one behind the other, each a run folder of its own, and the table they fill."""

from __future__ import annotations

import gc
import json
import shutil
import traceback
from pathlib import Path
from typing import Any

from halfbyte.api import quantize
from halfbyte.artifact_files import write_files
from halfbyte.distributed import World, world
from halfbyte.errors import HalfbyteError, outside_reason
from halfbyte.files import TABLE
from halfbyte.progress import Progress
from halfbyte.reproduce.earlier import DONE, FAILED, OPEN, SKIPPED, Entries, earlier_table
from halfbyte.reproduce.plan import MissingError, Planner, Request
from halfbyte.reproduce.show import as_markdown
from halfbyte.reproduce.table import Row, Table, chosen_rows, load_tables
from halfbyte.run_folder import Found, OtherSettingsError, RunFolder

JSON, MARKDOWN = TABLE
# Of a run's metrics, what the table keeps.
FACTS = ("weights", "paper_exact", "images", "float", "quantized", "bytes", "operations", "seconds",
         "peak_rss_bytes", "environment")  # fmt: skip


def reproduce(request: Request, progress: Progress | None = None) -> dict[str, Any]:
    """Run the rows that are missing and write `table.json` and `table.md` into the request's `out`; returns the former.

    A row whose weights, images or labels are not here is skipped, one that fails is noted with its error, and the
    others go on. With `resume` finished rows are kept, those that are not asked for too; an unfinished one continues,
    skipped and failed ones are tried again. Raises `HalfbyteError` for what would be wrong for every row, before the
    folder is made.
    """
    with world() as processes:
        progress = (progress or Progress()) if processes.leads else Progress(quiet=True)
        with processes.agreed():
            tables = load_tables(request.tables)
            rows = chosen_rows(tables, request.rows)
            planner = Planner(request, rows)
            folder = _folder(request, processes)
        with folder:
            with processes.agreed():
                found = folder.admit(request.resume, request.force)
                # Also where all was finished: what was skipped is tried again.
                folder.hold()
            with processes.agreed():
                if found is Found.NOTHING:
                    _begin(folder, rows)
            titles, entries = earlier_table(folder.path / JSON)
            for row in rows:
                # A finished row stays so in the table until it is known what becomes of it now.
                if entries.get(row.key, {"status": OPEN})["status"] != DONE:
                    entries[row.key] = _entry(row, request.seed)
            for number, row in enumerate(rows, start=1):
                progress.say(f"row {number} of {len(rows)}: {row.table}/{row.name}")
                ended = _outcome(row, entries[row.key], planner, folder, progress, alone=processes.size == 1)
                entries[row.key] = ended
                facts = _table(titles, tables, entries)
                _write(facts, folder)
            if found is not Found.FINISHED:
                folder.log("finished")
            return facts


def _folder(request: Request, processes: World) -> RunFolder:
    """The folder of all rows; what only some rows depend on is compared in theirs."""
    settings = {
        "data": request.data and str(request.data), "calib": request.calib and str(request.calib),
        "val": request.val and str(request.val), "labels": request.labels and str(request.labels),
        "limit": request.limit, "batch_size": request.batch_size, "crop_pct": request.crop_pct,
        "interpolation": request.interpolation, "seed": request.seed,
    }  # fmt: skip
    return RunFolder(request.out, settings, processes.leads)


def _begin(folder: RunFolder, rows: list[Row]) -> None:
    """Make the folder, and remove the table and earlier runs of the rows, which may have had other settings."""
    folder.start()
    for name in (JSON, MARKDOWN) if folder.writes else ():
        (folder.path / name).unlink(missing_ok=True)
    for row in rows if folder.writes else ():
        place = _place(folder, row)
        if RunFolder(place, {}).found() in (Found.FINISHED, Found.UNFINISHED):
            shutil.rmtree(place)


def _place(folder: RunFolder, row: Row) -> Path:
    return folder.path / row.table / row.name


def _outcome(
    row: Row, entry: dict[str, Any], planner: Planner, folder: RunFolder, progress: Progress, alone: bool
) -> dict[str, Any]:
    """What the table has of a row behind its run; `entry` is what it had before."""
    fresh = _entry(row, planner.request.seed)
    try:
        plan = planner.plan(row, _place(folder, row))
        metrics = quantize(plan.options, progress=progress).metrics
        ours = {fact: metrics.get(fact) for fact in FACTS}
        return fresh | {"status": DONE, "changed": list(plan.changed), "ours": ours}
    except MissingError as error:
        progress.say(f"skipped: {error}")
        return fresh | {"status": SKIPPED, "reason": str(error)}
    except Exception as error:  # whatever a model or a machine does to one row, the others are still wanted
        if isinstance(error, OtherSettingsError) and entry["status"] == DONE:
            reason = f"run with other settings ({error.differing}); to run it with these, remove its folder"
            progress.say(f"kept: {reason}")
            return entry | {"reason": reason}
        told = isinstance(error, HalfbyteError)
        if not (told or alone):
            raise  # other processes wait for this one in the same row
        reason = str(error) if told else outside_reason(error) or _named(error)
        progress.say(f"failed: {reason}")
        folder.log("failed", row=f"{row.table}/{row.name}", error=reason, traceback=traceback.format_exc())
    # The traceback held the model; what the next row needs is to be free by then.
    gc.collect()
    return fresh | {"status": FAILED, "reason": reason}


def _named(error: Exception) -> str:
    first, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first}"


def _table(titles: dict[str, str], tables: list[Table], entries: Entries) -> dict[str, Any]:
    """The facts of all rows, those of `tables` in their order, behind those of others."""
    places = {row.key: place for place, row in enumerate(row for table in tables for row in table.rows)}
    rows = [entries[key] for key in sorted(entries, key=lambda key: places.get(key, -1))]
    known = {**titles, **{table.name: table.title for table in tables}}
    return {"schema": 1, "tables": {row["table"]: known[row["table"]] for row in rows}, "rows": rows}


def _write(facts: dict[str, Any], folder: RunFolder) -> None:
    """Replace the table on disk."""
    if folder.writes:
        # An error may quote a file's name, which may hold bytes that are no text; json escapes them by itself.
        text, page = json.dumps(facts, indent=1) + "\n", as_markdown(facts).encode("utf-8", "backslashreplace")
        write_files(folder.path, {JSON: text.encode(), MARKDOWN: page})


def _entry(row: Row, seed: int) -> dict[str, Any]:
    return {
        "table": row.table, "row": row.name, "model": row.model.name, "checkpoint": row.model.checkpoint,
        "recipe": Path(row.recipe).stem, "settings": list(row.settings),
        "bits": {"weight": row.weight_bits, "activation": row.activation_bits}, "notes": row.notes,
        "published": {"top1": row.top1, "float": row.model.top1, "source": row.source, "measured": row.measured},
        "seed": seed, "status": OPEN, "reason": None, "changed": [], "ours": None,
    }  # fmt: skip
