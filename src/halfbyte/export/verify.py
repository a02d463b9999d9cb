"""An exported model against its program, in every runtime that is installed."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

import numpy as np

from halfbyte.errors import HalfbyteError
from halfbyte.export.graph import LOGITS
from halfbyte.export.onnx import Written
from halfbyte.export.probe import probe
from halfbyte.export.runtimes import RUNTIMES
from halfbyte.program.interpret import Interpreter
from halfbyte.program.ops import Array, Program, readers
from halfbyte.progress import Progress

# Single operations are compared on so many images; every value of these is kept.
_PROBED = 2
_BATCH = 8
_PRODUCTS = ("linear", "conv", "matmul")
# What runtimes compute in the kernel of the product before it, and name the kernel after.
_JOINED = frozenset({"multiply", "relu", "clip", "affine", "add"})
# What they append to the name of a node that they replace.
_APPENDED = re.compile(r"(/.*|_token_\d+|_pre_q)$")


def verify(written: Written, program: Program, images: Array, progress: Progress) -> list[dict[str, Any]]:
    """What every installed runtime makes of the model: one entry each, of plain values.

    `images` `[B, C, H, W]` are preprocessed. "agreement" is the share of images, in percent, with the same class;
    "codes" of the codes that equal the interpreter's given the same inputs, "worst_codes" where most do not;
    "product_error" the largest difference of a product given the same codes, relative to its largest value;
    "integer" and "float" the products by how they are computed: kind of node -> sites. Raises `HalfbyteError` where no
    runtime is installed, or where one refuses the model.
    """
    runtimes = [runtime for runtime in RUNTIMES if runtime.installed]
    if not runtimes:
        raise HalfbyteError("--verify needs a runtime; pip install 'halfbyte[onnx]'")
    starts = range(0, len(images), _BATCH)
    batches = [images[start : start + _BATCH] for start in starts]
    interpreter, seen = Interpreter(program), progress.track(batches, "interpreting", len(batches))
    wanted = np.concatenate([interpreter(batch) for batch in seen]).argmax(1)
    content, sites, entries = written.model.SerializeToString(), _sites(written), []
    for runtime in runtimes:
        progress.say(f"running in {runtime.package}")
        try:
            run = runtime.load(content, 1)
            logits = np.concatenate([run(batch)[LOGITS] for batch in batches])
            found = probe(written, images[:_PROBED], runtime.run)
            placed = runtime.place(content)
        except Exception as error:  # a runtime's errors have no common class
            raise HalfbyteError(f"{runtime.package} cannot run the exported model: {error}") from error
        entries.append(
            {
                "engine": f"{runtime.package} {metadata.version(runtime.package)}", "images": len(images),
                "agreement": 100 * float((logits.argmax(1) == wanted).mean()),
                "codes": 100 * (1 - found.different / max(found.codes, 1)), "worst_codes": found.worst_codes,
                "product_error": found.product_error, "worst_product": found.worst_product,
                "integer": _by_site(placed.integer, sites), "float": _by_site(placed.float, sites),
            }
        )  # fmt: skip
    return entries


def _sites(written: Written) -> dict[str, str]:
    """The products by the names that runtimes may give their kernels."""
    program, found = written.program, dict[str, str]()
    read_by = readers(program)
    for op in program.ops:
        if op.kind in _PRODUCTS:
            found[written.names[op.output]] = op.output
            behind = read_by.get(op.output, [])
            while len(behind) == 1 and behind[0].kind in _JOINED:
                found.setdefault(written.names[behind[0].output], op.output)
                behind = read_by.get(behind[0].output, [])
    return found


def _by_site(kinds: dict[str, list[str]], sites: dict[str, str]) -> dict[str, list[str]]:
    plain = {kind: [_APPENDED.sub("", name) for name in names] for kind, names in kinds.items()}
    return {kind: [sites.get(name, name) for name in names] for kind, names in plain.items()}
