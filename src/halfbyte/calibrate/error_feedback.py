"""Rounding of a weight, column by column, that corrects in the columns to come what the rounding of one cost.

Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers" (ICLR 2023),
algorithm 1, with the columns of the largest inputs first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.quantizers.base import Quantizer

# Of the mean of the Gram matrix's diagonal, added to it.
DAMPING = 1e-2


def rounded_with_feedback(weight: Tensor, gram: Tensor, quantizer: Quantizer, damping: float = DAMPING) -> Tensor:
    """Codes `[O, K]` for a weight `[O, K]` whose inputs have the Gram matrix `[K, K]` (float64).

    `quantizer`, with one scale an output channel, gives the codes; the squared error of the outputs is what is kept
    small.
    """
    count = gram.shape[0]
    order = gram.diagonal().argsort(descending=True, stable=True)
    left = weight.double()[:, order].clone()
    damped = gram[order][:, order] + damping * gram.diagonal().mean().clamp(min=1e-30) * torch.eye(
        count, dtype=torch.float64, device=gram.device
    )
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True)
    codes = torch.zeros_like(left, dtype=torch.uint8)
    for column in range(count):
        chosen = quantizer.quantize(left[:, column : column + 1].float())
        codes[:, column : column + 1] = chosen
        error = (left[:, column : column + 1] - quantizer.dequantize(chosen).double()) / factor[column, column]
        left[:, column:] -= error * factor[column, column:]
    return codes[:, order.argsort()]
