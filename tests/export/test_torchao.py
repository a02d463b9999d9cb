"""Scales for torchao: in torchao itself, loaded as docs/export.md says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from halfbyte import api
from halfbyte.errors import HalfbyteError
from halfbyte.export.torchao import to_torchao
from halfbyte.models.load import create_architecture
from halfbyte.program.interpret import Interpreter
from halfbyte.program.load import load_program
from halfbyte.program.ops import INPUT, Op, Program

DOCUMENTED = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.fixture
def load() -> Callable[[Any, Path], Any]:
    """The function of the documentation."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENTED.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names["load_int8"]


@pytest.fixture
def written(artifact, tmp_path) -> Callable[[str, int], Path]:
    def write(model: str, bits: int) -> Path:
        exported = api.export(artifact(model, "repq", bits), "torchao", tmp_path / "scales.safetensors")
        assert not exported.warnings
        return exported.files[0]

    return write


@pytest.mark.parametrize(
    ("model", "bits", "least"),
    [("fashion_vit", 8, 0.97), pytest.param("fashion_swin", 8, 0.97, marks=pytest.mark.slow),
     pytest.param("fashion_vit", 4, 0.9, marks=pytest.mark.slow)],
)  # fmt: skip
def test_torchao_sees_the_same_classes(load, written, artifact, pictures, model, bits, least):
    path = written(model, bits)
    found = load(create_architecture(model), path)
    linears = [name for name, module in found.named_modules() if isinstance(module, torch.nn.Linear)]
    for name in linears:
        weight = found.get_submodule(name).weight
        assert type(weight).__name__ == "Int8Tensor"
        assert weight.act_quant_scale is not None
    with torch.no_grad():
        logits = found(torch.from_numpy(pictures[0])).numpy()
    wanted = Interpreter(load_program(artifact(model, "repq", bits)))(pictures[0])
    assert (logits.argmax(1) == wanted.argmax(1)).mean() >= least
    # With the ranges of other inputs it would not be so.
    scales = load_file(path)
    for name in linears:
        assert found.get_submodule(name).weight.act_quant_scale == scales[f"{name}.act_quant_scale"]


def test_scales_have_the_dimensions_of_their_inputs(written):
    scales = load_file(written("fashion_vit", 8))
    assert scales["blocks.0.attn.qkv.act_quant_scale"].ndim == 3
    assert scales["head.act_quant_scale"].ndim == 2


def test_the_file_is_the_whole_model(written, artifact, pictures):
    tensors = load_file(written("fashion_vit", 8))
    model = create_architecture("fashion_vit").eval()
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if ".act_quant_" not in name})
    with torch.no_grad():
        logits = model(torch.from_numpy(pictures[0])).numpy()
    wanted = Interpreter(load_program(artifact("fashion_vit", "repq", 8)))(pictures[0])
    assert (logits.argmax(1) == wanted.argmax(1)).mean() >= 0.97


def test_another_model_than_the_plain_one_is_told(tmp_path):
    (tmp_path / "rotated.yaml").write_text("name: rotated\nsteps: [rotate: {}, repq: {images: 4}]\n")
    folder = api.quantize(
        model="fashion_vit", recipe=str(tmp_path / "rotated.yaml"), calib_images=8, limit=4, workers=0,
        out=tmp_path / "run",
    ).folder  # fmt: skip
    exported = api.export(folder, "torchao", tmp_path / "scales.safetensors")
    assert "linear layers alone" in exported.warnings[0]
    with safe_open(exported.files[0], "np") as file:
        facts = json.loads(file.metadata()["torchao"])
        assert not facts["whole"]
        own = {f"{site}.{part}" for site in facts["sites"]
               for part in ("weight", "bias", "act_quant_scale", "act_quant_zero_point")}  # fmt: skip
        assert set(file.keys()) == own


def test_an_offset_is_left_out():
    weight = {"weight": np.full((3, 4), 9, np.uint8), "zero": np.full(3, 8, np.int32), "scale": np.ones(3, np.float32)}
    tensors = {f"{name}.{role}": array for name in "ab" for role, array in weight.items()}
    quantizer = {"scale": [0.5], "zero": [3], "last": 15, "axis": None}
    ops = [Op("reshape", (INPUT,), "x", {"shape": [{"batch": 1, "plus": 0}, 4]})]
    for name, beta in (("a", 0.25), ("b", 0.0)):
        ops += [
            Op("quantize", ("x",), f"{name}.input", {**quantizer, "beta": beta}),
            Op("linear", (f"{name}.input",), name, {"bits": 4, "input": {"zero": [3]}},
               {role: f"{name}.{role}" for role in weight}),
        ]  # fmt: skip
    program = Program(tuple(ops), tensors, (1, 2, 2), "b", {"architecture": "two"})
    content = to_torchao(program, {}, None)
    assert b"a.act_quant_scale" not in content
    assert b"b.act_quant_scale" in content
    alone = Program(tuple(ops[:3]), tensors, (1, 2, 2), "a")
    with pytest.raises(HalfbyteError, match="there are none"):
        to_torchao(alone, {}, None)
