"""The residual networks for CIFAR-10 of He et al., "Deep Residual Learning for Image Recognition", section 4.2."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

CIFAR_DEPTHS = (20, 32, 44, 56, 110)
CIFAR_MODELS = tuple(f"cifar_resnet{depth}" for depth in CIFAR_DEPTHS)

_PREPROCESSING: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 1.0,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "first_conv": "conv1",
    "classifier": "linear",
}


class PaddedShortcut(nn.Module):
    """The paper's option A: no parameters, every second pixel, and zero channels on both sides of the input's.

    Takes `[B, I, H, W]` and gives `[B, I + 2 * padding, H / stride, W / stride]`, odd sizes rounded up.
    """

    def __init__(self, stride: int, padding: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))


class CifarBasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: `[B, I, H, W]` to `[B, O, H / stride, W / stride]`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if same else PaddedShortcut(stride, (outputs - inputs) // 2)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


class CifarResNet(nn.Module):
    """A network of 6n + 2 layers: a stem, three stages of n blocks with 16, 32 and 64 channels, pool, linear.

    Takes images `[B, 3, 32, 32]` and gives logits `[B, num_classes]`.
    """

    pretrained_cfg: dict[str, Any]

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"a CIFAR ResNet has 6n + 2 layers, not {depth}")
        blocks = (depth - 2) // 6
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(blocks, 16, 16, stride=1)
        self.layer2 = _stage(blocks, 16, 32, stride=2)
        self.layer3 = _stage(blocks, 32, 64, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    first = CifarBasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(CifarBasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def create_cifar_resnet(name: str, num_classes: int = 10) -> CifarResNet:
    """Build `cifar_resnet20` and its like with random weights; a name not in `CIFAR_MODELS` raises `KeyError`."""
    if name not in CIFAR_MODELS:
        raise KeyError(name)
    model = CifarResNet(int(name.removeprefix("cifar_resnet")), num_classes)
    model.pretrained_cfg = dict(_PREPROCESSING, architecture=name, num_classes=num_classes)
    return model
