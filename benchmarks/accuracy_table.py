"""Accuracy of recipes on one model at several widths: runs them and keeps a table.

    python benchmarks/accuracy_table.py MODEL --weights FILE --calib DIR --val DIR [--crop-pct F] --out TABLE.json \
        --runs adalog:4 adalog:4:1 repq:3 ...

A run is RECIPE:BITS[:SEED][+STEP.KEY=VALUE ...], BITS those of weights and activations (4), or of each (4/8). Those
that the table holds are not repeated. At the end the table is printed. With --from ARTIFACT the recipes go on from an
artifact, whose widths BITS repeats; with --keep DIR the run folders stay there. What trains has the images --data and
the soft labels --labels; BITS of 32 leave a recipe its own.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import halfbyte

FACTS = (
    "model",
    "weights",
    "images",
    "float",
    "quantized",
    "bytes",
    "operations",
    "seconds",
    "peak_rss_bytes",
    "environment",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--val", type=Path)
    parser.add_argument("--crop-pct", type=float)
    parser.add_argument("--calib-images", type=int, default=32)
    parser.add_argument("--budget")
    parser.add_argument("--from", dest="start", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", default=[], metavar="RUN")
    options = parser.parse_args()
    for run in options.runs:
        named, *settings = run.split("+")
        recipe, bits, seed = (*named.split(":"), "0")[:3]
        weight, activation = (*bits.split("/"), bits)[:2]
        key = {
            "recipe": Path(recipe).stem,
            "model": options.model,
            "bits": [int(weight), int(activation)],
            "seed": int(seed),
            "settings": settings,
            **({"budget": options.budget} if options.budget else {}),
            **({"from": options.start.name} if options.start else {}),
        }
        if any(row["run"] == key for row in _rows(options.out)):
            continue
        own = options.start or int(weight) == 32
        widths = {} if own else {"w_bits": int(weight), "a_bits": int(activation)}
        with tempfile.TemporaryDirectory() as folder:
            metrics = halfbyte.quantize(
                model=options.model, weights=options.weights, calib=options.calib, val=options.val,
                crop_pct=options.crop_pct, calib_images=options.calib_images, recipe=recipe, budget=options.budget,
                start=options.start, data=options.data, labels=options.labels, seed=int(seed),
                settings=tuple(settings),
                out=(options.keep or Path(folder)) / re.sub(r"[^\w.-]+", "_", run), **widths,
            ).metrics  # fmt: skip
        row = {
            "run": key,
            **{fact: metrics[fact] for fact in FACTS},
        }
        # Read again: another process may have added to the table.
        options.out.write_text(json.dumps([*_rows(options.out), row], indent=1) + "\n")
    print(_markdown(sorted(_rows(options.out), key=lambda row: json.dumps(row["run"]))))


def _rows(table: Path) -> list[dict[str, Any]]:
    return json.loads(table.read_text()) if table.exists() else []


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model, recipe | W/A | seed | top-1 | float | agreement | KL | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        run, got = row["run"], row["quantized"]
        origin = f"{run['from']}, then" if "from" in run else ""
        budget = f"within {run['budget']}" if "budget" in run else ""
        recipe = " ".join(filter(None, [run["model"], origin, run["recipe"], budget, *run["settings"]]))
        lines.append(
            f"| {recipe} | {run['bits'][0]}/{run['bits'][1]} | {run['seed']} | {got['top1']:.2f} "
            f"| {row['float']['top1']:.2f} "
            f"| {got['agreement']:.1f} | {got['kl']:.3f} | {row['seconds']['total']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
