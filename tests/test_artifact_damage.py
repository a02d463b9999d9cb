"""Artifacts that were cut, flipped, edited or forged: each loads as it was or raises `HalfbyteError`, nothing else."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from halfbyte import api
from halfbyte.__main__ import main
from halfbyte.artifact import load_artifact
from halfbyte.errors import HalfbyteError

TENSORS, CONFIG, QUANTIZATION = FILES = "model.safetensors", "config.json", "quantization.json"
IMAGES = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
SCALE, ZERO_POINT = "layer2.0.conv1.input_quantizer.scale", "layer2.0.conv1.input_quantizer.zero_point"
WEIGHT_SCALE, CODES = "layer2.0.conv1.weight_quantizer.scale", "layer2.0.conv1.weight_codes"


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """A small artifact of the embedded ResNet with 4-bit weights and activations."""
    folder = tmp_path_factory.mktemp("artifact") / "whole"
    api.quantize(
        model="fashion_resnet", recipe="percentile", w_bits=4, a_bits=4, calib_images=32, limit=4, workers=0, out=folder
    )
    return folder


@pytest.fixture(scope="session")
def logits(whole) -> torch.Tensor:
    return _logits(whole)


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy to damage."""
    for name in FILES:
        shutil.copy(whole / name, tmp_path / name)
    return tmp_path


def _logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return api.load(folder)(IMAGES)


def _told(error: HalfbyteError) -> None:
    assert "\n" not in str(error)


def _refused(folder: Path, *parts: str) -> str:
    with pytest.raises(HalfbyteError) as caught:
        load_artifact(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    for part in parts:
        assert part in message
    return message


def _forge(folder: Path, change: Callable[[dict, dict, dict], Any], *, blob: bytes | None = None) -> None:
    """Edit tensors, facts and configuration of an artifact in place, and make its checksums right again."""
    tensors = load((folder / TENSORS).read_bytes())
    facts, config = (json.loads((folder / name).read_bytes()) for name in (QUANTIZATION, CONFIG))
    change(tensors, facts, config)
    blob = save(tensors) if blob is None else blob
    (folder / TENSORS).write_bytes(blob)
    if "tensors_sha256" in facts:
        facts["tensors_sha256"] = hashlib.sha256(blob).hexdigest()
    _write_json(folder, facts, config)


def _write_json(folder: Path, facts: Any, config: Any) -> None:
    if isinstance(facts, dict):
        said = [{key: value for key, value in facts.items() if key != "facts_sha256"}, config]
        facts = {**facts, "facts_sha256": hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()}
    (folder / QUANTIZATION).write_text(json.dumps(facts))
    (folder / CONFIG).write_text(json.dumps(config))


def test_a_forged_artifact_without_changes_loads(folder, logits):
    _forge(folder, lambda *_: None)
    assert torch.equal(_logits(folder), logits)


# Cut and flipped


@pytest.mark.parametrize("name", [CONFIG, QUANTIZATION])
def test_json_cut_anywhere_is_refused(folder, name):
    content = (folder / name).read_bytes()
    # Every byte of the small file; of the large one the ends and every so-many-th between.
    for length in {*range(0, len(content), len(content) // 500), *range(40), *range(len(content) - 40, len(content))}:
        (folder / name).write_bytes(content[:length])
        _refused(folder, name, "damaged")


def test_tensors_cut_anywhere_are_refused(folder):
    content = (folder / TENSORS).read_bytes()
    for length in {*range(20), *range(20, len(content), 2503), len(content) - 1}:
        (folder / TENSORS).write_bytes(content[:length])
        _refused(folder, TENSORS, "sha256")


def test_tensors_cut_anywhere_with_the_right_checksum_are_refused(folder):
    content = (folder / TENSORS).read_bytes()
    for length in {*range(0, 20, 3), *range(20, len(content), 9973), len(content) - 1}:
        _forge(folder, lambda *_: None, blob=content[:length])
        _refused(folder, "damaged")
        (folder / TENSORS).write_bytes(content)


def test_flipped_bits_of_tensors_are_refused(folder):
    content = bytearray((folder / TENSORS).read_bytes())
    draw = random.Random(0)
    for _ in range(200):
        place, bit = draw.randrange(len(content)), 1 << draw.randrange(8)
        content[place] ^= bit
        (folder / TENSORS).write_bytes(content)
        _refused(folder, TENSORS, "sha256")
        content[place] ^= bit


@pytest.mark.parametrize("name", [CONFIG, QUANTIZATION])
def test_flipped_bits_of_json_are_refused_unless_they_say_the_same(folder, logits, name):
    content = bytearray((folder / name).read_bytes())
    said = json.loads(content)
    draw = random.Random(0)
    same = 0
    for _ in range(300):
        place, bit = draw.randrange(len(content)), 1 << draw.randrange(8)
        content[place] ^= bit
        (folder / name).write_bytes(content)
        try:
            load_artifact(folder)
        except HalfbyteError:
            pass
        else:
            assert json.loads(content) == said
            same += 1
        content[place] ^= bit
    assert same < 30


def test_damage_of_the_header_with_the_right_checksum_raises_nothing_else(folder):
    content = (folder / TENSORS).read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    draw = random.Random(0)
    for place in [*range(8), *(draw.randrange(8, end) for _ in range(40))]:
        broken = bytearray(content)
        broken[place] ^= 1 << draw.randrange(8)
        _forge(folder, lambda *_: None, blob=bytes(broken))
        try:
            load_artifact(folder)
        except HalfbyteError as error:
            _told(error)
        (folder / TENSORS).write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    _refused(folder, name)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_a_files_place_is_told(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    _refused(folder, name)


@pytest.mark.parametrize("name", FILES)
def test_an_empty_file_is_told(folder, name):
    (folder / name).write_bytes(b"")
    _refused(folder, name)


@pytest.mark.parametrize(
    "content",
    [
        b"null", b"[]", b'"x"', b"3", b"{}", b"[" * 10**5, b'{"a":' * 10**5, b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"\x00",
        b"{} {}", b'{"version": 1' + b"0" * 10**4 + b"}", b'{"format": "halfbyte", "version": true}', b"NaN",
    ],
    ids=lambda content: repr(content[:20]),
)  # fmt: skip
@pytest.mark.parametrize("name", [CONFIG, QUANTIZATION])
def test_json_of_another_kind_is_told(folder, name, content):
    (folder / name).write_bytes(content)
    _refused(folder)


@pytest.mark.parametrize("name", [CONFIG, QUANTIZATION])
def test_json_of_gigabytes_is_not_read(folder, name):
    with (folder / name).open("r+b") as file:
        file.truncate(2**33)
    _refused(folder, name, "damaged", "more than")


def test_a_newer_format_asks_for_a_newer_halfbyte(folder):
    _forge(folder, lambda tensors, facts, config: facts.update(version=2))
    _refused(folder, "newer halfbyte", "upgrade")


# Edited by someone who makes the checksums right


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
def test_edited_tensors_are_told(folder, change, part):
    _forge(folder, change)
    _refused(folder, "cannot load", part)


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
        (_preprocessing(mean=[]), "prepares others"),
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
def test_edited_facts_are_told(folder, change, part):
    _forge(folder, change)
    if part == "tensors_sha256":
        facts = json.loads((folder / QUANTIZATION).read_text())
        _write_json(folder, {**facts, "tensors_sha256": None}, json.loads((folder / CONFIG).read_text()))
    _refused(folder, part)


def test_numbers_that_fit_but_are_absurd_end_in_numbers_or_a_line(folder):
    _forge(folder, _set(ZERO_POINT, lambda zero: torch.full_like(zero, -(2**31) + 1)))
    assert _logits(folder).isfinite().all()
    _forge(folder, _set("fc.weight_quantizer.scale", lambda scale: scale * 0 + 3e38))
    _refused(folder, "outputs are not finite")


def test_a_model_loaded_in_inference_mode_can_be_used(whole, logits):
    with torch.inference_mode():
        assert torch.equal(api.load(whole)(IMAGES), logits)


# Anything at all


def _places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _places(part, (*path, key))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _places(part, (*path, number))


def _drawn_place(data: st.DataObject, value: Any) -> tuple:
    places = list(_places(value))
    return places[data.draw(st.integers(0, len(places) - 1))]


def _replaced(value: Any, path: tuple, new: Any) -> Any:
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = _replaced(value[path[0]], path[1:], new)
    return value


WORDS = ["", "uniform", "log2", "log_sqrt2", "add_bias", "fashion_vit", "resnet18", "fc", "conv1", "bicubic", "x" * 300]
LEAVES = (
    st.none() | st.booleans() | st.integers(-3, 12) | st.integers() | st.floats() | st.sampled_from(WORDS)
    | st.text(max_size=5)
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
FUZZ = {
    "deadline": None, "derandomize": True,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}  # fmt: skip


@settings(max_examples=200, **FUZZ)
@given(data=st.data())
def test_a_changed_value_is_refused_or_changes_nothing(folder, whole, logits, data):
    name = data.draw(st.sampled_from([CONFIG, QUANTIZATION]))
    said = json.loads((whole / name).read_text())
    changed = _replaced(said, _drawn_place(data, said), data.draw(VALUES))
    shutil.copy(whole / CONFIG, folder / CONFIG)
    shutil.copy(whole / QUANTIZATION, folder / QUANTIZATION)
    (folder / name).write_text(json.dumps(changed))
    try:
        found = _logits(folder)
    except HalfbyteError as error:
        _told(error)
    else:
        assert torch.equal(found, logits)


@settings(max_examples=25, **FUZZ)
@given(data=st.data())
def test_a_forged_value_is_refused_or_can_be_used(folder, whole, data):
    contents = {name: json.loads((whole / name).read_text()) for name in (QUANTIZATION, CONFIG)}
    name = data.draw(st.sampled_from([CONFIG, QUANTIZATION, QUANTIZATION]))
    contents[name] = _replaced(contents[name], _drawn_place(data, contents[name]), data.draw(VALUES))
    _write_json(folder, contents[QUANTIZATION], contents[CONFIG])
    try:
        load_artifact(folder)
    except HalfbyteError as error:
        _told(error)
        return
    # What loads can be used for everything: no other error comes later.
    try:
        api.inspect_model(str(folder))
        api.evaluate_model(str(folder), limit_images=2, workers=0)
    except HalfbyteError as error:
        _told(error)


@pytest.mark.parametrize("command", ["eval", "inspect"])
def test_the_command_tells_damage_in_one_line(folder, monkeypatch, capsys, command):
    content = bytearray((folder / TENSORS).read_bytes())
    content[-1] ^= 1
    (folder / TENSORS).write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["halfbyte", command, str(folder)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith(f"halfbyte: {folder / TENSORS} is damaged")
    assert (folder / TENSORS).read_bytes() == content
