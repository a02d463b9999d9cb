"""Rounding of a weight, column by column, that corrects in the columns to come what the rounding of one cost.

Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers" (ICLR 2023),
algorithm 1, with the columns of the largest inputs first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.quantizers.uniform import UniformQuantizer

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


def by_row(quantizer: UniformQuantizer) -> UniformQuantizer:
    """A weight's quantizer for the weight as a matrix `[O, K]`."""
    flat = UniformQuantizer(quantizer.bits, axis=quantizer.axis, symmetric=quantizer.symmetric)
    scale, zero_point = quantizer.calibrated(quantizer.scale), quantizer.calibrated(quantizer.zero_point)
    if quantizer.axis == 0:
        scale, zero_point = scale.view(-1, 1), zero_point.view(-1, 1)
    flat.set_parameters(scale, zero_point)
    return flat
