"""What AdaLog's search costs with its shortcuts, and without, on the sites of one block.

    python benchmarks/adalog_search.py [MODEL --weights FILE --calib DIR --crop-pct F] [--block NAME] [--out FILE]

For each operand of each site: seconds of one search (published size: 128 candidates, 6 steps) as `halfbyte` does it;
seconds that the same search takes candidate by candidate (quantize the tensor, multiply, subtract, square), timed on a
few candidates and scaled up; and how the error of what was committed compares with that of the search without racing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from halfbyte import api
from halfbyte.calibrate.alternate import WeightSearch
from halfbyte.calibrate.fpcs import CandidateError, Found
from halfbyte.calibrate.operands import LogOperand, Operand, Settings, UniformOperand
from halfbyte.calibrate.output_error import OutputError
from halfbyte.capture import BlockCapture
from halfbyte.facts import environment
from halfbyte.inputs import Options, read_inputs, resolved_recipe
from halfbyte.prepare import site_module
from halfbyte.progress import Progress
from halfbyte.quantizers.log import GELU_SHIFT, AdaLogQuantizer
from halfbyte.session import Session

TIMED_CANDIDATES = 3
SETTINGS = Settings.make(128, 6, 3, paper_exact=False, race=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="fashion_vit")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--crop-pct", type=float)
    parser.add_argument("--block", default="blocks.5")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    options = Options(
        model=given.model, weights=given.weights, calib=given.calib, crop_pct=given.crop_pct, recipe="adalog",
        w_bits=given.bits, a_bits=given.bits, calib_images=given.images, limit=1,
    )  # fmt: skip
    progress = Progress(quiet=True)
    session = api._session(read_inputs(options, resolved_recipe(options), progress), options, progress)
    rows = [_measured(*search) for search in _searches(session, given.block, given.bits, given.images)]
    total = {key: sum(row[key] for row in rows) for key in ("seconds", "direct_seconds")}
    facts = {
        "model": given.model, "block": given.block, "bits": given.bits, "images": given.images, "rows": rows,
        "ratio": round(total["direct_seconds"] / total["seconds"], 1), "environment": environment(session.device),
    }  # fmt: skip
    for row in rows:
        print("{site:24} {operand:7} {seconds:7.2f} s, direct {direct_seconds:8.1f} s, ratio {ratio:6.1f}, "
              "error against the whole search {relative_error:+.1e}".format(**row))  # fmt: skip
    print(f"all: {total['seconds']:.1f} s against {total['direct_seconds']:.0f} s, ratio {facts['ratio']}")
    if given.out:
        given.out.write_text(json.dumps(facts, indent=1) + "\n")


Search = tuple[str, str, Operand | WeightSearch, CandidateError, Found, Tensor, Tensor]


@torch.no_grad()
def _searches(session: Session, block_name: str, bits: int, images: int) -> Iterator[Search]:
    """Every operand of the block with its error, where it starts, and both factors of the product."""
    (block,) = [block for block in session.layout.blocks if block.name == block_name]
    for name, (operands,) in BlockCapture(session, images).operands(block).items():
        site = session.layout.site(name)
        if site.role in ("qk", "pv"):
            left, right = operands["left"].transpose(0, 1), operands["right"].permute(1, 0, 3, 2)
            one: Operand = UniformOperand(left, bits, SETTINGS, of_product=True)
            other = UniformOperand(right, bits, SETTINGS, of_product=True)
            if site.role == "pv":
                one = LogOperand(
                    operands["left"].flatten(0, 1)[None], AdaLogQuantizer(bits), SETTINGS, search_scale=True
                )
            plain = UniformOperand(left, bits, SETTINGS, of_product=True)
            for label, searched, used_with in (("left", one, other), ("right", other, plain)):
                used = used_with.quantized(used_with.by_own_error())
                exact = used_with.values
                if searched.values.shape[0] == 1:
                    used, exact = (x.transpose(0, 1).flatten(0, 1)[None] for x in (used, exact))
                change = (used - exact).transpose(-1, -2)
                error = OutputError(searched.trials(), used.transpose(-1, -2), searched.values @ change)
                yield name, label, searched, error, searched.initial(), searched.values, used.transpose(-1, -2)
            continue
        x = operands["input"]
        values = x.reshape(1, 1, -1, x.shape[-1])
        inputs: Operand = UniformOperand(values, bits, SETTINGS)
        if site.role == "fc2":
            inputs = LogOperand(values, AdaLogQuantizer(bits, shift=GELU_SHIFT), SETTINGS, search_scale=True)
        search = WeightSearch(site_module(session.model, name).float_weight()[None], bits, SETTINGS)
        rows = search.initial()
        change = search.change(rows)[0]
        used = (search.weight[0] + change).T[None, None]
        yield (
            name,
            "input",
            inputs,
            OutputError(inputs.trials(), used, values @ change.T),
            inputs.initial(),
            values,
            used,
        )
        plain_input = UniformOperand(values, bits, SETTINGS)
        quantized = plain_input.quantized(plain_input.by_own_error())
        error = search.error([(values[0], quantized[0])])
        yield name, "weight", search, error, rows, search.weight, quantized[0].transpose(1, 2)


@torch.no_grad()
def _measured(
    site: str, label: str, operand: Operand | WeightSearch, error: CandidateError, start: Found, values: Tensor,
    other: Tensor,
) -> dict[str, object]:  # fmt: skip
    search = operand.improved if isinstance(operand, WeightSearch) else operand.searched
    begin = time.perf_counter()
    raced = search(error, start)
    seconds = time.perf_counter() - begin
    operand.settings = replace(operand.settings, search=replace(SETTINGS.search, race=False))
    whole = search(error, start)
    evaluations = 128 * 6 + (2 * 128 if isinstance(operand, LogOperand) else 0)
    direct = _direct_seconds(operand, start, values, other) * evaluations
    worst = float(
        (raced.error.sum() / whole.error.sum()) - 1 if label == "weight" else (raced.error / whole.error - 1).max()
    )
    return {
        "site": site, "operand": label, "seconds": round(seconds, 3), "direct_seconds": round(direct, 2),
        "ratio": round(direct / seconds, 1), "relative_error": worst,
    }  # fmt: skip


def _direct_seconds(operand: Operand | WeightSearch, start: Found, values: Tensor, other: Tensor) -> float:
    """Seconds for one candidate, evaluated as it would be without any algebra."""
    exact = values @ other
    best = float("inf")
    for _ in range(TIMED_CANDIDATES):
        begin = time.perf_counter()
        is_weight = isinstance(operand, WeightSearch)
        quantized = values + operand.change(start) if is_weight else operand.quantized(start)
        (quantized @ other - exact).square().sum()
        best = min(best, time.perf_counter() - begin)
    return best


if __name__ == "__main__":
    main()
