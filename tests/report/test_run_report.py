"""The page of one run: complete, safe, self-contained, accessible, and the same for the same facts."""

from __future__ import annotations

import copy
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from halfbyte.report.run import render_run

RECIPE = """\
name: repq
bits: {weight: 4, activation: 4, roles: {stem: 8, head: 8}}
paper_exact: false
steps:
  - calibrate: {method: percentile, images: 32}
  - repq: {images: 32}
  - bias_correct: {}
"""
HOSTILE = "<script>alert(1)</script>\" onload='x' & https://evil.example/ \ud800\u202e\x00"


def _site(name: str, role: str, weight: int | None, activation: int | list[int], sqnr: float) -> dict[str, Any]:
    return {"name": name, "role": role, "bits": {"weight": weight, "activation": activation}, "sqnr_db": sqnr}


def deit_tiny_metrics() -> dict[str, Any]:
    """A run on DeiT-Tiny with both its heads: 75 sites, numbers of a realistic size."""
    sites = [_site("patch_embed.proj", "stem", 8, 8, 38.412)]
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
            sites.append(_site(f"blocks.{block}.{name}", role, None if product else 4, [4, 4] if product else 4, ratio))
    sites += [_site("head", "head", 8, 8, 34.03), _site("head_dist", "head", 8, 8, 33.481)]
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


def _without_measurements() -> dict[str, Any]:
    metrics = deit_tiny_metrics()
    for part in ("float", "quantized", "bytes", "operations", "seconds"):
        metrics[part] = dict.fromkeys(metrics[part])
    metrics["images"]["evaluation"] = metrics["peak_rss_bytes"] = None
    for site in metrics["sites"]:
        site["sqnr_db"] = None
    return metrics


def _hostile(value: Any) -> Any:
    """`value` with every string and every key of an open-ended mapping replaced by a hostile one."""
    if isinstance(value, dict):
        known = {key: _hostile(item) for key, item in value.items()}
        return known | {HOSTILE: HOSTILE}
    if isinstance(value, list):
        return [_hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


# Entropies behind the steps of a search: more than a chart has rows.
SETTLING = [[20 * number, 0.25 * 0.9**number] for number in range(60)]

VARIANTS: dict[str, Callable[[], dict[str, Any]]] = {
    "complete": deit_tiny_metrics,
    "not evaluated": _without_measurements,
    "empty": dict,
    "only nulls": lambda: dict.fromkeys(deit_tiny_metrics()),
    "wrong types": lambda: {key: [1, "x", None, {"y": []}] for key in deit_tiny_metrics()},
    "hostile": lambda: _hostile(deit_tiny_metrics()),
    "simulation": lambda: deit_tiny_metrics() | {"paper_exact": True},
    "training": lambda: deit_tiny_metrics() | {"stages": {"shared": {"top1": 71.2, "steps": 900, "seconds": 61}}},
    "search": lambda: deit_tiny_metrics() | {"steps": [{"step": "quantformer", "entropy": SETTLING}]},
    "damaged search": lambda: deit_tiny_metrics() | {"steps": [{"entropy": [[1], 2, [None, 3], ["a", "b"]]}]},
}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    return VARIANTS[request.param]()


def test_a_search_is_drawn_to_its_end(read_page: Callable[..., Any]) -> None:
    text = read_page(render_run(VARIANTS["search"](), RECIPE)).text()
    assert "step 1,180" in text
    assert f"{SETTLING[-1][1]:.3f}" in text
    assert "Search for groups" not in read_page(render_run(VARIANTS["damaged search"](), RECIPE)).text()


def test_the_facts_are_on_the_page(read_page: Callable[..., Any]) -> None:
    page = read_page(render_run(deit_tiny_metrics(), RECIPE))
    text = page.text()
    for fact in (
        "deit_tiny_distilled_patch16_224", "repq, W4A4",
        "60.12 %", "float 74.50 %, −14.38 points", "82.96 %", "68.20 %", "0.7262",
        "3.62 MB", "float 23.64 MB, 6.5× smaller", "1.26 G", "24.31 G", "2 min 30 s", "1 h 02 min", "2.31 GB",
        "50,000", "deit_tiny_distilled_patch16_224.fb_in1k", "9f0e5d6c", "broken.JPEG",
        "99.86 % of the multiply-accumulates (MACs) belong to quantized sites",
        "aten.bmm", "blocks.0.attn.rel_pos", "1.74 M",
        "bias_correct: {}", "Linux-6.1.0-x86_64", 'halfbyte.load("DIR")', "halfbyte eval DIR --val",
    ):  # fmt: skip
        assert fact in text, fact
    assert ("title", "deit_tiny_distilled_patch16_224, repq, W4A4: Halfbyte") in page.texts


def test_every_site_has_a_bar_and_a_row(read_page: Callable[..., Any]) -> None:
    metrics = deit_tiny_metrics()
    page = read_page(render_run(metrics, RECIPE))
    tooltips = [text for tag, text in page.texts if tag == "title"][1:]
    names = [text for tag, text in page.texts if tag == "th"]
    for site in metrics["sites"]:
        assert sum(text.startswith(site["name"] + ": ") for text in tooltips) == 1
        assert site["name"] in names
    assert len(page.all("rect")) == len(tooltips) == len(metrics["sites"]) + len(("float", "artifact"))


def test_the_five_lowest_sites_are_highlighted(read_page: Callable[..., Any]) -> None:
    metrics = deit_tiny_metrics()
    lowest = sorted(metrics["sites"], key=lambda site: site["sqnr_db"])[:5]
    page = read_page(render_run(metrics, RECIPE))
    sentence = next(text for tag, text in page.texts if tag == "p" and text.startswith("Lowest: "))
    assert [part.split(" (")[0] for part in sentence.removeprefix("Lowest: ").split(", ")] == [
        s["name"] for s in lowest
    ]
    assert sum(attributes.get("class") == "lowest" for attributes in page.all("g")) == 5


def test_the_page_is_well_formed(variant: dict[str, Any], read_page: Callable[..., Any]) -> None:
    source = render_run(variant, RECIPE)
    assert source.startswith("<!DOCTYPE html>\n")
    page = read_page(source)
    levels = [int(tag[1]) for tag, _, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_the_page_is_accessible(variant: dict[str, Any], read_page: Callable[..., Any]) -> None:
    page = read_page(render_run(variant, RECIPE))
    assert page.all("html") == [{"lang": "en"}]
    assert any(tag == "title" for tag, _ in page.texts)
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    assert all(drawing.get("role") == "img" and drawing.get("aria-label") for drawing in page.all("svg"))
    assert all(frame.get("aria-label") for frame in page.all("pre"))


def test_the_page_refers_to_nothing_and_runs_nothing(variant: dict[str, Any], read_page: Callable[..., Any]) -> None:
    source = render_run(variant, RECIPE + "# https://example.org\n")
    page = read_page(source)
    assert "http://" not in source
    assert "https://" not in source
    assert "url(" not in source
    assert "@import" not in source
    assert not {"script", "link", "base", "iframe", "object", "embed", "img", "form", "a", "image", "use"} & {
        tag for tag, _, _ in page.elements
    }
    for _, attributes, _ in page.elements:
        assert not any(name.startswith("on") or name in ("src", "href", "srcset", "action") for name in attributes)


def test_hostile_names_are_only_text(read_page: Callable[..., Any]) -> None:
    source = render_run(_hostile(deit_tiny_metrics()), HOSTILE)
    assert "<script" not in source
    assert not {"\ud800", "\u202e", "\x00"} & set(source)
    source.encode("utf-8")
    shown = "<script>alert(1)</script>\" onload='x' & https://evil.example/ \ufffd\ufffd\ufffd"
    assert ("code", shown) in read_page(source).texts
    assert ("th", shown) in read_page(source).texts


def test_what_was_not_measured_is_said_so(read_page: Callable[..., Any]) -> None:
    text = read_page(render_run(_without_measurements(), RECIPE)).text()
    assert "The quantized model was not evaluated" in text
    assert "The error of single sites was not measured." in text
    assert "None" not in text
    assert "nan" not in text.split()


def test_a_site_without_a_measurement_keeps_its_place(read_page: Callable[..., Any]) -> None:
    metrics = deit_tiny_metrics()
    metrics["sites"][0]["sqnr_db"] = None
    metrics["sites"][1]["sqnr_db"] = math.inf
    metrics["sites"][2]["sqnr_db"] = -1e308
    page = read_page(render_run(metrics, RECIPE))
    tooltips = [text for tag, text in page.texts if tag == "title"]
    assert any(text.startswith("patch_embed.proj: not measured,") for text in tooltips)
    assert any(text.startswith("blocks.0.attn.qkv: exact,") for text in tooltips)
    assert all("nan" not in str(bar["width"]) and "inf" not in str(bar["width"]) for bar in page.all("rect"))


def test_all_files_have_a_size_of_their_own_where_it_is_known(read_page: Callable[..., Any]) -> None:
    metrics = deit_tiny_metrics()
    assert "Size of all files \u2013 3.70 MB" in " ".join(read_page(render_run(metrics, RECIPE)).text().split())
    del metrics["bytes"]["shipped"]
    assert "Size of all files" not in read_page(render_run(metrics, RECIPE)).text()


def test_compensation_has_its_own_costs_and_no_bars(read_page: Callable[..., Any]) -> None:
    metrics = deit_tiny_metrics()
    metrics["bytes"]["side"] = 224_000
    metrics["operations"] |= {"side_macs": 58_000_000, "side_bit_operations": 3_712_000_000}
    metrics["sites"].append({**_site("blocks.0.qwt.down", "side", 8, 8, 0.0), "sqnr_db": None})
    text = read_page(render_run(metrics, RECIPE)).text()
    for part in ("Size of compensation", "0.22 MB", "1.20 G", "1.26 G", "58.00 M", "3.71 G"):
        assert part in text, part
    plain = read_page(render_run(deit_tiny_metrics(), RECIPE)).text()
    assert "compensation" not in plain
    assert text.count("blocks.0.qwt.down") == 1


def test_a_simulation_is_called_one(read_page: Callable[..., Any]) -> None:
    assert "Simulation only" in read_page(render_run(deit_tiny_metrics() | {"paper_exact": True}, RECIPE)).text()
    assert "Simulation only" not in read_page(render_run(deit_tiny_metrics(), RECIPE)).text()


def test_a_site_of_200_db_is_exact(read_page: Callable[..., Any]) -> None:
    metrics = deit_tiny_metrics()
    metrics["sites"][0]["sqnr_db"] = 200.0
    page = read_page(render_run(metrics, RECIPE))
    assert any(text.startswith("patch_embed.proj: exact,") for tag, text in page.texts if tag == "title")
    assert ("text", "50") not in page.texts


def test_the_same_facts_give_the_same_page_and_stay_untouched() -> None:
    metrics = deit_tiny_metrics()
    before = copy.deepcopy(metrics)
    page = render_run(metrics, RECIPE)
    assert metrics == before
    assert page == render_run(json.loads(json.dumps(metrics)), RECIPE)


def test_the_report_needs_nothing_but_the_standard_library() -> None:
    script = "import sys, halfbyte.report.run; print({'torch', 'timm', 'numpy', 'yaml'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "set()"
