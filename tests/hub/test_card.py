"""The card says what is known, and nothing that a file of the user's could make of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from halfbyte.artifact_files import class_labels, read_facts
from halfbyte.model_card import model_card


@pytest.fixture
def card(vit_run: Path):
    """The card's text and its metadata, of the run's facts changed by a function."""
    facts, config = read_facts(vit_run)
    metrics = json.loads((vit_run / "metrics.json").read_text())

    def make(change=lambda facts, config, metrics: None, with_metrics: bool = True) -> tuple[str, dict[str, Any]]:
        parts = copy.deepcopy((facts, config, metrics))
        change(*parts)
        text = model_card("me/mine", parts[0], parts[1], parts[2] if with_metrics else None, class_labels(parts[1]))
        return text, ModelCard(text).data.to_dict()

    return make


def test_the_same_facts_give_the_same_card(card) -> None:
    assert card() == card()


@pytest.mark.parametrize(("weights", "known"), [("hub", True), ("mine.safetensors", False)])
def test_what_timm_says_is_said_of_its_own_weights_only(card, weights, known) -> None:
    def change(facts, config, metrics) -> None:
        facts["source"] |= {"weights": weights, "tag": "fb_in1k", "architecture": "deit_tiny_patch16_224"}
        config["pretrained_cfg"] |= {"license": "apache-2.0", "hf_hub_id": "timm/deit_tiny_patch16_224.fb_in1k"}
        metrics["dataset"] = None

    text, metadata = card(change)
    assert "# deit_tiny_patch16_224.fb_in1k, W4A4" in text
    assert metadata.get("license") == ("apache-2.0" if known else None)
    assert metadata.get("base_model") == ("timm/deit_tiny_patch16_224.fb_in1k" if known else None)
    name = metadata["model-index"][0]["results"][0]["dataset"]["name"]
    assert name == "20 images of the author's choice"


@pytest.mark.parametrize("known", [True, False])
def test_a_data_set_is_told_where_the_run_knows_it(card, known) -> None:
    """Also an embedded model may have been evaluated on images of the user's."""

    def forget(facts, config, metrics) -> None:
        assert metrics.pop("dataset") == "fashion_mnist"

    told = card(*([] if known else [forget]))[1]["model-index"][0]["results"][0]["dataset"]
    own = {"type": "imagefolder", "name": "20 images of the author's choice"}
    assert told == ({"type": "fashion_mnist", "name": "Fashion-MNIST, 20 test images"} if known else own)


def test_what_no_engine_runs_is_said_so(card) -> None:
    def simulated(facts, config, metrics) -> None:
        facts["paper_exact"], facts["program"] = True, {"refused": "paper_exact is a simulation, without integers"}

    def refused(facts, config, metrics) -> None:
        facts["program"] = {"refused": "an operation that programs do not have"}

    assert "integer codes, packed." in card()[0]
    assert "--engine native" in card()[0]
    simulation = card(simulated)[0]
    assert "a simulation in float (`paper_exact`)" in simulation
    assert "integer codes" not in simulation
    for text in (simulation, card(refused)[0]):
        assert "halfbyte eval model --val IMAGES\n" in text
        assert "native" not in text
        assert "serve" not in text


def test_without_metrics_nothing_is_claimed(card) -> None:
    text, metadata = card(with_metrics=False)
    assert "model-index" not in metadata
    assert "## Results" not in text
    assert "# fashion_vit, W4A4" in text
    text, metadata = card(lambda facts, config, metrics: _not_evaluated(metrics))
    assert "model-index" not in metadata
    assert "Not evaluated; calibrated on 32." in text


def _not_evaluated(metrics) -> None:
    metrics["images"]["evaluation"] = 0
    metrics["quantized"] |= dict.fromkeys(("top1", "top5", "agreement"))


def test_widths_of_sites_own(card) -> None:
    text, metadata = card(lambda facts, config, metrics: metrics.update(budget="4.0bits"))
    assert "# fashion_vit, mixed precision, 4.0bits" in text
    assert not [tag for tag in metadata["tags"] if tag.startswith("w4")]


def test_classes(card) -> None:
    def many(facts, config, metrics) -> None:
        config["num_classes"] = 100
        config["pretrained_cfg"]["label_names"] = [f"c{number}" for number in range(100)]

    assert "100; their names are in `config.json`." in card(many)[0]
    assert "10, without names." in card(lambda facts, config, metrics: config["pretrained_cfg"].pop("label_names"))[0]


def test_names_are_no_markup_and_no_metadata(card) -> None:
    evil = 'x`\n---\nlicense: mit\n<script src="a"></script> [a](b) |'

    def change(facts, config, metrics) -> None:
        facts["recipe"]["name"] = evil
        facts["source"] |= {"architecture": evil, "tag": None, "weights": evil}
        config["pretrained_cfg"]["label_names"][0] = evil

    text, metadata = card(change)
    assert "license" not in metadata
    body = text.split("\n---\n", 1)[1]
    assert "<script" not in body
    assert "](" not in body
    assert "\n---\n" not in body
    assert metadata["tags"][3] == evil
