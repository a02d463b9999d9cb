"""What the commands print: tables for people; `--json` has the same for machines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from halfbyte.printable import without_controls
from halfbyte.report.wording import bit_widths

# Of a list of names.
_SHOWN = 8
_LEAST_WIDTH = 80


class PlainConsole(Console):
    """A console on which text, also a table's, is only text."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(without_controls(text), **options)


def open_console() -> Console:
    """A console for text of users."""
    # Names and paths come from the user: brackets and colons in them are no markup.
    console = PlainConsole(markup=False, emoji=False)
    # Narrower tables would lose their figures; so their lines wrap.
    console.width = max(console.width, _LEAST_WIDTH)
    return console


def print_run(metrics: dict[str, Any], folder: Path) -> None:
    """What a run came to, by its metrics."""
    bits, size, seconds = metrics["bits"], metrics["bytes"], metrics["seconds"]
    # Folders of earlier versions lack the budget.
    widths = bit_widths(bits["weight"], bits["activation"], metrics.get("budget"))
    title = f"{metrics['model']}, {metrics['recipe']}, {widths}"
    table = Table("", "float", "quantized", title=title)
    images = metrics["images"]["evaluation"]
    if images:
        for key, label in (("top1", "top-1 %"), ("top5", "top-5 %")):
            table.add_row(label, _figure(metrics["float"][key]), _figure(metrics["quantized"][key]))
        table.add_row("agreement with float %", "", _figure(metrics["quantized"]["agreement"]))
    table.add_row("megabytes", f"{size['float'] / 1e6:.2f}", f"{size['artifact'] / 1e6:.2f}")
    if size.get("shipped") is not None:  # folders of earlier versions lack it, and floats are no artifact
        table.add_row("megabytes of all files", "", f"{size['shipped'] / 1e6:.2f}")
    console = open_console()
    console.print(table)
    weights = metrics["weights"]
    tag = f", tag {weights['tag']}" if weights["tag"] else ""
    console.print(f"weights: {weights['source']}{tag}, sha256 {str(weights['sha256'])[:12]}", highlight=False)
    measured = f"evaluated on {images} images; " if images else "not evaluated (give --val DIR); "
    console.print(f"{measured}quantized in {seconds['total']:.1f} s; report: {folder / 'report.html'}", highlight=False)


def print_evaluation(facts: dict[str, Any]) -> None:
    """What an evaluation found."""
    found = facts.get("quantized") or facts["float"]
    table = Table("model", "images", "top-1 %", "top-5 %", "agreement %", "KL")
    agreement, kl = found["agreement"], found["kl"]
    table.add_row(
        facts["model"], str(facts["images"]["evaluation"]), f"{found['top1']:.2f}", f"{found['top5']:.2f}",
        _figure(agreement), _figure(kl, 4),
    )  # fmt: skip
    open_console().print(table)


def print_bench(facts: dict[str, Any]) -> None:
    """Times of engines, and how much longer each takes than the native one."""
    first, native = facts["rows"][0], facts["rows"][-1]
    threads, batch = first["threads"], first["batch_size"]
    title = f"{facts['model']}, threads: {threads}, batch: {batch}, native: {facts['isa']}"
    table = Table("engine", "milliseconds", "images/s", "x native", title=title)
    for row in facts["rows"]:
        ratio = row["milliseconds"] / native["milliseconds"]
        table.add_row(
            row["engine"], f"{row['milliseconds']:.2f}", f"{row['images_per_second']:.1f}", f"{ratio:.2f}"
        )  # fmt: skip
    console = open_console()
    console.print(table)
    console.print(f"medians of {facts['rounds']} rounds; {facts['cpu']}", highlight=False)


def print_comparison(facts: dict[str, Any]) -> None:
    """Runs side by side, the float models that they came from, and what to know of them."""
    table = Table()
    table.add_column("")
    table.add_column("run", overflow="fold")
    for heading in ("top-1 %", "agree %", "MB", "ms", "best"):
        table.add_column(heading, no_wrap=True)
    floats: dict[tuple[str, str], float | None] = {}
    for run in facts["runs"]:
        best = "\n".join(axis for axis, best in run["front"].items() if best)
        table.add_row(
            run["label"], f"{run['name']}\n{run['model']}, {run['method']}", _figure(run["quantized"]["top1"]),
            _figure(run["quantized"]["agreement"]), _megabytes(run["bytes"]["artifact"]), _figure(run["milliseconds"]),
            best,
        )  # fmt: skip
        floats[run["model"], _figure(run["float"]["top1"])] = run["bytes"]["float"]
    table.add_section()
    for (model, top1), size in floats.items():
        table.add_row("", f"{model} in float", top1, "", _megabytes(size), "", "")
    console = open_console()
    console.print(table)
    if facts["same_images"]:
        console.print("best: no other run is as good for less, of top-1 and size, or top-1 and speed", highlight=False)
    for warning in facts["warnings"]:
        console.print(f"note: {warning}", highlight=False, soft_wrap=True)


def print_sites(facts: dict[str, Any]) -> None:
    """The sites of a model, what it costs, and what is left in float."""
    table = Table(title=facts["model"])
    for heading in ("site", "role", "activation", "weight", "MMACs", "bytes", "SQNR dB"):
        table.add_column(heading, no_wrap=True)
    for row in facts["sites"]:
        # Short, so that a terminal of 80 columns shows them whole.
        activations = "\n".join(row[key].replace(" per_", "/") for key in ("input", "left", "right") if row.get(key))
        weight = "" if "left" in row else (row["weight"] or "float").replace(" per_", "/")
        sqnr = _figure(row["sqnr_db"], 1)
        macs = f"{row['macs'] / 1e6:.2f}"
        table.add_row(row["name"], row["role"], activations or "float", weight, macs, str(row["bytes"]), sqnr)
    console = open_console()
    console.print(table)
    covered = facts["coverage"]
    console.print(
        f"{covered['quantized_macs_percent']:.2f} % of the multiply-accumulates are in sites", highlight=False
    )
    _print_costs(facts, console)
    for entry in covered["float"]:
        console.print(f"in float: {entry['operation']} in {entry['where']}, {entry['macs']:,} MACs", highlight=False)
    _print_program(facts.get("program") or {}, console)


def _print_program(known: dict[str, Any], console: Console) -> None:
    """Why there is no integer program, or what it rounds otherwise than torch does."""
    if (reason := known.get("refused")) is not None:
        console.print(f"no integer program: {reason}", highlight=False, soft_wrap=True)
    if places := known.get("approximate"):
        console.print(
            f"rounded otherwise by torch than by the integer engines: {_some(places)}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def _print_costs(facts: dict[str, Any], console: Console) -> None:
    """What an artifact takes; where something stands beside its blocks, also that, and the rest without it."""
    if "operations" not in facts:
        return
    size, operations = facts["bytes"], facts["operations"]
    whole = (size["artifact"], operations["macs"], operations["bit_operations"])
    beside = (size["side"], operations["side_macs"], operations["side_bit_operations"])
    rows = {"the whole": whole}
    if beside[1]:
        without = tuple(all_of - part for all_of, part in zip(whole, beside, strict=True))
        rows = {"without compensation": without, "compensation": beside, **rows}
    table = Table("", "megabytes of tensors", "MMACs per image", "Gbit operations per image")
    for name, (stored, macs, bit_operations) in rows.items():
        table.add_row(name, f"{stored / 1e6:.3f}", f"{macs / 1e6:.1f}", f"{bit_operations / 1e9:.3f}")
    console.print(table)
    console.print(f"all files to ship, with the program: {size['shipped'] / 1e6:.3f} MB", highlight=False)


def print_export(facts: dict[str, Any]) -> None:
    """The files of an export, what to know of them, and what each runtime makes of them."""
    console = open_console()
    for path, size in facts["files"].items():
        console.print(f"wrote {path}, {size / 1e6:.3f} MB", highlight=False, soft_wrap=True)
    for warning in facts["warnings"]:
        console.print(f"warning: {warning}", highlight=False, soft_wrap=True)
    for entry in facts["engines"]:
        _print_engine(entry, console)


def _print_engine(entry: dict[str, Any], console: Console) -> None:
    lines = [
        f"{entry['engine']}: the interpreter's class for {entry['agreement']:.1f} % of {entry['images']} images",
        f"given the same inputs, {_share(entry['codes'])} % of the codes are equal"
        + (f", fewest at {entry['worst_codes']}" if entry["codes"] < 100 else "")
        + f", products differ by at most {entry['product_error']:.1e} of their largest value",
    ]
    lines += [f"products in {title}: {_sites_by_kind(entry[title])}" for title in ("integer", "float")]
    console.print("\n  ".join(lines), highlight=False, soft_wrap=True)


def _some(names: list[str]) -> str:
    """The first names of a list, and how many more it has."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _sites_by_kind(kinds: dict[str, list[str]]) -> str:
    """How many of each kind, and which: those of all blocks once, `*` for a block's number."""
    parts = []
    for kind, names in sorted(kinds.items()):
        alike = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names))
        parts.append(f"{len(names)} {kind} ({_some(alike)})")
    return "; ".join(parts) or "none"


def _share(percent: float) -> str:
    """Never 100 for what is less."""
    return "100" if percent == 100 else f"{min(percent, 99.9999):.4f}"


def _figure(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _megabytes(size: float | None) -> str:
    return _figure(None if size is None else size / 1e6)
