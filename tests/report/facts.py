"""Facts of realistic size and shape for the tests of pages."""

from __future__ import annotations

import math
from typing import Any

RECIPE = """\
name: repq
bits: {weight: 4, activation: 4, roles: {stem: 8, head: 8}}
paper_exact: false
steps:
  - calibrate: {method: percentile, images: 32}
  - repq: {images: 32}
  - bias_correct: {}
"""
# The smallest picture that there is.
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def site(name: str, role: str, weight: int | None, activation: int | list[int], sqnr: float) -> dict[str, Any]:
    """A row of `sites` in metrics.json."""
    return {"name": name, "role": role, "bits": {"weight": weight, "activation": activation}, "sqnr_db": sqnr}


def deit_tiny_metrics() -> dict[str, Any]:
    """A run on DeiT-Tiny with both its heads: 75 sites, numbers of a realistic size."""
    sites = [site("patch_embed.proj", "stem", 8, 8, 38.412)]
    for block in range(12):
        wave = 1.7 * math.sin(2.3 * block)
        for name, role, base, slope in (
            ("attn.qkv", "qkv", 20.5, -0.18),
            ("attn.qk", "qk", 17.9, -0.11),
            ("attn.pv", "pv", 15.2, -0.35),
            ("attn.proj", "proj", 18.8, -0.27),
            ("mlp.fc1", "fc1", 19.6, -0.22),
            ("mlp.fc2", "fc2", 14.1, -0.48),
        ):
            product = role in ("qk", "pv")
            ratio = base + slope * block + wave * (1.6 if role == "fc2" else 1.0)
            sites.append(site(f"blocks.{block}.{name}", role, None if product else 4, [4, 4] if product else 4, ratio))
    sites += [site("head", "head", 8, 8, 34.03), site("head_dist", "head", 8, 8, 33.481)]
    return {
        "schema": 1,
        "model": "deit_tiny_distilled_patch16_224",
        "weights": {
            "source": "timm",
            "tag": "deit_tiny_distilled_patch16_224.fb_in1k",
            "sha256": "9f0e5d6c1c7a45e1b0a6f1f1f40f3c4f4b1d1a39b4a3dfb0d3d4dbd7d1c0a5e2",
        },
        "recipe": "repq",
        "bits": {"weight": 4, "activation": 4},
        "images": {"calibration": 32, "evaluation": 50000},
        "float": {"top1": 74.504, "top5": 91.89},
        "quantized": {"top1": 60.118, "top5": 82.956, "agreement": 68.204, "kl": 0.72618},
        "bytes": {"float": 23_643_200, "artifact": 3_618_816, "shipped": 3_703_912},
        "operations": {"macs": 1_258_000_000, "bit_operations": 24_310_000_000},
        "seconds": {"calibrate": 21.37, "repq": 118.92, "bias_correct": 9.446, "evaluate": 3722.5, "total": 149.736},
        "peak_rss_bytes": 2_310_115_328,
        "sites": sites,
        "coverage": {
            "quantized_macs_percent": 99.862,
            "float": [
                {"operation": "aten.convolution", "where": "patch_embed.norm", "macs": None},
                {"operation": "aten.bmm", "where": "blocks.0.attn.rel_pos", "macs": 1_742_400},
            ],
        },
        "environment": {
            "halfbyte": "0.1.0", "python": "3.11.7", "torch": "2.15.0", "timm": "1.0.31",
            "platform": "Linux-6.1.0-x86_64-with-glibc2.36", "processor": "x86_64, 2 cores", "threads": 2,
        },
        "skipped_images": {"calibration": [], "evaluation": ["n01440764/broken.JPEG"]},
    }  # fmt: skip


def findings(classes: int = 30) -> dict[str, Any]:
    """What `report.json` holds: ranges of every site's operands, both kinds of histograms, two attention maps."""
    return {
        "schema": 1,
        "outputs": 1000,
        "images": "5f" * 32,
        "classes": [
            {"class": label, "name": f"bird {label}", "images": 50, "float": 40, "quantized": 40 - label % 7}
            for label in range(classes)
        ],
        "changed": {"count": 15_898, "of": 50_000, "shown": [_changed(number) for number in range(12)]},
        "ranges": [entry for row in deit_tiny_metrics()["sites"] for entry in _ranges(row)],
        "histograms": [
            histogram("blocks.10.mlp.fc2", "fc2", "input"),
            histogram("blocks.10.mlp.fc2", "fc2", "weight", codes=True, low=-1.2, high=16.2, levels=list(range(16))),
            histogram(
                "blocks.11.attn.pv", "pv", "left", kind="log_sqrt2", logarithmic=True, low=-8.3, high=-0.4, below=12.5,
                levels=[-7.9 + 0.5 * index for index in range(15)],
            ),
            histogram("head", "head", "weight", bits=8, low=-2.0, high=258.0, levels=list(range(256))),
        ],
        "attention": [
            {"site": "blocks.11.attn.pv", "kind": "class token", "images": [_maps(14, 14), _maps(14, 14)]},
            {"site": "blocks.0.attn.pv", "kind": "queries and keys", "images": [_maps(28, 28)]},
        ],
    }  # fmt: skip


def _changed(number: int) -> dict[str, Any]:
    return {
        "image": f"n0144{number:04}/a.JPEG", "class": number, "name": f"bird {number}", "picture": PICTURE,
        "float": {"class": number, "name": f"bird {number}", "probability": 0.9 - 0.01 * number},
        "quantized": {"class": 900, "name": None, "probability": 0.31},
    }  # fmt: skip


def _ranges(row: dict[str, Any]) -> list[dict[str, Any]]:
    operands = ("left", "right") if row["role"] in ("qk", "pv") else ("input", "weight")
    return [
        {"site": row["name"], "role": row["role"], "operand": operand, "bits": 4, "kind": "uniform", "least": -4.1,
         "low": -2.5, "high": 2.9, "largest": 6.3 + index, "clipped": 0.004 * index}
        for index, operand in enumerate(operands)
    ]  # fmt: skip


def histogram(site: str, role: str, operand: str, **changed: Any) -> dict[str, Any]:
    """A row of `histograms`, bell-shaped."""
    shares = [5.5 * math.exp(-(((bar - 28) / 12) ** 2)) for bar in range(56)]
    plain = {
        "site": site, "role": role, "operand": operand, "bits": 4, "kind": "uniform", "codes": False, "shift": 0.0,
        "logarithmic": False, "low": -3.2, "high": 3.4, "below": 0.0, "above": 0.02, "shares": shares,
        "levels": [-2.5 + 0.36 * index for index in range(16)],
    }  # fmt: skip
    return plain | changed


def _maps(rows: int, columns: int) -> dict[str, Any]:
    cells = [[0.01 * ((y * 7 + x * 3) % 11) for x in range(columns)] for y in range(rows)]
    return {
        "picture": PICTURE, "float": cells, "quantized": [row[::-1] for row in cells], "similarity": 0.8123,
        "zeros": 41.5,
    }  # fmt: skip


def bench() -> dict[str, Any]:
    """What `bench.json` holds."""
    times = {"torch eager": 41.9, "onnxruntime float": 33.2, "onnxruntime int8 static": 19.6, "native": 14.8}
    rows = [
        {"engine": engine, "threads": 1, "batch_size": 1, "milliseconds": spent, "images_per_second": 1000 / spent}
        for engine, spent in times.items()
    ]
    return {"schema": 1, "model": "deit", "isa": "avx2", "cpu": "A processor", "rounds": 9, "rows": rows}
