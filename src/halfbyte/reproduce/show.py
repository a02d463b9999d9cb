"""The papers' tables as people read them: what is in them, and what was published beside what was measured here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table as Grid

from halfbyte.reproduce.table import Row
from halfbyte.terminal import open_console

NUMBERS = ("published", "its float", "its loss", "ours", "our float", "our loss", "agreement")
COLUMNS = ("model", "W/A", "recipe", *NUMBERS, "images", "seed", "weights", "source")
# On a terminal, under shorter headings.
PRINTED = {"paper": "published", "loss": "its loss", "ours": "ours", "our loss": "our loss", "agree": "agreement"}
_SHA = 12
Facts = dict[str, Any]


def print_rows(rows: Iterable[Row]) -> None:
    """The rows of tables, with their published figures."""
    grid = Grid()
    for heading in ("table", "row", "top-1 %", "float %", "checkpoint"):
        grid.add_column(heading, overflow="fold")
    for row in rows:
        grid.add_row(row.table, row.name, f"{row.top1:.2f}", f"{row.model.top1:.2f}", row.model.checkpoint)
    open_console().print(grid)


def listed(row: Row) -> Facts:
    """The same of one row, for machines."""
    return {
        "table": row.table, "row": row.name, "checkpoint": row.model.checkpoint, "recipe": Path(row.recipe).stem,
        "bits": {"weight": row.weight_bits, "activation": row.activation_bits}, "top1": row.top1,
        "float": row.model.top1, "source": row.source, "measured": row.measured, "settings": list(row.settings),
        "notes": row.notes,
    }  # fmt: skip


def print_facts(facts: Facts) -> None:
    """What was published beside ours, and why rows are missing."""
    grid = Grid(title="top-1 in percent, losses in points")
    for heading in ("row", *PRINTED):
        grid.add_column(heading, no_wrap=heading == "row")
    for entry in facts["rows"]:
        if entry["status"] == "done":
            cells = _cells(entry)
            grid.add_row(f"{entry['table']}/{entry['row']}", *(cells[heading] for heading in PRINTED.values()))
    console = open_console()
    if grid.rows:
        console.print(grid)
    for entry in facts["rows"]:
        if entry["changed"]:
            console.print(f"changed: {entry['row']}: {', '.join(entry['changed'])}", highlight=False, soft_wrap=True)
    for status, reasons in _told(facts["rows"]).items():
        for reason, names in reasons.items():
            console.print(f"{status}: {', '.join(names)}: {reason}", highlight=False, soft_wrap=True)


def as_markdown(facts: Facts) -> str:
    """The tables, one below the other, with where their figures come from."""
    return "\n".join(_section(name, title, facts) for name, title in facts["tables"].items())


def _section(name: str, title: str, facts: Facts) -> str:
    entries = [entry for entry in facts["rows"] if entry["table"] == name]
    done = [entry for entry in entries if entry["status"] == "done"]
    lines = [f"## {title} (`{name}`)", ""]
    sources = _sources(entries)
    if done:
        lines += [_line(COLUMNS), _line("--:" if heading in NUMBERS else "---" for heading in COLUMNS)]
        for entry in done:
            cells = {**_cells(entry), "source": str(sources.index(_source(entry)) + 1)}
            lines.append(_line(cells[heading] for heading in COLUMNS))
        lines += ["", "Top-1 in percent, losses in points; images: calibration, evaluation; weights: sha256.", ""]
    lines += [f"{number}. {source}. Measured with: {measured}." for number, (source, measured) in enumerate(sources, 1)]
    lines += [f"- {text}" for text in _remarks(entries, done)]
    return "\n".join([*lines, ""])


def _line(cells: Iterable[str]) -> str:
    # A bar would end its cell.
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _sources(entries: list[Facts]) -> list[tuple[str, str]]:
    return list(dict.fromkeys(_source(entry) for entry in entries))


def _source(entry: Facts) -> tuple[str, str]:
    return entry["published"]["source"], entry["published"]["measured"]


def _remarks(entries: list[Facts], done: list[Facts]) -> list[str]:
    notes: dict[str, list[str]] = {}
    for entry in entries:
        for note in entry["notes"]:
            notes.setdefault(note, []).append(entry["row"])
    remarks = [f"{', '.join(names)}: {note}" for note, names in notes.items()]
    for status, reasons in _told(entries).items():
        remarks += [f"{status}: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    machines = dict.fromkeys(_machine(entry["ours"]["environment"]) for entry in done)
    return [*remarks, *(f"ours on {machine}" for machine in machines)]


def _machine(environment: Facts) -> str:
    device = environment["device"]
    where = environment["processor"] if device == "cpu" else device
    return f"{where}, {environment['threads']} of {environment['cores']} cores, torch {environment['torch']}"


def _told(entries: list[Facts]) -> dict[str, dict[str, list[str]]]:
    """The rows without figures, and those whose figures are of earlier settings, by status and reason."""
    found: dict[str, dict[str, list[str]]] = {}
    for entry in entries:
        done = entry["status"] == "done"
        if entry["reason"] is not None or not done:
            reasons = found.setdefault("kept" if done else entry["status"], {})
            reasons.setdefault(entry["reason"] or "not run yet", []).append(entry["row"])
    return found


def _cells(entry: Facts) -> dict[str, str]:
    """What a finished row says under each heading but its source."""
    ours, published, bits = entry["ours"], entry["published"], entry["bits"]
    got, images = ours["quantized"], ours["images"]
    recipe = ", ".join([entry["recipe"], *entry["settings"]])
    changed = f"; changed: {', '.join(entry['changed'])}" if entry["changed"] else ""
    return {
        "model": entry["model"], "W/A": f"{bits['weight']}/{bits['activation']}", "recipe": recipe + changed,
        "published": _figure(published["top1"]), "its float": _figure(published["float"]),
        "its loss": _loss(published["float"], published["top1"]), "ours": _figure(got["top1"]),
        "our float": _figure(ours["float"]["top1"]), "our loss": _loss(ours["float"]["top1"], got["top1"]),
        "agreement": _figure(got["agreement"]), "images": f"{images['calibration']}, {images['evaluation']}",
        "seed": str(entry["seed"]), "weights": str(ours["weights"]["sha256"])[:_SHA],
    }  # fmt: skip


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _loss(before: float | None, after: float | None) -> str:
    return "-" if before is None or after is None else f"{before - after:.2f}"
