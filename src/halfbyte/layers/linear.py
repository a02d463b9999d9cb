"""The quantized linear layer."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn import functional as F

from halfbyte.layers.site import WeightedSite, rescale
from halfbyte.quantizers.base import Quantizer


class QuantLinear(WeightedSite):
    """y = x W^T + b for x `[..., I]` and W `[O, I]`."""

    def __init__(self, linear: nn.Linear, bias: Tensor | None = None) -> None:
        super().__init__(linear.weight, linear.bias if bias is None else bias)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        if self.input_scale is not None:
            x = x * self.input_scale
        if self.state == "float":
            return F.linear(x, self.float_weight(), self.float_bias)
        if self.state == "observe":
            return F.linear(self.seen("input", x), self.seen("weight", self.float_weight()), self.bias)
        weight, scale, bias = self.integer_form()
        return rescale(F.linear(self.quantizer("input").centred(x).to(weight.dtype), weight), scale, bias)

    def split(self, count: int) -> list[QuantLinear]:
        """Linears of `count` equal shares of the outputs, which together compute, quantize and keep what this one does.

        Raises `ValueError` where the outputs do not divide, or the weight's quantizer has no parts.
        """
        rows = self.out_features // count
        if rows * count != self.out_features or self.weight is None:
            raise ValueError(f"{self.out_features} outputs make no {count} parts")
        parts = []
        for start in range(0, self.out_features, rows):
            own = slice(start, start + rows)
            plain = nn.Linear(self.in_features, rows, bias=self.bias is not None)
            plain.weight = nn.Parameter(self.weight[own].detach().clone(), self.weight.requires_grad)
            if self.bias is not None:
                plain.bias = nn.Parameter(self.bias[own].detach().clone())
            part = QuantLinear(plain)
            # A model that is being loaded gets its quantizers behind the edits.
            if self.has_quantizers:
                part.set_quantizer("input", copy.deepcopy(self.quantizer("input")))
                part.set_quantizer("weight", _rows_of(self.quantizer("weight"), own))
            for name in ("weight_codes", "trained_bias"):
                if (whole := getattr(self, name)) is not None:
                    setattr(part, name, whole[own].clone())
            for name in ("folded_scale", "input_scale"):
                if (shared := getattr(self, name)) is not None:
                    setattr(part, name, shared.clone())
            part.state, part.observer = self.state, self.observer
            parts.append(part.train(self.training))
        return parts

    def patches(self, x: Tensor) -> Tensor:
        """What each output is a product with: `[1, rows, I]`."""
        return x.reshape(1, -1, self.in_features)

    def by_patch(self, y: Tensor) -> Tensor:
        """Outputs in the order of `patches`: `[1, rows, O]`."""
        return y.reshape(1, -1, self.out_features)


def _rows_of(quantizer: Quantizer, rows: slice) -> Quantizer:
    """A weight's quantizer for some of its rows."""
    part = copy.deepcopy(quantizer)
    if getattr(quantizer, "axis", None) == 0:
        for name, tensor in quantizer.named_buffers():
            setattr(part, name, tensor[rows].clone())
    return part
