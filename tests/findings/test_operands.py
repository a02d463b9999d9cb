"""Ranges and distributions of operands, against what a hook of the test's own sees."""

from __future__ import annotations

import pytest
import torch

from halfbyte.findings.operands import BARS, OperandValues, operand_findings
from halfbyte.prepare import model_state, site_module
from halfbyte.quantizers.uniform import UniformQuantizer

FC2, PV = "blocks.1.mlp.fc2", "blocks.2.attn.pv"


@pytest.fixture(scope="module")
def found(vit):
    ranges, histograms = operand_findings(vit.model, vit.layout, vit.pixels, {FC2, PV})
    return {(row["site"], row["operand"]): row for row in ranges}, {
        (row["site"], row["operand"]): row for row in histograms
    }


def test_every_operand_of_every_site_has_a_range(vit, found) -> None:
    ranges, histograms = found
    assert list(ranges) == [(site.name, operand) for site in vit.layout.sites for operand in site.operands]
    assert set(histograms) == {(FC2, "input"), (FC2, "weight"), (PV, "left"), (PV, "right")}


def test_extremes_and_clipping_are_those_of_what_the_site_gets(vit, found) -> None:
    seen = []
    handle = site_module(vit.model, FC2).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.inference_mode(), model_state(vit.model, "quantized"):
        for image in vit.pixels:
            vit.model(image[None])
    handle.remove()
    x, row = torch.cat(seen), found[0][FC2, "input"]
    quantizer = site_module(vit.model, FC2).quantizer("input")
    assert row["least"] == pytest.approx(float(x.min()), rel=1e-3)
    assert row["largest"] == pytest.approx(float(x.max()), rel=1e-3)
    low, high = float(quantizer(torch.tensor([[-1e3]]))), float(quantizer(torch.tensor([[1e3]])))
    assert (row["low"], row["high"]) == (pytest.approx(low, rel=1e-3), pytest.approx(high, rel=1e-3))
    step = float(quantizer.scale)
    clipped = (x < low - step / 2) | (x > high + step / 2)
    assert row["clipped"] == pytest.approx(100 * float(clipped.double().mean()), rel=1e-3)
    assert 0 < row["clipped"] < 1


def test_shares_are_all_of_the_values(found) -> None:
    for row in found[1].values():
        assert len(row["shares"]) == BARS
        assert sum(row["shares"]) + row["below"] + row["above"] == pytest.approx(100, abs=0.05)
        assert row["low"] < min(row["levels"]) <= max(row["levels"]) < row["high"]


def test_a_logarithmic_quantizer_is_drawn_in_octaves(found) -> None:
    row = found[1][PV, "left"]
    assert row["logarithmic"]
    assert row["levels"] == pytest.approx([row["levels"][0] + index / 2 for index in range(15)], abs=0.02)
    assert row["below"] > 0
    assert not found[1][PV, "right"]["logarithmic"]


def test_weights_with_a_scale_a_channel_are_drawn_in_codes(found) -> None:
    row = found[1][FC2, "weight"]
    assert row["codes"]
    assert row["levels"] == list(range(16))


def test_bars_stand_where_the_values_lie() -> None:
    quantizer = UniformQuantizer(4)
    quantizer.set_range(torch.tensor(0.0), torch.tensor(15.0))
    values = OperandValues(quantizer, drawn=True)
    for part in torch.cat([torch.full((750,), 3.0), torch.full((250,), 9.0)]).split(100):
        values.add(part)
    row = values.bars()
    centres = [row["low"] + (index + 0.5) * (row["high"] - row["low"]) / BARS for index in range(BARS)]
    bars = list(zip(row["shares"], centres, strict=True))
    near = {place: sum(share for share, centre in bars if abs(centre - place) < 0.5) for place in (3, 9)}
    assert near == {3: pytest.approx(75, abs=0.1), 9: pytest.approx(25, abs=0.1)}


def test_an_outlier_does_not_push_the_levels_together() -> None:
    quantizer = UniformQuantizer(4)
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(1.0))
    values = OperandValues(quantizer, drawn=True)
    values.add(torch.cat([torch.randn(10_000), torch.tensor([500.0] * 20)]))
    row = values.bars()
    assert values.ranges()["largest"] == 500
    assert row["high"] < 4
    assert row["above"] == pytest.approx(0.2, abs=0.15)


def test_constant_values_can_be_drawn() -> None:
    quantizer = UniformQuantizer(4)
    quantizer.set_range(torch.tensor(2.0), torch.tensor(2.0))
    values = OperandValues(quantizer, drawn=True)
    values.add(torch.full((64,), 2.0))
    assert sum(values.bars()["shares"]) == pytest.approx(100, abs=0.01)
    assert values.ranges()["clipped"] == 0
