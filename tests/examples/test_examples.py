"""Every example runs, and gives what its text says."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import halfbyte
from halfbyte.layers.site import WeightedSite
from halfbyte.prepare import site_module
from halfbyte.runtime import Engine
from halfbyte.steps.catalog import STEPS

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
IMAGES = 64


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedded model at four bits."""
    out = tmp_path_factory.mktemp("artifact") / "vit4"
    halfbyte.quantize(model="fashion_vit", recipe="repq", w_bits=4, a_bits=4, out=out, limit=IMAGES, workers=0)
    return out


def example(name: str) -> ModuleType:
    return importlib.import_module(f"examples.{name}")


def folders(place: Path, names: list[str], count: int) -> None:
    """Pictures of noise, so many in a folder of each name."""
    noise = np.random.default_rng(0)
    for name in names:
        folder = place / name
        folder.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(noise.integers(0, 256, (180, 170, 3), np.uint8)).save(folder / f"{number}.jpg")


def test_every_example_is_run_here() -> None:
    # Hours on the whole of a data set that is not part of the project.
    known = {
        "train_builtin.py",
        "own_model.py",
        "own_classes.py",
        "own_recipe.py",
        "own_step.py",
        "read_artifact.py",
        "numpy_engine.py",
    }
    assert {path.name for path in EXAMPLES.glob("*.py")} == known


def test_a_model_of_ones_own_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_vit", num_classes=1000).state_dict(), weights)
    images = tmp_path / "images"
    folders(images, ["n01440764", "n01443537"], 16)
    example("own_model").main("test_vit", weights, images, images, tmp_path / "run")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("float: top-1")
    assert printed[1].startswith("quantized: top-1")
    assert printed[2].startswith("0.jpg: class ")
    assert (tmp_path / "run" / "program.bin").is_file()


@pytest.mark.slow
def test_a_finetuned_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("own_classes")
    monkeypatch.setattr(module, "ARCHITECTURE", "test_vit")
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_vit", num_classes=module.CLASSES).state_dict(), weights)
    folders(tmp_path / "images", [f"kind {number}" for number in range(module.CLASSES)], 3)
    module.main(weights, tmp_path / "images", tmp_path / "images", tmp_path / "run")
    assert capsys.readouterr().out.splitlines()[-1] == f"{module.CLASSES} classes"
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["pretrained_cfg"]["label_names"][:2] == ["kind 0", "kind 1"]
    assert Engine(tmp_path / "run")(np.zeros((1, 3, 160, 160), np.float32)).shape == (1, module.CLASSES)


@pytest.mark.slow
def test_a_recipe_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("own_recipe").main(tmp_path, IMAGES)
    published, own = capsys.readouterr().out.splitlines()
    assert published.startswith("repq: ")
    assert own.startswith("own: ")
    facts = json.loads((tmp_path / "fashion_vit-own_recipe" / "quantization.json").read_text())
    bits = {site["name"]: [quantizer["bits"] for quantizer in site["quantizers"].values()] for site in facts["sites"]}
    assert bits["blocks.0.mlp.fc1"] == [4, 6]
    assert bits["blocks.1.mlp.fc1"] == [4, 4]
    assert bits["blocks.1.attn.qk"] == [6, 6]
    assert any(edit["name"] == "rotate_stream" for edit in facts["edits"])


def test_a_step_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The step must not be known to other tests.
    monkeypatch.setattr(STEPS, "_entries", dict(STEPS._entries))
    monkeypatch.delitem(sys.modules, "examples.own_step", raising=False)
    example("own_step").main(tmp_path / "runs" / "clipped", IMAGES)
    figures, accuracy = capsys.readouterr().out.splitlines()
    assert int(figures.split()[0]) > 0
    assert accuracy.startswith("top-1 ")
    recipe = tmp_path / "runs" / "clipped.yaml"
    recipe.write_text(recipe.read_text().replace("deviations", "deviation"))
    with pytest.raises(halfbyte.HalfbyteError, match=r"clip_rows has no parameter 'deviation'.*deviations"):
        halfbyte.quantize(model="fashion_vit", recipe=recipe, out=tmp_path / "other", workers=0)


@pytest.mark.parametrize("bits", [2, 4, 5])
def test_the_reader_reads_what_halfbyte_wrote(bits: int, artifact: Path, tmp_path: Path) -> None:
    folder = artifact
    if bits != 4:
        folder = tmp_path / "run"
        options = {"recipe": "minmax", "w_bits": bits, "a_bits": 8, "limit": 8, "workers": 0}
        halfbyte.quantize(model="fashion_resnet", out=folder, **options)
    found = example("read_artifact").weights(folder)
    model = halfbyte.load(folder)
    sites = {name: module for name, module in model.named_modules() if isinstance(module, WeightedSite)}
    assert found.keys() == sites.keys()
    for name, weight in found.items():
        wanted = site_module(model, name).float_weight().flatten(1)
        assert torch.equal(torch.from_numpy(weight), wanted), name


def test_the_page_of_the_format_names_every_key(artifact: Path) -> None:
    page = (ROOT / "docs" / "artifact.md").read_text()
    told = page[page.index("## quantization.json") : page.index("A quantizer is its `kind`")]
    facts = json.loads((artifact / "quantization.json").read_text())
    config = json.loads((artifact / "config.json").read_text())
    inner = [*facts["source"], *facts["preprocessing"], *facts["sites"][0], *facts["coverage"], *facts["program"]]
    assert not [key for key in (*facts, *inner) if f"`{key}`" not in told]
    assert not [key for key in config if f"`{key}`" not in page]
    stored = {path.name for path in artifact.iterdir()}
    assert not [name for name in stored if f"`{name}`" not in page]


def without(packages: tuple[str, ...], example: str, artifact: Path) -> str:
    """What an example prints of an artifact where these packages cannot be imported."""
    script = (
        "import runpy, sys\n"
        f"for name in {packages}: sys.modules[name] = None\n"
        "sys.argv[0] = sys.argv.pop(1)\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", script, str(EXAMPLES / example), str(artifact)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_reader_needs_neither_halfbyte_nor_torch(artifact: Path) -> None:
    assert "blocks.0.attn.qkv: 288 x 96" in without(("halfbyte", "torch", "safetensors"), "read_artifact.py", artifact)


def test_the_engine_runs_on_numpy_alone(artifact: Path) -> None:
    absent = ("torch", "timm", "torchvision", "halfbyte.runtime._native")
    operations, right = without(absent, "numpy_engine.py", artifact).split(" operations, ")
    assert int(operations) > 100
    assert int(right.split()[0]) >= 24
