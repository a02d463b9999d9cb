"""The part of a report about speed, where the artifact was timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halfbyte.report import charts, wording
from halfbyte.report.facts import number, records
from halfbyte.report.markup import Html, element
from halfbyte.report.page import Column, Tile, paragraph, section, table

NATIVE = "native"


@dataclass(frozen=True)
class Timing:
    """An engine's milliseconds for a batch."""

    engine: str
    threads: int
    batch_size: int
    milliseconds: float

    @property
    def per_image(self) -> float:
        """Milliseconds for one image."""
        return self.milliseconds / self.batch_size


def timings(bench: Mapping[str, Any]) -> list[Timing]:
    """The rows of a bench that tell of a time."""
    found = []
    for record in records(bench.get("rows")):
        threads, batch, spent = (number(record.get(key)) for key in ("threads", "batch_size", "milliseconds"))
        if threads and batch and batch >= 1 and spent and spent > 0:
            found.append(Timing(wording.anything(record.get("engine")), int(threads), int(batch), spent))
    return found


def native_timing(bench: Mapping[str, Any]) -> Timing | None:
    """The native engine's row."""
    return next((timing for timing in timings(bench) if timing.engine == NATIVE), None)


def speed_tile(bench: Mapping[str, Any]) -> Tile | None:
    """The native engine's time beside the fastest float engine's; None where nothing was timed."""
    native = native_timing(bench)
    if native is None:
        return None
    floats = [timing for timing in timings(bench) if timing.engine != NATIVE and "int8" not in timing.engine]
    best = min(floats, key=lambda timing: timing.milliseconds, default=None)
    note = f"a batch of {native.batch_size}, threads: {native.threads}"
    if best is not None:
        note = f"{best.engine} {wording.milliseconds(best.milliseconds)}, {_ratio(best, native)}"
    return Tile("Speed", wording.milliseconds(native.milliseconds), note)


def speed_section(bench: Mapping[str, Any]) -> Html:
    """Times of all engines; nothing where none was timed."""
    found = timings(bench)
    if not found:
        return Html("")
    native = native_timing(bench)
    first = found[0]
    where = ", ".join(wording.anything(bench[key]) for key in ("cpu", "isa") if bench.get(key) is not None)
    text = (
        f"Milliseconds for a batch of {first.batch_size}, threads: {first.threads}; medians of interleaved calls"
        f"{f' on {where}' if where else ''}. The others run the same architecture with the artifact's weights."
    )
    return section("Speed", paragraph(text), _chart(found), _table(found, native))


def _chart(found: Sequence[Timing]) -> Html:
    bars = [
        charts.Bar(
            timing.engine, timing.milliseconds, wording.figures(timing.milliseconds),
            "linear" if timing.engine == NATIVE else "other",
            f"{timing.engine}: {wording.milliseconds(timing.milliseconds)}",
        )
        for timing in found
    ]  # fmt: skip
    axis, margin = charts.scale(bar.value for bar in bars), charts.label_margin(bar.label for bar in bars)
    spoken = "Milliseconds a batch: " + ", ".join(bar.title for bar in bars)
    return element("div", charts.bar_chart(bars, axis, margin, spoken), class_="wide")


def _table(found: Sequence[Timing], native: Timing | None) -> Html:
    columns = (
        Column("Engine"), Column("Threads", "number"), Column("Batch", "number"), Column("Time", "number"),
        Column("Images a second", "number"), Column("Native is", "number"),
    )  # fmt: skip
    rows = (
        (timing.engine, wording.count(timing.threads), wording.count(timing.batch_size),
         wording.milliseconds(timing.milliseconds), wording.figures(1000 / timing.per_image), _ratio(timing, native))
        for timing in found
    )  # fmt: skip
    return table("Speed", columns, rows)


def _ratio(timing: Timing, native: Timing | None) -> str:
    if native is None or timing.engine == NATIVE:
        return wording.NOT_APPLICABLE
    ratio = timing.milliseconds / native.milliseconds
    return wording.times(ratio, "faster") if ratio >= 1 else wording.times(1 / ratio, "slower")
