"""Which modules of a float model are linears and convolutions that a site can replace, and what they multiply with."""

from __future__ import annotations

from typing import cast

from timm.layers.conv2d_same import Conv2dSame
from timm.layers.linear import Linear
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

_STANDARDIZED = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)
# By exact class: a subclass may compute something else.
_LINEARS = (nn.Linear, Linear)
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame, *_STANDARDIZED)


def is_linear(module: nn.Module) -> bool:
    """Whether the module computes x W^T + b and nothing else."""
    return type(module) in _LINEARS


def is_convolution(module: nn.Module) -> bool:
    """Whether the module is a 2-d convolution of a fixed weight, padded with zeros."""
    return type(module) in _CONVOLUTIONS and cast(nn.Conv2d, module).padding_mode == "zeros"


def is_same_padded(module: nn.Module) -> bool:
    """Whether a convolution pads like TensorFlow, by the size of its input."""
    return isinstance(module, Conv2dSame) or bool(getattr(module, "same_pad", False))


def fixed_weight(convolution: nn.Conv2d) -> Tensor | None:
    """The weight `[O, I / groups, kh, kw]` with which a weight-standardized convolution multiplies, the same for every
    image; None where it is the stored one."""
    if type(convolution) not in _STANDARDIZED:
        return None
    weight = convolution.weight.detach()
    gain = None
    if isinstance(convolution, (ScaledStdConv2d, ScaledStdConv2dSame)):
        gain = (convolution.gain.detach() * convolution.scale).view(-1)
    eps = cast(float, convolution.eps)
    rows = weight.reshape(1, len(weight), -1)
    return F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=eps).reshape_as(weight)
