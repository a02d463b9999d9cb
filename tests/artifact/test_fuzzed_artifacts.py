"""Any value in an artifact's JSON changed to any other: it loads and can be used, or raises `HalfbyteError`."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halfbyte import api
from halfbyte.artifact import load_artifact
from halfbyte.artifact_files import CONFIG, QUANTIZATION
from halfbyte.errors import HalfbyteError

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


@settings(max_examples=200, **FUZZ)
@given(data=st.data())
def test_a_changed_value_is_refused_or_changes_nothing(folder, whole, logits, data, logits_of, told):
    name = data.draw(st.sampled_from([CONFIG, QUANTIZATION]))
    said = json.loads((whole / name).read_text())
    changed = _replaced(said, _drawn_place(data, said), data.draw(VALUES))
    shutil.copy(whole / CONFIG, folder / CONFIG)
    shutil.copy(whole / QUANTIZATION, folder / QUANTIZATION)
    (folder / name).write_text(json.dumps(changed))
    try:
        found = logits_of(folder)
    except HalfbyteError as error:
        told(error)
    else:
        assert torch.equal(found, logits)


@settings(max_examples=25, **FUZZ)
@given(data=st.data())
def test_a_forged_value_is_refused_or_can_be_used(folder, whole, data, write_json, told):
    contents = {name: json.loads((whole / name).read_text()) for name in (QUANTIZATION, CONFIG)}
    name = data.draw(st.sampled_from([CONFIG, QUANTIZATION, QUANTIZATION]))
    contents[name] = _replaced(contents[name], _drawn_place(data, contents[name]), data.draw(VALUES))
    write_json(contents[QUANTIZATION], contents[CONFIG])
    try:
        load_artifact(folder)
    except HalfbyteError as error:
        told(error)
        return
    # What loads can be used for everything: no other error comes later.
    try:
        api.inspect_model(str(folder))
        api.evaluate_model(str(folder), limit_images=2, workers=0)
    except HalfbyteError as error:
        told(error)
