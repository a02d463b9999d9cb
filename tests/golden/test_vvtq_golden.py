"""VVTQ's parts against the reference's numbers; absolute tolerance 2e-5, relative 2e-4."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from halfbyte.data.published_labels import PublishedLabels
from halfbyte.edits import Edit
from halfbyte.families.describe import describe
from halfbyte.prepare import model_state, prepare
from halfbyte.quantizers.lsq import (
    LearnedStep,
    LsqQuantizer,
    activation_multiplier,
    bounds,
    least_squares_step,
    published_step,
    weight_multiplier,
)
from halfbyte.recipe import BitPlan
from halfbyte.train.bin_regularizer import bin_spread, strength
from halfbyte.train.learned_quantization import LearnedQuantization
from halfbyte.train.losses import soft_cross_entropy
from halfbyte.train.oscillation import OscillationTracker

GOLDEN = json.loads((Path(__file__).parent / "vvtq.json").read_text())


def close(found: Tensor | float, expected: object, atol: float = 2e-5, rtol: float = 2e-4) -> None:
    wanted = torch.as_tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(torch.as_tensor(found, dtype=torch.float32).detach(), wanted, atol=atol, rtol=rtol)


def leaf(values: object) -> Tensor:
    return torch.tensor(values).clone().requires_grad_(True)


@pytest.mark.parametrize("case", GOLDEN["vvtq_linear"]["cases"], ids=lambda case: f"b{case['bits']}")
def test_a_linear_weight(case):
    shared = GOLDEN["vvtq_linear"]
    low, high = bounds(case["bits"], signed=True)
    weight, x = leaf(shared["W"]), leaf(shared["x"])
    for bits, expected in zip(range(2, 9), case["alpha7"], strict=True):
        close(least_squares_step(weight.detach(), bits), expected)
    step = least_squares_step(weight.detach(), case["bits"]).requires_grad_(True)
    multiplier = weight_multiplier(weight, high)
    close(multiplier, case["g"])
    quantized = LearnedStep.apply(weight, step, None, multiplier, low, high)
    y = F.linear(x, quantized, torch.tensor(shared["bias"]))
    (y * torch.tensor(shared["grad_out"])).sum().backward()
    for found, key in ((y, "y"), (quantized, "w_q"), (x.grad, "grad_x"), (weight.grad, "grad_w")):
        close(found, case[key])
    close(step.grad, case["grad_alpha7"][case["bits"] - 2])


@pytest.mark.parametrize("case", GOLDEN["vvtq_act"]["cases"])
def test_an_activation(case):
    shared = GOLDEN["vvtq_act"]
    low, high = bounds(case["bits"], case["signed"])
    given = torch.tensor(shared["x"])
    x = leaf({"x": given, "gelu(x)": F.gelu(given), "softmax(x,-1)": given.softmax(-1)}[case["input"]].tolist())
    step = published_step(x, case["bits"])
    close(step, case["alpha"])
    step = step.clone().requires_grad_(True)
    beta = torch.tensor(case["beta"]).requires_grad_(True) if case["offset"] else None
    multiplier = activation_multiplier(x.numel(), high)
    close(multiplier, case["g"])
    y = LearnedStep.apply(x, step, beta, multiplier, low, high)
    (y * torch.tensor(shared["grad_out"])).sum().backward()
    close(y, case["y"])
    close(x.grad, case["grad_x"])
    close(step.grad, case["grad_alpha"])
    if beta is not None:
        close(beta.grad, case["grad_beta"])
    # What is deployed gives the same.
    quantizer = LsqQuantizer(case["bits"], signed=case["signed"], with_offset=case["offset"])
    quantizer.set_step(step, beta)
    assert torch.equal(quantizer(x.detach()), y.detach())


def test_a_convolution_with_eight_bits():
    case = GOLDEN["vvtq_conv8"]
    weight = leaf(case["W"])
    step = least_squares_step(weight.detach(), 8).requires_grad_(True)
    close(step, case["alpha"])
    quantized = LearnedStep.apply(weight, step, None, weight_multiplier(weight, 127), -128, 127)
    y = F.conv2d(torch.tensor(case["x"]), quantized, torch.tensor(case["bias"]), stride=case["stride"])
    y.square().sum().backward()
    close(y, case["y"])
    close(weight.grad, case["grad_w"])
    close(step.grad, case["grad_alpha"], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("case", GOLDEN["vvtq_binreg"]["cases"], ids=lambda case: f"b{case['bits']}")
def test_the_regularizer_with_exact_bins(case):
    weight = leaf(GOLDEN["vvtq_binreg"]["W"])
    low, high = bounds(case["bits"], signed=True)
    step = least_squares_step(weight.detach(), case["bits"]).requires_grad_(True)
    value = bin_spread(weight, step, weight_multiplier(weight, high), case["bits"])
    close(value, case["value_lambda1_exact_bins"], atol=1e-8)
    value.backward()
    # The reference's gradient lacks the bins that it did not find.
    found = {int(level): counts[0] == counts[1] for level, counts in case["bin_counts_ref_vs_exact"].items()}
    levels = (weight.detach() / step.detach()).clamp(low, high).round()
    in_found = torch.tensor([[found[int(level)] for level in row] for row in levels.tolist()])
    close(weight.grad[in_found], torch.tensor(case["grad_w"])[in_found], atol=1e-6)
    if all(found.values()):
        close(step.grad, case["grad_alpha"], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("key", ["vvtq_block_b2", "vvtq_block_b4"])
def test_a_whole_block(key):
    case, bits = GOLDEN[key], int(key[-1])
    model = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=case["dim"], depth=1, num_heads=case["heads"], num_classes=2
    )  # fmt: skip
    model.pretrained_cfg = {"input_size": (3, 8, 8), "first_conv": "patch_embed.proj", "classifier": "head"}
    layout = prepare(model.eval(), describe(model), BitPlan())
    layout = Edit("split_qkv", {"attention": "blocks.0.attn"}).apply(model, layout)
    block = model.blocks[0]
    state = {name.replace("attn.proj_", "attn."): torch.tensor(values) for name, values in case["params"].items()}
    state = {re.sub(r"attn\.([qkv])\.", r"attn.\1_proj.", name): tensor for name, tensor in state.items()}
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.copy_(state[name])
    sites = {site.name: block.get_submodule(site.name.removeprefix("blocks.0.")) for site in layout.sites
             if site.block == "blocks.0"}  # fmt: skip
    names = {}
    for name, site in sites.items():
        for operand in site.operands:
            step = names[name, operand] = _published_name(name.removeprefix("blocks.0."), operand)
            quantizer = LsqQuantizer(
                bits, signed=step not in ("attn.quant_attn", "mlp.quant2"), with_offset=step == "mlp.quant2"
            )
            quantizer.set_step(torch.tensor(case["scales"][f"{step}.alpha"]))
            site.set_quantizer(operand, quantizer)
    learned = LearnedQuantization(sites, "vvtq")
    x = torch.tensor(case["x"])
    with model_state(block, "observe", learned):
        y = block(x)
    loss = y.square().mean()
    loss.backward()
    close(y, case["y"])
    close(loss, case["loss"])
    for (name, operand), step in names.items():
        # The published code has one quantizer for the input of the three projections.
        if step == "attn.quant_input":
            continue
        close(learned.step_of(name, operand).grad, case["grad_scales"][f"{step}.alpha"])
    shared = sum(learned.step_of(name, "input").grad for name in sites if name.endswith(("q_proj", "k_proj", "v_proj")))
    close(shared, case["grad_scales"]["attn.quant_input.alpha"])
    close(learned.offset_of("blocks.0.mlp.fc2", "input").grad, case["grad_scales"]["mlp.quant2.beta"])
    close(block.norm1.weight.grad, case["grads"]["norm1.weight"])
    close(block.attn.q_proj.weight.grad, case["grads"]["attn.proj_q.weight"])
    close(block.mlp.fc2.weight.grad, case["grads"]["mlp.fc2.weight"])
    # What is deployed gives the same as what was trained.
    learned.settle()
    with torch.no_grad(), model_state(block, "quantized"):
        close(block(x), case["y"])


def _published_name(site: str, operand: str) -> str:
    """The reference's name of the quantizer of a site's operand."""
    if operand == "weight":
        return re.sub(r"([qkv])_proj$", r"proj_\1", site)
    return {
        "attn.qk": {"left": "attn.quant_q", "right": "attn.quant_k"},
        "attn.pv": {"left": "attn.quant_attn", "right": "attn.quant_v"},
        "attn.proj": {"input": "attn.quant_output"},
        "mlp.fc1": {"input": "mlp.quant1"},
        "mlp.fc2": {"input": "mlp.quant2"},
    }.get(site, {"input": "attn.quant_input"})[operand]


def test_the_regularizer_grows_as_published():
    for epoch, expected in GOLDEN["vvtq_binreg_lambda"].items():
        assert math.isclose(strength(float(epoch) / 150), expected, abs_tol=1e-9)


def test_soft_labels_and_their_loss(tmp_path):
    case = GOLDEN["vvtq_softlabel"]
    rows = torch.tensor(case["label"])
    for tail, key in (("smoothing", "marginal_smoothing_k5"), ("renorm", "marginal_renorm")):
        ids, probabilities = PublishedLabels(tmp_path, tmp_path, case["n_classes"], tail)._decoded(rows)
        close(_dense(ids, probabilities, case["n_classes"]), case[key])
    ids, probabilities = PublishedLabels(tmp_path, tmp_path, case["n_classes"])._decoded(
        torch.tensor(case["smoothing_in"])
    )
    close(_dense(ids, probabilities, case["n_classes"]), case["smoothing"])
    logits = leaf(case["logits"])
    loss = soft_cross_entropy(logits, rows[:, 0].long(), rows[:, 1])
    loss.backward()
    close(loss, case["soft_ce"])
    close(logits.grad, case["grad_logits"])


def _dense(ids: Tensor, probabilities: Tensor, classes: int) -> Tensor:
    rest = (1 - probabilities.sum(1, keepdim=True)) / max(classes - ids.shape[1], 1)
    return rest.repeat(1, classes).scatter(1, ids, probabilities)


def test_oscillations_are_counted_and_frozen():
    case = GOLDEN["vvtq_oscillation_tracker"]
    sequence = torch.tensor(case["seq"])
    tracker = OscillationTracker(sequence[0], case["momentum"], case["freeze_threshold"])
    for levels, expected in zip(sequence, case["steps"], strict=True):
        close(tracker.update(levels), expected["x_int"])
        close(tracker.turns, expected["ema_osc"])
        close(tracker.frozen.float(), [float(frozen) for frozen in expected["frozen"]])
        close(tracker.frozen_level, expected["frozen_x_int"])
        close(tracker.average, expected["ema_x_int"])
