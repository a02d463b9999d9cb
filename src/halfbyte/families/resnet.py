"""ResNets: residual blocks of convolutions."""

from __future__ import annotations

from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from halfbyte.families.sketch import Sketch, handles
from halfbyte.models.cifar_resnet import CifarBasicBlock


@handles(BasicBlock, Bottleneck, CifarBasicBlock)
def block(path: str, module: nn.Module, sketch: Sketch) -> None:
    """Every convolution but the first reads the nonlinearity before it."""
    sketch.blocks.add(path)
    sketch.ends[path] = f"{path}.{'bn3' if isinstance(module, Bottleneck) else 'bn2'}"
    sketch.activation_feeds(path, "act1", ("conv2",))
    sketch.activation_feeds(path, "act2", ("conv3",))
