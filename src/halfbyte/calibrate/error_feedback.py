"""Rounding of a weight, column by column, that corrects in the columns to come what the rounding of one cost.

Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers" (ICLR 2023),
algorithm 1, with the columns of the largest inputs first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.quantizers.uniform import UniformQuantizer

# Fractions of a row's extremes that are tried as its range.
RANGES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
# Of the mean of the Gram matrix's diagonal, added to it.
DAMPING = 1e-2


def rounded_with_feedback(weight: Tensor, gram: Tensor, quantizer: UniformQuantizer) -> Tensor:
    """Codes `[O, K]` for a weight `[O, K]` in g groups of rows, whose inputs have the Gram matrices `[g, K, K]`.

    `quantizer` has one scale a row, or one for all; what is kept small is the squared error of the outputs.
    """
    groups, count, _ = gram.shape
    diagonal = gram.diagonal(dim1=1, dim2=2)
    order = diagonal.mean(0).argsort(descending=True, stable=True)
    damping = DAMPING * diagonal.mean(1).clamp(min=1e-30)
    eye = torch.eye(count, dtype=torch.float64, device=gram.device)
    damped = gram[:, order][:, :, order] + damping[:, None, None] * eye
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    left = weight.double()[:, order].reshape(groups, -1, count).clone()
    codes = torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
    for column in range(count):
        wanted = left[:, :, column].reshape(-1, 1)
        chosen = quantizer.quantize(wanted.float())
        codes[:, column : column + 1] = chosen
        error = (wanted - quantizer.dequantize(chosen).double()).view(groups, -1, 1) / factor[:, column, column].view(
            -1, 1, 1
        )
        left[:, :, column:] -= error * factor[:, column : column + 1, column:]
    return codes[:, order.argsort()]


def rounded_in_best_ranges(weight: Tensor, gram: Tensor, quantizer: UniformQuantizer) -> Tensor:
    """As `rounded_with_feedback`, in the best range of each row: that of `quantizer`, or a fraction of its extremes.

    What the rows' outputs lose decides. `quantizer`, of one scale a row, is set to the ranges.
    """
    low, high = weight.amin(1, keepdim=True).float(), weight.amax(1, keepdim=True).float()
    best = _Rounded(weight, gram, quantizer)
    for fraction in RANGES:
        quantizer.set_range(fraction * low, fraction * high)
        best.take(_Rounded(weight, gram, quantizer))
    quantizer.set_parameters(best.scale, best.zero_point)
    return best.codes


class _Rounded:
    """Rows rounded in the ranges of a quantizer, and what their outputs lose."""

    def __init__(self, weight: Tensor, gram: Tensor, quantizer: UniformQuantizer) -> None:
        self.codes = rounded_with_feedback(weight, gram, quantizer)
        lost = (weight.double() - quantizer.dequantize(self.codes).double()).view(len(gram), -1, weight.shape[1])
        self.error = (lost @ gram * lost).sum(2).view(-1, 1)
        self.scale = quantizer.calibrated(quantizer.scale).expand_as(self.error)
        self.zero_point = quantizer.calibrated(quantizer.zero_point).expand_as(self.error)

    def take(self, other: _Rounded) -> None:
        """Take the rows of which the other lose less."""
        better = other.error < self.error
        for name in ("codes", "error", "scale", "zero_point"):
            setattr(self, name, torch.where(better, getattr(other, name), getattr(self, name)))


def by_row(quantizer: UniformQuantizer) -> UniformQuantizer:
    """A weight's quantizer for the weight as a matrix `[O, K]`."""
    flat = UniformQuantizer(
        quantizer.bits, axis=quantizer.axis, symmetric=quantizer.symmetric, covers_zero=quantizer.covers_zero
    )
    scale, zero_point = quantizer.calibrated(quantizer.scale), quantizer.calibrated(quantizer.zero_point)
    if quantizer.axis == 0:
        scale, zero_point = scale.view(-1, 1), zero_point.view(-1, 1)
    flat.set_parameters(scale, zero_point)
    return flat
