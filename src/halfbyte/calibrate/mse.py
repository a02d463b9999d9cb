"""Ranges that minimise the squared error: the extremes shrunk step by step (the search of BRECQ, section 3.2)."""

from __future__ import annotations

from torch import Tensor

from halfbyte.calibrate.percentile import MINMAX, fit_best_range, quantiles, rows_of
from halfbyte.quantizers.uniform import UniformQuantizer

SHRINK_STEPS = 80


def fit_uniform_mse(
    quantizer: UniformQuantizer, x: Tensor, steps: int = SHRINK_STEPS, power: float = 2.0
) -> UniformQuantizer:
    """Set the range of `quantizer` to the fraction 1, 0.99, 0.98 ... (`steps` of them) of the extremes of `x` with the
    least mean |error|^power, for each row on its own."""
    rows = rows_of(x.detach(), quantizer.axis)
    low, high = quantiles(rows.values, [1 - MINMAX[0], MINMAX[0]])
    ranges = [((1 - 0.01 * i) * low, (1 - 0.01 * i) * high) for i in range(steps)]
    return fit_best_range(quantizer, rows, ranges, power)
