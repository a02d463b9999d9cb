"""GELU as one formula of additions, multiplications and one division, so that every engine gives the same bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from halfbyte.gelu import CLIP, DENOMINATOR, NUMERATOR
from halfbyte.layers.site import Stateful

_PIECE = 2**16


def exact_gelu(x: Tensor) -> Tensor:
    """GELU of a float32 tensor, in Horner's scheme with every operation rounded to float32.

    A library's erf differs between vector lanes, threads and versions; these operations do not. No gradient passes.
    """
    x = x.detach()
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    pieces = torch.split(x.reshape(-1), _PIECE), torch.split(result.view(-1), _PIECE)
    for piece, out in zip(*pieces, strict=True):
        clipped = piece.clamp(-CLIP, CLIP)
        square = clipped * clipped
        torch.mul(_horner(square, NUMERATOR), clipped, out=out)
        out.div_(_horner(square, DENOMINATOR)).add_(0.5).mul_(piece)
    return result


def _horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value.mul_(x).add_(coefficient)
    return value


class ExactGELU(Stateful):
    """nn.GELU (the exact one, not the tanh approximation)."""

    def forward(self, x: Tensor) -> Tensor:
        return exact_gelu(x) if self.state == "quantized" else F.gelu(x)


class ExactElementwise(Stateful):
    """Any other smooth activation module, computed in float64 and rounded once to float32."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x.double()).float() if self.state == "quantized" else self.inner(x)
        return result


def exact_softmax(x: Tensor, state: str) -> Tensor:
    """Softmax over the last dimension; in the state `quantized` in float64, rounded once to float32."""
    return x.double().softmax(-1).float() if state == "quantized" else x.softmax(-1)


def exact_sigmoid(x: Tensor, state: str) -> Tensor:
    """The logistic function; in the state `quantized` in float64, rounded once to float32."""
    return x.double().sigmoid().float() if state == "quantized" else x.sigmoid()
