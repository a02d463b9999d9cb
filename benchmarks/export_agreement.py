"""Exported files in other runtimes against the native engine: classes, accuracy, and what runs as integers.

    python benchmarks/export_agreement.py --limit 1000 --out benchmarks/results/export_agreement.json   # embedded
    python benchmarks/export_agreement.py --weights deit_tiny_patch16_224.safetensors --calib DIR --val DIR --out ...

Every artifact is written as ONNX with opset 17 (int8 containers) and 21 (INT4 and UINT4 where few bits allow), with
fused convolutions where it has many, and as OpenVINO's own form. tests/export/outside.py runs the files in a process
that imports neither halfbyte nor torch. Rows that --out holds are not repeated; with --keep DIR the artifacts and files
stay there, and artifacts that are there are used.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from halfbyte import api
from halfbyte.artifact_files import read_facts
from halfbyte.bench import processor
from halfbyte.data.images import batches, limit, open_images
from halfbyte.facts import environment
from halfbyte.inputs import embedded_images
from halfbyte.progress import Progress
from halfbyte.runtime import Engine
from halfbyte.runtime.native import isa

OUTSIDE = Path(__file__).parents[1] / "tests" / "export" / "outside.py"
DEIT = "deit_tiny_patch16_224"
# AdaLog's quantizers by a search that is cut short: few images and candidates, one round.
SHORT = ("adalog.images=4", "adalog.candidates=64", "adalog.rounds=1")
BATCH = 50


class Case(NamedTuple):
    """A model, its recipe and widths."""

    model: str
    recipe: str
    bits: int
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.model}-{self.recipe}-{self.bits}"


class Form(NamedTuple):
    """A way to write it."""

    name: str
    ending: str
    options: dict[str, Any]


CASES = (
    Case(DEIT, "repq", 4), Case(DEIT, "mse", 8), Case(DEIT, "adalog", 4, SHORT),
    *(Case(f"fashion_{kind}", "repq", bits) for kind in ("vit", "swin", "resnet") for bits in (4, 8)),
    Case("fashion_vit", "halfbyte-fast", 4),
)  # fmt: skip
FORMS = (
    Form("onnx, opset 17", ".onnx", {"to": "onnx", "opset": 17}),
    Form("onnx, opset 21", ".onnx", {"to": "onnx", "opset": 21}),
    Form("onnx, fused", ".onnx", {"to": "onnx", "convolutions": "fused"}),
    Form("openvino", ".xml", {"to": "openvino"}),
)


def artifact(case: Case, folder: Path, options: argparse.Namespace) -> None:
    """Quantize, unless the artifact is there."""
    if (folder / "metrics.json").exists():
        return
    real = {"weights": options.weights, "calib": options.calib, "val": options.val, "crop_pct": 0.985, "limit": 64}
    api.quantize(
        model=case.model, recipe=case.recipe, w_bits=case.bits, a_bits=case.bits, settings=case.settings, workers=0,
        out=folder, **({**real, "calib_images": 32} if case.model == DEIT else {"limit": 500}),
    )  # fmt: skip


def evaluation_images(folder: Path, options: argparse.Namespace) -> tuple[Any, Any]:
    """Images `[N, C, H, W]`, preprocessed as the artifact says, and their classes `[N]`."""
    facts, config = read_facts(folder)
    where = embedded_images(facts["source"], "embedded:test") or options.val
    images = open_images(where, facts["preprocessing"], num_classes=config["num_classes"])
    if options.limit is not None:
        images = limit(images, options.limit)
    pixels, labels = zip(*batches(images, BATCH), strict=True)
    return torch.cat(pixels).numpy(), torch.cat(labels).numpy()


def outside(images: Any, path: Path, folder: Path) -> dict[str, Any]:
    """Logits by engine."""
    np.save(folder / "images.npy", images)
    command = [sys.executable, str(OUTSIDE), str(folder / "images.npy"), str(folder / "logits.npz"), f"file={path}"]
    subprocess.run(command, check=True)
    with np.load(folder / "logits.npz") as found:
        return {name.split()[0]: found[name] for name in found if len(name.split()) == 2}


def measure(
    case: Case, options: argparse.Namespace, keep: Path, known: list[dict[str, Any]]
) -> Iterator[list[dict[str, Any]]]:
    """The rows of an artifact that are not known, file by file."""
    forms = [
        form
        for form in FORMS
        if ("resnet" in case.model or form.name != "onnx, fused")
        and not any((row["artifact"], row["file"]) == (case.name, form.name) for row in known)
    ]
    if not forms:
        return
    folder = keep / case.name
    artifact(case, folder, options)
    images, classes = evaluation_images(folder, options)
    engine = Engine(folder)
    native = np.concatenate([engine(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])
    wanted = native.argmax(1)
    for form in forms:
        out = keep / f"{case.name}-{form.name.replace(', ', '-').replace(' ', '')}{form.ending}"
        # --verify looks at the ONNX model; OpenVINO's converter makes its own form of just that.
        verify = form.ending == ".onnx"
        exported = api.export(
            folder, out=out, force=True, verify=verify, val=options.val if case.model == DEIT else None, **form.options
        )
        verified, rows = {entry["engine"].split()[0]: entry for entry in exported.engines}, []
        for name, logits in outside(images, out, keep).items():
            found = logits.argmax(1)
            rows.append({
                "artifact": case.name, "settings": case.settings, "file": form.name,
                "engine": f"{name} {metadata.version(name)}", "images": len(images),
                "agreement": percent(found == wanted), "top1": percent(found == classes),
                "native_top1": percent(wanted == classes),
                "megabytes": round(sum(path.stat().st_size for path in exported.files) / 1e6, 3),
                **(single(verified[name]) if name in verified else {}),
            })  # fmt: skip
            print(rows[-1], flush=True)
        yield rows


def percent(hits: Any) -> float:
    return round(100 * float(hits.mean()), 2)


def single(entry: dict[str, Any]) -> dict[str, Any]:
    """What --verify says of single operations: equal codes in percent, and how many products are of each kind."""
    counts = {key: {kind: len(names) for kind, names in entry[key].items()} for key in ("integer", "float")}
    return {"codes": round(entry["codes"], 5), "product_error": entry["product_error"], **counts}


def show(rows: list[dict[str, Any]]) -> None:
    print("| artifact | file | engine | images | same class, % | top-1 | native | codes, % |")
    print("|---|---|---|--:|--:|--:|--:|--:|")
    for row in rows:
        print(
            f"| {row['artifact']} | {row['file']} | {row['engine']} | {row['images']} | {row['agreement']} "
            f"| {row['top1']} | {row['native_top1']} | {row.get('codes', '')} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help=f"of {DEIT}; without them it is left out")
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--val", type=Path)
    parser.add_argument("--limit", type=int, help="images of each model, drawn evenly; all without it")
    parser.add_argument("--artifacts", nargs="+", help="only these, such as fashion_vit-repq-4")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    with tempfile.TemporaryDirectory() as temporary:
        for case in CASES:
            left_out = (case.model == DEIT and options.weights is None) or (
                options.artifacts and case.name not in options.artifacts
            )
            if left_out:
                continue
            Progress().say(case.name)
            for found in measure(case, options, options.keep or Path(temporary), list(rows)):
                rows += found
                facts = {"cpu": processor(), "isa": isa(), "environment": environment(torch.device("cpu"))}
                options.out.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
