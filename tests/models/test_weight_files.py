"""Weights from files of every kind that fits: read whole, unwrapped, renamed by the family and recorded."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from halfbyte.errors import HalfbyteError
from halfbyte.models.load import create_architecture, load_model
from halfbyte.models.weights import load_state, read_state, sha256_file

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "weights"
SMALL = "cifar_resnet20"


def test_a_safetensors_file_is_loaded_and_recorded_by_name_alone(tmp_path, state):
    path = tmp_path / "mine.safetensors"
    save_file(state, path)
    loaded = load_model(SMALL, path)
    assert all(torch.equal(value, state[key]) for key, value in loaded.model.state_dict().items())
    assert loaded.source.weights == "mine.safetensors"
    assert loaded.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads(json.dumps(loaded.source.as_dict()))["architecture"] == SMALL


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pth.tar"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s},
        lambda s: {"state_dict": s, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda s: {"model": {"state_dict": {f"module.{key}": value for key, value in s.items()}}},
    ],
    ids=["plain", "model", "state_dict", "nested"],
)
def test_torch_checkpoints_are_unwrapped(tmp_path, state, suffix, wrap):
    path = tmp_path / f"weights{suffix}"
    torch.save(wrap(state), path)
    read = read_state(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)


def test_an_old_torch_checkpoint_is_read(tmp_path, state):
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert read_state(path).keys() == state.keys()


def test_half_precision_weights_become_float32(tmp_path, state):
    path = tmp_path / "half.safetensors"
    save_file({key: value.bfloat16() if value.is_floating_point() else value for key, value in state.items()}, path)
    model = load_model(SMALL, path).model
    assert model.conv1.weight.dtype == torch.float32
    assert torch.equal(model.conv1.weight, state["conv1.weight"].bfloat16().float())


def test_batch_counters_may_be_absent(tmp_path, state):
    path = tmp_path / "uncounted.safetensors"
    save_file({key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}, path)
    assert torch.equal(load_model(SMALL, path).model.bn1.weight, state["bn1.weight"])


def test_sha256_of_a_file_and_of_none(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(b"x" * 3_000_000)
    assert sha256_file(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    with pytest.raises(HalfbyteError, match="absent"):
        sha256_file(tmp_path / "absent")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared weights")
def test_a_timm_model_with_a_file(no_network):
    path = SHARED / "deit_tiny_patch16_224.safetensors"
    loaded = load_model("deit_tiny", path, crop_pct=0.985, interpolation="bilinear")
    assert not no_network
    assert (loaded.source.architecture, loaded.source.tag) == ("deit_tiny_patch16_224", "fb_in1k")
    assert (loaded.source.name, loaded.source.weights) == ("deit_tiny", path.name)
    assert torch.equal(loaded.model.head.weight, read_state(path)["head.weight"])
    assert loaded.data_config["crop_pct"] == 0.985
    assert loaded.data_config["interpolation"] == "bilinear"
    assert loaded.data_config["input_size"] == (3, 224, 224)


# Names that do not fit


@pytest.fixture(scope="module")
def swin():
    torch.manual_seed(2)
    return create_architecture("swin_tiny_patch4_window7_224", "ms_in1k")


def _as_microsoft_published(state):
    """Swin's original names: the merging layers end a stage, and buffers are stored."""
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if "downsample" in parts:
            parts[1] = str(int(parts[1]) - 1)
        renamed[".".join(parts).replace("head.fc", "head")] = value
    renamed["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    return renamed


def test_the_familys_converter_is_used_where_names_do_not_fit(swin):
    original = {key: torch.randn_like(value) for key, value in swin.state_dict().items()}
    load_state(swin, _as_microsoft_published(original), Path("swin.pth"))
    loaded = swin.state_dict()
    assert all(torch.equal(loaded[key], original[key]) for key in original)


@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple sequence")
def test_the_converter_does_not_resample_weights_of_another_resolution(swin):
    state = _as_microsoft_published(swin.state_dict())
    key = "layers.0.blocks.0.attn.relative_position_bias_table"
    state[key] = torch.zeros(23 * 23, state[key].shape[1])
    with pytest.raises(HalfbyteError, match=r"another shape.*\[529, 3\] for \[169, 3\]"):
        load_state(swin, state, Path("swin_384.pth"))
