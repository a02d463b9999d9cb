"""Several runs side by side: the front, the warnings, the refusals, and the page."""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from tests.report import facts
from tests.report.facts import deit_tiny_metrics

from halfbyte.errors import HalfbyteError
from halfbyte.report.compare import render_comparison
from halfbyte.report.comparison import LABELS, RunFacts, compare_runs, front
from halfbyte.report.run import render_run

HOSTILE = "<script>alert(1)</script>\" onload='x' & https://evil.example/ \ud800\u202e\x00"


def run(name: str, top1: float = 60.0, size: float = 3.6e6, milliseconds: float | None = 14.8) -> RunFacts:
    """A run on DeiT-Tiny, its sites the better the larger it is."""
    metrics, bench = deit_tiny_metrics(), facts.bench()
    metrics["quantized"]["top1"], metrics["bytes"]["artifact"] = top1, size
    for site in metrics["sites"]:
        site["sqnr_db"] += (size - 3.6e6) / 1e6 * len(site["name"]) / 10
    bench["rows"][-1]["milliseconds"] = milliseconds
    return RunFacts(name, metrics, facts.findings(), {} if milliseconds is None else bench)


def changed(made: RunFacts, **metrics: Any) -> RunFacts:
    return RunFacts(made.name, {**made.metrics, **metrics}, made.findings, made.bench)


def named(name: str, names: dict[int, str | None], without: int | None = None) -> RunFacts:
    """A run that calls classes by other names, and whose images have none of the class `without`."""
    found = facts.findings()
    found["classes"] = [{**entry, "name": names.get(entry["class"], entry["name"])}
                        for entry in found["classes"] if entry["class"] != without]  # fmt: skip
    return RunFacts(name, run(name).metrics, found, facts.bench())


def test_the_front_is_what_no_other_point_beats() -> None:
    generator = random.Random(0)
    for _ in range(200):
        costs = [generator.choice([1.0, 2.0, 3.0, 4.0, None]) for _ in range(6)]
        values = [generator.choice([50.0, 60.0, 70.0]) for _ in range(6)]
        for index, best in enumerate(front(costs, values)):
            others = [pair for pair in zip(costs, values, strict=True) if pair[0] is not None]
            cheaper = costs[index] is not None and not any(
                (cost < costs[index] and value >= values[index]) or (cost <= costs[index] and value > values[index])
                for cost, value in others
            )
            assert best == cheaper


def test_runs_have_letters_figures_and_their_place_on_the_front() -> None:
    found = compare_runs(
        [run("small", 55.0, 2.7e6, 12.0), run("worse", 54.0, 3.0e6, 13.0), run("good", 61.5, 3.6e6, 11.0)]
    )
    assert [row["label"] for row in found["runs"]] == ["A", "B", "C"]
    assert [row["front"] for row in found["runs"]] == [
        {"size": True, "speed": False}, {"size": False, "speed": False}, {"size": True, "speed": True},
    ]  # fmt: skip
    assert found["runs"][2]["milliseconds"] == 11.0
    assert found["warnings"] == []
    assert len(found["sites"]) == 75
    assert len(found["sites"][0]["runs"]) == 3
    assert found["classes"][3]["top1"] == [74.0, 74.0, 74.0]
    json.dumps(found, allow_nan=False)


def test_the_comparison_leaves_its_facts_alone() -> None:
    runs = [run("a"), run("b", 50.0)]
    before = copy.deepcopy(runs)
    assert render_comparison(compare_runs(runs)) == render_comparison(compare_runs(before))
    assert runs == before


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (changed(run("b"), model="deit_small"), "different models; only sites of the same name are compared"),
        (changed(run("b"), images={"evaluation": 200}), "no Pareto front: a (50,000 images), b (200"),
        (RunFacts("b", run("b").metrics, facts.findings() | {"images": "00" * 32}), "accuracies of different images"),
        (changed(run("b"), weights={"sha256": "00" * 32}), "different float weights; each agreement is with its own"),
        (changed(run("b"), images={"evaluation": 0}), "not evaluated, and so without accuracy: b"),
        (
            changed(run("b"), paper_exact=True),
            "a simulation (paper_exact), of which neither size nor speed can be had: b",
        ),
        (
            RunFacts("b", run("b").metrics),
            "no report.json, as of an earlier version, so that nothing is known of classes: b",
        ),
        (RunFacts("b", run("b").metrics), "accuracies perhaps of different images"),
        (
            named("b", {1: "other"}),
            "other names of class 1; perhaps they are not the same classes: a (bird 1), b (other)",
        ),
        (RunFacts("b", run("b").metrics, facts.findings(), facts.bench() | {"cpu": "Another"}), "times taken on other"),
    ],
)
def test_what_limits_a_comparison_is_said(other: RunFacts, said: str) -> None:
    found = compare_runs([run("a"), other])
    assert any(said in text for text in found["warnings"]), found["warnings"]
    assert said.partition(":")[0][1:] in render_comparison(found)


@pytest.mark.parametrize("other", [named("b", {}, without=0), named("b", {1: None})], ids=["absent", "without a name"])
def test_classes_that_only_one_run_has_or_names_are_no_other_classes(other: RunFacts) -> None:
    assert compare_runs([run("a"), other])["warnings"] == []


@pytest.mark.parametrize(
    ("change", "fronts", "same_images"),
    [
        ({"paper_exact": True}, [{"size": True, "speed": True}, {"size": False, "speed": False}], True),
        ({"images": {"evaluation": 8}}, [{"size": False, "speed": False}] * 2, False),
    ],
)
def test_what_cannot_be_had_or_weighed_is_on_no_front(change, fronts, same_images) -> None:
    found = compare_runs([run("a"), changed(run("b", 99.0, 1e6, 1.0), **change), run("c", 10.0, 9e6, 90.0)])
    assert [row["front"] for row in found["runs"]][:2] == fronts
    assert found["same_images"] == same_images
    page = render_comparison(found)
    assert ("on the front" in page, "Not drawn, as simulations" in page) == (same_images, same_images)


def test_what_differs_in_any_run_is_chosen_though_the_first_ones_are_drawn() -> None:
    runs = [run(name) for name in "abcde"]
    last = copy.deepcopy(runs[-1].metrics)
    last["sites"] = [{**site, "sqnr_db": 1.0 + number} for number, site in enumerate(last["sites"])]
    page = render_comparison(compare_runs([*runs[:-1], RunFacts("e", last, runs[-1].findings, runs[-1].bench)]))
    assert "Where runs differ most" in page
    many = [{**last["sites"][0], "name": f"site{number}"} for number in range(500)]
    page = render_comparison(compare_runs([changed(run("a"), sites=many), changed(run("b"), sites=many)]))
    assert "400 of 500 sites, those that differ most first, as a table" in page
    assert len(re.findall(">site[0-9]+<", page)) == 400
    # Those that one run has alone come behind all others.
    page = render_comparison(compare_runs([changed(run("a"), sites=many[:450]), changed(run("b"), sites=many[440:])]))
    assert "400 of 500 sites" in page
    listed = re.findall(">site([0-9]+)<", page.partition("those that differ most first")[2])
    assert sorted(map(int, listed[:10])) == list(range(440, 450))


def test_times_of_different_circumstances_are_not_drawn() -> None:
    other = RunFacts("b", run("b").metrics, facts.findings(), facts.bench() | {"isa": "portable"})
    found = compare_runs([run("a"), other])
    assert not found["same_timing"]
    assert [row["front"]["speed"] for row in found["runs"]] == [False, False]
    assert "Accuracy and speed" not in render_comparison(found)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(HalfbyteError, match=r"two runs or more; what one run came to is in its report\.html"):
        compare_runs([run("a")])
    with pytest.raises(HalfbyteError, match="at most 26"):
        compare_runs([run(str(number)) for number in range(27)])
    few = RunFacts("few", run("few").metrics, facts.findings() | {"outputs": 10})
    with pytest.raises(HalfbyteError, match="few tells 10 classes apart and b 1000"):
        compare_runs([run("a"), run("b"), few])


def test_sites_of_other_models_meet_by_name_and_role() -> None:
    swin = changed(run("b"), sites=[facts.site("head", "head", 8, 8, 30.0), facts.site("layers.0", "fc1", 4, 4, 9.0)])
    found = compare_runs([run("a"), swin])
    rows = {row["name"]: row["runs"] for row in found["sites"]}
    assert None not in rows["head"]
    assert rows["layers.0"] == [None, {"weight": 4, "activation": 4, "sqnr_db": 9.0}]
    assert rows["blocks.0.attn.qkv"][1] is None


def test_a_site_without_error_is_exact_and_no_measure_of_others(read_page: Callable[..., Any]) -> None:
    sites = [facts.site("head", "head", 8, 8, 30.0), facts.site("fc", "fc1", 4, 4, 20.44)]
    first = changed(run("a"), sites=sites)
    second = changed(run("b"), sites=[{**sites[0], "sqnr_db": 200.0}, {**sites[1], "sqnr_db": 23.36}])
    page = read_page(render_comparison(compare_runs([first, second])))
    rows = [text for tag, text in page.texts if tag in ("th", "td")]
    at = rows.index("head")
    assert rows[at : at + 7] == ["head", "classifier", "W8A8", "30.0", "W8A8", "exact", "–"]
    at = rows.index("fc")
    # The difference of what is printed, not 2.9.
    assert rows[at + 2 : at + 7] == ["W4A4", "20.4", "W4A4", "23.4", "+3.0"]
    assert "200" not in page.text().partition("Error per site")[2].partition("Accuracy by class")[0]


@pytest.mark.parametrize("of_one_run", [False, True])
def test_the_median_of_a_role_is_exact_only_where_more_than_half_of_its_sites_are(
    read_page: Callable[..., Any], of_one_run: bool
) -> None:
    sites = [facts.site(f"blocks.{number}", "fc1", 4, 4, ratio) for number, ratio in enumerate((30.0, 200.0))]
    runs = [changed(run(name), sites=sites) for name in "ab"]
    page = read_page(render_run(runs[0].metrics, "") if of_one_run else render_comparison(compare_runs(runs)))
    said = " ".join(page.text().split())
    assert "2 sites, median 30.0" in said if of_one_run else "fc1 A 30.0 B 30.0" in said


def test_names_of_runs_stay_as_they_are() -> None:
    page = render_comparison(compare_runs([run("a"), RunFacts("w4a4", run("w4a4").metrics)]))
    assert "W4a4" not in page
    assert "Class no " not in page


def test_classes_that_do_not_differ_are_said_so() -> None:
    assert "No class differs." in render_comparison(compare_runs([run("a"), run("b")]))
    few = facts.findings()
    few["classes"] = [{"class": 0, "name": "x", "images": 5, "float": 5, "quantized": 2}]
    more = {**few, "classes": [{**few["classes"][0], "quantized": 3}]}
    runs = [RunFacts(name, run(name).metrics, found) for name, found in (("a", few), ("b", more))]
    assert "No class that differs has 10 images" in render_comparison(compare_runs(runs))


PAGES: dict[str, Callable[[], list[RunFacts]]] = {
    "two": lambda: [run("a"), run("b", 50.0, 2.6e6, 12.0)],
    "many": lambda: [run(f"run {letter}", 50.0 + index, 2e6 + 1e5 * index) for index, letter in enumerate(LABELS)],
    "alike": lambda: [run("a"), run("b")],
    "not measured": lambda: [changed(run("a", milliseconds=None), quantized={}, bytes={}, sites=None)] * 2,
    "empty": lambda: [RunFacts("a", {}), RunFacts("b", {})],
    "wrong types": lambda: [
        RunFacts("a", *({key: [1, "x", None] for key in part()} for part in (deit_tiny_metrics, facts.findings))),
        run("b"),
    ],
    "hostile": lambda: [
        changed(run(HOSTILE), model=HOSTILE, recipe=HOSTILE, sites=[facts.site(HOSTILE, HOSTILE, 4, 4, 3.0)]), run("b")
    ],
    "no numbers": lambda: [
        changed(run("a"), sites=[facts.site("head", "head", 8, 8, math.nan)], bytes={"artifact": math.inf}), run("b")
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_well_formed_safe_and_accessible(name: str, read_page: Callable[..., Any]) -> None:
    source = render_comparison(compare_runs(PAGES[name]()))
    source.encode("utf-8")
    assert len(source) < 1_500_000
    assert "http://" not in source
    assert "https://" not in source
    assert "<script" not in source
    page = read_page(source)
    levels = [int(tag[1]) for tag, _, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    outer = [attributes for tag, attributes, inside in page.elements if tag == "svg" and "svg" not in inside]
    assert all(drawing.get("role") == "img" and drawing.get("aria-label") for drawing in outer)
    assert "nan" not in page.text().lower().split()
    drawn = [float(str(value).rstrip("%")) for dot in page.all("circle") for value in (dot["cx"], dot["cy"])]
    assert all(math.isfinite(value) for value in drawn)


def test_the_facts_are_on_the_page(read_page: Callable[..., Any]) -> None:
    runs = [run("small", 55.0, 2.6e6, 12.0), run("good", 61.5, 3.6e6, 14.0), run("bad", 50.0, 3.7e6, 20.0)]
    text = read_page(render_comparison(compare_runs(runs))).text()
    for fact in (
        "3 runs", "55.00 %", "−19.50 points", "2.60 MB", "12.00 ms", "size, speed", "dashed: float, 74.50",
        "artifact, MB", "Median by role", "blocks.10.attn.proj", "All 75 sites as a table", "W4A4", "bird 7",
    ):  # fmt: skip
        assert fact in text, fact


def test_two_runs_have_their_difference_in_the_tables(read_page: Callable[..., Any]) -> None:
    text = read_page(render_comparison(compare_runs(PAGES["two"]()))).text()
    assert "B − A, dB" in text
    # 2.6 MB against 3.6: a site whose name has 17 letters is 1.7 dB worse.
    assert "−1.7" in text
