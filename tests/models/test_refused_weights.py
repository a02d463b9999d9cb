"""Weights that are cut, hostile, of another model or not finite: refused, and each message names the file."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from halfbyte.errors import HalfbyteError
from halfbyte.models.load import create_architecture, load_model
from halfbyte.models.weights import load_state, read_state

SMALL = "cifar_resnet20"


class _Code:
    """Pickles as a call that would create a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_never_run(tmp_path, legacy):
    path, trace = tmp_path / "evil.pth", tmp_path / "was_run"
    torch.save({"model": _Code(trace)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(HalfbyteError, match=r"evil\.pth.*pickled.*never run.*state dict"):
        read_state(path)
    assert not trace.exists()


def _cut(path, share=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.6, 0.999])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "old.pth"])
def test_truncated_files_are_named(tmp_path, state, name, share):
    path = tmp_path / name
    if name.endswith("pth"):
        torch.save(state, path, _use_new_zipfile_serialization=name != "old.pth")
    else:
        save_file(state, path)
    _cut(path, share)
    with pytest.raises(HalfbyteError, match=rf"{name}.*truncated.*fetch it again"):
        read_state(path)


def test_other_bad_files_are_named_with_the_remedy(tmp_path, state):
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello, this is no header")
    (tmp_path / "w.npz").write_bytes(b"")
    torch.save([state["conv1.weight"]], tmp_path / "list.pth")
    torch.save({}, tmp_path / "empty.pth")
    torch.save({**state, "epoch": 3, "best": 0.5}, tmp_path / "mixed.pth")
    torch.save(state["conv1.weight"], tmp_path / "tensor.pth")
    torch.save({1: state["conv1.weight"]}, tmp_path / "numbered.pth")
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as file:
        file.writestr("a", "b")
    expected = {
        "absent.pth": "does not exist.*give a .safetensors or .pth file",
        "folder.pth": "is a folder",
        "text.pth": "not a readable torch checkpoint",
        "zip.pth": "not a readable torch checkpoint",
        "text.safetensors": "not a readable safetensors file",
        "w.npz": "unknown kind of file.*ends in .safetensors",
        "list.pth": "no dictionary of tensors",
        "empty.pth": "no dictionary of tensors",
        "tensor.pth": "no dictionary of tensors",
        "mixed.pth": r"2 of \d+ entries are no tensors \(epoch, best\)",
        "numbered.pth": "1 of 1 entries are no tensors",
    }
    for name, message in expected.items():
        with pytest.raises(HalfbyteError, match=message) as error:
            load_model(SMALL, tmp_path / name)
        assert name in str(error.value)
        assert "\n" not in str(error.value)


def test_weights_of_another_model_are_counted(state):
    model = create_architecture(SMALL)
    wrong = {key: value for key, value in state.items() if not key.startswith("layer1.")}
    wrong["conv1.weight"] = torch.zeros(8, 3, 3, 3)
    wrong["head.weight"] = torch.zeros(1)
    with pytest.raises(HalfbyteError) as error:
        load_state(model, wrong, Path("folder/other.pth"))
    message = str(error.value)
    assert message.startswith("other.pth does not fit cifar_resnet20: 30 missing (layer1.0.conv1.weight, ")
    assert message.count("layer1.") == 5
    assert "1 unexpected (head.weight)" in message
    assert "conv1.weight [8, 3, 3, 3] for [16, 3, 3, 3]" in message
    assert message.endswith("weights for another model?")


def test_integer_codes_are_no_weights(state):
    codes = {**state, "conv1.weight": torch.zeros(16, 3, 3, 3, dtype=torch.uint8)}
    with pytest.raises(HalfbyteError, match=r"conv1\.weight torch\.uint8 for torch\.float32"):
        load_state(create_architecture(SMALL), codes, Path("codes.pth"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(state, value):
    broken = {**state, "linear.bias": torch.full((10,), value)}
    with pytest.raises(HalfbyteError, match=r"bad\.pth.*NaN or infinite.*linear\.bias"):
        load_state(create_architecture(SMALL), broken, Path("bad.pth"))
