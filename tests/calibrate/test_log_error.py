"""The base and scale with the least squared error, against trying them all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from halfbyte.calibrate.log_error import SCALES, fit_adalog
from halfbyte.quantizers.log import GELU_SHIFT, AdaLogQuantizer


def tried(x: torch.Tensor, bits: int, shift: float) -> float:
    """The least mean squared error of all bases, scales and last levels, by quantizing with each."""
    positive = (x + shift).flatten()[x.flatten() + shift > 0].double()
    least = float("inf")
    for scale in np.linspace(float(positive.quantile(0.9)), float(positive.max()), SCALES, dtype=np.float32):
        for base in AdaLogQuantizer.bases(bits):
            for zero in (True, False):
                quantizer = AdaLogQuantizer(bits, base=base, shift=shift, zero=zero)
                quantizer.set_scale(torch.tensor(scale))
                least = min(least, float((quantizer(x) - x).double().square().mean()))
    return least


@pytest.mark.parametrize(("bits", "shift"), [(2, 0.0), (3, GELU_SHIFT), (5, 0.0)])
def test_nothing_tried_is_better(bits, shift):
    x = torch.nn.functional.gelu(torch.randn(3, 200)) if shift else torch.randn(3, 4, 50).mul(3).softmax(-1)
    found = fit_adalog(AdaLogQuantizer(bits, shift=shift), x)
    error = float((found(x) - x).double().square().mean())
    assert error == pytest.approx(tried(x, bits, shift), rel=1e-4)


def test_nothing_positive_is_no_error():
    found = fit_adalog(AdaLogQuantizer(4), torch.zeros(5))
    assert torch.equal(found(torch.zeros(5)), torch.zeros(5))
