"""What is no integer program is refused in one line that names the place and the remedy."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from halfbyte import api
from halfbyte.artifact import save_artifact
from halfbyte.artifact_files import PROGRAM, QUANTIZATION
from halfbyte.errors import HalfbyteError
from halfbyte.layers.compensation import HalfBranch, Shape
from halfbyte.layers.norm import ExactFloat64
from halfbyte.program import aten, sites
from halfbyte.program.check import check
from halfbyte.program.interpret import Interpreter
from halfbyte.program.lower import lower
from halfbyte.program.ops import Op, Program
from halfbyte.program.saved import load_program
from halfbyte.program.trace import Recorder
from halfbyte.quantizers.groupwise import GroupwiseQuantizer
from halfbyte.quantizers.log import LogSqrt2Quantizer
from halfbyte.quantizers.twin import TwinUniformQuantizer
from halfbyte.quantizers.uniform import UniformQuantizer

X = torch.zeros(2, 3, 4, 4)


def _fractional() -> UniformQuantizer:
    quantizer = UniformQuantizer(4, fractional=True)
    quantizer.set_parameters(torch.tensor(0.1), torch.tensor(2.5))
    return quantizer


def _paper() -> LogSqrt2Quantizer:
    quantizer = LogSqrt2Quantizer(4, paper_exact=True)
    quantizer.set_scale(torch.tensor(1.0))
    return quantizer


def _groups() -> GroupwiseQuantizer:
    quantizer = GroupwiseQuantizer(4, 2)
    quantizer.set_ranges(torch.tensor([1.0, 2.0]), torch.tensor([0, 1, 0, 1]))
    return quantizer


def _twin() -> TwinUniformQuantizer:
    quantizer = TwinUniformQuantizer(4)
    quantizer.set_scales(torch.tensor(0.1), torch.tensor(0.2))
    return quantizer


def _far() -> UniformQuantizer:
    quantizer = UniformQuantizer(4)
    quantizer.set_parameters(torch.tensor(0.1), torch.tensor(2**24))
    return quantizer


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (_fractional, "paper_exact"),
        (_paper, "paper_exact"),
        (_groups, "fold"),
        (_twin, "twin"),
        (_far, "zero point"),
    ],
)
def test_quantizers_without_integers(make, told, recorded):
    with pytest.raises(HalfbyteError, match=told):
        recorded(make(), X)


class _InPlace(nn.Module):
    def forward(self, x):
        view = x.flatten(1)
        x.add_(1.0)
        return view * 2


class _Product(nn.Module):
    def forward(self, x):
        return x @ x


class _TwoSteps(nn.Module):
    def forward(self, x):
        return (x.double() * 3 + x.double()).float()


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (_InPlace(), "overwritten"), (_Product(), "bmm in float"), (_TwoSteps(), "more than one step in float64"),
        (ExactFloat64(nn.Linear(4, 4)), "in float"), (HalfBranch(Shape(4, 4)), "qwt.form=int8"),
    ],
)  # fmt: skip
def test_modules_without_integers(module, told):
    model = nn.Sequential(nn.Identity(), module)
    for part in model.modules():
        part.state = "quantized"
    images = X.clone()
    recorder = Recorder(model, images, sites.RULES, aten.RULES)
    with torch.no_grad(), pytest.raises(HalfbyteError, match=told) as refused, recorder.following(), recorder:
        model(images)
    assert str(refused.value).startswith("1")
    assert not any("forward" in part.__dict__ for part in model.modules())


def test_a_refused_artifact_is_saved_and_says_why(lowered, tmp_path):
    found = lowered("fashion_resnet", "repq")
    facts = json.loads((found.folder / QUANTIZATION).read_text())
    (tmp_path / PROGRAM).write_bytes(b"of an earlier run")
    save_artifact(found.model, found.layout, tmp_path, facts | {"paper_exact": True})
    assert not (tmp_path / PROGRAM).exists()
    assert "paper_exact" in json.loads((tmp_path / QUANTIZATION).read_text())["program"]["refused"]
    assert api.load(tmp_path)
    with pytest.raises(HalfbyteError, match="has no program: paper_exact"):
        load_program(tmp_path)
    with pytest.raises(HalfbyteError, match="has no program: paper_exact"):
        api.evaluate_model(str(tmp_path), engine="interpreter", limit_images=2, workers=0)


def test_engines_that_cannot(lowered):
    folder = str(lowered("fashion_resnet", "repq").folder)
    for target, options, told in (
        (folder, {"engine": "interpeter"}, "interpreter"), ("fashion_vit", {"engine": "interpreter"}, "artifacts"),
        (folder, {"engine": "interpreter", "device": "cuda"}, "CPU"),
    ):  # fmt: skip
        with pytest.raises(HalfbyteError, match=told):
            api.evaluate_model(target, **options)


def test_an_uncalibrated_model():
    from halfbyte.families.describe import describe
    from halfbyte.models.load import create_architecture
    from halfbyte.prepare import prepare
    from halfbyte.recipe import BitPlan

    model = create_architecture("fashion_resnet", None).eval()
    with pytest.raises(HalfbyteError, match=r"input of conv1.* never calibrated"):
        lower(model, prepare(model, describe(model), BitPlan(4, 4)))


GOOD = (
    Op("quantize", ("input",), "q", {"scale": [0.5], "zero": [3], "beta": 0.0, "last": 15, "axis": None}),
    Op("reshape", ("q",), "r", {"shape": [{"batch": 1, "plus": 0}, 4]}),
    Op("linear", ("r",), "y", {"bits": 4, "input": {"zero": [3]}}, {"weight": "w", "zero": "z", "scale": "s"}),
)
TENSORS = {"w": np.full((2, 4), 15, np.uint8), "z": np.zeros(2, np.int32), "s": np.ones(2, np.float32)}
PROGRAM_OF_THREE = Program(GOOD, TENSORS, (1, 2, 2), "y")


def test_a_sound_program_runs():
    logits = Interpreter(PROGRAM_OF_THREE)(np.ones((3, 1, 2, 2), np.float32))
    np.testing.assert_array_equal(logits, np.full((3, 2), 15 * 4 * 2.0, np.float32))
    for images in (np.ones((3, 1, 2, 3)), np.ones((1, 2, 2)), np.ones((0, 1, 2, 2))):
        with pytest.raises(HalfbyteError, match="takes images"):
            Interpreter(PROGRAM_OF_THREE)(images)


@pytest.mark.parametrize(
    ("number", "changes", "told"),
    [
        (0, {"kind": "quantise"}, "did you mean quantize"),
        (0, {"attributes": {**GOOD[0].attributes, "scale": [0.0]}}, "scale"),
        (0, {"attributes": {**GOOD[0].attributes, "scale": [0.1]}}, "scale"),
        (0, {"attributes": {**GOOD[0].attributes, "zero": [2.5]}}, "zero"),
        (0, {"attributes": {**GOOD[0].attributes, "zero": [1, 2]}}, "2 numbers as zero"),
        (0, {"attributes": {**GOOD[0].attributes, "more": 1}}, "'more'"),
        (0, {"attributes": {}}, "missing or wrong"),
        (1, {"inputs": ("y",)}, "before it is defined"),
        (1, {"inputs": ("q", "q")}, "2 inputs"),
        (1, {"output": "q"}, "a second time"),
        (1, {"attributes": {"shape": [4, 4]}}, "does not fit"),
        (2, {"inputs": ("input",)}, "takes uint8"),
        (2, {"tensors": {"weight": "w"}}, "needs the tensors"),
        (2, {"tensors": {**GOOD[2].tensors, "weight": "s"}}, "must be uint8"),
        (2, {"tensors": {**GOOD[2].tensors, "scale": "t"}}, "no tensor t"),
        (2, {"attributes": {"bits": 3, "input": {"zero": [3]}}}, "more than 3 bits"),
        (2, {"attributes": {"bits": 4, "input": {"zero": [3, 4]}}}, "more than one zero"),
        (2, {"output": "z"}, "output y"),
    ],
)
def test_a_program_that_cannot_run(number, changes, told):
    ops = [*GOOD[:number], replace(GOOD[number], **changes), *GOOD[number + 1 :]]
    with pytest.raises(HalfbyteError, match=told):
        check(replace(PROGRAM_OF_THREE, ops=tuple(ops)))
