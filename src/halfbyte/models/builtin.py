"""The embedded models: timm's own classes at Fashion-MNIST size, small enough to ship with the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

_PREPROCESSING: dict[str, Any] = {
    "input_size": (1, 28, 28),
    "mean": (0.2860,),
    "std": (0.3530,),
    "crop_pct": 1.0,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "num_classes": len(FASHION_CLASSES),
    "label_names": list(FASHION_CLASSES),
    "tag": "fashion_mnist",
}


def _vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=28, patch_size=4, in_chans=1, num_classes=10, embed_dim=96, depth=6, num_heads=3)


def _swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=28, patch_size=2, in_chans=1, num_classes=10, embed_dim=48, depths=(2, 4), num_heads=(3, 6),
        window_size=7, drop_path_rate=0.0,
    )  # fmt: skip


def _resnet() -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    block: Any = BasicBlock  # timm's annotation asks for a block where a block's class belongs
    # The stride-2 stem would leave 7 x 7 pixels after its max pool, so the pool is a strided convolution.
    return ResNet(
        block, layers=(1, 1, 1, 1), channels=(32, 64, 96, 128), stem_width=32, in_chans=1, num_classes=10,
        replace_stem_pool=True,
    )  # fmt: skip


_CONSTRUCTORS: dict[str, Callable[[], nn.Module]] = {
    "fashion_vit": _vit,
    "fashion_swin": _swin,
    "fashion_resnet": _resnet,
}
_ENDS = {
    "fashion_vit": {"first_conv": "patch_embed.proj", "classifier": "head"},
    "fashion_swin": {"first_conv": "patch_embed.proj", "classifier": "head.fc"},
    "fashion_resnet": {"first_conv": "conv1", "classifier": "fc"},
}

DEFAULT_MODEL = "fashion_vit"
BUILTIN_MODELS = tuple(_CONSTRUCTORS)


def create_builtin(name: str) -> nn.Module:
    """Build an embedded architecture with random weights.

    Takes images `[B, 1, 28, 28]` and gives logits `[B, 10]`. `name` is one of `BUILTIN_MODELS`; anything else
    raises `KeyError`.
    """
    model = _CONSTRUCTORS[name]()
    model.pretrained_cfg = {**_PREPROCESSING, **_ENDS[name], "architecture": name}  # type: ignore[assignment]
    return model
