"""Where adapters can stand: beside the attentions and MLPs of transformer blocks, or beside the stages of a ResNet."""

from __future__ import annotations

from dataclasses import dataclass

from timm.models.beit import Block as BeitBlock
from timm.models.eva import EvaBlock
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import nn

from halfbyte.layers.branch import Side
from halfbyte.models.cifar_resnet import CifarResNet

_VIT_BLOCKS = (Block, BeitBlock, EvaBlock)
_RESNETS = (ResNet, CifarResNet)


@dataclass(frozen=True)
class Link:
    """An adapter reads the input or output (`side`) of the module `source` and adds to the output of the module `at`.

    part: what it stands beside, `attention`, `mlp` or `stage`.
    """

    part: str
    at: str
    source: str
    side: Side


@dataclass(frozen=True)
class Place:
    """A block, or the last block of a stage of convolutions, with what can stand beside it.

    family: `vit`, `swin` or `resnet`. name: the path that a user knows. stage, index: its number in its stage, where
    the model has stages of blocks, or in the model.
    """

    family: str
    name: str
    block: str
    links: tuple[Link, ...]
    stage: int | None
    index: int


def places(model: nn.Module) -> list[Place]:
    """The places for adapters in a model, prepared or not, in the order in which they run; none where no family that
    is known here has a part in it."""
    if type(model) in _RESNETS:
        return _stages(model)
    found: list[Place] = []
    for path, module in model.named_modules():
        family = "vit" if type(module) in _VIT_BLOCKS else "swin" if type(module) is SwinTransformerBlock else None
        if family is not None:
            numbers = [int(part) for part in path.split(".") if part.isdigit()]
            links = (
                Link("attention", f"{path}.drop_path1", f"{path}.norm1", "output"),
                Link("mlp", f"{path}.drop_path2", f"{path}.norm2", "output"),
            )
            stage = numbers[-2] if len(numbers) > 1 else None
            found.append(Place(family, path, path, links, stage, numbers[-1] if numbers else len(found)))
    return found


def _stages(model: nn.Module) -> list[Place]:
    """`layer1`, `layer2` ...: a Sequential runs whatever it holds, so the adapter belongs to its last block."""
    found: list[Place] = []
    for name, stage in model.named_children():
        if isinstance(stage, nn.Sequential) and name.startswith("layer") and len(stage):
            first, last = f"{name}.0", f"{name}.{len(stage) - 1}"
            found.append(Place("resnet", name, last, (Link("stage", last, first, "input"),), None, len(found)))
    return found
