"""Whole models: the program computes what torch computes, to the bit wherever both see the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.program.conftest import EMBEDDED, TIMM, images_of

from halfbyte import api
from halfbyte.layers import conv, linear, matmul
from halfbyte.layers.site import WeightedSite
from halfbyte.prepare import model_state, site_module
from halfbyte.program import integers
from halfbyte.program.interpret import Interpreter, compute
from halfbyte.program.lower import lower

MODELS = [*EMBEDDED, *((name,) for name in TIMM)]
IDS = ["-".join(model) for model in MODELS]


@pytest.fixture
def calls(monkeypatch) -> list[dict[str, Any]]:
    """The integer sums of every product that torch makes, in order."""
    found: list[dict[str, Any]] = []
    for module in (linear, conv, matmul):
        plain = module.rescale

        def keep(sums, scale, bias, plain=plain):
            found.append({"sums": sums.double().numpy()})
            return plain(sums, scale, bias)

        monkeypatch.setattr(module, "rescale", keep)
    return found


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_codes_sums_and_results_of_every_site_are_torchs(lowered, calls, model):
    found = lowered(*model)
    calls.clear()  # those of the quantization
    seen: list[tuple[str, tuple[Any, ...], Any]] = []
    hooks = [
        site_module(found.model, site.name).register_forward_hook(
            lambda _module, inputs, output, name=site.name: seen.append((name, inputs, output.numpy().copy()))
        , prepend=True)
        for site in found.layout.sites
    ]  # fmt: skip
    try:
        with torch.no_grad(), model_state(found.model, "quantized"):
            found.model(images_of(found.program.input_shape, 2))
    finally:
        for hook in hooks:
            hook.remove()
    assert {name for name, _, _ in seen} == {site.name for site in found.layout.sites}
    made = {op.output: op for op in found.program.ops}
    runs: dict[str, int] = {}
    for (name, inputs, output), call in zip(seen, calls, strict=True):
        module = site_module(found.model, name)
        runs[name] = runs.get(name, 0) + 1
        op = made[name if runs[name] == 1 else f"{name}#{runs[name]}"]
        codes = []
        for x, operand, value in zip(inputs, module.operands, op.inputs, strict=False):
            scaled = x if getattr(module, "input_scale", None) is None else x * module.input_scale
            quantize = made[value]
            codes.append(compute(quantize.kind, [scaled.numpy()], quantize.attributes, {}))
            np.testing.assert_array_equal(codes[-1], module.quantizer(operand).quantize(scaled).numpy())
        tensors = {role: found.program.tensors[tensor] for role, tensor in op.tensors.items()}
        if isinstance(module, WeightedSite):
            weights = integers.prepare_weights(op.attributes, tensors)
            sums, result = getattr(integers, op.kind)(codes[0], weights, op.attributes)
        else:
            sums, result = integers.matmul(*codes, op.attributes)
        np.testing.assert_array_equal(sums, call["sums"])
        np.testing.assert_array_equal(result, output)


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_one_program_runs_every_batch_size(lowered, model):
    found = lowered(*model)
    interpreter = Interpreter(found.program)
    images = images_of(found.program.input_shape, 5, seed=1)
    with torch.no_grad():
        logits = found.model(images).numpy()
    for count in (1, 2, 5):
        np.testing.assert_allclose(interpreter(images[:count].numpy()), logits[:count], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", EMBEDDED[:4], ids=IDS[:4])
def test_the_interpreter_says_what_torch_says_of_64_images(lowered, model):
    folder = str(lowered(*model).folder)
    told = {
        engine: api.evaluate_model(folder, engine=engine, limit_images=64, workers=0)
        for engine in ("torch", "interpreter")
    }
    assert told["interpreter"]["engine"] == "interpreter"
    assert told["interpreter"]["quantized"] == pytest.approx(told["torch"]["quantized"], abs=1e-6)
    found = lowered(*model)
    images = images_of(found.program.input_shape, 64, seed=2)
    with torch.no_grad():
        logits = found.model(images).numpy()
    assert (Interpreter(found.program)(images.numpy()).argmax(1) == logits.argmax(1)).all()


def test_equal_quantizers_of_one_value_share_their_codes(lowered):
    program = lowered("fashion_vit", "repq").program
    seen = {(op.kind, op.inputs, str(op.attributes)) for op in program.ops if op.kind.startswith("quantize")}
    assert len(seen) == sum(op.kind.startswith("quantize") for op in program.ops)


def test_nothing_that_is_not_read_is_kept(lowered):
    program = lowered("fashion_swin", "repq").program
    read = {name for op in program.ops for name in op.inputs} | {program.output}
    assert {op.output for op in program.ops} <= read
    assert {name for op in program.ops for name in op.tensors.values()} == program.tensors.keys()


def test_lowering_leaves_the_model_as_it_was(lowered):
    found = lowered("resnet18")
    found.model.train()
    try:
        again = lower(found.model, found.layout)
        assert all(module.training for module in found.model.modules())
    finally:
        found.model.eval()
    assert not any("forward" in module.__dict__ for module in found.model.modules())
    assert again.ops == found.program.ops


def test_values_can_be_looked_at(lowered):
    found = lowered("fashion_vit", "repq")
    values: dict[str, Any] = {}
    logits = Interpreter(found.program)(images_of(found.program.input_shape, 2).numpy(), values)
    assert {op.output for op in found.program.ops} <= values.keys()
    np.testing.assert_array_equal(values[found.program.output], logits)
    sums = values["blocks.0.attn.qkv sums"]
    assert (sums == np.rint(sums)).all()
