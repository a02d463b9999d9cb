"""Whether the native engine and the interpreter give what torch gives: images with equal logits, and with equal argmax.

    python benchmarks/engine_agreement.py RUN... --val imagenet_val --out benchmarks/results/engine_agreement.json

RUN is an artifact's folder. Torch and the native engine run all images, the interpreter, which is slow, the first
`--interpreted`. Rows are added to those that --out already holds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfbyte.artifact import load_artifact
from halfbyte.engines import start_engine
from halfbyte.evaluate import Loop, evaluate
from halfbyte.facts import environment
from halfbyte.inputs import validation_images
from halfbyte.progress import Progress
from halfbyte.runtime.native import isa


def equal(logits: Tensor, torch_logits: Tensor) -> dict[str, int]:
    """Counts of images: all, with the same argmax, with the same bits."""
    expected = torch_logits[: len(logits)]
    same = int((logits.argmax(1) == expected.argmax(1)).sum())
    return {"images": len(logits), "argmax": same, "bits": int((logits == expected).all(1).sum())}


def compare(run: Path, options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """An artifact's row."""
    artifact = load_artifact(run)
    facts = artifact.facts
    images = validation_images(
        options.val, facts["source"], facts["preprocessing"], artifact.model, options.limit, 0, progress
    )
    if images is None:
        raise SystemExit(f"{run}: its model comes without images; give --val")
    loop = Loop(16, progress=progress)
    found, expected = evaluate(artifact.model, images, loop, label="torch")
    row = {
        "model": facts["source"]["architecture"], "sha256": facts["source"].get("sha256"),
        "recipe": facts["recipe"]["name"], "steps": facts["recipe"]["steps"], "bits": facts["recipe"]["bits"],
        "isa": isa(), "top1": round(found.top1, 2),
    }  # fmt: skip
    native = evaluate(start_engine("native", run), images, loop, label="native")[1]
    some = images.subset(list(range(min(options.interpreted, len(images)))))
    interpreted = evaluate(start_engine("interpreter", run), some, loop, label="interpreter")[1]
    return row | {"native": equal(native, expected), "interpreter": equal(interpreted, expected)}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--val", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--interpreted", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = [compare(run, options, Progress()) for run in options.runs]
    for row in rows:
        print(json.dumps(row))
    if options.out:
        before = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
        facts = {"environment": environment(torch.device("cpu")), "rows": before + rows}
        options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
