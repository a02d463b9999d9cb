"""Bias correction and refitting: better blocks without an operation more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import halfbyte
from halfbyte import api
from halfbyte.block_stream import watched
from halfbyte.inputs import Options, read_inputs, resolved_recipe
from halfbyte.prepare import model_state
from halfbyte.progress import Progress
from halfbyte.session import Session
from halfbyte.steps.catalog import resolve


def session_of(recipe: Path, model: str = "fashion_vit", bits: int = 3) -> Session:
    options = Options(model=model, recipe=recipe, w_bits=bits, a_bits=bits, calib_images=64, limit=8, workers=0)
    inputs = read_inputs(options, resolved_recipe(options), Progress(quiet=True))
    return api._session(inputs, options, Progress(quiet=True))


@pytest.fixture
def recipe(tmp_path):
    def write(*steps: str) -> Path:
        path = tmp_path / "free.yaml"
        path.write_text("name: free\nsteps:\n" + "".join(f"  - {step}\n" for step in steps))
        return path

    return write


def ran(session: Session) -> Session:
    for name, step in resolve(session.recipe):
        session.run(name, step)
    return session


def block_error(session: Session) -> float:
    """Mean squared error of the last block's output against the float model."""
    outputs = []
    for model in (session.teacher, session.model):
        last = model.get_submodule(session.layout.blocks[-2].name)
        handle = last.register_forward_hook(lambda _module, _inputs, y: outputs.append(y))
        with torch.no_grad(), model_state(session.model, "quantized"):
            model(next(session.images(64, 64)))
        handle.remove()
    return float((outputs[0] - outputs[1]).square().mean() / outputs[0].var())


@pytest.mark.parametrize(
    "model", ["fashion_vit", pytest.param("fashion_swin", marks=pytest.mark.slow), "fashion_resnet"]
)
@pytest.mark.parametrize(
    "step",
    ["bias_correct: {images: 64}", "bias_correct: {images: 64, affine: true}", "refit: {images: 64}",
     "refit: {images: 64, sites: last, target: stream}"],
)  # fmt: skip
def test_the_last_block_comes_nearer_to_float(recipe, model: str, step: str) -> None:
    calibrate = "percentile: {images: 32}" if model == "fashion_resnet" else "repq: {images: 32}"
    plain = block_error(ran(session_of(recipe(calibrate), model)))
    assert block_error(ran(session_of(recipe(calibrate, step), model))) < 0.97 * plain


def test_the_mean_of_a_corrected_output_is_the_float_one(recipe) -> None:
    session = ran(session_of(recipe("repq: {images: 32}", "bias_correct: {images: 64, sites: last}")))
    name = session.layout.blocks[-2].name
    means = []
    for model in (session.teacher, session.model):
        last = model.get_submodule(f"{name}.mlp.fc2")
        with watched(last) as seen, torch.no_grad(), model_state(session.model, "quantized"):
            model(next(session.images(64, 64)))
        means.append(seen[0][1].flatten(0, -2).double().mean(0))
    torch.testing.assert_close(means[0], means[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("step", ["bias_correct: {images: 64, affine: true}", "refit: {images: 64}"])
def test_the_float_state_stays_what_it_was(recipe, step: str) -> None:
    session = ran(session_of(recipe("repq: {images: 32}", step)))
    images = next(session.images(8))
    with torch.no_grad(), model_state(session.model, "float"):
        torch.testing.assert_close(session.model(images), session.teacher(images), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("step", ["bias_correct: {images: 64, affine: true}", "refit: {images: 64, sites: last}"])
def test_saved_and_loaded_the_logits_are_the_same(recipe, tmp_path, step: str) -> None:
    result = halfbyte.quantize(
        model="fashion_vit", recipe=recipe("repq: {images: 32}", step), w_bits=3, a_bits=3, calib_images=64, limit=16,
        workers=0, out=tmp_path / "run", progress=Progress(quiet=True),
    )  # fmt: skip
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), model_state(result.model, "quantized"):
        expected = result.model(images)
    assert torch.equal(halfbyte.load(tmp_path / "run")(images), expected)


@pytest.mark.parametrize("step", ["bias_correct: {images: 64, affine: true}", "refit: {images: 64}"])
def test_a_resumed_run_goes_on_where_it_was(recipe, tmp_path, step: str) -> None:
    whole = ran(session_of(recipe("repq: {images: 32}", step)))

    class KilledError(Exception):
        pass

    first = session_of(recipe("repq: {images: 32}", step))
    first.folder = tmp_path
    (name, calibrate), (later, second_step) = resolve(first.recipe)
    first.run(name, calibrate)
    saved = first.save_state

    def save_and_die(folder: Path) -> None:
        saved(folder)
        if first._parts == 2:
            raise KilledError

    first.save_state = save_and_die
    with pytest.raises(KilledError):
        first.run(later, second_step)
    again = session_of(recipe("repq: {images: 32}", step))
    assert again.restore_state(tmp_path)
    again.run(later, second_step)
    assert again.reports[-1].figures == whole.reports[-1].figures
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[key]), key


def test_a_calibrating_step_cannot_follow(recipe) -> None:
    with pytest.raises(halfbyte.HalfbyteError, match="repq calibrates from scratch"):
        session_of(recipe("bias_correct: {images: 64}", "repq: {images: 32}"))
