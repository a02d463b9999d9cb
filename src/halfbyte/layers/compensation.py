"""Linear functions beside a block that compensate what quantization cost it (QwT): in float16, or in 8-bit integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from halfbyte.layers.branch import Branch
from halfbyte.layers.conv import QuantConv2d
from halfbyte.layers.linear import QuantLinear
from halfbyte.layers.site import WeightedSite

FORMS = ("float16", "int8", "lowrank")


@dataclass(frozen=True)
class Shape:
    """A linear map of tokens `[..., inputs]` (kernel 0), or a convolution of maps `[B, inputs, H, W]`."""

    inputs: int
    outputs: int
    kernel: int = 0
    stride: int = 1
    groups: int = 1

    def site(self) -> WeightedSite:
        """A site of this shape, of zeros."""
        return _site(self, self.inputs, self.outputs)

    def module(self, inputs: int, outputs: int, bias: bool = True) -> nn.Linear | nn.Conv2d:
        """Zeros of this kind between so many channels."""
        made: nn.Linear | nn.Conv2d
        if not self.kernel:
            made = nn.Linear(inputs, outputs, bias)
        else:
            made = nn.Conv2d(inputs, outputs, self.kernel, self.stride, self.kernel // 2, groups=self.groups, bias=bias)
        for parameter in made.parameters():
            nn.init.zeros_(parameter)
        return made


class HalfBranch(Branch):
    """y = x W^T + b as QwT publishes it: weight and input rounded to float16, the product too, the bias float32.

    In the state `observe` everything is float32.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        made = shape.module(shape.inputs, shape.outputs)
        self.weight, self.bias = made.weight, made.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.state == "quantized":
            # Products of halves are exact in float64; their sums are rounded once.
            product = self._product(x.half().double(), self.weight.half().double()).half().float()
        else:
            product = self._product(x, self.weight)
        assert self.bias is not None
        return product + (self.bias.view(-1, 1, 1) if self.shape.kernel else self.bias)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        if not self.shape.kernel:
            return F.linear(x, weight)
        return F.conv2d(x, weight, None, self.shape.stride, self.shape.kernel // 2, 1, self.shape.groups)


class IntegerBranch(Branch):
    """The same in integers: the input in 8 bits with a scale a channel, then the sites `sites` one behind the other.

    `inverse_scale` `[I]` takes each input channel to its codes, so that the first site's own scale is 1.
    """

    sites: ClassVar[tuple[str, ...]]
    inverse_scale: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("inverse_scale", torch.ones(shape.inputs))

    def codes(self, x: Tensor) -> Tensor:
        """The input in units of its codes."""
        return x * (self.inverse_scale.view(-1, 1, 1) if self.shape.kernel else self.inverse_scale)

    def forward(self, x: Tensor) -> Tensor:
        x = self.codes(x)
        for name in self.sites:
            x = getattr(self, name)(x)
        return x


class FullBranch(IntegerBranch):
    """One site of full rank."""

    sites: ClassVar[tuple[str, ...]] = ("full",)

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.full = _site(shape, shape.inputs, shape.outputs)


class LowRankBranch(IntegerBranch):
    """Two sites with `rank` channels between them; for tokens only."""

    sites: ClassVar[tuple[str, ...]] = ("down", "up")

    def __init__(self, shape: Shape, rank: int) -> None:
        super().__init__(shape)
        self.down = _site(shape, shape.inputs, rank, bias=False)
        self.up = _site(shape, rank, shape.outputs)


def compensation(form: str, shape: Shape, rank: int) -> Branch:
    """A branch of zeros of one of `FORMS`; raises `ValueError` for another one."""
    if form not in FORMS:
        raise ValueError(f"no form of compensation is called {form!r}")
    if form == "lowrank":
        return LowRankBranch(shape, rank)
    return HalfBranch(shape) if form == "float16" else FullBranch(shape)


def _site(shape: Shape, inputs: int, outputs: int, bias: bool = True) -> WeightedSite:
    made = shape.module(inputs, outputs, bias)
    return QuantLinear(made) if isinstance(made, nn.Linear) else QuantConv2d(made)
