"""An exported model against its program, in every runtime that is installed."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from halfbyte.errors import HalfbyteError
from halfbyte.export.onnx import Written
from halfbyte.export.probe import probe
from halfbyte.export.runtimes import RUNTIMES
from halfbyte.program.interpret import Interpreter
from halfbyte.program.ops import Array, Program

# Single operations are compared on so many images; every value of these is kept.
_PROBED = 2


def verify(written: Written, program: Program, images: Array) -> list[dict[str, Any]]:
    """What every installed runtime makes of the model: one entry each, of plain values.

    `images` `[B, C, H, W]` are preprocessed. "agreement" is the share of images, in percent, with the same class;
    "codes" of the codes that equal the interpreter's given the same inputs, "worst_codes" where most do not;
    "product_error" the largest difference of a product given the same codes, relative to its largest value;
    "integer" and "float" the products by how they are computed: kind of node -> names. Raises `HalfbyteError` where no
    runtime is installed, or where one refuses the model.
    """
    runtimes = [runtime for runtime in RUNTIMES if runtime.installed]
    if not runtimes:
        raise HalfbyteError("--verify needs a runtime; pip install 'halfbyte[onnx]'")
    wanted = Interpreter(program)(images).argmax(1)
    content, entries = written.model.SerializeToString(), []
    for runtime in runtimes:
        try:
            logits = runtime.run(content, images)["logits"]
            found = probe(written, program, images[:_PROBED], runtime.run)
            placed = runtime.place(content)
        except Exception as error:  # a runtime's errors have no common class
            raise HalfbyteError(f"{runtime.package} cannot run the exported model: {error}") from error
        entries.append(
            {
                "engine": f"{runtime.package} {metadata.version(runtime.package)}", "images": len(images),
                "agreement": 100 * float((logits.argmax(1) == wanted).mean()),
                "codes": 100 * (1 - found.different / max(found.codes, 1)), "worst_codes": found.worst_codes,
                "product_error": found.product_error, "worst_product": found.worst_product,
                "integer": placed.integer, "float": placed.float,
            }
        )  # fmt: skip
    return entries
