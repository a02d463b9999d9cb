"""How much longer a quantized model takes in simulation than the float one, side by side in one run.

    python benchmarks/simulation_cost.py deit_tiny_patch16_224 --weights FILE

Each repetition times both models once, so that a busy machine disturbs both alike; the table gives the median ratio.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from halfbyte.facts import environment
from halfbyte.families.describe import describe
from halfbyte.layers.site import SiteModule
from halfbyte.models.load import load_model
from halfbyte.prepare import model_state, prepare
from halfbyte.quantizers.log import LogSqrt2Quantizer
from halfbyte.recipe import BitPlan
from halfbyte.steps.repq import fit


def seconds(model: nn.Module, images: torch.Tensor) -> float:
    start = time.perf_counter()
    model(images)
    return time.perf_counter() - start


def calibrated(model: nn.Module, bits: int, images: torch.Tensor) -> nn.Module:
    """A copy of `model` with the quantizers of `repq` at one width, calibrated on `images`."""
    model = copy.deepcopy(model)
    layout = prepare(model, describe(model), BitPlan(bits, bits))
    for site in layout.sites:
        if site.role == "pv":
            model.get_submodule(site.name).set_quantizer("left", LogSqrt2Quantizer(bits))

    def observe(module: SiteModule, operand: str, x: torch.Tensor) -> torch.Tensor:
        quantizer = module.quantizer(operand)
        if not quantizer.fitted:
            fit(quantizer, x, (0.9999,))
        return quantizer(x)

    with model_state(model, "observe", observe):
        model(images)
    return model


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="fashion_vit")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4, 6, 8])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    loaded = load_model(arguments.model, arguments.weights)
    torch.manual_seed(0)
    images = torch.randn(arguments.batch_size, *loaded.data_config["input_size"])
    rows = []
    for bits in arguments.bits:
        quantized = calibrated(loaded.model, bits, images)
        with model_state(quantized, "quantized"):
            seconds(loaded.model, images), seconds(quantized, images)
            pairs = [(seconds(loaded.model, images), seconds(quantized, images)) for _ in range(arguments.repetitions)]
        medians = [statistics.median(times) for times in zip(*pairs, strict=True)]
        ratio = statistics.median(quantized_time / float_time for float_time, quantized_time in pairs)
        names = ("float_seconds", "quantized_seconds", "ratio")
        rows.append({"bits": bits, **dict(zip(names, (round(value, 4) for value in (*medians, ratio)), strict=True))})
        print(rows[-1], flush=True)
    facts = {"model": loaded.source.architecture, "batch_size": arguments.batch_size, "rows": rows,
             "environment": environment(torch.device("cpu"))}  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
