"""`eval` and `inspect` of what is no artifact, or with files that do not belong to it."""

from __future__ import annotations

import pytest
from safetensors.torch import save_file

from halfbyte.models.builtin import create_builtin

pytestmark = pytest.mark.usefixtures("no_folder_left")


@pytest.mark.parametrize("command", ["eval", "inspect"])
def test_what_is_no_artifact_is_told(halfbyte, tmp_path, command):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("{}")
    halfbyte(command, tmp_path / "empty").refused(str(tmp_path / "empty"), "not an artifact", "quantization.json")
    halfbyte(command, tmp_path / "file").refused(str(tmp_path / "file"), "is a file", "artifact")
    halfbyte(command, tmp_path / "none").refused(str(tmp_path / "none"), "does not exist")
    halfbyte(command, "fashion_resnett").refused("unknown model 'fashion_resnett'", "did you mean")


def test_eval_refuses_what_does_not_belong_to_the_artifact(quantize, halfbyte, tmp_path):
    assert quantize().code == 0
    other = {name: tensor + 0.01 for name, tensor in create_builtin("fashion_resnet").state_dict().items()}
    save_file(other, tmp_path / "other.safetensors")
    command = ("eval", tmp_path / "out", "--workers", 0, "--limit", 4)
    halfbyte(*command, "--weights", tmp_path / "other.safetensors").refused("other.safetensors", "sha256")
    halfbyte(*command, "--crop-pct", "2").refused("--crop-pct")
    halfbyte(*command, "--interpolation", "cubic").refused("--interpolation", "cubic")
    assert halfbyte(*command, "--interpolation", "bilinear").code == 0
