"""Groups of channels by calibration: their steps leave no trace in what is deployed."""

from __future__ import annotations

import json

import pytest
import torch

from halfbyte import api
from halfbyte.calibrate.channel_groups import channel_ranges, grouped_ranges
from halfbyte.errors import HalfbyteError
from halfbyte.inputs import Options, read_inputs, resolved_recipe
from halfbyte.layers.linear import QuantLinear
from halfbyte.prepare import model_state, site_module
from halfbyte.progress import Progress
from halfbyte.quantizers.groupwise import CentredQuantizer, GroupwiseQuantizer
from halfbyte.steps.groupwise import Groupwise, fitted


def recipe(tmp_path, settings, bits=4, paper_exact=False):
    path = tmp_path / "r.yaml"
    path.write_text(
        f"name: g\nbits: {{weight: {bits}, activation: {bits}}}\npaper_exact: {str(paper_exact).lower()}\n"
        f"steps: [groupwise: {{images: 16, {settings}}}]"
    )
    return path


@pytest.fixture
def run(tmp_path):
    def quantize(settings, name="run", model="fashion_vit", limit=8, **options):
        return api.quantize(
            model=model, recipe=recipe(tmp_path, settings), out=tmp_path / name, calib_images=16, limit=limit,
            workers=0, **options,
        )  # fmt: skip

    return quantize


def session_of(tmp_path, settings, model="fashion_vit", **bits):
    path = recipe(tmp_path, settings, **bits)
    options = Options(model=model, recipe=path, calib_images=16, workers=0, limit=4)
    session = api._session(read_inputs(options, resolved_recipe(options), Progress(quiet=True)), options, Progress())
    return session, Groupwise(**session.recipe.steps[0].parameters)


@pytest.mark.parametrize("model", ["fashion_vit", pytest.param("fashion_swin", marks=pytest.mark.slow)])
def test_folding_is_exact_but_for_the_weights_rounding(tmp_path, model):
    """Folded or not, activations get the same codes and the float model stays the same function."""
    folded, step = session_of(tmp_path, "groups: 5", model)
    plain, unfolded = session_of(tmp_path, "groups: 5, fold: false", model)
    step.run(folded)
    unfolded.run(plain)
    images = next(iter(plain.images(8)))
    with torch.no_grad():
        with model_state(folded.model, "float"), model_state(plain.model, "float"):
            torch.testing.assert_close(folded.model(images), plain.model(images), atol=1e-4, rtol=1e-4)
        outputs = []
        for session in (folded, plain):

            def inputs_only(module, operand, x):
                return x if operand == "weight" else module.quantizer(operand)(x)

            with model_state(session.model, "observe", inputs_only):
                outputs.append(session.model(images))
    # A tie that falls to the other side moves the predictions a little.
    assert (outputs[0] - outputs[1]).abs().median() < 1e-4
    assert (outputs[0].argmax(1) == outputs[1].argmax(1)).all()


def test_what_is_deployed_has_one_step_an_input(run):
    result = run("groups: 4")
    sites = [module for module in result.model.modules() if isinstance(module, QuantLinear)]
    assert {module.quantizer("input").groups for module in sites} == {1}
    scaled = {name for name, module in result.model.named_modules() if getattr(module, "input_scale", None) is not None}
    # Norms take up the steps of what they feed; elsewhere the linear multiplies.
    assert "blocks.0.attn.proj" in scaled
    assert "blocks.0.mlp.fc2" in scaled
    assert not {"blocks.0.attn.qkv", "blocks.0.mlp.fc1"} & scaled
    images = torch.randn(5, 1, 28, 28)
    with torch.inference_mode(), model_state(result.model, "quantized"):
        expected = result.model(images)
        assert torch.equal(api.load(result.folder)(images), expected)
        singly = torch.cat([result.model(images[n : n + 1]) for n in range(5)])
    assert torch.equal(singly, expected)


def test_groups_kept_are_a_simulation_that_can_be_loaded(run):
    result = run("groups: 4, fold: false, levels: released, assignment: random")
    site = site_module(result.model, "blocks.1.mlp.fc2")
    quantizer = site.quantizer("input")
    assert isinstance(quantizer, GroupwiseQuantizer)
    assert quantizer.group is not None
    assert len(quantizer.group.unique()) == 4
    images = torch.randn(2, 1, 28, 28)
    with torch.inference_mode(), model_state(result.model, "quantized"):
        assert torch.equal(api.load(result.folder)(images), result.model(images))


def test_ranges_follow_the_channels(tmp_path):
    session, step = session_of(tmp_path, "groups: 8, fold: false, weights: kl, attention: centred", paper_exact=True)
    figures = step.run(session)
    site = site_module(session.model, "blocks.0.attn.qkv")
    quantizer = site.quantizer("input")
    assert sum(figures["groups"]["blocks.0.attn.qkv"]) == site.in_features
    seen = []
    handle = site.register_forward_pre_hook(lambda _, x: seen.extend(x))
    with torch.no_grad(), model_state(session.model, "float"):
        session.model(next(iter(session.images(16))))
    handle.remove()
    reach = seen[0].abs().flatten(0, -2).amax(0).clamp(max=6)
    # No channel is clipped by more than the few values beyond its quantile; groups are at most an eighth wider.
    found = quantizer.steps * quantizer.high
    assert (found >= 0.8 * reach).all()
    assert (found - reach <= (reach.max() - reach.min()) / 8 + 0.2 * reach).all()
    attention = site_module(session.model, "blocks.0.attn.qk").quantizer("left")
    assert isinstance(attention, CentredQuantizer)
    assert float(attention.middle) == 0


def test_more_groups_tell_inputs_better():
    x = torch.randn(1000, 64) * torch.linspace(0.05, 3, 64)
    errors = []
    for groups in (1, 8):
        ranges, place = grouped_ranges(channel_ranges(x), groups)
        quantizer = GroupwiseQuantizer(3, groups)
        quantizer.set_ranges(ranges, place)
        errors.append(float((fitted(x, quantizer)(x) - x).square().mean()))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("groups", [1, 4])
def test_what_a_gelu_leaves_below_zero_is_not_lost(groups):
    x = torch.nn.functional.gelu(torch.randn(500, 32) * torch.linspace(0.3, 1, 32))
    quantizer = GroupwiseQuantizer(4, groups, signed=False)
    quantizer.set_ranges(*grouped_ranges(channel_ranges(x), groups))
    before = float((quantizer(x) - x).square().mean())
    found = fitted(x, quantizer)
    assert found.below > 0
    assert found.high - found.low == 15
    assert float((found(x) - x).square().mean()) < 0.8 * before
    relu = GroupwiseQuantizer(4, groups, signed=False)
    relu.set_ranges(*grouped_ranges(channel_ranges(x.relu()), groups))
    assert fitted(x.relu(), relu).below == 0


@pytest.mark.parametrize("weights", ["rows", "mse", "kl"])
def test_weights_have_the_steps_asked_for(run, weights):
    result = run(f"groups: 2, weights: {weights}")
    quantizer = site_module(result.model, "blocks.0.mlp.fc1").quantizer("weight")
    assert quantizer.scale.numel() == (384 if weights == "rows" else 1)
    images = torch.randn(2, 1, 28, 28)
    with torch.inference_mode(), model_state(result.model, "quantized"):
        assert torch.equal(api.load(result.folder)(images), result.model(images))


def test_refit_is_refused_behind_it(tmp_path):
    path = recipe(tmp_path, "groups: 2")
    path.write_text(path.read_text()[:-1] + ", refit: {images: 16}]")
    with pytest.raises(HalfbyteError, match="refit fits weights of uniform steps; "):
        api.quantize(model="fashion_vit", recipe=path, out=tmp_path / "r", calib_images=16, limit=4, workers=0)


def test_the_sizes_of_groups_outlive_a_kill(run, survives_stops, tmp_path):
    survives_stops(lambda name, resume: run("groups: 3", name, resume=resume), at=(2, 4))
    sizes = [
        json.loads((tmp_path / name / "metrics.json").read_text())["steps"][0]["groups"] for name in ("whole", "parts")
    ]
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) > 8


def test_a_convolutional_model_has_one_group_a_site(run):
    result = run("groups: 4", model="fashion_resnet", limit=200)
    assert result.metrics["quantized"]["top1"] > 60


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("groups: 0", "groups must be from 1 to 64"),
        ("levels: printed", "levels must be one of paper, released"),
        ("assignment: best", "assignment must be one of clustered, random"),
        ("attention: linear", "attention must be one of log, centred"),
        ("weights: max", "weights must be one of rows, mse, kl"),
    ],
)
def test_wrong_parameters_are_told(run, settings, told):
    with pytest.raises(HalfbyteError, match=told):
        run(settings)
