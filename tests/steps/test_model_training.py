"""Training a quantized model: it gains, goes on to the same bytes, and is an artifact like any other."""

from __future__ import annotations

import pytest
import torch

from halfbyte import api
from halfbyte.data.soft_labels import LabelPlan, ShardedLabels, write_labels
from halfbyte.errors import HalfbyteError
from halfbyte.inputs import Options, read_inputs, resolved_recipe
from halfbyte.models.builtin import create_builtin
from halfbyte.prepare import model_state
from halfbyte.progress import Progress
from halfbyte.session import Session
from halfbyte.steps.learned_steps import LearnedSteps
from halfbyte.steps.train import Train

SHORT = "batch_size: 16, lr: 0.0005, area: 0.5"


@pytest.fixture
def run(tmp_path):
    def quantize(train, name="out", first="learned_steps: {images: 32}", model="fashion_vit", bits=3, **options):
        (tmp_path / "t.yaml").write_text(
            f"name: t\nbits: {{weight: {bits}, activation: {bits}}}\nsteps: [{first}, train: {{{train}}}]\n"
        )
        return api.quantize(**{"model": model, "recipe": tmp_path / "t.yaml", "out": tmp_path / name, "limit": 100,
                               "calib_images": 192, "workers": 0, **options})  # fmt: skip

    return quantize


def held_out(result):
    return next(step for step in result.metrics["steps"] if step["step"] == "train")["held_out_loss"]


@pytest.mark.parametrize(
    ("first", "train"),
    [
        ("learned_steps: {images: 32}", "rule: vvtq"),
        pytest.param(
            "learned_steps: {images: 32, scheme: lsq}", "rule: lsq, average: 0.5, hard: 0.5", marks=pytest.mark.slow
        ),
        # Any calibration can be the start, logarithms and zero points included.
        pytest.param("repq: {images: 32}", "rule: lsq", marks=pytest.mark.slow),
    ],
)
def test_it_gains_on_its_start(run, first, train):
    result = run(f"{SHORT}, epochs: 2, {train}", first=first)
    losses = held_out(result)
    assert len(losses) == 3
    assert min(losses[1:]) < 0.85 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["fashion_swin", "fashion_resnet"])
def test_other_families_gain_too(run, model):
    losses = held_out(run(f"{SHORT}, epochs: 2, step_lr: 10", first="learned_steps: {scheme: lsq}", model=model))
    assert min(losses[1:]) < 0.85 * losses[0]


def test_the_artifact_is_what_was_trained(run, tmp_path):
    result = run(f"{SHORT}, steps: 3", limit=50)
    images = torch.randn(4, 1, 28, 28)
    with torch.no_grad(), model_state(result.model, "quantized"):
        expected = result.model(images)
    with torch.inference_mode():
        assert torch.equal(api.load(result.folder)(images), expected)
    assert api.evaluate_model(str(result.folder), limit_images=50)["quantized"] == result.metrics["quantized"]
    with pytest.raises(HalfbyteError, match="its weights were learned"):
        run(f"{SHORT}, steps: 1", "more", first="refit: {images: 32}", model=None, start=result.folder)


def test_an_artifact_can_be_the_start(run, tmp_path):
    (tmp_path / "p.yaml").write_text(
        "name: p\nbits: {weight: 3, activation: 3}\nsteps: [repq: {images: 32}, refit: {images: 64}]\n"
    )
    options = {"calib_images": 64, "limit": 100, "workers": 0}
    start = api.quantize(model="fashion_vit", recipe=tmp_path / "p.yaml", out=tmp_path / "p", **options)
    (tmp_path / "t.yaml").write_text("name: t\nsteps: [train: {batch_size: 16, steps: 1, lr: 0.0}]\n")
    same = api.quantize(start=start.folder, recipe=tmp_path / "t.yaml", out=tmp_path / "t", **options)
    # Not a step, and the codes that the refit chose are still there.
    assert same.metrics["quantized"] == start.metrics["quantized"]


@pytest.mark.slow
def test_a_trained_artifact_can_be_trained_on(run, tmp_path):
    first = run(f"{SHORT}, steps: 6", "first", limit=100, calib_images=64)
    (tmp_path / "on.yaml").write_text("name: onward\nsteps: [train: {batch_size: 16, steps: 1, lr: 0.0}]\n")
    options = {"calib_images": 64, "limit": 100, "workers": 0}
    same = api.quantize(start=first.folder, recipe=tmp_path / "on.yaml", out=tmp_path / "on", **options)
    assert same.metrics["quantized"] == first.metrics["quantized"]
    further = api.quantize(
        start=first.folder,
        recipe=tmp_path / "on.yaml",
        out=tmp_path / "further",
        settings=("train.lr=0.0003", "train.steps=8"),
        **options,
    )
    before, after = held_out(further)
    assert after < before


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param("rule: vvtq, regularizer: 0.01, freeze: 0.0001", marks=pytest.mark.slow),
        "average: 0.9, accumulate: 2, drop_path: 0.3",
    ],
)
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(run, survives_stops, settings):
    settings = f"{SHORT}, epochs: 3, steps: 8, save_every: 2, {settings}"
    survives_stops(lambda name, resume: run(settings, name, limit=4, calib_images=64, resume=resume), at=(3, 6))


def session_of(tmp_path, **options) -> Session:
    (tmp_path / "s.yaml").write_text("name: s\nbits: {weight: 3, activation: 3}\nsteps: [learned_steps, train]\n")
    given = Options(model="fashion_vit", recipe=tmp_path / "s.yaml", calib_images=64, workers=0, limit=4, **options)
    inputs = read_inputs(given, resolved_recipe(given), Progress(quiet=True))
    session = api._session(inputs, given, Progress(quiet=True))
    session.run("learned_steps", LearnedSteps(images=16))
    return session


def test_soft_labels_take_the_teachers_place(tmp_path):
    config = create_builtin("fashion_vit").pretrained_cfg
    plan = LabelPlan({}, {key: config[key] for key in ("input_size", "interpolation", "mean", "std")}, 10, crops=2)
    asking = session_of(tmp_path)
    images, float_model = asking.calibration, asking.teacher

    def predict(crops):
        with torch.no_grad():
            return float_model(crops)

    write_labels(images, plan, predict, tmp_path / "labels")
    calls = {}
    for labels in (None, ShardedLabels(tmp_path / "labels", 10)):
        session = session_of(tmp_path)
        session.soft_labels = labels
        counted = []
        session.teacher.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        session.run("train", Train(batch_size=8, crops=2, steps=3, lr=5e-4))
        calls[labels is not None] = len(counted)
    # The held-out images are seen by the float model in both.
    assert calls == {False: calls[True] + 3, True: calls[True]}


def test_weights_that_turn_are_counted_and_frozen(tmp_path):
    session = session_of(tmp_path)
    figures = session.run("train", Train(batch_size=8, steps=12, epochs=3, lr=0.01, oscillations=True)).figures
    assert 0 < figures["oscillating"] < 0.9
    assert figures["frozen"] == 0
    # What has turned once in so few steps is frozen at once: less turns afterwards.
    session = session_of(tmp_path)
    step = Train(batch_size=8, steps=12, epochs=3, lr=0.01, freeze=1e-6)
    frozen = session.run("train", step).figures
    assert frozen["frozen"] > 0
    assert frozen["oscillating"] < figures["oscillating"]


def test_drop_paths_that_a_model_lacks_are_told(run, tmp_path):
    with pytest.raises(HalfbyteError, match="no branches"):
        run(f"{SHORT}, drop_path: 0.1", model="fashion_resnet")
    assert not (tmp_path / "out").exists()


def test_the_regularizer_is_told_what_it_needs(run):
    with pytest.raises(HalfbyteError, match="looks at the levels of learned_steps"):
        run(f"{SHORT}, regularizer: 0.01", first="repq: {images: 32}")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"rule": "best"}, "rule must be one of lsq, vvtq, none"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"lr": 1.0}, "lr must be from 0 to less than 1"),
        ({"area": 0.0}, "area must be above 0"),
        ({"hard": 2.0}, "hard from 0 to 1"),
        ({"clip": -1.0}, "clip must be at least 0"),
    ],
)
def test_wrong_parameters_are_told(wrong, told):
    with pytest.raises(ValueError, match=told):
        Train(**wrong)
