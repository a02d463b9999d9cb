"""Rounding with error feedback: the outputs' error is what it keeps small."""

from __future__ import annotations

import pytest
import torch

from halfbyte.calibrate.error_feedback import by_row, rounded_with_feedback
from halfbyte.quantizers.uniform import UniformQuantizer


def quantizer_of(weight: torch.Tensor, bits: int) -> UniformQuantizer:
    quantizer = UniformQuantizer(bits, axis=0)
    quantizer.set_range(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True))
    return quantizer


def output_error(change: torch.Tensor, gram: torch.Tensor) -> float:
    rows = change.double().view(len(gram), -1, gram.shape[-1])
    return float((rows @ gram * rows).sum())


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_error_of_the_outputs_is_below_that_of_the_nearest_codes(groups: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    mixed = torch.randn(groups, 12, 12, generator=generator)
    x = torch.randn(groups, 200, 12, generator=generator) @ mixed
    gram = (x.transpose(1, 2) @ x).double()
    weight = torch.randn(6, 12, generator=generator)
    quantizer = quantizer_of(weight, bits)
    codes = rounded_with_feedback(weight, gram, quantizer)
    assert codes.dtype == torch.uint8
    assert int(codes.max()) < 1 << bits
    nearest = output_error(quantizer(weight) - weight, gram)
    assert output_error(quantizer.dequantize(codes) - weight, gram) < 0.9 * nearest


def test_inputs_that_do_not_correlate_give_the_nearest_codes() -> None:
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    quantizer = quantizer_of(weight, 4)
    gram = torch.diag(torch.arange(1.0, 9.0)).double()[None]
    assert torch.equal(rounded_with_feedback(weight, gram, quantizer), quantizer.quantize(weight))


def test_inputs_that_never_come_do_no_harm() -> None:
    weight = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    quantizer = quantizer_of(weight, 3)
    gram = torch.zeros(1, 4, 4, dtype=torch.float64)
    assert torch.equal(rounded_with_feedback(weight, gram, quantizer), quantizer.quantize(weight))


def test_a_convolutions_quantizer_by_row() -> None:
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    quantizer = UniformQuantizer(4, axis=0)
    low, high = (edge.view(-1, 1, 1, 1) for edge in weight.flatten(1).aminmax(dim=1))
    quantizer.set_range(low, high)
    flat = by_row(quantizer)
    assert torch.equal(flat.quantize(weight.flatten(1)), quantizer.quantize(weight).flatten(1))
