"""The card of an artifact in a model hub: README.md with metadata that hubs read, and text for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from halfbyte.report.wording import bit_widths, percent, size

# Longer lists of classes are in config.json only.
_MOST_CLASSES = 30
# Where weights come from that are no file of the user's.
_HUB = "hub"
# Data sets that evaluation images are known to be of.
_DATASETS = {"fashion_mnist": "Fashion-MNIST, {} test images"}
# Of what follows a paper's code to the letter.
_SIMULATED = "a simulation in float (`paper_exact`), for comparisons; no engine for integers runs it"
_SHA256 = "`model.safetensors` has the sha256 `"


def model_card(
    repository: str,
    facts: dict[str, Any],
    config: dict[str, Any],
    metrics: dict[str, Any] | None,
    labels: Sequence[str] | None,
) -> str:
    """The card's text, the same for the same facts.

    `facts` and `config` are quantization.json and config.json, `metrics` is metrics.json where the run left one, and
    `labels` what the classes are called.
    """
    name = full_name(facts["source"])
    head = yaml.safe_dump(_metadata(name, facts, config, metrics), sort_keys=False, allow_unicode=True, width=1000)
    recipe, widths, simulated = _recipe(facts), _widths(facts, metrics), facts.get("paper_exact") is True
    parts = [
        f"# {_plain(name)}, {widths}",
        f"`{_plain(name)}`, quantized{f' by the recipe `{recipe}`' if recipe else ''} with halfbyte: {widths}, "
        f"{_SIMULATED if simulated else 'integer codes, packed'}.",
        _results(metrics),
        _use(repository, bool((facts.get("program") or {}).get("sha256"))),
        _images(facts["preprocessing"]),
        _classes(config["num_classes"], labels),
        _origin(facts["source"]),
        f"## Files\n\n{_SHA256}{facts['tensors_sha256']}`.",
    ]
    return f"---\n{head}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def artifact_of(card: bytes) -> str | None:
    """The sha256 of the tensors that a generated card describes; None where it does not say."""
    _, _, behind = card.partition(_SHA256.encode())
    return behind[:64].decode("ascii", "replace") if behind else None


def full_name(source: dict[str, Any]) -> str:
    """The float model under timm's name, with the tag of its weights."""
    return f"{source['architecture']}.{source['tag']}" if source["tag"] else str(source["architecture"])


def _metadata(
    name: str, facts: dict[str, Any], config: dict[str, Any], metrics: dict[str, Any] | None
) -> dict[str, Any]:
    # What timm says of published weights need not be true of those in somebody's file.
    published = config["pretrained_cfg"] if facts["source"]["weights"] == _HUB else {}
    recipe = _recipe(facts)
    metadata: dict[str, Any] = {"library_name": "halfbyte", "pipeline_tag": "image-classification"}
    if isinstance(license_ := published.get("license"), str):
        metadata["license"] = license_
    if isinstance(base := published.get("hf_hub_id"), str):
        metadata |= {"base_model": base.partition("@")[0], "base_model_relation": "quantized"}
    tags = ["image-classification", "halfbyte", "quantization", facts["source"]["architecture"]]
    bits = _bits(facts, metrics)
    tags += [f"w{bits[0]}a{bits[1]}"] if None not in bits else []
    metadata["tags"] = tags + ([recipe] if recipe else [])
    figures = [] if metrics is None else _figures(metrics)
    if figures:
        count = metrics["images"]["evaluation"] if metrics else 0
        # Runs of earlier versions do not say of what their images are.
        known = metrics.get("dataset") if metrics else None
        dataset = (
            {"type": known, "name": _DATASETS[known].format(count)}
            if known in _DATASETS
            else {"type": "imagefolder", "name": f"{count} images of the author's choice"}
        )
        task = {"type": "image-classification", "name": "Image Classification"}
        metadata["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": figures}]}]
    return metadata


def _figures(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracies as shares of 1, as hubs have them."""
    found = metrics["quantized"]
    names = {"top1": "top-1 accuracy", "top5": "top-5 accuracy"}
    return [
        {"type": "accuracy", "name": name, "value": round(found[key] / 100, 6)}
        for key, name in names.items()
        if found[key] is not None
    ]


def _results(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return ""
    floats, found, stored = metrics["float"], metrics["quantized"], metrics["bytes"]
    rows = [("size", size(stored["float"]), size(stored["artifact"]))]
    if metrics["images"]["evaluation"]:
        rows += [
            ("top-1", percent(floats["top1"]), percent(found["top1"])),
            ("top-5", percent(floats["top5"]), percent(found["top5"])),
            ("same class as float", "", percent(found["agreement"])),
        ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    images = metrics["images"]
    measured = f"Measured on {images['evaluation']} images" if images["evaluation"] else "Not evaluated"
    calibrated = f"; calibrated on {images['calibration']}" if images.get("calibration") else ""
    return f"## Results\n\n| | float | quantized |\n|---|--:|--:|\n{table}\n\n{measured}{calibrated}."


def _use(repository: str, has_program: bool) -> str:
    extras, run = "hub", "eval model --val IMAGES"
    if has_program:
        extras, run = "hub,serve", "eval model --engine native --val IMAGES\nhalfbyte serve model"
    return f"""## Use

```sh
pip install 'halfbyte[{extras}]'
halfbyte pull {repository} --out model
halfbyte {run}
```

```python
import halfbyte

model = halfbyte.load("hf-hub:{repository}")  # images [B, C, H, W], prepared as below, to logits
```"""


def _images(preprocessing: dict[str, Any]) -> str:
    channels, height, width = preprocessing["input_size"]
    resize = f"{preprocessing['interpolation']}, crop {preprocessing['crop_pct']:g} ({preprocessing['crop_mode']})"
    rows = {
        "size": f"{width} x {height}, {'greyscale' if channels == 1 else 'RGB'}",
        "resize": resize,
        "mean": ", ".join(f"{value:g}" for value in preprocessing["mean"]),
        "standard deviation": ", ".join(f"{value:g}" for value in preprocessing["std"]),
    }
    return "## Images\n\n| | |\n|---|---|\n" + "\n".join(f"| {key} | {_plain(text)} |" for key, text in rows.items())


def _classes(count: int, labels: Sequence[str] | None) -> str:
    if labels is None:
        return f"## Classes\n\n{count}, without names."
    if count > _MOST_CLASSES:
        return f"## Classes\n\n{count}; their names are in `config.json`."
    return "## Classes\n\n" + ", ".join(_plain(label) for label in labels) + "."


def _origin(source: dict[str, Any]) -> str:
    known = {"source": source["weights"], "tag": source["tag"], "sha256": source["sha256"]}
    told = ", ".join(f"{key} `{_plain(value)}`" for key, value in known.items() if value is not None)
    return f"## Weights\n\nThe float weights: {told}." if told else ""


def _recipe(facts: dict[str, Any]) -> str | None:
    recipe = facts.get("recipe")
    return _plain(recipe["name"]) if recipe else None


def _bits(facts: dict[str, Any], metrics: dict[str, Any] | None) -> tuple[Any, Any]:
    """Bits of weights and of activations; None where sites have widths of their own, or nobody says."""
    recipe = facts.get("recipe") or {}
    known = metrics["bits"] if metrics is not None else recipe.get("bits")
    if not isinstance(known, dict) or (metrics is not None and metrics.get("budget")):
        return None, None
    found = [value if isinstance(value, int) else None for value in (known.get("weight"), known.get("activation"))]
    return found[0], found[1]


def _widths(facts: dict[str, Any], metrics: dict[str, Any] | None) -> str:
    return bit_widths(*_bits(facts, metrics), budget=metrics.get("budget") if metrics else None)


def _plain(text: str) -> str:
    """Text from a file on one line, without what Markdown or HTML would make something of."""
    return "".join(c if c.isprintable() and c not in "`<>|[]*" else " " for c in str(text)).strip()
