"""Facts about a run for its metrics: sizes, operations, sites, machine."""

from __future__ import annotations

import os
import platform
import resource
import sys
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from halfbyte.families.layout import Layout, Site
from halfbyte.layers.compensation import HalfBranch
from halfbyte.layers.site import WeightedSite
from halfbyte.prepare import site_module
from halfbyte.quantizers.base import Quantizer
from halfbyte.quantizers.packing import packed_size
from halfbyte.quantizers.uniform import UniformQuantizer

FLOAT_BITS, HALF_BITS = 32, 16


def operations(model: nn.Module, layout: Layout, coverage: dict[str, Any]) -> dict[str, int]:
    """Multiply-accumulates for one image, and bit operations: each times the bits of both operands (32 in float).

    `side_macs` and `side_bit_operations` are the part of what stands beside the blocks.
    """
    total = side = side_bits = 0
    for site in layout.sites:
        first, second = site_bits(model, site)
        total += site.macs * first * second
        if site.role == "side":
            side, side_bits = side + site.macs, side_bits + site.macs * first * second
    for entry in coverage["float"]:
        bits = FLOAT_BITS
        if isinstance(model.get_submodule(entry["where"]), HalfBranch):
            bits = HALF_BITS
            side, side_bits = side + entry["macs"], side_bits + entry["macs"] * bits**2
        total += entry["macs"] * bits**2
    return {"macs": int(coverage["macs"]), "bit_operations": int(total),
            "side_macs": int(side), "side_bit_operations": int(side_bits)}  # fmt: skip


def site_bits(model: nn.Module, site: Site) -> tuple[int, int]:
    """The bits of a site's weight and activation; of its two operands where both are activations."""
    module = site_module(model, site.name)
    first, second = (module.quantizer(operand).bits for operand in reversed(site.operands))
    return first, second


def describe_sites(model: nn.Module, layout: Layout, known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a site: name, role, bits, granularity of both operands, bytes of the packed weight, SQNR where known."""
    by_name = {entry["name"]: entry for entry in known}
    rows = []
    for site in layout.sites:
        module = site_module(model, site.name)
        row: dict[str, Any] = {"name": site.name, "role": site.role, "macs": site.macs, "bytes": 0}
        for operand in site.operands:
            quantizer = getattr(module, f"{operand}_quantizer", None)
            row[operand] = granularity(quantizer) if isinstance(quantizer, Quantizer) else None
        if isinstance(module, WeightedSite):
            stored = module.weight if module.weight is not None else module.weight_codes
            assert stored is not None
            quantized = getattr(module, "weight_quantizer", None)
            row["bytes"] = packed_size(stored.numel(), quantized.bits if quantized is not None else FLOAT_BITS)
        row["sqnr_db"] = by_name.get(site.name, {}).get("sqnr_db")
        rows.append(row)
    return rows


def granularity(quantizer: Quantizer) -> str:
    """A quantizer in a few words: bits, the kind where it is not uniform, and what has its own scale."""
    if not isinstance(quantizer, UniformQuantizer):
        return f"{quantizer.bits} {quantizer.kind}"
    shared = {None: "per_tensor", 1: "per_head"}.get(quantizer.axis, "per_channel")
    return f"{quantizer.bits} {shared}"


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and the machine; no names, paths or times."""
    return {
        "halfbyte": version("halfbyte"), "python": platform.python_version(), "torch": version("torch"),
        "timm": version("timm"), "numpy": version("numpy"), "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }  # fmt: skip


def peak_rss_bytes() -> int:
    """The largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _processor() -> str:
    return f"{platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
