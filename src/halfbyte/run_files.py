"""The files of a run's folder beside the artifact: their names, and the metrics as they are read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from halfbyte.errors import HalfbyteError
from halfbyte.form import misfit, nullable, number, whole

RECIPE, METRICS, REPORT, LOG = "recipe.yaml", "metrics.json", "report.html", "log.jsonl"

_ACCURACY = {"top1": nullable(number), "top5": nullable(number)}
_METRICS = {
    "model": str, "recipe": str, "weights": {"source": nullable(str), "tag": nullable(str), "sha256": nullable(str)},
    "bits": {"weight": int, "activation": int}, "images": {"evaluation": whole(0)}, "float": _ACCURACY,
    "quantized": {**_ACCURACY, "agreement": nullable(number)}, "bytes": {"float": number, "artifact": number},
    "seconds": {"total": number},
}  # fmt: skip


def read_metrics(folder: Path) -> dict[str, Any]:
    """The metrics of a finished run; raises `HalfbyteError` where they are missing or damaged."""
    place = folder / METRICS
    try:
        found: dict[str, Any] = json.loads(place.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HalfbyteError(f"{place} is damaged ({error}); run again with --force") from None
    wrong = misfit(found, _METRICS, "metrics")
    if wrong is not None:
        raise HalfbyteError(f"{place} is damaged ({wrong} is missing or wrong); run again with --force")
    return found
