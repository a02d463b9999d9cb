"""A step of quantized training against one of float training, side by side, and what VVTQ's regularizer adds.

    python benchmarks/training_throughput.py [MODEL] [--images N] [--steps N] --out FACTS.json

Random weights and pixels; the loss is the cross entropy, so no teacher runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from halfbyte.edits import Edit
from halfbyte.facts import environment
from halfbyte.families.describe import describe
from halfbyte.layers.attention import AttentionAdapter
from halfbyte.layers.site import WeightedSite
from halfbyte.prepare import model_state, prepare, site_module
from halfbyte.quantizers.lsq import LsqQuantizer, least_squares_step
from halfbyte.recipe import BitPlan
from halfbyte.steps.learned_steps import form_of
from halfbyte.train.bin_regularizer import bin_spread
from halfbyte.train.learned_quantization import LearnedQuantization


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="deit_tiny_patch16_224")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model(options.model, pretrained=False).eval()
    learned, weighted = _quantized(model)
    images, labels = torch.randn(options.images, 3, 224, 224), torch.randint(1000, (options.images,))
    optimizer = torch.optim.AdamW([*model.parameters(), *learned.steps, *learned.offsets], 1e-5)

    def step(observed: bool, regularizer: float = 0.0) -> None:
        optimizer.zero_grad(set_to_none=True)
        with model_state(model, "observe" if observed else "float", learned if observed else None):
            loss = F.cross_entropy(model(images), labels)
        if regularizer:
            loss = loss + regularizer * _spread(learned, weighted)
        loss.backward()
        optimizer.step()

    kinds: dict[str, Callable[[], None]] = {
        "float": lambda: step(False),
        "quantized": lambda: step(True),
        "quantized, regularizer": lambda: step(True, 0.01),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(options.steps + 1):
        # In turns, so that whatever else the machine does falls on all of them alike.
        for kind, run in kinds.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[kind].append(time.perf_counter() - start)
    best = {kind: min(found) for kind, found in seconds.items()}
    facts = {
        "model": options.model, "images": options.images, "threads": torch.get_num_threads(), "seconds": best,
        "throughput_of_float": best["float"] / best["quantized"],
        "cost_of_the_regularizer": best["quantized, regularizer"] / best["quantized"] - 1,
        "environment": environment(torch.device("cpu")),
    }  # fmt: skip
    options.out.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps({key: facts[key] for key in ("seconds", "throughput_of_float", "cost_of_the_regularizer")}))


def _quantized(model: nn.Module) -> tuple[LearnedQuantization, list[WeightedSite]]:
    """The model in VVTQ's scheme at 4 bits."""
    layout = prepare(model, describe(model), BitPlan())
    for path, module in list(model.named_modules()):
        if isinstance(module, AttentionAdapter):
            layout = Edit("split_qkv", {"attention": path}).apply(model, layout)
    sites = {site.name: site_module(model, site.name) for site in layout.sites}
    for site in layout.sites:
        module = sites[site.name]
        for operand in site.operands:
            if isinstance(module, WeightedSite) and operand == "weight":
                quantizer = LsqQuantizer(4)
                quantizer.set_step(least_squares_step(module.float_weight().detach(), 4))
            else:
                signed, shifted = form_of(model, site, operand)
                quantizer = LsqQuantizer(4, signed=signed, with_offset=shifted)
                quantizer.set_step(torch.tensor(0.2))
            module.set_quantizer(operand, quantizer)
    weighted = [module for module in sites.values() if isinstance(module, WeightedSite)]
    return LearnedQuantization(sites, "vvtq"), weighted


def _spread(learned: LearnedQuantization, weighted: list[WeightedSite]) -> Tensor:
    """The regularizer of all weights."""
    parts = []
    for site in weighted:
        weight = site.float_weight()
        multiplier = learned.multiplier(site.quantizer("weight"), "weight", weight)
        parts.append(bin_spread(weight, learned.step(site, "weight"), multiplier, 4))
    return torch.stack(parts).sum()


if __name__ == "__main__":
    main()
