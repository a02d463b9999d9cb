"""What an earlier run of the command left in its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from halfbyte.artifact_files import MAX_JSON_BYTES
from halfbyte.files import read_file
from halfbyte.form import misfit, nullable, number, whole

OPEN, DONE, SKIPPED, FAILED = "open", "done", "skipped", "failed"
Entries = dict[tuple[str, str], dict[str, Any]]

_FIGURE = nullable(number)
_OURS = {
    "weights": {"sha256": nullable(str)}, "images": {"calibration": whole(0), "evaluation": whole(0)},
    "float": {"top1": _FIGURE}, "quantized": {"top1": _FIGURE, "agreement": _FIGURE},
    "environment": {"device": str, "processor": str, "threads": whole(1), "cores": whole(1), "torch": str},
}  # fmt: skip
_ENTRY = {
    "table": str, "row": str, "model": str, "recipe": str, "settings": [str], "changed": [str], "notes": [str],
    "bits": {"weight": whole(2), "activation": whole(2)}, "seed": whole(0), "reason": nullable(str),
    "published": {"top1": number, "float": number, "source": str, "measured": str},
    "status": (OPEN, DONE, SKIPPED, FAILED).__contains__, "ours": nullable(_OURS),
}  # fmt: skip


def earlier_table(path: Path) -> tuple[dict[str, str], Entries]:
    """Titles by table, and entries by table and row; none where there is no table, or it is damaged or of another
    version: what is finished is read from its run again."""
    try:
        found = json.loads(read_file(path, MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}, {}
    if misfit(found, {"schema": lambda version: version == 1, "tables": dict, "rows": [_ENTRY]}, "table") is not None:
        return {}, {}
    titles, rows = found["tables"], found["rows"]
    if not all(isinstance(titles.get(row["table"]), str) and (row["ours"] or row["status"] != DONE) for row in rows):
        return {}, {}
    return titles, {(row["table"], row["row"]): row for row in rows}
