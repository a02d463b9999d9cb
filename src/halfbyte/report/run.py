"""The report of one run: its metrics and its recipe as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbyte.report import charts, wording
from halfbyte.report.accuracy import accuracy_section, summary
from halfbyte.report.attention import attention_section
from halfbyte.report.bits import bits_section
from halfbyte.report.facts import mapping, number, records
from halfbyte.report.histograms import histograms_section
from halfbyte.report.markup import Html, element, escape, lines
from halfbyte.report.page import Column, code_block, contents, details, document, paragraph, section, table
from halfbyte.report.predictions import changed_section, classes_section
from halfbyte.report.ranges import ranges_section
from halfbyte.report.sites import sites_section
from halfbyte.report.speed import speed_section
from halfbyte.report.training import training_section

_FOLDED_ROWS = 12
_USE = """\
import halfbyte

model = halfbyte.load("DIR")
logits = model(images)  # [B, C, H, W], prepared as model.pretrained_cfg says
"""
_USE_ENGINE = """\
from halfbyte.runtime import Engine

logits = Engine("DIR")(images)  # NumPy arrays, float32
"""
_FLOAT_BITS = 32
_USE_WEIGHTS = """\
halfbyte eval {model} --weights DIR/weights.safetensors
halfbyte quantize {model} --weights DIR/weights.safetensors
"""
_USE_SIMULATION = "halfbyte eval DIR --val IMAGES\n"
_USE_COMMANDS = """\
halfbyte eval DIR --val IMAGES
halfbyte bench DIR
halfbyte export DIR --to onnx --out model.onnx --verify
"""


def render_run(
    metrics: Mapping[str, Any],
    recipe_yaml: str,
    findings: Mapping[str, Any] | None = None,
    bench: Mapping[str, Any] | None = None,
) -> str:
    """One complete HTML page from the contents of `metrics.json`, `recipe.yaml`, `report.json` and `bench.json`.

    Any fact may be missing or None, and facts it does not know are passed over. The page refers to nothing outside
    itself and carries no time of its own: the same facts give the same text.
    """
    model = wording.anything(metrics.get("model"))
    method = method_of(metrics)
    found, timed = findings or {}, bench or {}
    sections = (
        accuracy_section(metrics),
        speed_section(timed),
        classes_section(found),
        changed_section(found),
        sites_section(metrics),
        bits_section(metrics),
        ranges_section(found),
        histograms_section(found),
        attention_section(found),
        _coverage(metrics),
        _time_and_memory(metrics),
        training_section(metrics),
        _steps(metrics),
        section("Recipe", code_block("Recipe", "\n".join(recipe_yaml.splitlines()))),
        _weights_and_images(metrics),
        _environment(metrics),
        _use(metrics),
    )
    return document(
        f"{model}, {method}: Halfbyte",
        lines(element("h1", escape(f"{model} "), element("span", escape(method))), contents(*sections)),
        _caution(metrics),
        summary(metrics, timed),
        *sections,
    )


def method_of(metrics: Mapping[str, Any]) -> str:
    """The recipe and the widths of a run."""
    bits = mapping(metrics.get("bits"))
    budget = None if metrics.get("budget") is None else wording.anything(metrics["budget"])
    widths = wording.bit_widths(number(bits.get("weight")), number(bits.get("activation")), budget)
    return f"{wording.anything(metrics.get('recipe'))}, {widths}"


def _caution(metrics: Mapping[str, Any]) -> Html:
    """Numbers of a simulation must not be taken for those of an integer model."""
    if metrics.get("paper_exact") is not True:
        return Html("")
    return paragraph(
        "Simulation only: this run repeats what the paper's code did (paper_exact), which integers cannot always "
        "follow. Export and the native engine refuse its artifact."
    )


def _weights_and_images(metrics: Mapping[str, Any]) -> Html:
    weights, images = mapping(metrics.get("weights")), mapping(metrics.get("images"))
    rows = [
        ("Model", wording.anything(metrics.get("model"))),
        ("Weights", wording.anything(weights.get("source"))),
        ("Tag", wording.anything(weights.get("tag"))),
        ("SHA-256 of the weights", wording.anything(weights.get("sha256"))),
        ("Calibration images", wording.count(number(images.get("calibration")))),
        ("Evaluation images", wording.count(number(images.get("evaluation")))),
    ]
    skipped = {use: names for use, names in mapping(metrics.get("skipped_images")).items() if names}
    return section(
        "Weights and images",
        _listing("Weights and images", rows),
        details("Unreadable images that were skipped", _pairs("Skipped images", skipped)) if skipped else Html(""),
    )


def _coverage(metrics: Mapping[str, Any]) -> Html:
    coverage = mapping(metrics.get("coverage"))
    share = number(coverage.get("quantized_macs_percent"))
    left = sorted(records(coverage.get("float")), key=lambda entry: -(number(entry.get("macs")) or 0.0))
    integer = (
        ""
        if share is None
        else f"{wording.percent(share)} of the multiply-accumulates (MACs) belong to quantized sites. "
    )
    heading = "Arithmetic left in float"
    counted = "Counted are matrix products, convolutions and fused attention; norms, softmax and activations are not."
    if not coverage:
        return section(heading, paragraph("Coverage was not recorded."))
    if not left:
        return section(heading, paragraph(f"{integer}None was found outside of them. {counted}"))
    macs = sum(number(entry.get("macs")) or 0.0 for entry in left)
    found = "operation" if len(left) == 1 else "operations"
    text = f"{integer}{len(left):,} {found} stayed in float: {wording.magnitude(macs)} MACs per image. {counted}"
    columns = (Column("Operation", "code"), Column("Where", "code"), Column("MACs per image", "number"))
    rows = [
        (
            wording.anything(entry.get("operation")),
            wording.anything(entry.get("where")),
            wording.magnitude(number(entry.get("macs"))),
        )
        for entry in left
    ]
    listing = table(heading, columns, rows)
    return section(heading, paragraph(text), details("All of them", listing) if len(rows) > _FOLDED_ROWS else listing)


def _time_and_memory(metrics: Mapping[str, Any]) -> Html:
    seconds = mapping(metrics.get("seconds"))
    total = number(seconds.get("total"))
    spent = {str(step): number(value) for step, value in seconds.items() if step not in ("evaluate", "total")}
    rows = []
    for step, value in spent.items():
        share = f"{100 * value / total:.1f}\u00a0%" if value is not None and total else wording.NOT_APPLICABLE
        rows.append((step, wording.duration(value), share))
    rows.append(("All steps", wording.duration(total), wording.NOT_APPLICABLE))
    rows.append(("Evaluation", wording.duration(number(seconds.get("evaluate"))), wording.NOT_APPLICABLE))
    columns = (Column("Step"), Column("Time", "number"), Column("Share", "number"))
    return section(
        "Time and memory",
        _step_chart(spent),
        table("Time", columns, rows),
        paragraph(f"Peak memory of the process: {wording.size(number(metrics.get('peak_rss_bytes')))}."),
    )


def _step_chart(spent: Mapping[str, float | None]) -> Html:
    """What the steps took, beside each other; of one step the table tells all."""
    if len(spent) < 2:
        return Html("")
    bars = [
        charts.Bar(step, value, wording.duration(value), "linear", f"{step}: {wording.duration(value)}")
        for step, value in spent.items()
    ]
    axis, margin = charts.scale(bar.value for bar in bars), charts.label_margin(bar.label for bar in bars)
    drawing = charts.bar_chart(bars, axis, margin, "Seconds by step: " + ", ".join(bar.title for bar in bars))
    return element("div", drawing, class_="wide")


def _steps(metrics: Mapping[str, Any]) -> Html:
    """What the steps tell of themselves; lists (a row a block) stay in metrics.json."""
    rows = []
    for record in records(metrics.get("steps")):
        name = wording.anything(record.get("step"))
        plain = {key: value for key, value in record.items() if key != "step" and not isinstance(value, (list, dict))}
        rows += [(name, str(key).replace("_", " "), wording.anything(value)) for key, value in plain.items()]
    if not rows:
        return Html("")
    columns = (Column("Step"), Column("Figure"), Column("Value"))
    return section("What the steps did", table("What the steps did", columns, rows))


def _environment(metrics: Mapping[str, Any]) -> Html:
    environment = mapping(metrics.get("environment"))
    listing = _pairs("Environment", environment) if environment else paragraph("The environment was not recorded.")
    return section("Environment", listing)


def _use(metrics: Mapping[str, Any]) -> Html:
    if number(mapping(metrics.get("bits")).get("weight")) == _FLOAT_BITS:
        return section(
            "Use these weights",
            paragraph("The run trained a float model: its weights lie beside this page, and go on as any others."),
            code_block("Commands for the weights", _USE_WEIGHTS.format(model=wording.anything(metrics.get("model")))),
        )
    if metrics.get("paper_exact") is True:
        return section(
            "Use this artifact",
            paragraph("A simulation is evaluated, and nothing more. DIR is the folder that holds this page."),
            code_block("Load the artifact in Python", _USE),
            code_block("Commands for the artifact", _USE_SIMULATION),
        )
    return section(
        "Use this artifact",
        paragraph("DIR is the folder that holds this page. In Python:"),
        code_block("Load the artifact in Python", _USE),
        paragraph("On integers alone, without torch:"),
        code_block("Run the artifact on integers", _USE_ENGINE),
        paragraph("On the command line; IMAGES is a folder of images, one folder a class:"),
        code_block("Commands for the artifact", _USE_COMMANDS),
    )


def _pairs(label: str, facts: Mapping[str, Any]) -> Html:
    return _listing(label, [(str(key), wording.anything(value)) for key, value in facts.items()])


def _listing(label: str, rows: list[tuple[str, str]]) -> Html:
    return table(label, (Column("Fact"), Column("Value", "code")), rows)
