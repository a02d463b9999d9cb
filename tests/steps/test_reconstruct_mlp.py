"""GELU becomes ReLU where the MLP can learn it, and the model that comes of it is saved, loaded and continued."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from halfbyte import api
from halfbyte.data.images import EMBEDDED_CALIBRATION, open_images
from halfbyte.errors import HalfbyteError, InapplicableError
from halfbyte.families.describe import describe
from halfbyte.layers.activation import ExactGELU
from halfbyte.models.builtin import create_builtin
from halfbyte.prepare import model_state, prepare
from halfbyte.progress import Progress
from halfbyte.recipe import parse_recipe
from halfbyte.session import Session
from halfbyte.steps.reconstruct_mlp import ReconstructMlp

SHORT = ReconstructMlp(images=32, iterations=100, most=0.9)


def session_of(name: str = "fashion_vit") -> Session:
    model = create_builtin(name).eval()
    images = open_images(EMBEDDED_CALIBRATION, model.pretrained_cfg, num_classes=None).subset(range(32))
    recipe = parse_recipe("name: r\nif_possible: [reconstruct_mlp]\nsteps: [reconstruct_mlp]", "test")
    teacher = copy.deepcopy(model)
    layout = prepare(model, describe(model), recipe.bits)
    generator = torch.Generator().manual_seed(0)
    return Session(model, teacher, layout, recipe, images, torch.device("cpu"), generator, Progress(quiet=True), 8)


@pytest.mark.parametrize("name", ["fashion_vit", pytest.param("fashion_swin", marks=pytest.mark.slow)])
def test_every_mlp_learns_to_do_with_relu(name):
    session = session_of(name)
    figures = SHORT.run(session)["mlps"]
    assert len(figures) == sum(isinstance(module, nn.ReLU) for module in session.model.modules()) > 0
    assert not any(isinstance(module, ExactGELU) for module in session.model.modules())
    assert all(figure["relu"] and figure["error"] < 0.5 * figure["error_before"] for figure in figures)
    images = torch.stack([session.calibration[i][0] for i in range(16)])
    with torch.no_grad(), model_state(session.model, "float"):
        agreement = session.model(images).argmax(1) == session.teacher(images).argmax(1)
    assert agreement.float().mean() > 0.8
    # No step that follows finds gradients or flags that were not there.
    assert all(parameter.grad is None for parameter in session.model.parameters())


def test_an_mlp_that_does_not_learn_it_stays_what_it_was():
    session = session_of()
    before = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    figures = ReconstructMlp(images=16, iterations=1, most=1e-6).run(session)["mlps"]
    assert not any(figure["relu"] for figure in figures)
    assert session.edits == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in session.model.state_dict().items())
    assert not any(isinstance(module, nn.ReLU) for module in session.model.modules())


def test_a_model_without_such_mlps_is_told():
    with pytest.raises(InapplicableError, match="no MLP of two linears with GELU"):
        SHORT.run(session_of("fashion_resnet"))


@pytest.fixture
def run(tmp_path):
    def quantize(steps, name="out", **options):
        (tmp_path / "r.yaml").write_text(f"name: r\nsteps: [{steps}]\n")
        return api.quantize(**{"model": "fashion_vit", "recipe": tmp_path / "r.yaml", "out": tmp_path / name,
                               "calib_images": 16, "limit": 4, "workers": 0, **options})  # fmt: skip

    return quantize


STEPS = "rotate, reconstruct_mlp: {images: 16, iterations: 5, most: 1.0}, percentile: {images: 16}"


def test_saved_and_loaded_but_not_continued(run, tmp_path):
    result = run(STEPS)
    images = torch.randn(4, 1, 28, 28)
    with torch.no_grad(), model_state(result.model, "quantized"):
        expected = result.model(images)
    with torch.inference_mode():
        assert torch.equal(api.load(result.folder)(images), expected)
    with pytest.raises(HalfbyteError, match="its MLPs were learned"):
        run("refit: {images: 16}", "more", model=None, start=result.folder)


def test_a_stopped_run_goes_on_to_the_same_bytes(run, survives_stops):
    survives_stops(lambda name, resume: run(STEPS, name, resume=resume), at=(3, 5))


def test_it_comes_behind_rotations(run):
    with pytest.raises(HalfbyteError, match="reconstruct_mlp comes before rotate; put it behind"):
        run("reconstruct_mlp: {images: 16}, rotate, minmax: {images: 16}")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"images": 4}, "images must be at least 8"), ({"iterations": 0}, "iterations"), ({"lr": 0.0}, "lr must"),
     ({"most": 0.0}, "most above 0")],
)  # fmt: skip
def test_wrong_parameters_are_told(wrong, told):
    with pytest.raises(ValueError, match=told):
        ReconstructMlp(**wrong)
