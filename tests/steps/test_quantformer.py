"""Quantformer's three trainings: they gain, groups become one-hot, and what is left has no groups."""

from __future__ import annotations

import math

import pytest
import torch

from halfbyte import api
from halfbyte.errors import HalfbyteError
from halfbyte.inputs import Options, resolved_recipe
from halfbyte.layers.linear import QuantLinear
from halfbyte.prepare import model_state
from halfbyte.recipe import load_recipe

SHORT = "epochs: 1, batch_size: 16, lr: 0.0005, step_lr: 10, area: 0.5, save_every: 2"
STAGES = ("shared", "search", "finetune")
FIRST = "groupwise: {groups: 1, images: 16, attention: centred}"


@pytest.fixture
def run(tmp_path):
    def quantize(settings, name="out", stages=STAGES, first=FIRST, **options):
        steps = [first] if first else []
        steps += [f"quantformer: {{stage: {stage}, groups: 4, {SHORT}, {settings}}}" for stage in stages]
        (tmp_path / f"{name}.yaml").write_text(
            f"name: q\nbits: {{weight: 3, activation: 3}}\nsteps: [{', '.join(steps)}]\n"
        )
        given = {} if "start" in options else {"model": "fashion_vit"}
        return api.quantize(
            **{**given, "recipe": tmp_path / f"{name}.yaml", "out": tmp_path / name, "limit": 50, "calib_images": 64,
               "workers": 0, **options}
        )  # fmt: skip

    return quantize


def stages_of(result):
    return {step["stage"]: step for step in result.metrics["steps"] if step["step"] == "quantformer"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantformer")
    steps = ", ".join(f"quantformer: {{stage: {stage}, groups: 4, {SHORT}}}" for stage in STAGES)
    (folder / "q.yaml").write_text(f"name: q\nbits: {{weight: 3, activation: 3}}\nsteps: [{FIRST}, {steps}]\n")
    return api.quantize(model="fashion_vit", recipe=folder / "q.yaml", out=folder / "out", limit=200, calib_images=400,
                        workers=0)  # fmt: skip


@pytest.mark.slow
def test_the_stages_gain_and_the_assignments_settle(trained):
    stages = stages_of(trained)
    assert list(stages) == list(STAGES)
    first, *later = stages["shared"]["held_out_loss"]
    assert min(later) < 0.8 * first  # the calibrated start is near already
    assert min(stages["finetune"]["held_out_loss"]) < 0.8 * first
    entropy = [value for _, value in stages["search"]["entropy"]]
    assert entropy[0] == pytest.approx(math.log(4) / 4, rel=1e-3)
    assert entropy[-1] < 0.5 * entropy[0]
    sizes = stages["search"]["sizes"]
    assert sum(sizes["blocks.0.mlp.fc2"]) == 384
    assert "Search for groups of channels" in (trained.folder / "report.html").read_text()
    assert list(trained.metrics["stages"]) == list(STAGES)
    assert trained.metrics["seconds"]["quantformer"] == pytest.approx(
        sum(stage["seconds"] for stage in trained.metrics["stages"].values()), abs=0.01
    )
    assert sum(len([size for size in groups if size]) > 1 for groups in sizes.values()) >= len(sizes) / 2


@pytest.mark.slow
def test_no_groups_are_left_in_the_artifact(trained):
    sites = [module for module in trained.model.modules() if isinstance(module, QuantLinear)]
    assert all(getattr(module.quantizer("input"), "groups", 1) == 1 for module in sites)
    images = torch.randn(3, 1, 28, 28)
    with torch.inference_mode(), model_state(trained.model, "quantized"):
        assert torch.equal(api.load(trained.folder)(images), trained.model(images))


@pytest.mark.slow
def test_stages_one_by_one_begin_where_the_last_one_ended(run):
    shared = run("steps: 2", "a", stage="shared")
    search = run("steps: 2", "b", stage="search", start=shared.folder)
    found = stages_of(search)["search"]["sizes"]
    finetune = run("steps: 2, fold: false", "c", stage="finetune", start=search.folder)
    assert [list(stages_of(result)) for result in (shared, search, finetune)] == [[stage] for stage in STAGES]
    for site, sizes in found.items():
        quantizer = finetune.model.get_submodule(site).quantizer("input")
        assert torch.bincount(quantizer.group.long(), minlength=4).tolist() == sizes
        assert torch.equal(quantizer.scale, search.model.get_submodule(site).quantizer("input").scale)


def test_stopped_anywhere_it_goes_on_to_the_same_bytes(run, survives_stops):
    def quantize(name, resume):
        return run("steps: 3, learn_ranges: true, power: 0", name, resume=resume)

    survives_stops(quantize, at=(5, 9))


@pytest.mark.parametrize("assignment", ["clustered", "random"])
def test_groups_that_are_not_searched_are_trained_all_the_same(run, assignment):
    stages = stages_of(run(f"steps: 2, assignment: {assignment}", stages=("search",)))
    assert "entropy" not in stages["search"]
    assert stages["search"]["optimizer_steps"] == 2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("power: 5", "power must be from 1 to 4, or 0"),
        ("assignment: best", "assignment must be one of searched, clustered, random"),
        ("regularizer: 0.1", "belong to the step train"),
        ("attention: -1", "attention must be at least 0"),
    ],
)
def test_wrong_parameters_are_told(run, settings, told):
    with pytest.raises(HalfbyteError, match=told):
        run(settings)


def test_logarithmic_attention_maps_are_compared_too(run):
    result = run("steps: 2", stages=("search",), first="groupwise: {groups: 1, images: 16}")
    assert result.model.get_submodule("blocks.0.attn.pv").quantizer("left").kind == "log_sqrt2"


def test_other_quantizers_are_refused(run):
    with pytest.raises(HalfbyteError, match="put groupwise"):
        run("steps: 1", first="percentile: {images: 16}")


@pytest.mark.parametrize(
    ("name", "stage", "told"),
    [("quantformer", "searhc", "has the stages shared, search, finetune"), ("lsq", "search", "no stages")],
)
def test_wrong_stages_are_told(name, stage, told):
    with pytest.raises(HalfbyteError, match=told):
        resolved_recipe(Options(model="fashion_vit", recipe=name, stage=stage))


def test_a_stage_that_is_a_default_is_found(tmp_path):
    (tmp_path / "d.yaml").write_text("name: d\nsteps: [groupwise: {groups: 1}, quantformer: {}]\n")
    recipe = resolved_recipe(Options(model="fashion_vit", recipe=tmp_path / "d.yaml", stage="shared"))
    assert [call.name for call in recipe.steps] == ["groupwise", "quantformer"]


def test_the_first_stage_has_what_comes_before_it():
    for stage, expected in (("shared", ["groupwise", "quantformer"]), ("search", ["quantformer"])):
        recipe = load_recipe("quantformer").with_stage(stage)
        assert [call.name for call in recipe.steps] == expected
