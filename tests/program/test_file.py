"""A program's file: the same bytes for the same program, and one error for any other bytes."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load
from tests.program.conftest import EMBEDDED, images_of
from tests.program.damage import split

from halfbyte.artifact import load_artifact, save_artifact
from halfbyte.artifact_files import PROGRAM, QUANTIZATION, TENSORS
from halfbyte.errors import HalfbyteError
from halfbyte.program.interpret import run
from halfbyte.program.load import load_program
from halfbyte.program.lower import lower
from halfbyte.program.ops import Program
from halfbyte.program.store import framed, from_bytes, to_bytes

LEAVES = (
    st.none() | st.booleans() | st.integers(-3, 12) | st.integers() | st.floats()
    | st.sampled_from(["", "input", "v1", "linear", "reshape", "quantize", "int32", "x" * 300])
    | st.just({"batch": 1, "plus": 0}) | st.just({"batch": 2**30, "plus": 2**30})
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
FUZZ = {"deadline": None, "derandomize": True}


@pytest.fixture(scope="module")
def program(lowered) -> Program:
    return lowered("fashion_resnet", "repq").program


@pytest.fixture(scope="module")
def content(program) -> bytes:
    return to_bytes(program)


def _same(one: Program, other: Program) -> None:
    assert one.ops == other.ops
    assert (one.input_shape, one.output, one.facts) == (other.input_shape, other.output, other.facts)
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        read = other.tensors[name]
        assert (read.dtype, read.shape, read.tobytes()) == (tensor.dtype, tensor.shape, tensor.tobytes())


@pytest.mark.parametrize("model", [*EMBEDDED, ("swin_tiny_patch4_window7_224",)], ids="-".join)
def test_there_and_back(lowered, model):
    program = lowered(*model).program
    content = to_bytes(program)
    _same(from_bytes(content), program)
    assert to_bytes(from_bytes(content)) == content


def test_an_artifacts_program_shares_its_tensors(lowered):
    found = lowered("fashion_vit", "repq")
    header, payload = split((found.folder / PROGRAM).read_bytes())
    assert payload == b""
    weights = [entry for entry in header["tensors"] if "bits" in entry]
    assert len(weights) == 26
    assert all(entry["shared"].endswith(".weight_codes") for entry in weights)
    _same(lower(found.model, found.layout, found.program.facts), found.program)


def test_the_same_artifact_gives_the_same_bytes(lowered, tmp_path):
    found = lowered("fashion_swin", "repq")
    loaded = load_artifact(found.folder)
    save_artifact(loaded.model, loaded.layout, tmp_path, loaded.facts)
    for name in (TENSORS, QUANTIZATION, PROGRAM):
        assert (tmp_path / name).read_bytes() == (found.folder / name).read_bytes()


def test_repeated_values_are_stored_once_each_to_the_bit():
    values = np.array([0.0, -0.0, 1.5, -100.0] * 200, np.float32).reshape(8, 100)
    program = _constant(values)
    content = to_bytes(program)
    assert len(content) < 1200
    assert from_bytes(content).tensors["t"].tobytes() == values.tobytes()


def _constant(values: np.ndarray) -> Program:
    from halfbyte.program.ops import Op

    rows = [
        Op("mean", ("input",), "m", {"axes": [1, 2, 3], "keep": False}),
        Op("reshape", ("m",), "r", {"shape": [{"batch": 1, "plus": 0}, 1]}),
        Op("constant", (), "c", {}, {"value": "t"}),
        Op("reshape", ("c",), "f", {"shape": [1, values.size]}),
        Op("multiply", ("r", "f"), "out"),
    ]
    return Program(tuple(rows), {"t": values}, (1, 2, 2), "out")


def _refused_or_sound(content: bytes, shared: Any = None) -> None:
    """A file gives `HalfbyteError`, or a program that runs or refuses to."""
    with contextlib.suppress(HalfbyteError):
        program = from_bytes(content, shared)
        if np.prod(program.input_shape) < 10_000 and sum(t.size for t in program.tensors.values()) < 10**6:
            run(program, np.zeros((1, *program.input_shape), np.float32))


@settings(max_examples=120, **FUZZ)
@given(data=st.data())
def test_cut_or_flipped_bytes_are_refused(content, data):
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    for damaged in (bytes(flipped), content[:place], content + b"x"):
        with pytest.raises(HalfbyteError, match="damaged"):
            from_bytes(damaged)


def _places(value: Any, path: tuple = ()) -> list[tuple]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in parts for place in _places(part, (*path, key)))]


@settings(max_examples=250, **FUZZ)
@given(data=st.data())
def test_any_other_value_in_the_header_is_refused_or_runs(small, data):
    header, payload = copy.deepcopy(small[0]), small[1]
    places = small[2]
    for _ in range(data.draw(st.integers(1, 2))):
        *path, last = data.draw(st.sampled_from(places))
        part = header
        try:
            for key in path:
                part = part[key]
            part[last] = data.draw(VALUES)
        except (TypeError, KeyError, IndexError):
            continue
    _refused_or_sound(framed(json.dumps(header).encode(), payload))


@settings(max_examples=60, **FUZZ)
@given(data=st.data())
def test_any_other_payload_is_refused_or_runs(small, data):
    header, payload, _ = small
    damaged = bytearray(payload)
    for _ in range(8):
        damaged[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    _refused_or_sound(framed(json.dumps(header).encode(), bytes(damaged)))


@pytest.fixture(scope="module")
def small(program) -> tuple[dict[str, Any], bytes, list[tuple]]:
    """Header, payload and the places in the header of a file with operations of several kinds."""
    header, payload = split(to_bytes(program))
    return header, payload, [place for place in _places(header) if place]


def test_a_hostile_size_allocates_nothing():
    header, payload = split(to_bytes(_constant(np.zeros((2, 2), np.float32))))
    for shape in ([2**40], [2**20, 2**20], [2**31, 0]):
        header["tensors"][0]["shape"] = shape
        with pytest.raises(HalfbyteError):
            from_bytes(framed(json.dumps(header).encode(), payload))
    with pytest.raises(HalfbyteError):
        from_bytes(framed(b"[" * 200_000, b""))


@pytest.mark.parametrize("name", [PROGRAM, TENSORS, QUANTIZATION])
def test_damaged_artifacts_have_no_program(lowered, tmp_path, name):
    folder = tmp_path / "copy"
    shutil.copytree(lowered("fashion_resnet", "repq").folder, folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(HalfbyteError):
        load_program(folder)
    (folder / name).unlink()
    with pytest.raises(HalfbyteError):
        load_program(folder)


def test_it_runs_where_torch_and_timm_cannot_be_imported(lowered, tmp_path):
    found = lowered("fashion_vit", "repq")
    images = images_of(found.program.input_shape, 2).numpy()
    np.save(tmp_path / "images.npy", images)
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "timm", "torchvision"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
import numpy as np
from halfbyte.program.interpret import run
from halfbyte.program.load import load_program
folder, place = sys.argv[1:]
np.save(place + "/logits.npy", run(load_program(folder), np.load(place + "/images.npy")))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(found.folder), str(tmp_path)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), run(found.program, images))


def test_a_file_of_a_later_version_is_not_called_damaged(content):
    header, payload = split(content)
    with pytest.raises(HalfbyteError, match=r"^the program was written by a newer halfbyte; upgrade halfbyte$"):
        from_bytes(framed(json.dumps(header | {"version": 2}).encode(), payload))


def test_the_tensors_of_another_artifact_do_not_fit(lowered):
    one, other = lowered("fashion_resnet", "repq").folder, lowered("fashion_vit", "repq").folder
    with pytest.raises(HalfbyteError, match="of the artifact that it belongs to"):
        from_bytes((one / PROGRAM).read_bytes(), load((other / TENSORS).read_bytes()))
