"""The percentile recipe on convolutional networks: which bits where, from which images, behind what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

import halfbyte
from halfbyte import api
from halfbyte.errors import HalfbyteError
from halfbyte.facts import site_bits
from halfbyte.families.describe import describe
from halfbyte.inputs import Options, read_inputs, resolved_recipe
from halfbyte.prepare import model_state, prepare, site_module
from halfbyte.progress import Progress
from halfbyte.quantizers.uniform import UniformQuantizer
from halfbyte.recipe import BitPlan
from halfbyte.session import Session
from halfbyte.steps.ranges import widen_convolution_inputs

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "percentile.json").read_text())


def options(*settings: str, recipe: str = "percentile") -> Options:
    return Options(
        model="fashion_resnet", recipe=recipe, w_bits=4, a_bits=4, calib_images=32, limit=20, workers=0,
        settings=settings,
    )  # fmt: skip


def session_of(chosen: Options) -> Session:
    quiet = Progress(quiet=True)
    return api._session(read_inputs(chosen, resolved_recipe(chosen), quiet), chosen, quiet)


@pytest.mark.parametrize(("who", "conv_input_bits"), [("qla", 0), ("qwt_official", 8)])
def test_the_bits_of_resnet18_are_those_of_the_published_code(who: str, conv_input_bits: int) -> None:
    model = timm.create_model("resnet18").eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32)}
    layout = prepare(model, describe(model), BitPlan(4, 4))
    changed = widen_convolution_inputs(model, layout, conv_input_bits) if conv_input_bits else 0
    assert changed == (19 if conv_input_bits else 0)
    expected = GOLDEN["resnet18_bit_map_requested_W4A4"][who]
    assert {site.name: list(site_bits(model, site)) for site in layout.sites} == expected


def test_the_published_widths_stand_in_metrics_and_report(tmp_path) -> None:
    chosen = options("percentile.conv_input_bits=8")
    result = halfbyte.quantize(chosen.__class__(**{**vars(chosen), "out": tmp_path / "run"}))
    sites = result.metrics["sites"]
    assert {site["bits"]["activation"] for site in sites} == {8}
    assert {site["bits"]["weight"] for site in sites if site["role"] == "conv"} == {4}
    note = "the inputs of 13 convolutions have 8 bits instead of those asked for"
    assert result.metrics["steps"] == [{"step": "percentile", "note": note}]
    assert note in (result.folder / "report.html").read_text()
    loaded = halfbyte.load(result.folder)
    assert loaded.layer1[0].conv1.input_quantizer.bits == 8


@pytest.mark.parametrize("recipe", ["percentile", "mse", "minmax"])
@torch.no_grad()
def test_behind_quantized_layers_each_range_is_fitted_to_what_reaches_it(recipe: str) -> None:
    session = session_of(options(f"{recipe}.upstream=quantized", recipe=recipe))
    ((name, step),) = api.resolve(session.recipe)
    session.run(name, step)
    seen = {}

    def observe(module, operand, x):
        seen[module, operand] = x
        return module.quantizer(operand)(x)

    with model_state(session.model, "observe", observe):
        session.model(next(session.images(32, 32)))
    for site in session.layout.sites:
        module = site_module(session.model, site.name)
        for operand in site.operands:
            found = module.quantizer(operand)
            fresh = UniformQuantizer(found.bits, found.axis, covers_zero=found.covers_zero)
            step.fit_tensor(fresh, seen[module, operand])
            assert torch.equal(fresh.scale, found.scale)
            assert torch.equal(fresh.zero_point, found.zero_point)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("percentile.upstream=both", "upstream must be one of float, quantized"),
        ("percentile.conv_input_bits=9", "conv_input_bits must be 0"),
        ("percentile.conv_input_bits=1", "conv_input_bits must be 0"),
    ],
)
def test_parameters_out_of_range_are_refused(setting: str, message: str) -> None:
    with pytest.raises(HalfbyteError, match=message):
        resolved_recipe(options(setting))
