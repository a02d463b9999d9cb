"""Several runs side by side as plain facts: what differs, what of it can be compared, and what a reader must know."""

from __future__ import annotations

import string
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from halfbyte.errors import HalfbyteError
from halfbyte.report import wording
from halfbyte.report.facts import mapping, number, records
from halfbyte.report.predictions import ClassFacts, classes
from halfbyte.report.run import method_of
from halfbyte.report.speed import native_timing

LABELS = string.ascii_uppercase


@dataclass(frozen=True)
class RunFacts:
    """A run by the name that it has in the comparison, and the contents of its files."""

    name: str
    metrics: Mapping[str, Any]
    findings: Mapping[str, Any] = field(default_factory=dict)
    bench: Mapping[str, Any] = field(default_factory=dict)


def compare_runs(runs: Sequence[RunFacts]) -> dict[str, Any]:
    """The facts of `halfbyte compare --json`.

    `runs` with a letter each, `sites` and `classes` with a value for each run (None where it has none), `warnings`,
    whether all times were taken on one machine with one setting (`same_timing`), and all accuracies of the same images
    (`same_images`): without that there is no Pareto front. A simulation is on none.

    Raises `HalfbyteError` for fewer than two runs, too many, and runs that tell different numbers of classes apart.
    """
    if len(runs) < 2:
        raise HalfbyteError("compare needs two runs or more; what one run came to is in its report.html")
    if len(runs) > len(LABELS):
        raise HalfbyteError(f"{len(runs)} runs are too many to compare; give at most {len(LABELS)}")
    _refuse_other_classes(runs)
    rows = [_row(label, run) for label, run in zip(LABELS, runs, strict=False)]
    same_timing = len({found for run in runs if (found := _circumstances(run)) is not None}) < 2
    same_images = len({found for run in runs if (found := _images(run)) is not None}) < 2
    values = [row["quantized"]["top1"] if same_images and not row["simulation"] else None for row in rows]
    by_size = front([row["bytes"]["artifact"] for row in rows], values)
    by_speed = front([row["milliseconds"] if same_timing else None for row in rows], values)
    for row, small, fast in zip(rows, by_size, by_speed, strict=True):
        row["front"] = {"size": small, "speed": fast}
    return {
        "schema": 1, "runs": rows, "sites": _sites(runs), "classes": _classes(runs), "same_timing": same_timing,
        "same_images": same_images, "warnings": _warnings(runs),
    }  # fmt: skip


def front(costs: Sequence[float | None], values: Sequence[float | None]) -> list[bool]:
    """Which points are on the Pareto front: no other has less cost and as much value, or as little cost and more.

    A point without cost or value is on none.
    """
    points = [pair if None not in pair else None for pair in zip(costs, values, strict=True)]

    def beats(one: Any, other: Any) -> bool:
        return bool(one[0] <= other[0] and one[1] >= other[1] and one != other)

    return [point is not None and not any(beats(other, point) for other in points if other) for point in points]


def _row(label: str, run: RunFacts) -> dict[str, Any]:
    metrics, timing = run.metrics, native_timing(run.bench)
    before, after = mapping(metrics.get("float")), mapping(metrics.get("quantized"))
    size = mapping(metrics.get("bytes"))
    return {
        "label": label, "name": run.name, "model": wording.anything(metrics.get("model")), "method": method_of(metrics),
        "simulation": metrics.get("paper_exact") is True,
        "images": number(mapping(metrics.get("images")).get("evaluation")),
        "float": {key: number(before.get(key)) for key in ("top1", "top5")},
        "quantized": {key: number(after.get(key)) for key in ("top1", "top5", "agreement", "kl")},
        "bytes": {key: number(size.get(key)) for key in ("float", "artifact")},
        "bit_operations": number(mapping(metrics.get("operations")).get("bit_operations")),
        "seconds": number(mapping(metrics.get("seconds")).get("total")),
        "milliseconds": None if timing is None else round(timing.per_image, 4),
    }  # fmt: skip


def _sites(runs: Sequence[RunFacts]) -> list[dict[str, Any]]:
    """Every site of any run, in the order of the first that has it; the same name with another role is another site."""
    rows: dict[tuple[str, str], list[dict[str, Any] | None]] = {}
    for index, run in enumerate(runs):
        for record in records(run.metrics.get("sites")):
            key = (wording.anything(record.get("name")), wording.anything(record.get("role")))
            bits = mapping(record.get("bits"))
            rows.setdefault(key, [None] * len(runs))[index] = {
                "weight": bits.get("weight"), "activation": bits.get("activation"),
                "sqnr_db": number(record.get("sqnr_db")),
            }  # fmt: skip
    return [{"name": name, "role": role, "runs": found} for (name, role), found in rows.items()]


def _classes(runs: Sequence[RunFacts]) -> list[dict[str, Any]]:
    found = [classes(run.findings) for run in runs]
    labels = sorted({label for known in found for label in known})
    return [_class(label, [known.get(label) for known in found]) for label in labels]


def _class(label: int, known: Sequence[ClassFacts | None]) -> dict[str, Any]:
    first = next(entry for entry in known if entry is not None)
    return {
        "class": label, "name": first.name,
        "images": [None if entry is None else entry.images for entry in known],
        "float": [None if entry is None else round(entry.before, 4) for entry in known],
        "top1": [None if entry is None else round(entry.after, 4) for entry in known],
    }  # fmt: skip


def _refuse_other_classes(runs: Sequence[RunFacts]) -> None:
    counts = {run.name: count for run in runs if (count := number(run.findings.get("outputs"))) is not None}
    if len(set(counts.values())) > 1:
        (first, fewer), (second, more) = sorted(counts.items(), key=lambda pair: pair[1])[:: len(counts) - 1]
        raise HalfbyteError(
            f"{first} tells {fewer:.0f} classes apart and {second} {more:.0f}: nothing of them can be compared; give "
            "runs on the same classes"
        )


def _warnings(runs: Sequence[RunFacts]) -> list[str]:
    found = [
        _differs(runs, _model, "different models; only sites of the same name are compared"),
        _differs(
            runs,
            _images,
            f"accuracies {'' if _images_differ(runs) else 'perhaps '}of different images; there is no Pareto front",
            lambda run: f"{wording.count(_evaluated(run))} images",
        ),
        _other_names(runs),
        _differs(runs, _circumstances, "times taken on other machines or with other settings; they are not drawn"),
    ]
    if len(set(map(_model, runs))) == 1:
        found.append(_differs(runs, _checksum, "different float weights; each agreement is with its own"))
    for run in runs:
        if _evaluated(run) in (None, 0.0):
            found.append(f"not evaluated, and so without accuracy: {run.name}")
        if run.metrics.get("paper_exact") is True:
            found.append(f"a simulation (paper_exact), of which neither size nor speed can be had: {run.name}")
        if not run.findings:
            found.append(f"no report.json, as of an earlier version, so that nothing is known of classes: {run.name}")
    return [text for text in found if text]


def _differs(
    runs: Sequence[RunFacts],
    key: Callable[[RunFacts], Hashable],
    what: str,
    say: Callable[[RunFacts], str] | None = None,
) -> str | None:
    """A warning that names one run of each kind, where the runs of which `key` is known are of several kinds."""
    kinds: dict[Hashable, RunFacts] = {}
    for run in runs:
        if (value := key(run)) is not None:
            kinds.setdefault(value, run)
    if len(kinds) < 2:
        return None
    said = (f"{run.name} ({say(run) if say else wording.anything(value)})" for value, run in kinds.items())
    return f"{what}: {', '.join(said)}"


def _evaluated(run: RunFacts) -> float | None:
    return number(mapping(run.metrics.get("images")).get("evaluation"))


def _images(run: RunFacts) -> tuple[float, str | None] | None:
    """What tells sets of evaluation images apart."""
    count, checksum = _evaluated(run), run.findings.get("images")
    return (count, checksum if isinstance(checksum, str) else None) if count else None


def _images_differ(runs: Sequence[RunFacts]) -> bool:
    """Whether that is known; runs of earlier versions do not record which images they saw."""
    known = [found for run in runs if (found := _images(run)) is not None]
    return any(len({entry[part] for entry in known} - {None}) > 1 for part in (0, 1))


def _other_names(runs: Sequence[RunFacts]) -> str | None:
    """A warning of the first class that runs call by different names."""
    names = {
        run.name: {label: entry.name for label, entry in classes(run.findings).items() if entry.is_named}
        for run in runs
    }  # fmt: skip
    labels = sorted({label for known in names.values() for label in known})
    first = next((label for label in labels if len({names[run].get(label) for run in names} - {None}) > 1), None)
    if first is None:
        return None
    what = f"other names of class {first}; perhaps they are not the same classes"
    return _differs(runs, lambda run: names[run.name].get(first), what)


def _model(run: RunFacts) -> str:
    return wording.anything(run.metrics.get("model"))


def _checksum(run: RunFacts) -> str | None:
    found = mapping(run.metrics.get("weights")).get("sha256")
    return found[:12] if isinstance(found, str) else None


def _circumstances(run: RunFacts) -> Hashable:
    timing = native_timing(run.bench)
    if timing is None:
        return None
    where = ", ".join(wording.anything(run.bench.get(key)) for key in ("cpu", "isa"))
    return f"{where}, threads: {timing.threads}, batch: {timing.batch_size}"
