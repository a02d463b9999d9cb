"""Weights from a hub: cached, downloaded, or out of reach, which is told at once with the remedy."""

from __future__ import annotations

import time

import pytest
import torch
from safetensors.torch import save_file

from halfbyte.errors import HalfbyteError
from halfbyte.models import pretrained
from halfbyte.models.load import create_architecture, load_model
from halfbyte.models.weights import sha256_file


def test_a_hub_out_of_reach_is_told_at_once(no_network, empty_hub):
    start = time.monotonic()
    with pytest.raises(HalfbyteError, match=r"resnet18\.tv_in1k.*give --weights FILE \(\.safetensors or \.pth\)"):
        load_model("resnet18")
    assert no_network
    assert time.monotonic() - start < 3


def test_an_offline_hub_is_told(monkeypatch, empty_hub, no_network):
    def forbid(*_, **__):
        raise ConnectionError("offline mode is enabled")

    monkeypatch.setattr("huggingface_hub.get_session", forbid)
    with pytest.raises(HalfbyteError, match=r"offline mode is enabled.*give --weights FILE"):
        load_model("vit_small")


def test_weights_in_the_hubs_cache_need_no_network(no_network, empty_hub):
    source = create_architecture("test_vit", "r160_in1k").state_dict()
    folder = empty_hub / "models--timm--test_vit.r160_in1k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    file = folder / "snapshots" / "abc" / "model.safetensors"
    save_file(source, file)
    loaded = load_model("test_vit.r160_in1k")
    assert not no_network
    assert (loaded.source.weights, loaded.source.sha256) == ("hub", sha256_file(file))
    assert all(torch.equal(value, source[key]) for key, value in loaded.model.state_dict().items())


class _Session:
    def head(self, url, timeout):
        assert timeout <= 10


def test_a_download_takes_the_published_file(monkeypatch, tmp_path, empty_hub):
    source = create_architecture("test_vit", "r160_in1k").state_dict()
    torch.save(source, tmp_path / "pytorch_model.bin")
    monkeypatch.setattr("huggingface_hub.get_session", _Session)
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda *_, **__: ["README.md", "pytorch_model.bin"])
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, name, revision: str(tmp_path / name))
    loaded = load_model("test_vit.r160_in1k")
    assert loaded.source.weights == "hub"
    assert torch.equal(loaded.model.head.weight, source["head.weight"])


def test_a_repository_without_weights_is_told(monkeypatch, empty_hub):
    monkeypatch.setattr("huggingface_hub.get_session", _Session)
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda *_, **__: ["README.md"])
    with pytest.raises(HalfbyteError, match=r"holds neither model\.safetensors.*give --weights FILE"):
        load_model("test_vit.r160_in1k")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coatnet_0_224", "no pretrained weights are published for coatnet_0_224"),
        ("vit_small_patch14_dinov2.lvd142m", "have no classifier"),
        ("gcvit_base.in1k", "not on the hub; get them from https://"),
    ],
)
def test_weights_that_cannot_be_fetched_name_the_remedy(monkeypatch, name, message):
    monkeypatch.setattr(pretrained, "_downloaded", lambda _: pytest.fail("nothing to download"))
    with pytest.raises(HalfbyteError, match=message) as error:
        load_model(name)
    assert "--weights FILE" in str(error.value)
