"""Quantformer's parts against the reference's numbers; absolute tolerance 2e-5, relative 2e-4.

Where the release is degenerate, the vectors hold what the paper means (`fixedQ`), and they have its step for two-sided
tensors, which is `levels: released` here.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from halfbyte.calibrate.channel_groups import PUBLISHED_CAP, channel_ranges, grouped_ranges
from halfbyte.calibrate.kl_threshold import kl_threshold
from halfbyte.quantizers.groupwise import CentredQuantizer, GroupwiseQuantizer, largest_level
from halfbyte.train.attention_rank import rank_loss
from halfbyte.train.group_mixture import assignment_entropy, centred_range, mixture

GOLDEN = json.loads((Path(__file__).parent / "quantformer.json").read_text())
SEARCH, FIXED = GOLDEN["qf_group_search"], GOLDEN["qf_group_search_fixedQ"]


def close(found: Tensor | float, expected: object, atol: float = 2e-5, rtol: float = 2e-4) -> None:
    wanted = torch.as_tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(torch.as_tensor(found, dtype=torch.float32).detach(), wanted, atol=atol, rtol=rtol)


def leaf(values: object) -> Tensor:
    return torch.tensor(values).clone().requires_grad_(True)


def cases(key: str, kind: str | None = None) -> list[dict]:
    return [case for case in GOLDEN[key]["cases"] if kind is None or case["half_wave"] == kind]


@pytest.mark.parametrize("signed", [False, True])
def test_the_mixture_of_a_search(signed):
    for case in FIXED["cases"] if signed else cases("qf_group_search", "A"):
        x, logits = leaf(SEARCH["x"]), leaf(SEARCH["alpha"])
        high = largest_level(case["a_bit"], signed, "released")
        y = mixture(x, logits, torch.tensor(SEARCH["ranges"]) / high, -high if signed else 0, high)
        (y * torch.tensor(SEARCH["grad_out"])).sum().backward()
        for found, key in ((y, "y"), (x.grad, "grad_x"), (logits.grad, "grad_alpha")):
            close(found, case[key])


@pytest.mark.parametrize("case", cases("qf_group_finetune"), ids=lambda case: f"b{case['a_bit']}")
def test_hard_groups(case):
    given = GOLDEN["qf_group_finetune"]
    quantizer = GroupwiseQuantizer(case["a_bit"], 3, signed=False, levels="released")
    quantizer.set_ranges(torch.tensor(given["ranges"]), torch.tensor(given["alpha"]).argmax(0))
    close(quantizer.steps * quantizer.high, case["range"])
    x = leaf(given["x"])
    y = quantizer(x)
    (y * torch.tensor(given["grad_out"])).sum().backward()
    close(y, case["y"])
    close(x.grad, case["grad_x"])


@pytest.mark.parametrize("case", cases("qf_weight"), ids=lambda case: f"b{case['bits']}")
def test_a_weight_is_clipped_where_its_histogram_says(case):
    weight = leaf(GOLDEN["qf_weight"]["W"])
    threshold = kl_threshold(weight, case["bits"])
    close(threshold, case["threshold"])
    quantizer = GroupwiseQuantizer(case["bits"], clips_gradient=False)
    quantizer.set_ranges(torch.tensor([threshold]))
    quantized = quantizer(weight)
    (quantized * torch.tensor(GOLDEN["qf_weight"]["grad_out"])).sum().backward()
    close(quantized, case["w_q"])
    close(weight.grad, case["grad_w"])


def test_thresholds_of_many_weights():
    gauss = torch.randn(64, 96, generator=torch.Generator().manual_seed(5)) * 0.04
    laplace = torch.from_numpy(np.random.RandomState(3).laplace(0, 0.03, (64, 96)).astype(np.float32))
    for name, weight in (("gauss", gauss), ("laplace", laplace)):
        close(weight.abs().max(), GOLDEN["qf_weight"][f"{name}_absmax"])
        for bits, expected in GOLDEN["qf_weight"][f"kl_thresholds_{name}"].items():
            close(kl_threshold(weight, int(bits)), expected)


def test_groups_of_equal_intervals():
    given = GOLDEN["qf_two_groups"]
    for groups, expected in given["by_group_num"].items():
        found, place = grouped_ranges(torch.tensor(given["channel_ranges"]), int(groups))
        close(found[place], expected["channel_range"])
        wanted = torch.tensor(expected["group_range"])
        close(found[wanted > 0], wanted[wanted > 0])


def test_the_range_of_a_channel():
    given = GOLDEN["qf_percentile"]
    found = channel_ranges(torch.tensor(given["x"]).flatten(0, 1), PUBLISHED_CAP, given["p"])
    close(found, given["per_channel"])


@pytest.mark.parametrize("case", cases("qf_attn_act", "Q"), ids=lambda case: f"b{case['a_bit']}")
def test_an_attention_tensor(case):
    x = leaf(GOLDEN["qf_attn_act"]["x"])
    middle, width = (leaf(case[key]).detach().reshape(()).requires_grad_(True) for key in ("cw", "dw"))
    y = centred_range(x, middle, width, 2 ** case["a_bit"] - 1)
    (y * torch.tensor(GOLDEN["qf_attn_act"]["grad_out"])).sum().backward()
    for found, key in ((y, "y"), (x.grad, "grad_x"), (middle.grad, "grad_cw"), (width.grad, "grad_dw")):
        close(found, torch.tensor(case[key]).reshape(found.shape))
    # With 8 bits these levels would need codes of 9.
    if case["a_bit"] < 8:
        quantizer = CentredQuantizer(case["a_bit"], levels="released")
        quantizer.set_range(middle, width)
        close(quantizer(x.detach()), case["y"])
        assert len(quantizer(torch.linspace(-9, 9, 4001)).unique()) <= 2 ** (case["a_bit"] + 1)


@pytest.mark.parametrize("case", cases("qf_rank_loss"), ids=lambda case: f"p{case['pnorm']}")
def test_the_order_of_attention(case):
    logits = leaf(case.get("q_logits", GOLDEN["qf_rank_loss"]["q_logits"]))
    loss = rank_loss(torch.tensor(GOLDEN["qf_rank_loss"]["fp_attn"]), logits.softmax(-1), case["pnorm"])
    loss.backward()
    close(loss, case["loss"])
    close(logits.grad, case["grad_logits"])


def test_the_entropy_of_assignments():
    logits = leaf(GOLDEN["qf_dm_loss"]["alpha"])
    loss = assignment_entropy(logits)
    loss.backward()
    close(loss, GOLDEN["qf_dm_loss"]["loss"])
    close(logits.grad, GOLDEN["qf_dm_loss"]["grad_alpha"])
