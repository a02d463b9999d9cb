"""Normalisation and pooling whose results do not depend on the batch: float64 inside, rounded once to float32."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from halfbyte.layers.site import Stateful


class ExactLayerNorm(Stateful):
    """LayerNorm over the last dimension: (x - mean) / sqrt(var + eps) * weight + bias.

    `trained_weight` and `trained_bias` `[C]` are those before a step learned others, for the state `float`; an artifact
    does not keep them.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    normalized_shape: tuple[int, ...]
    eps: float
    trained_weight: Tensor | None
    trained_bias: Tensor | None

    def __init__(self, norm: nn.LayerNorm | ExactLayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.normalized_shape, self.eps = norm.normalized_shape, norm.eps
        self.register_buffer("trained_weight", None)
        self.register_buffer("trained_bias", None)

    @torch.no_grad()
    def restate(self, weight: Tensor, bias: Tensor) -> None:
        """Take another weight and bias `[C]`; the state `float` keeps the trained ones."""
        assert self.weight is not None
        assert self.bias is not None
        if self.trained_weight is None:
            self.trained_weight, self.trained_bias = self.weight.clone(), self.bias.clone()
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias in the present state."""
        if self.state == "float" and self.trained_weight is not None:
            return self.trained_weight, self.trained_bias
        return self.weight, self.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.state == "float":
            return F.layer_norm(x, self.normalized_shape, *self.affine(), self.eps)
        weight = None if self.weight is None else self.weight.double()
        bias = None if self.bias is None else self.bias.double()
        return F.layer_norm(x.double(), self.normalized_shape, weight, bias, self.eps).float()


class ExactRMSNorm(ExactLayerNorm):
    """What a LayerNorm without weight and bias computes of a vector whose mean is zero, in any basis:
    x / sqrt(mean(x^2) + eps). A step may give it a weight and a bias again."""

    def __init__(self, norm: ExactLayerNorm) -> None:
        super().__init__(norm)
        for name in ("weight", "bias"):
            delattr(self, name)
            self.register_parameter(name, None)

    def forward(self, x: Tensor) -> Tensor:
        exact = self.state != "float"
        wide = x.double() if exact else x
        result = wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        weight, bias = self.affine()
        if weight is not None:
            result = result * (weight.double() if exact else weight)
        if bias is not None:
            result = result + (bias.double() if exact else bias)
        return result.float()


class ExactBatchNorm(Stateful):
    """BatchNorm at evaluation: one multiplication and one addition a channel, then the activation that it may hold.

    `trained_mean` and `trained_var` `[C]` are the statistics before a step re-estimated them, for the state `float`; an
    artifact does not keep them.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.trained_mean: Tensor | None
        self.trained_var: Tensor | None
        self.register_buffer("trained_mean", None)
        self.register_buffer("trained_var", None)
        self.act = cast(nn.Module, getattr(norm, "act", nn.Identity()))

    def forward(self, x: Tensor) -> Tensor:
        if self.state == "float":
            mean = self.running_mean if self.trained_mean is None else self.trained_mean
            variance = self.running_var if self.trained_var is None else self.trained_var
            x = F.batch_norm(x, mean, variance, self.weight, self.bias, False, 0.0, self.eps)
        else:
            scale, shift = self.scale_and_shift()
            x = (x * scale.view(-1, 1, 1)).add_(shift.view(-1, 1, 1))
        result: Tensor = self.act(x)
        return result

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """float32 `[C]` each: the norm is x * scale + shift."""
        scale, shift = self.unrounded_scale_and_shift()
        return scale.float(), shift.float()

    def unrounded_scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The same in float64."""
        scale = (self.running_var.double() + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight.double()
        shift = -self.running_mean.double() * scale
        if self.bias is not None:
            shift = shift + self.bias.double()
        return scale, shift

    @torch.no_grad()
    def restate(self, mean: Tensor, variance: Tensor) -> None:
        """Take other statistics `[C]`; the state `float` keeps the trained ones."""
        if self.trained_mean is None:
            self.trained_mean, self.trained_var = self.running_mean.clone(), self.running_var.clone()
        self.running_mean.copy_(mean)
        self.running_var.copy_(variance)


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
