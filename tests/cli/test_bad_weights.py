"""A model or weights that cannot be had: an unknown name, a hub out of reach, a file that does not fit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from halfbyte.models.builtin import create_builtin

pytestmark = pytest.mark.usefixtures("no_folder_left")

EMBEDDED_WEIGHTS = Path(str(resources.files("halfbyte") / "assets" / "fashion_resnet.safetensors"))


def test_an_unknown_model_is_told_with_the_nearest_names(refused):
    refused("unknown model 'fashion_resnett'", "did you mean", "fashion_resnet", model="fashion_resnett")


def test_an_unknown_tag_is_told_with_the_nearest(refused):
    refused("'resnet18'", "no tag 'tv_in2k'", "resnet18.tv_in1k", model="resnet18.tv_in2k")


def test_a_hub_out_of_reach_ends_at_once_with_the_remedy(refused, monkeypatch, tmp_path):
    from huggingface_hub import constants

    def refuse(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    start = time.monotonic()
    refused("resnet18.tv_in1k", "give --weights FILE (.safetensors or .pth)", model="resnet18")
    assert time.monotonic() - start < 15


@pytest.mark.slow
def test_as_a_process_a_hub_behind_a_dead_proxy_ends_with_the_remedy(tmp_path):
    closed = "http://127.0.0.1:9"
    environment = {
        **os.environ, "HF_HOME": str(tmp_path / "hub"), "HTTPS_PROXY": closed, "HTTP_PROXY": closed,
        "https_proxy": closed, "http_proxy": closed, "NO_PROXY": "", "no_proxy": "",
    }  # fmt: skip
    start = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "halfbyte", "quantize", "resnet18", "--calib", str(tmp_path), "--out", "out"],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 2
    assert time.monotonic() - start < 60
    (line,) = ended.stderr.splitlines()
    assert line.startswith("halfbyte: cannot fetch the pretrained weights of resnet18.tv_in1k")
    assert "give --weights FILE (.safetensors or .pth)" in line


def test_an_offline_hub_is_told_with_the_remedy(refused, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("resnet18.tv_in1k", "give --weights FILE", model="resnet18")


def test_weights_of_another_model_are_told(refused, tmp_path):
    save_file(create_builtin("fashion_swin").state_dict(), tmp_path / "swin.safetensors")
    refused("swin.safetensors", "fashion_resnet", "missing", options=("--weights", tmp_path / "swin.safetensors"))


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.7])
def test_truncated_weights_are_told(refused, tmp_path, name, share):
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(create_builtin("fashion_resnet").state_dict(), path)
        whole = path.read_bytes()
    else:
        whole = EMBEDDED_WEIGHTS.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(name, options=("--weights", path))


def test_code_in_a_pickle_is_not_run(refused, bomb, tmp_path):
    torch.save({"fc.weight": bomb}, tmp_path / "bomb.pth")
    refused("bomb.pth", options=("--weights", tmp_path / "bomb.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["none.safetensors", "none.pth", "."])
def test_weights_that_are_not_there_are_told(refused, tmp_path, name):
    refused(str(tmp_path / name), "give a .safetensors or .pth file", options=("--weights", tmp_path / name))
