"""Loading models: embedded, from files good and bad, and from a hub that is not there."""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import socket
import time
import zipfile
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from halfbyte.errors import HalfbyteError
from halfbyte.models import load, pretrained
from halfbyte.models.builtin import BUILTIN_MODELS
from halfbyte.models.load import create_architecture, load_model
from halfbyte.models.weights import load_state, read_state, sha256_file

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "weights"
ASSETS = resources.files("halfbyte") / "assets"
SMALL = "cifar_resnet20"


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(1)
    return create_architecture(SMALL).state_dict()


@pytest.fixture
def no_network(monkeypatch):
    """A network without names or routes, counting the attempts."""
    attempts = []

    def refuse(*address, **_):
        attempts.append(address)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


@pytest.fixture
def empty_hub(monkeypatch, tmp_path):
    """A cache of the hub with nothing in it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


# Embedded models


@pytest.mark.parametrize("name", BUILTIN_MODELS)
def test_an_embedded_model_loads_from_the_package(name, no_network):
    file = ASSETS / f"{name}.safetensors"
    if not file.is_file():
        pytest.skip(f"{name} is not trained yet")
    loaded = load_model(name)
    assert not no_network
    assert not loaded.model.training
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert {p.device.type for p in loaded.model.parameters()} == {"cpu"}
    assert loaded.source.as_dict() == {
        "name": name, "architecture": name, "tag": None, "weights": "embedded",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "note": None,
    }  # fmt: skip
    assert loaded.data_config["input_size"] == (1, 28, 28)
    assert loaded.data_config["mean"] == (0.2860,)
    assert set(loaded.data_config) == {"input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"}


def test_the_embedded_weights_are_those_of_the_file_and_classify():
    from halfbyte.data.images import EMBEDDED_TEST, batches, limit, open_images

    loaded = load_model("fashion_resnet")
    stored = read_state(Path(str(ASSETS / "fashion_resnet.safetensors")))
    assert torch.equal(loaded.model.state_dict()["fc.weight"], stored["fc.weight"].float())
    images = limit(open_images(EMBEDDED_TEST, loaded.data_config, num_classes=10), 200)
    with torch.inference_mode():
        hits = sum(int((loaded.model(x).argmax(1) == y).sum()) for x, y in batches(images, 100))
    assert hits >= 160


def test_no_name_is_the_default_model():
    if not (ASSETS / "fashion_vit.safetensors").is_file():
        pytest.skip("fashion_vit is not trained yet")
    assert load_model(None).source.name == "fashion_vit"


def test_an_installation_without_its_weights_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(load.resources, "files", lambda _: tmp_path)
    with pytest.raises(HalfbyteError, match="install halfbyte again"):
        load_model("fashion_resnet")


# Weights from files


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


# Names and settings


def test_cifar_models_need_a_file():
    with pytest.raises(HalfbyteError, match="cifar_resnet20 comes without weights; give --weights FILE"):
        load_model(SMALL)


def test_an_unknown_name_is_refused_before_the_weights_are_read():
    with pytest.raises(HalfbyteError, match="unknown model 'fashion_vti'; did you mean fashion_vit"):
        load_model("fashion_vti", Path("/absent.pth"))


@pytest.mark.parametrize("crop_pct", [0.0, -0.5, 1.5, float("nan")])
def test_an_impossible_crop_is_refused(crop_pct):
    with pytest.raises(HalfbyteError, match="--crop-pct"):
        load_model("fashion_resnet", crop_pct=crop_pct)


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(HalfbyteError, match="did you mean bicubic"):
        load_model("fashion_resnet", interpolation="bicubik")


# The hub


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


# Architectures


def test_architectures_are_built_without_a_network(no_network):
    assert create_architecture("fashion_swin")(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    assert create_architecture("test_vit", "r160_in1k").pretrained_cfg["tag"] == "r160_in1k"
    assert create_architecture("test_vit", num_classes=7).head.out_features == 7
    assert not no_network


def test_a_headless_model_gets_a_classifier():
    model = create_architecture("vit_small_patch14_dinov2", "lvd142m", img_size=56, depth=1)
    assert model.head.out_features == model.num_classes == 1000
    assert create_architecture("vit_small_patch14_dinov2", num_classes=7, img_size=56, depth=1).num_classes == 7


@pytest.mark.parametrize(
    ("architecture", "tag", "arguments", "message"),
    [
        ("resnet19", None, {}, "unknown architecture 'resnet19'; did you mean resnet18"),
        ("hf-hub:timm/resnet18", None, {}, "unknown architecture"),
        ("test_vit", "r161_in1k", {}, r"no tag 'r161_in1k'; did you mean test_vit\.r160_in1k"),
        ("test_vit", None, {"wings": 2}, "cannot build test_vit.*wings"),
        ("fashion_vit", None, {"wings": 2}, "cannot build fashion_vit.*wings"),
    ],
)
def test_what_cannot_be_built_is_told(architecture, tag, arguments, message):
    with pytest.raises(HalfbyteError, match=message):
        create_architecture(architecture, tag, **arguments)


def test_timm_and_torchvision_are_imported_in_functions_only():
    package = Path(str(resources.files("halfbyte")))
    for path in [*package.glob("models/*.py"), *package.glob("data/*.py")]:
        for statement in ast.parse(path.read_text()).body:
            names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else []
            names += [str(statement.module)] if isinstance(statement, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"timm", "torchvision"}, path.name
