"""`--from`: a run that goes on where an artifact ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from halfbyte import api
from halfbyte.inputs import Options, read_inputs, resolved_recipe
from halfbyte.layers.site import WeightedSite
from halfbyte.models.load import load_model
from halfbyte.prepare import model_state, site_module
from halfbyte.progress import Progress
from halfbyte.steps import catalog

TENSORS = "model.safetensors"


@dataclass(frozen=True)
class Shift:
    """A later step as small as can be: moves the classifier's bias."""

    calibrates: ClassVar[bool] = False
    by: float = 0.0

    def run(self, session):
        with torch.no_grad():
            site_module(session.model, "head").bias.add_(self.by)
        return {}


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A 4-bit artifact whose norms and weights were reparameterized."""
    folder = tmp_path_factory.mktemp("start") / "artifact"
    api.quantize(model="fashion_vit", recipe="repq", calib_images=32, limit=8, workers=0, out=folder, crop_pct=0.95)
    return folder


@pytest.fixture
def later(tmp_path, monkeypatch) -> Path:
    """A recipe of one later step."""
    monkeypatch.setitem(catalog.STEPS._entries, "shift", Shift)
    (tmp_path / "later.yaml").write_text("name: later\nsteps: [shift]\n")
    return tmp_path / "later.yaml"


@pytest.fixture
def go_on(halfbyte, later, start, tmp_path):
    """`halfbyte quantize --from`, with further options; those given later win."""

    def run(*options):
        return halfbyte(
            "quantize", "--from", start, "--recipe", later, "--calib-images", 32, "--limit", 8, "--workers", 0,
            "--out", tmp_path / "out", *options,
        )  # fmt: skip

    return run


def test_the_trained_weights_give_the_artifacts_codes_again(start, later):
    options = Options(start=start, recipe=later, calib_images=32, limit=8, workers=0)
    session = api._session(read_inputs(options, resolved_recipe(options), Progress(quiet=True)), options, Progress())
    rescaled = 0
    for site in session.layout.sites:
        module = site_module(session.model, site.name)
        if isinstance(module, WeightedSite):
            kept = module.weight_codes
            module.weight_codes = None
            assert torch.equal(module.codes(), kept), site.name
            rescaled += module.folded_scale is not None and bool((module.folded_scale != 1).any())
    assert rescaled == 12


def test_a_step_that_changes_nothing_gives_the_same_artifact(go_on, start, tmp_path):
    outcome = go_on()
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "out" / TENSORS).read_bytes() == (start / TENSORS).read_bytes()
    before, after = (json.loads((folder / "quantization.json").read_text()) for folder in (start, tmp_path / "out"))
    for key in ("edits", "preprocessing", "source"):
        assert after[key] == before[key]
    assert after["recipe"]["name"] == "later"
    metrics, earlier = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "out", start))
    assert metrics["quantized"] == earlier["quantized"]
    assert metrics["bits"] == earlier["bits"]


def test_a_step_goes_on_from_the_artifacts_values(go_on, start, tmp_path):
    assert go_on("--set", "shift.by=0.5").code == 0
    before, after = load_file(start / TENSORS), load_file(tmp_path / "out" / TENSORS)
    assert torch.equal(after["head.bias"], before["head.bias"] + 0.5)
    assert all(torch.equal(after[name], before[name]) for name in before if name != "head.bias")


@pytest.mark.parametrize("step", ["refit: {images: 32, sites: last}", "bias_correct: {images: 32, affine: true}"])
def test_the_float_state_is_the_trained_model_behind_a_correction(start, later, tmp_path, step):
    (tmp_path / "first.yaml").write_text(f"name: first\nsteps: [{{{step}}}]\n")
    api.quantize(
        start=start, recipe=tmp_path / "first.yaml", calib_images=32, limit=8, workers=0, out=tmp_path / "corrected"
    )
    options = Options(start=tmp_path / "corrected", recipe=later, calib_images=32, limit=8, workers=0)
    session = api._session(read_inputs(options, resolved_recipe(options), Progress(quiet=True)), options, Progress())
    images = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    corrected = [site_module(session.model, site.name) for site in session.layout.sites if site.role == "fc2"]
    assert all(module.trained_bias is not None for module in corrected)
    assert site_module(session.model, "head").trained_bias is None
    with torch.no_grad(), model_state(session.model, "float"):
        torch.testing.assert_close(session.model(images), session.teacher(images), rtol=0, atol=1e-3)


def test_an_option_given_wins_over_the_artifacts_preprocessing(go_on, tmp_path):
    assert go_on("--crop-pct", 0.8).code == 0
    assert json.loads((tmp_path / "out" / "quantization.json").read_text())["preprocessing"]["crop_pct"] == 0.8


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--w-bits", 8), ("--w-bits", "--from", "leave --w-bits out")),
        (("--a-bits", 3), ("--a-bits", "leave --a-bits out")),
        (("--recipe", "repq"), ("repq calibrates from scratch", "leave --from out")),
        (("--recipe", "minmax"), ("minmax calibrates from scratch",)),
        (("--from", "nowhere"), ("nowhere", "does not exist")),
    ],
)
def test_what_does_not_fit_is_refused(go_on, tmp_path, options, parts):
    go_on(*options).refused(*parts)
    assert not (tmp_path / "out").exists()


def test_another_model_is_refused(halfbyte, later, start, tmp_path):
    outcome = halfbyte("quantize", "fashion_resnet", "--from", start, "--recipe", later, "--out", tmp_path / "out")
    outcome.refused("is a fashion_vit, not a fashion_resnet")


def test_other_weights_are_refused(go_on, tmp_path):
    weights = {name: tensor.clone() for name, tensor in load_model("fashion_vit").model.state_dict().items()}
    weights["head.bias"][0] += 1
    save_file(weights, tmp_path / "other.safetensors")
    go_on("--weights", tmp_path / "other.safetensors").refused("other.safetensors", "sha256 differs")


def test_a_recipe_of_the_other_exactness_is_refused(go_on, later):
    later.write_text("name: later\npaper_exact: true\nsteps: [shift]\n")
    go_on().refused("is not paper_exact", "use a recipe alike")


def test_a_resumed_run_keeps_the_codes_from_which_it_started(start, later, tmp_path):
    """Also where they are not the nearest ones to the weights, as after a step that learned their rounding."""
    options = Options(start=start, recipe=later, calib_images=32, limit=8, workers=0)

    def session():
        inputs = read_inputs(options, resolved_recipe(options), Progress(quiet=True))
        return api._session(inputs, options, Progress(quiet=True))

    first, second = session(), session()
    name = "blocks.1.mlp.fc1"
    site_module(first.model, name).weight_codes[0, 0] ^= 1
    first.save_state(tmp_path)
    assert second.restore_state(tmp_path)
    assert torch.equal(site_module(second.model, name).codes(), site_module(first.model, name).codes())
    assert second.edits == first.edits
