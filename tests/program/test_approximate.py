"""Means that torch takes in float32, in an order of its own: the program says where, and rounds the exact ones once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from tests.program.conftest import MEANS, images_of, random_model
from torch import nn

from halfbyte import api
from halfbyte.artifact import save_artifact
from halfbyte.artifact_files import QUANTIZATION
from halfbyte.program.interpret import Interpreter
from halfbyte.program.lower import lower
from halfbyte.program.ops import Program
from halfbyte.runtime import Engine, native
from halfbyte.terminal import print_sites

IMAGES = 12


@pytest.fixture(scope="module", params=MEANS)
def averaging(request) -> tuple[nn.Module, Any, Program]:
    model, layout = random_model(request.param)
    return model, layout, lower(model, layout)


def _places(model: nn.Module) -> list[str]:
    """The squeeze-and-excitations, or the model where it has none: what takes means by a function."""
    squeezes = [name for name, module in model.named_modules() if name.endswith(".se") and list(module.parameters())]
    return squeezes or ["the model"]


def test_the_program_names_them(averaging):
    model, _, program = averaging
    assert program.facts["approximate"] == sorted(f"{place}: mean" for place in _places(model))


def test_they_lie_within_torchs_own_error_and_classes_are_the_same(averaging, monkeypatch):
    model, _, program = averaging
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    plain = torch.Tensor.mean

    def keep(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        result = plain(x, *args, **options)
        if x.dtype == torch.float32:
            seen.append((x, result, plain(x.abs().double(), *args, **options)))
        return result

    images = images_of(program.input_shape, IMAGES, seed=3)
    monkeypatch.setattr(torch.Tensor, "mean", keep)
    with torch.no_grad():
        logits = model(images).numpy()
    monkeypatch.undo()
    assert len(seen) == len(_places(model))
    # Behind these may come the pool in front of the classifier, which torch computes in float64 too.
    means = [op.output for op in program.ops if op.kind == "mean"]
    values: dict[str, Any] = {}
    found = Interpreter(program)(images.numpy(), values)
    for (x, result, magnitude), name in zip(seen, means, strict=False):
        # Each of the additions errs by at most half a unit in the last place of a partial sum.
        bound = x.numel() // result.numel() * 2.0**-24 * magnitude.numpy()
        assert (np.abs(values[name] - result.numpy()) <= bound).all()
    assert (found.argmax(1) == logits.argmax(1)).all()
    assert np.unique(found.argmax(1)).size > 1
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not native.available(), reason="the native kernels were not built")
def test_the_engine_gives_the_interpreter_s_classes(averaging):
    program = averaging[2]
    images = images_of(program.input_shape, IMAGES, seed=3).numpy()
    expected = Interpreter(program)(images)
    found = Engine(program, threads=1)(images)
    assert (found.argmax(1) == expected.argmax(1)).all()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_artifact_keeps_them_and_inspect_tells_them(lowered, tmp_path, capsys):
    model, layout = random_model("mobilenetv3_small_100")
    facts = json.loads((lowered("fashion_resnet", "repq").folder / QUANTIZATION).read_text())
    save_artifact(model, layout, tmp_path, facts | {"edits": []})
    known = json.loads((tmp_path / QUANTIZATION).read_text())["program"]
    assert known["approximate"] == [f"{place}: mean" for place in _places(model)]
    inspected = api.inspect_model(str(lowered("fashion_resnet", "repq").folder))
    print_sites(inspected)
    assert "rounded otherwise" not in capsys.readouterr().out
    print_sites(inspected | {"program": known})
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "rounded otherwise" in line]
    assert known["approximate"][0] in line


def test_inspect_tells_why_there_is_no_program(lowered, tmp_path, capsys):
    found = lowered("fashion_resnet", "repq")
    facts = json.loads((found.folder / QUANTIZATION).read_text())
    save_artifact(found.model, found.layout, tmp_path, facts | {"paper_exact": True})
    print_sites(api.inspect_model(str(tmp_path)))
    assert "no integer program: paper_exact is a simulation" in capsys.readouterr().out
