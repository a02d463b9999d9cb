"""The quantized linear layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from halfbyte.layers.site import WeightedSite, rescale


class QuantLinear(WeightedSite):
    """y = x W^T + b for x `[..., I]` and W `[O, I]`."""

    def __init__(self, linear: nn.Linear, bias: Tensor | None = None) -> None:
        super().__init__(linear.weight, linear.bias if bias is None else bias)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        if self.state == "float":
            return F.linear(x, self.float_weight(), self.float_bias)
        if self.state == "observe":
            return F.linear(self.seen("input", x), self.seen("weight", self.float_weight()), self.bias)
        weight, scale, bias = self.integer_form()
        return rescale(F.linear(self.quantizer("input").centred(x).to(weight.dtype), weight), scale, bias)

    def patches(self, x: Tensor) -> Tensor:
        """What each output is a product with: `[1, rows, I]`."""
        return x.reshape(1, -1, self.in_features)

    def by_patch(self, y: Tensor) -> Tensor:
        """Outputs in the order of `patches`: `[1, rows, O]`."""
        return y.reshape(1, -1, self.out_features)
