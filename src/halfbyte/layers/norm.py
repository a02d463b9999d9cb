"""Normalisation and pooling whose results do not depend on the batch: float64 inside, rounded once to float32."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from halfbyte.layers.site import Stateful


class ExactLayerNorm(Stateful):
    """LayerNorm over the last dimension: (x - mean) / sqrt(var + eps) * weight + bias."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.normalized_shape, self.eps = norm.normalized_shape, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        if self.state == "float":
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        weight = None if self.weight is None else self.weight.double()
        bias = None if self.bias is None else self.bias.double()
        return F.layer_norm(x.double(), self.normalized_shape, weight, bias, self.eps).float()


class ExactBatchNorm(Stateful):
    """BatchNorm at evaluation: one multiplication and one addition a channel, then the activation that it may hold."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.act = cast(nn.Module, getattr(norm, "act", nn.Identity()))

    def forward(self, x: Tensor) -> Tensor:
        if self.state == "float":
            x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        else:
            scale, shift = self.scale_and_shift()
            x = (x * scale.view(-1, 1, 1)).add_(shift.view(-1, 1, 1))
        result: Tensor = self.act(x)
        return result

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """float32 `[C]` each: the norm is x * scale + shift."""
        scale = (self.running_var.double() + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight.double()
        shift = -self.running_mean.double() * scale
        if self.bias is not None:
            shift = shift + self.bias.double()
        return scale.float(), shift.float()


class ExactFloat64(Stateful):
    """Any other norm or average pool, run in float64 with its parameters and rounded once to float32."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if self.state == "float":
            result: Tensor = self.inner(x)
            return result
        tensors = {**dict(self.inner.named_parameters()), **dict(self.inner.named_buffers())}
        wide = {name: tensor.double() for name, tensor in tensors.items() if tensor.is_floating_point()}
        result = functional_call(self.inner, wide, (x.double(),))
        return result.to(torch.float32)
