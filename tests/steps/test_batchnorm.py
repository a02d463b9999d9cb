"""Batch norms: folded into the convolutions before them, or re-estimated behind quantized ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import halfbyte
from halfbyte import api
from halfbyte.edits import Edit
from halfbyte.errors import HalfbyteError
from halfbyte.families.describe import describe
from halfbyte.inputs import Options, read_inputs, resolved_recipe
from halfbyte.layers.norm import ExactBatchNorm
from halfbyte.layers.site import WeightedSite
from halfbyte.prepare import model_state, prepare, site_module
from halfbyte.progress import Progress
from halfbyte.session import Session
from halfbyte.steps.catalog import resolve
from halfbyte.steps.fold_batchnorm import foldable

PERCENTILE = "percentile: {images: 32}"
FOLD = "fold_batchnorm"
MATCHED = "bn_recalibrate: {images: 32}"
MEASURED = "bn_recalibrate: {images: 32, statistics: measured}"


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe of these steps."""

    def write(*steps: str) -> Path:
        path = tmp_path / "batchnorm.yaml"
        path.write_text("name: batchnorm\nsteps:\n" + "".join(f"  - {step}\n" for step in steps))
        return path

    return write


def run(recipe: Path, out: Path, bits: int = 3, model: str = "fashion_resnet", **options) -> api.Result:
    return halfbyte.quantize(
        model=model, recipe=recipe, w_bits=bits, a_bits=bits, out=out, workers=0,
        **{"calib_images": 32, "limit": 20, **options},
    )  # fmt: skip


def session_after(recipe: Path, bits: int = 3) -> Session:
    options = Options(
        model="fashion_resnet", recipe=recipe, w_bits=bits, a_bits=bits, calib_images=32, limit=8, workers=0
    )
    quiet = Progress(quiet=True)
    session = api._session(read_inputs(options, resolved_recipe(options), quiet), options, quiet)
    for name, step in resolve(session.recipe):
        session.run(name, step)
    return session


def norms(model: nn.Module) -> dict[str, ExactBatchNorm]:
    return {name: module for name, module in model.named_modules() if isinstance(module, ExactBatchNorm)}


@torch.no_grad()
def inputs_of_norms(model: nn.Module, names: list[str], images: Tensor) -> dict[str, Tensor]:
    """What reaches each norm, `[C, values]`."""
    seen = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _module, inputs, name=name: seen.update({name: inputs[0].double().transpose(0, 1).flatten(1)})
        )
        for name in names
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return seen


# Folding


@torch.no_grad()
def trained_like(name: str) -> nn.Module:
    """A timm model for images of 64 x 64 with random weights and norms that do something."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 64, 64)}
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5), (module.bias, -0.3, 0.3),
            ):  # fmt: skip
                tensor.uniform_(low, high)
    return model


@pytest.mark.parametrize(
    ("name", "folded", "left"),
    [("resnet18", 20, 0), ("mobilenetv2_100", 52, 0), ("tf_efficientnet_lite0", 49, 0), ("densenet121", 59, 62)],
)
@torch.no_grad()
def test_a_folded_model_is_the_same_function(name: str, folded: int, left: int) -> None:
    """DenseNet's other norms stand behind concatenations."""
    model = trained_like(name)
    images = torch.randn(2, 3, 64, 64)
    expected = model(images)
    layout = prepare(model, describe(model))
    pairs = foldable(model, images[:1])
    for site, norm in pairs:
        layout = Edit("fold_norm", {"site": site, "norm": norm}).apply(model, layout)
    assert (len(pairs), len(norms(model))) == (folded, left)
    torch.testing.assert_close(model(images), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


class TwoReaders(nn.Module):
    """A convolution whose output a norm reads, and `others` besides."""

    def __init__(self, others: bool) -> None:
        super().__init__()
        self.others = others
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.pretrained_cfg = {"input_size": (3, 8, 8)}

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y.relu() if self.others else self.norm(y)


@pytest.mark.parametrize("others", [False, True])
def test_a_convolution_that_is_read_elsewhere_keeps_its_norm(others: bool) -> None:
    model = TwoReaders(others).eval()
    prepare(model, describe(model))
    assert foldable(model, torch.randn(1, 3, 8, 8)) == ([] if others else [("conv", "norm")])


def test_a_model_without_a_norm_to_fold_is_refused(recipe, tmp_path) -> None:
    with pytest.raises(HalfbyteError, match="no BatchNorm of the model follows a convolution"):
        run(recipe(FOLD, PERCENTILE), tmp_path / "run", model="fashion_vit")


def test_a_folded_artifact_has_no_norms_and_loads_and_goes_on(recipe, tmp_path) -> None:
    result = run(recipe(FOLD, PERCENTILE), tmp_path / "folded", bits=8, limit=200)
    assert result.metrics["steps"][0] == {"step": FOLD, "folded": 14, "left": 0}
    assert result.metrics["quantized"]["agreement"] > 97
    loaded = halfbyte.load(result.folder)
    assert not norms(loaded)
    images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), model_state(result.model, "quantized"):
        assert torch.equal(loaded(images), result.model(images))
    # `--from` folds the trained weights again, to the same codes.
    options = Options(start=result.folder, recipe=recipe("bias_correct: {images: 32}"), calib_images=32, workers=0)
    quiet = Progress(quiet=True)
    session = api._session(read_inputs(options, resolved_recipe(options), quiet), options, quiet)
    for site in session.layout.sites:
        module = site_module(session.model, site.name)
        assert isinstance(module, WeightedSite)
        kept, module.weight_codes = module.weight_codes, None
        assert torch.equal(module.codes(), kept)


def test_folding_comes_before_calibration(recipe, tmp_path) -> None:
    with pytest.raises(HalfbyteError, match="fold_batchnorm changes the trained weights and cannot follow percentile"):
        run(recipe(PERCENTILE, FOLD), tmp_path / "run")
    start = run(recipe(PERCENTILE), tmp_path / "start").folder
    with pytest.raises(HalfbyteError, match=f"fold_batchnorm changes the trained weights, but --from {start}"):
        halfbyte.quantize(start=start, recipe=recipe(FOLD), out=tmp_path / "run", workers=0)
    assert not (tmp_path / "run").exists()


# Re-estimation


def test_measured_statistics_are_those_of_what_reaches_each_norm(recipe) -> None:
    session = session_after(recipe(PERCENTILE, MEASURED))
    with model_state(session.model, "quantized"):
        seen = inputs_of_norms(session.model, list(norms(session.model)), next(session.images(32, 32)))
    assert len(seen) == 14
    for name, norm in norms(session.model).items():
        torch.testing.assert_close(norm.running_mean.double(), seen[name].mean(1), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(norm.running_var.double(), seen[name].var(1), atol=1e-6, rtol=1e-5)


def test_matched_statistics_give_each_norms_output_the_float_moments(recipe) -> None:
    session = session_after(recipe(PERCENTILE, MATCHED))
    images, names = next(session.images(32, 32)), list(norms(session.model))
    trained = inputs_of_norms(session.teacher, names, images)
    with model_state(session.model, "quantized"):
        quantized = inputs_of_norms(session.model, names, images)
    for name, norm in norms(session.model).items():
        origin = session.teacher.get_submodule(name)
        outputs = [
            (x - mean.double()[:, None]) / (variance.double()[:, None] + norm.eps).sqrt()
            for x, mean, variance in (
                (trained[name], origin.running_mean, origin.running_var),
                (quantized[name], norm.running_mean, norm.running_var),
            )
        ]
        torch.testing.assert_close(outputs[1].mean(1), outputs[0].mean(1), atol=1e-4, rtol=1e-4)
        alive = trained[name].var(1) > 100 * norm.eps
        assert bool(alive.any())
        torch.testing.assert_close(outputs[1].std(1)[alive], outputs[0].std(1)[alive], atol=1e-3, rtol=1e-2)


def test_where_nothing_is_lost_nothing_moves(recipe) -> None:
    figures = session_after(recipe(PERCENTILE, MATCHED), bits=8).reports[-1].figures
    assert figures["norms"] == 14
    assert figures["mean_moved"] < 0.01
    assert figures["deviation_ratio"] == pytest.approx(1, abs=0.002)


def test_the_float_state_keeps_the_trained_statistics(recipe) -> None:
    session = session_after(recipe(PERCENTILE, MATCHED))
    images = next(session.images(8))
    with torch.no_grad(), model_state(session.model, "float"):
        torch.testing.assert_close(session.model(images), session.teacher(images), atol=1e-5, rtol=1e-5)


def test_accuracy_rises_and_the_gain_is_reported(recipe, tmp_path) -> None:
    plain = run(recipe(PERCENTILE), tmp_path / "plain", limit=300, calib_images=128).metrics["quantized"]
    result = run(recipe(PERCENTILE, "bn_recalibrate: {images: 128}"), tmp_path / "run", limit=300, calib_images=128)
    better, figures = result.metrics["quantized"], result.metrics["steps"][-1]
    assert better["kl"] < 0.75 * plain["kl"]
    assert better["agreement"] > plain["agreement"]
    assert better["top1"] >= result.metrics["float"]["top1"] - 2.5
    assert figures["kl"] < 0.75 * figures["kl_before"]
    page = (result.folder / "report.html").read_text()
    assert "agreement before" in page


def test_an_artifact_keeps_the_statistics(recipe, tmp_path) -> None:
    result = run(recipe(PERCENTILE, MATCHED), tmp_path / "run")
    loaded = halfbyte.load(result.folder)
    images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), model_state(result.model, "quantized"):
        assert torch.equal(loaded(images), result.model(images))


def test_from_a_calibrated_artifact_it_is_the_same_as_at_once(recipe, tmp_path) -> None:
    at_once = run(recipe(PERCENTILE, MATCHED), tmp_path / "once").folder
    start = run(recipe(PERCENTILE), tmp_path / "start").folder
    later = halfbyte.quantize(
        start=start, recipe=recipe(MATCHED), out=tmp_path / "later", calib_images=32, limit=20, workers=0
    )
    assert (later.folder / "model.safetensors").read_bytes() == (at_once / "model.safetensors").read_bytes()
    # What was re-estimated once still has the trained statistics in float.
    again = Options(start=later.folder, recipe=recipe(MATCHED), calib_images=32, workers=0)
    quiet = Progress(quiet=True)
    session = api._session(read_inputs(again, resolved_recipe(again), quiet), again, quiet)
    images = next(session.images(8))
    with torch.no_grad(), model_state(session.model, "float"):
        torch.testing.assert_close(session.model(images), session.teacher(images), atol=1e-5, rtol=1e-5)


def test_a_killed_run_ends_with_the_same_bytes(recipe, tmp_path, monkeypatch) -> None:
    steps = recipe(PERCENTILE, MATCHED)
    whole = run(steps, tmp_path / "whole")
    save = Session._save

    def save_and_die(session: Session) -> None:
        save(session)
        if session._parts == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Session, "_save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(steps, tmp_path / "killed")
    monkeypatch.setattr(Session, "_save", save)
    resumed = run(steps, tmp_path / "killed", resume=True)
    assert resumed.metrics["steps"] == whole.metrics["steps"]
    for name in ("model.safetensors", "quantization.json"):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_model_without_norms_is_refused(recipe, tmp_path) -> None:
    with pytest.raises(HalfbyteError, match="the model has no BatchNorm"):
        run(recipe(PERCENTILE, MATCHED), tmp_path / "run", model="fashion_vit")
