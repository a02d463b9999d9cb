"""Artifacts edited by someone who makes the checksums right: what does not fit together is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from halfbyte import api
from halfbyte.artifact_files import CONFIG, QUANTIZATION

SCALE, ZERO_POINT = "layer2.0.conv1.input_quantizer.scale", "layer2.0.conv1.input_quantizer.zero_point"
WEIGHT_SCALE, CODES = "layer2.0.conv1.weight_quantizer.scale", "layer2.0.conv1.weight_codes"


def test_a_forged_artifact_without_changes_loads(folder, logits, logits_of, forge):
    forge(lambda *_: None)
    assert torch.equal(logits_of(folder), logits)


def test_a_newer_format_asks_for_a_newer_halfbyte(forge, refused):
    forge(lambda tensors, facts, config: facts.update(version=2))
    refused("newer halfbyte", "upgrade")


def _set(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict, dict, dict], None]:
    def change(tensors: dict, facts: dict, config: dict) -> None:
        tensors[name] = value(tensors[name]).contiguous()

    return change


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_set(SCALE, lambda scale: -scale), "scale must be positive"),
        (_set(SCALE, lambda scale: scale * 0), "scale must be positive"),
        (_set(SCALE, lambda scale: scale * float("nan")), "scale must be finite"),
        (_set(SCALE, lambda scale: scale / 0), "scale must be finite"),
        (_set(SCALE, lambda scale: scale.double()), "scale must be finite and torch.float32"),
        (_set(SCALE, lambda scale: scale.half()), "scale must be finite and torch.float32"),
        (_set(SCALE, lambda scale: scale.reshape(1, 1)), "scale has the shape (1, 1), not ()"),
        (_set(SCALE, lambda scale: scale.expand(0)), "scale has the shape (0,)"),
        (_set(ZERO_POINT, lambda zero: zero.float()), "zero_point must be finite and torch.int32"),
        (_set(ZERO_POINT, lambda zero: zero.long()), "zero_point must be finite and torch.int32"),
        (_set(ZERO_POINT, lambda zero: zero.expand(7)), "zero_point has the shape (7,)"),
        (_set(WEIGHT_SCALE, lambda scale: scale[:-1]), "scale has the shape"),
        (_set(WEIGHT_SCALE, lambda scale: scale.flatten()), "scale has the shape"),
        (_set(WEIGHT_SCALE, lambda scale: -scale), "scale must be positive"),
        (_set(CODES, lambda codes: codes[:-1]), "cannot hold"),
        (_set(CODES, lambda codes: codes.reshape(2, -1)), "layer2.0.conv1: "),
        (_set(CODES, lambda codes: codes.int()), "cannot hold"),
        (_set(CODES, lambda codes: codes.view(torch.int8)), "cannot hold"),
        (_set("fc.bias", lambda bias: bias[:-1]), "fc.bias has the shape (9,), not (10,)"),
        (_set("fc.bias", lambda bias: bias * float("nan")), "fc.bias must be finite"),
        (_set("fc.bias", lambda bias: bias.to(torch.complex64)), "fc.bias must be finite"),
        (_set("fc.bias", lambda bias: bias.int()), "fc.bias must be finite"),
        (lambda tensors, *_: tensors.pop(SCALE), SCALE),
        (lambda tensors, *_: tensors.pop(CODES), CODES),
        (lambda tensors, *_: tensors.pop("fc.bias"), "fc.bias"),
        (lambda tensors, *_: tensors.update(more=torch.zeros(1)), "1 tensors too many, such as more"),
        (lambda tensors, *_: tensors.clear(), "conv1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_edited_tensors_are_told(change, part, forge, refused):
    forge(change)
    refused("cannot load", part)


def _site(key: str, operand: str, **changes: Any) -> Callable[[dict, dict, dict], None]:
    def change(tensors: dict, facts: dict, config: dict) -> None:
        (entry,) = (site for site in facts["sites"] if site["name"] == key)
        entry["quantizers"][operand].update(changes)

    return change


def _facts(**changes: Any) -> Callable[[dict, dict, dict], None]:
    return lambda tensors, facts, config: facts.update(changes)


def _source(**changes: Any) -> Callable[[dict, dict, dict], None]:
    return lambda tensors, facts, config: facts["source"].update(changes)


def _preprocessing(**changes: Any) -> Callable[[dict, dict, dict], None]:
    return lambda tensors, facts, config: facts["preprocessing"].update(changes)


def _edit(name: Any, **arguments: Any) -> Callable[[dict, dict, dict], None]:
    return lambda tensors, facts, config: facts["edits"].append({"name": name, "arguments": arguments})


def _another_model(tensors: dict, facts: dict, config: dict) -> None:
    facts["source"]["architecture"] = config["architecture"] = "fashion_vit"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_site("fc", "weight", bits=4), "codes of 4 bits"),
        (_site("fc", "weight", bits=9), "2 to 8, not 9"),
        (_site("fc", "weight", bits="8"), "2 to 8, not '8'"),
        (_site("fc", "weight", bits=8.0), "2 to 8, not 8.0"),
        (_site("fc", "weight", kind="unifrom"), "'unifrom'; did you mean uniform"),
        (_site("fc", "weight", kind=["uniform"]), "fc"),
        (_site("fc", "weight", axis=None), "scale has the shape"),
        (_site("fc", "weight", axis="0"), "describes no quantizer"),
        (_site("fc", "weight", axis=1), "scale has the shape"),
        (_site("fc", "weight", kind="log2"), "cannot be built"),
        (_site("fc", "weight", symmetric="yes"), "describes no quantizer"),
        (_site("fc", "weight", more=1), "cannot be built"),
        (_site("fc", "input", fractional=True), "zero_point must be finite and torch.float32"),
        (_facts(sites=[]), "sites are not those"),
        (lambda tensors, facts, config: facts["sites"].pop(), "sites are not those"),
        (lambda tensors, facts, config: facts["sites"].reverse(), "sites are not those"),
        (lambda tensors, facts, config: facts["sites"].append(facts["sites"][0]), "sites are not those"),
        (lambda tensors, facts, config: facts["sites"][3].update(name="x"), "sites are not those"),
        (lambda tensors, facts, config: facts["sites"][3].update(role="head"), "sites are not those"),
        (lambda tensors, facts, config: facts["sites"][3]["quantizers"].pop("input"), "quantizers are not those"),
        (lambda tensors, facts, config: facts["sites"][3].update(quantizers=[]), "sites[3].quantizers"),
        (lambda tensors, facts, config: facts["sites"][3].update(sqnr_db="x"), "sites[3].sqnr_db"),
        (_edit("add_bios", site="fc"), "'add_bios'; did you mean add_bias"),
        (_edit("add_bias", site="nowhere"), "add_bias"),
        (_edit("add_bias", site=[3]), "add_bias"),
        (_edit("add_bias"), "add_bias"),
        (_edit("add_bias", site="fc", more=1), "add_bias"),
        (_edit("add_bias", site="layer1"), "layer1"),
        (_edit("add_bias", site="layer2.0.conv1"), "layer2.0.conv1.bias"),
        (_edit("add_norm_affine", norm="fc"), "fc is not a LayerNorm"),
        (_edit(["add_bias"], site="fc"), "edits[0].name"),
        (_facts(edits={}), "edits is missing or wrong"),
        (_facts(source=None), "source is missing or wrong"),
        (_source(architecture="fashion_swin"), "config.json does not describe"),
        (_source(architecture="../../x"), "unknown architecture"),
        (_source(architecture=["resnet18"]), "source.architecture"),
        (_source(architecture="resnet18", tag="x"), "no tag 'x'"),
        (_another_model, "sites are not those of fashion_vit"),
        (lambda tensors, facts, config: config.update(num_classes=11), "config.json does not describe"),
        (lambda tensors, facts, config: config.pop("pretrained_cfg"), "pretrained_cfg"),
        (lambda tensors, facts, config: config.update(architecture="resnet18"), "config.json does not describe"),
        (_preprocessing(input_size=[3, 28, 28]), "prepares others"),
        (_preprocessing(input_size=[1, 10**9, 10**9]), "prepares others"),
        (_preprocessing(input_size="1x28x28"), "input_size"),
        (_preprocessing(mean=[]), "preprocessing"),
        (_preprocessing(std=[0.0]), "preprocessing"),
        (_preprocessing(std=[float("nan")]), "std[0]"),
        (_preprocessing(crop_pct=1e-9), "--crop-pct"),
        (_preprocessing(crop_pct=-1), "--crop-pct"),
        (_preprocessing(interpolation="../x"), "--interpolation"),
        (_preprocessing(crop_mode="x"), "preprocessing"),
        (_facts(version=0), "not of the format"),
        (_facts(version="1"), "not of the format"),
        (_facts(format="x"), "not of the format"),
        (_facts(tensors_sha256=None), "tensors_sha256"),
        (_facts(batch_size=0), "batch_size"),
        (_facts(recipe="x"), "recipe"),
        (_facts(coverage={"float": [3]}), "coverage"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_edited_facts_are_told(folder, change, part, forge, refused, write_json):
    forge(change)
    if part == "tensors_sha256":
        facts = json.loads((folder / QUANTIZATION).read_text())
        write_json({**facts, "tensors_sha256": None}, json.loads((folder / CONFIG).read_text()))
    refused(part)


def test_numbers_that_fit_but_are_absurd_end_in_numbers_or_a_line(folder, logits_of, forge, refused):
    forge(_set(ZERO_POINT, lambda zero: torch.full_like(zero, -(2**31) + 1)))
    assert logits_of(folder).isfinite().all()
    forge(_set("fc.weight_quantizer.scale", lambda scale: scale * 0 + 3e38))
    refused("outputs are not finite")


def test_a_model_loaded_in_inference_mode_can_be_used(whole, logits, images):
    with torch.inference_mode():
        assert torch.equal(api.load(whole)(images), logits)
