"""Linear maps fitted by their moments in the form in which they are deployed (compensation.md 3.2 to 3.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from halfbyte.calibrate.moments import Moments
from halfbyte.quantizers.uniform import UniformQuantizer


class SideFit(NamedTuple):
    """A fitted map. weights: of the sites one behind the other, `[O, K]` each, in units of their inputs' codes.

    bias `[O]`. dense `[g, K, O / g]`: what the weights, as deployed, amount to.
    """

    weights: tuple[Tensor, ...]
    bias: Tensor
    dense: Tensor


def unit_quantizer(bits: int) -> UniformQuantizer:
    """Signed codes of scale 1."""
    quantizer = UniformQuantizer(bits, symmetric=True)
    quantizer.set_parameters(torch.tensor(1.0), torch.tensor(float(1 << (bits - 1))))
    return quantizer


def largest_code(bits: int) -> int:
    """The largest magnitude that signed codes have on both sides of zero."""
    return (1 << (bits - 1)) - 1


def weight_quantizer(weight: Tensor, bits: int) -> UniformQuantizer:
    """Signed codes with one scale an output channel, for a weight `[O, ...]`; the largest magnitude is a code."""
    quantizer = UniformQuantizer(bits, axis=0, symmetric=True)
    magnitude = weight.abs().flatten(1).amax(1).float().view(-1, *[1] * (weight.ndim - 1))
    scale = torch.where(magnitude > 0, magnitude / largest_code(bits), torch.ones_like(magnitude))
    quantizer.set_parameters(scale, torch.full_like(scale, 1 << (bits - 1)))
    return quantizer


def fit_half(moments: Moments, weight: Tensor) -> SideFit:
    """A map `[g, K, O]` rounded to float16."""
    dense = weight.half().double()
    return SideFit((_rows(dense),), moments.intercept(dense).flatten(), dense)


def fit_published(moments: Moments, ridge: float) -> SideFit:
    """Map and constant in float32, with an absolute ridge on both, as QwT's code has them."""
    weight, bias = moments.solve_shrunk(ridge)
    rows = _rows(weight).float()
    return SideFit((rows,), bias.flatten(), weight)


def fit_full(moments: Moments, weight: Tensor, bits: int) -> SideFit:
    """A map `[g, K, O]` with weights of `bits` bits."""
    rows = _rows(weight).float()
    quantized = weight_quantizer(rows, bits)(rows)
    dense = quantized.double().view(len(weight), weight.shape[2], -1).transpose(1, 2)
    return SideFit((rows,), moments.intercept(dense).flatten(), dense)


def fit_low_rank(
    moments: Moments, weight: Tensor, rank: int, bits: tuple[int, int], reach: Callable[[Tensor], Tensor]
) -> SideFit:
    """The best map of `rank` for a least-squares one `[1, K, O]`, in two factors of `bits` (weight, activation).

    The second factor is fitted again behind the rounded first one. `reach` tells the largest magnitude `[r]` that the
    rows' product with a matrix `[K, r]` has, so that what is between the factors fills its codes.
    """
    wide, activation = bits
    down = (weight @ moments.principal(weight)[..., :rank])[0]
    largest = reach(down).double()
    down = down * torch.where(largest > 0, largest_code(activation) / largest, torch.zeros_like(largest))
    rows = down.T.float().contiguous()
    kept = weight_quantizer(rows, wide)(rows).double().T[None]
    up = moments.refit(kept)[0].T.float().contiguous()
    dense = kept @ weight_quantizer(up, wide)(up).double().T
    return SideFit((rows, up), moments.intercept(dense).flatten(), dense)


def least_rank(moments: Moments, weight: Tensor, most: int, enough: float) -> int:
    """The least rank, at most `most`, with which the fit gains `enough` of what rank `most` gains."""
    _, channels, outputs = weight.shape
    most = max(1, min(most, channels, outputs))
    directions = moments.principal(weight)[0]
    predicted = weight[0] @ directions
    gains = (predicted * (moments.xx[0] @ predicted)).sum(0)[:most].clamp(min=0).cumsum(0)
    return min(most, int((gains < enough * gains[-1]).sum()) + 1)


def _rows(weight: Tensor) -> Tensor:
    """`[g, K, O]` as the rows `[g * O, K]` of a layer's weight."""
    return weight.transpose(1, 2).reshape(-1, weight.shape[1])
