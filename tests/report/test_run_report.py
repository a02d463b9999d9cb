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
from tests.report import facts
from tests.report.facts import RECIPE, deit_tiny_metrics

from halfbyte.report.run import render_run

HOSTILE = "<script>alert(1)</script>\" onload='x' & https://evil.example/ \ud800\u202e\x00"


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


def _junk(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: [1, "x", None, {"y": []}] for key in facts}


# What a page is made of: metrics, findings, bench.
Parts = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
VARIANTS: dict[str, Callable[[], Parts]] = {
    "complete": lambda: (deit_tiny_metrics(), facts.findings(), facts.bench()),
    "metrics alone": lambda: (deit_tiny_metrics(), {}, {}),
    "not evaluated": lambda: (_without_measurements(), {}, {}),
    "empty": lambda: ({}, {}, {}),
    "only nulls": lambda: (
        dict.fromkeys(deit_tiny_metrics()),
        dict.fromkeys(facts.findings()),
        dict.fromkeys(facts.bench()),
    ),
    "wrong types": lambda: (_junk(deit_tiny_metrics()), _junk(facts.findings()), _junk(facts.bench())),
    "wrong types deeper": lambda: (deit_tiny_metrics(), *map(_spoilt, (facts.findings(), facts.bench()))),
    "hostile": lambda: (_hostile(deit_tiny_metrics()), _hostile(facts.findings()), _hostile(facts.bench())),
    "simulation": lambda: (deit_tiny_metrics() | {"paper_exact": True}, {}, {}),
    "training": lambda: (
        deit_tiny_metrics() | {"stages": {"shared": {"top1": 71.2, "steps": 900, "seconds": 61}}},
        {},
        {},
    ),
    "search": lambda: (deit_tiny_metrics() | {"steps": [{"step": "quantformer", "entropy": SETTLING}]}, {}, {}),
    "damaged search": lambda: (
        deit_tiny_metrics() | {"steps": [{"entropy": [[1], 2, [None, 3], ["a", "b"]]}]},
        {},
        {},
    ),
}


def _spoilt(value: Any, depth: int = 0) -> Any:
    """`value` with every number in it infinite, text or huge."""
    if isinstance(value, dict):
        return {key: _spoilt(item, depth + index) for index, (key, item) in enumerate(value.items())}
    if isinstance(value, list):
        return [_spoilt(item, depth + index) for index, item in enumerate(value)]
    return [math.inf, "x", 1e300, -1e300, math.nan, None][depth % 6] if isinstance(value, (int, float)) else value


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Parts:
    return VARIANTS[request.param]()


def render(parts: Parts, recipe: str = RECIPE) -> str:
    metrics, findings, bench = parts
    return render_run(metrics, recipe, findings, bench)


def test_a_search_is_drawn_to_its_end(read_page: Callable[..., Any]) -> None:
    text = read_page(render(VARIANTS["search"]())).text()
    assert "step 1,180" in text
    assert f"{SETTLING[-1][1]:.3f}" in text
    assert "Search for groups" not in read_page(render(VARIANTS["damaged search"]())).text()


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


def test_what_was_found_besides_the_metrics_is_on_the_page(read_page: Callable[..., Any]) -> None:
    page = read_page(render(VARIANTS["complete"]()))
    text = page.text()
    for fact in (
        "14.80 ms", "onnxruntime float 33.20 ms, 2.24× faster", "1.32× faster", "A processor",
        "15,898 of 50,000 images have another first class", "bird 3 87.0 %", "class 900 31.0 %",
        "Of 30 classes with images, 25 lost accuracy and 0 gained", "−12.0",
        "input: 4 bits, uniform, 16 levels, 0.02 % right of the drawing.", "weight: 4 bits, uniform, in codes",
        "12.5 % nearer to zero than the least level", "2⁻³", "where the class token looks",
        "similarity 0.812, zeros 41.5 %", "All 150 ranges as a table",
    ):  # fmt: skip
        assert fact in text, fact
    assert len(page.all("img")) == 12 + 3


def test_parts_that_are_not_known_have_no_heading(read_page: Callable[..., Any]) -> None:
    text = read_page(render(VARIANTS["metrics alone"]())).text()
    for heading in ("Speed", "Accuracy by class", "Changed predictions", "Ranges per site", "Values and levels"):
        assert heading not in text.splitlines()
    assert "Attention" not in text.splitlines()


def test_a_picture_from_elsewhere_is_left_out(read_page: Callable[..., Any]) -> None:
    findings = facts.findings()
    for row, address in zip(
        findings["changed"]["shown"],
        ("http://a.example/x.png", "data:image/svg+xml;base64,AAAA", "data:text/html,x", "file:///etc/passwd", 3, None),
        strict=False,
    ):
        row["picture"] = address
    page = read_page(render((deit_tiny_metrics(), findings, {})))
    assert len(page.all("img")) == 12 + 3 - 6


def test_every_site_has_a_bar_and_a_row(read_page: Callable[..., Any]) -> None:
    metrics = deit_tiny_metrics()
    page = read_page(render_run(metrics, RECIPE))
    tooltips = [text for tag, text in page.texts if tag == "title" and " bits" in text and "weights" not in text]
    names = [text for tag, text in page.texts if tag == "th"]
    for site in metrics["sites"]:
        assert sum(text.startswith(site["name"] + ": ") for text in tooltips) == 1
        assert site["name"] in names
    sized, timed = ("float", "artifact"), ("calibrate", "repq", "bias_correct")
    products = sum(site["role"] in ("qk", "pv") for site in metrics["sites"])
    columns = 2 * len(metrics["sites"]) - products
    assert len(page.all("rect")) == columns + len(metrics["sites"]) + len(sized + timed)


def test_the_five_lowest_sites_are_highlighted(read_page: Callable[..., Any]) -> None:
    metrics = deit_tiny_metrics()
    lowest = sorted(metrics["sites"], key=lambda site: site["sqnr_db"])[:5]
    page = read_page(render_run(metrics, RECIPE))
    sentence = next(text for tag, text in page.texts if tag == "p" and text.startswith("Lowest: "))
    assert [part.split(" (")[0] for part in sentence.removeprefix("Lowest: ").split(", ")] == [
        s["name"] for s in lowest
    ]
    assert sum(attributes.get("class") == "lowest" for attributes in page.all("g")) == 5


def test_the_page_is_well_formed(variant: Parts, read_page: Callable[..., Any]) -> None:
    source = render(variant)
    assert source.startswith("<!DOCTYPE html>\n")
    page = read_page(source)
    levels = [int(tag[1]) for tag, _, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_the_page_is_accessible(variant: Parts, read_page: Callable[..., Any]) -> None:
    page = read_page(render(variant))
    assert page.all("html") == [{"lang": "en"}]
    assert any(tag == "title" for tag, _ in page.texts)
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    outer = [attributes for tag, attributes, inside in page.elements if tag == "svg" and "svg" not in inside]
    assert all(drawing.get("role") == "img" and drawing.get("aria-label") for drawing in outer)
    assert all(frame.get("aria-label") for frame in page.all("pre"))
    assert all(picture.get("alt") for picture in page.all("img"))
    anchors = {heading["id"] for heading in page.all("h2")}
    assert len(anchors) == len(page.all("h2"))
    assert [link["href"] for link in page.all("a")] == [f"#{heading['id']}" for heading in page.all("h2")]


def test_the_page_refers_to_nothing_and_runs_nothing(variant: Parts, read_page: Callable[..., Any]) -> None:
    source = render(variant, RECIPE + "# https://example.org\n")
    assert len(source) < 1_500_000
    page = read_page(source)
    assert "http://" not in source
    assert "https://" not in source
    assert "url(" not in source
    assert "@import" not in source
    assert not {"script", "link", "base", "iframe", "object", "embed", "form", "image", "use"} & {
        tag for tag, _, _ in page.elements
    }
    for _, attributes, _ in page.elements:
        assert not any(name.startswith("on") or name in ("srcset", "action") for name in attributes)
        assert str(attributes.get("src", "data:image/")).startswith("data:image/")
        assert str(attributes.get("href", "#")).startswith("#")


def test_hostile_names_are_only_text(read_page: Callable[..., Any]) -> None:
    source = render(VARIANTS["hostile"](), HOSTILE)
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
    metrics["sites"].append({**facts.site("blocks.0.qwt.down", "side", 8, 8, 0.0), "sqnr_db": None})
    text = read_page(render_run(metrics, RECIPE)).text()
    for part in ("Size of compensation", "0.22 MB", "1.20 G", "1.26 G", "58.00 M", "3.71 G"):
        assert part in text, part
    plain = read_page(render_run(deit_tiny_metrics(), RECIPE)).text()
    assert "compensation" not in plain
    assert text.count("blocks.0.qwt.down") == 1


def test_a_trained_float_model_is_used_by_its_weights(read_page: Callable[..., Any]) -> None:
    text = read_page(render_run(deit_tiny_metrics() | {"bits": {"weight": 32, "activation": 32}}, RECIPE)).text()
    assert "halfbyte eval deit_tiny_distilled_patch16_224 --weights DIR/weights.safetensors" in text
    assert "halfbyte.load" not in text


def test_a_simulation_is_called_one(read_page: Callable[..., Any]) -> None:
    text = read_page(render_run(deit_tiny_metrics() | {"paper_exact": True}, RECIPE)).text()
    assert "Simulation only" in text
    assert "halfbyte eval DIR" in text
    assert not any(said in text for said in ("Engine(", "halfbyte bench", "halfbyte export"))
    assert "Simulation only" not in read_page(render_run(deit_tiny_metrics(), RECIPE)).text()


def test_a_site_of_200_db_is_exact(read_page: Callable[..., Any]) -> None:
    metrics = deit_tiny_metrics()
    metrics["sites"][0]["sqnr_db"] = 200.0
    metrics["seconds"] = {}
    page = read_page(render_run(metrics, RECIPE))
    assert any(text.startswith("patch_embed.proj: exact,") for tag, text in page.texts if tag == "title")
    assert ("text", "50") not in page.texts


def test_the_same_facts_give_the_same_page_and_stay_untouched() -> None:
    parts = VARIANTS["complete"]()
    before = copy.deepcopy(parts)
    page = render(parts)
    assert parts == before
    assert page == render(json.loads(json.dumps(parts)))


def test_the_report_needs_nothing_but_the_standard_library() -> None:
    heavy = "{'torch', 'timm', 'numpy', 'yaml'}"
    script = f"import sys, halfbyte.report.run, halfbyte.report.compare; print({heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "set()"
