"""Where to clip a weight, by how much its histogram changes (Quantformer's code, after HAQ, Wang et al., CVPR 2019)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

# From so many bits on, nothing is clipped.
ENOUGH_BITS = 5


def kl_threshold(weight: Tensor, bits: int) -> float:
    """The largest magnitude that quantizing `weight`, of any shape, to so many bits should keep; above zero.

    Candidates are the edges of a histogram of |W| (as many bins as the square root of its values). Of each the
    cumulated histogram, full from the edge on, is compared with itself drawn through 2^(bits - 1) points, by the sum
    of (C - Q) log2(C / Q), C not clipped. From 5 bits on it is the largest magnitude.
    """
    magnitudes = weight.detach().abs().flatten().float().cpu().numpy()
    largest = float(magnitudes.max())
    if largest == 0:
        return 1.0
    if bits >= ENOUGH_BITS:
        return largest
    edges = np.histogram_bin_edges(magnitudes, bins="sqrt")
    held, _ = np.histogram(magnitudes, bins=edges, density=True)
    cumulated, points = np.cumsum(held / held.sum()), 1 << bits - 1
    if points + 1 > len(held):
        return float(edges[-1])
    divergences = [_divergence(cumulated, kept, points) for kept in range(points + 1, len(held) + 1)]
    best = points + 1 + int(np.argmin(divergences))
    return float((best + 0.5) * (edges[1] - edges[0]))


def _divergence(cumulated: npt.NDArray[np.float64], kept: int, points: int) -> float:
    coarse = cumulated.copy()
    coarse[kept - 1 :] = 1
    fine, few = np.linspace(0, 1, kept), np.linspace(0, 1, points)
    coarse[:kept] = np.interp(fine, few, np.interp(few, fine, coarse[:kept]))
    return float(((cumulated - coarse) * np.log2(cumulated / coarse)).sum())
