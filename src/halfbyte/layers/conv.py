"""The quantized convolution, which also does its own padding."""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from halfbyte.layers.site import WeightedSite, rescale


class QuantConv2d(WeightedSite):
    """A 2-d convolution of `[B, I, H, W]` with a weight `[O, I / groups, kh, kw]`, grouped or not.

    `same_padding` pads like TensorFlow, by what the input's size asks for. Padding is 0, which is a code since the
    input's range contains 0.
    """

    def __init__(self, conv: nn.Conv2d, same_padding: bool = False) -> None:
        super().__init__(conv.weight, conv.bias)
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.groups = conv.padding, conv.groups
        self.same_padding = same_padding

    def forward(self, x: Tensor) -> Tensor:
        if self.state == "float":
            return self._convolve(x, self.float_weight(), self.float_bias)
        if self.state == "observe":
            return self._convolve(self.seen("input", x), self.seen("weight", self.float_weight()), self.bias)
        weight, scale, bias = self.integer_form()
        sums = self._convolve(self.quantizer("input").centred(x).to(weight.dtype), weight, None)
        return rescale(sums, scale.view(-1, 1, 1), None if bias is None else bias.view(-1, 1, 1))

    def patches(self, x: Tensor) -> Tensor:
        """What each output is a product with: `[g, B * positions, K]` for g groups, K in the order of the weight's."""
        padding = cast("tuple[int, int]", self.padding)
        if self.same_padding:
            x, padding = F.pad(x, self._same_pads(x)), (0, 0)
        unfolded = F.unfold(
            x, cast("tuple[int, int]", self.kernel_size), cast("tuple[int, int]", self.dilation), padding,
            cast("tuple[int, int]", self.stride),
        )  # fmt: skip
        by_group = unfolded.view(len(x), self.groups, -1, unfolded.shape[-1])
        return by_group.permute(1, 0, 3, 2).flatten(1, 2)

    def by_patch(self, y: Tensor) -> Tensor:
        """Outputs `[B, O, H, W]` in the order of `patches`: `[g, B * positions, O / g]`."""
        by_group = y.reshape(len(y), self.groups, self.out_channels // self.groups, -1)
        return by_group.permute(1, 0, 3, 2).flatten(1, 2)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.same_padding:
            x, padding = F.pad(x, self._same_pads(x)), (0, 0)
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _same_pads(self, x: Tensor) -> list[int]:
        """Left, right, top, bottom: as many as make the output `ceil(size / stride)`, the odd one last."""
        pads: list[int] = []
        for size, kernel, stride, dilation in zip(
            reversed(x.shape[-2:]), reversed(self.kernel_size), reversed(self.stride), reversed(self.dilation),
            strict=True,
        ):  # fmt: skip
            total = max((math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            pads += [total // 2, total - total // 2]
        return pads
