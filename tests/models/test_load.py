"""A model by its name: the embedded ones, the settings given with it, and what timm is imported for."""

from __future__ import annotations

import ast
import hashlib
from importlib import resources
from pathlib import Path

import pytest
import torch

from halfbyte.errors import HalfbyteError
from halfbyte.models import load
from halfbyte.models.builtin import BUILTIN_MODELS
from halfbyte.models.load import load_model
from halfbyte.models.weights import read_state

ASSETS = resources.files("halfbyte") / "assets"


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


# Names and settings


def test_cifar_models_need_a_file():
    with pytest.raises(HalfbyteError, match="cifar_resnet20 comes without weights; give --weights FILE"):
        load_model("cifar_resnet20")


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


def test_timm_and_torchvision_are_imported_in_functions_only():
    package = Path(str(resources.files("halfbyte")))
    for path in [*package.glob("models/*.py"), *package.glob("data/*.py")]:
        for statement in ast.parse(path.read_text()).body:
            names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else []
            names += [str(statement.module)] if isinstance(statement, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"timm", "torchvision"}, path.name
