"""The squared error that a log quantizer of any base makes in a tensor itself."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from halfbyte.calibrate.percentile import quantiles
from halfbyte.quantizers.log import AdaLogQuantizer

# Scales that are tried, from the quantile 0.9 of what is positive to the largest value.
SCALES = 16
# Values that decide, at most.
MOST = 2**18


def fit_adalog(quantizer: AdaLogQuantizer, x: Tensor) -> AdaLogQuantizer:
    """Set scale, base and the last level of `quantizer` to those with the least squared error of `x`, of any shape.

    As in `OwnError`, the values are sorted once: an error then takes the places of 2**bits - 1 thresholds.
    """
    values = x.detach().flatten()[:: -(-x.numel() // MOST)].double().cpu() + quantizer.shift
    ordered = values.sort().values.numpy()
    positive = values[values > 0]
    if len(positive) == 0:
        quantizer.set_scale(torch.ones(()))
        return quantizer
    low, high = quantiles(positive[None].float(), (0.9, 1.0))[:, 0].tolist()
    tried = np.array(quantizer.bases(quantizer.bits))
    # Which symbol is given up, zero or the smallest level, is a choice of its own (a negative base).
    bases, scales = np.concatenate((tried, -tried)), np.linspace(low, high, SCALES, dtype=np.float32)
    base, scale = (grid.flatten() for grid in np.meshgrid(bases, scales))
    edges = quantizer.thresholds(scale, base)
    places = np.searchsorted(ordered, edges.astype(np.float64), side="right")
    ends = np.zeros((len(base), 1), dtype=places.dtype)
    places = np.concatenate((ends + len(ordered), places, ends), axis=1)
    sums = np.concatenate(([0.0], np.cumsum(ordered)))
    level = quantizer.level_table(base) * (scale[:, None] / quantizer.largest)
    held, summed = places[:, :-1] - places[:, 1:], sums[places[:, :-1]] - sums[places[:, 1:]]
    best = int(np.argmin((level * (level * held - 2 * summed)).sum(1)))
    quantizer.set_base(int(abs(base[best])))
    quantizer.zero = bool(base[best] > 0)
    quantizer.set_scale(torch.tensor(scale[best]))
    return quantizer
