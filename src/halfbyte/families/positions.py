"""Position encodings that a small network computes: the same for every image, so there is nothing to save in them."""

from __future__ import annotations

from timm.layers.pos_embed_rel import RelPosMlp
from timm.models.edgenext import PositionalEncodingFourier as EdgePositions
from timm.models.swin_transformer_v2 import WindowAttention as SwinV2Attention
from timm.models.swin_transformer_v2_cr import WindowMultiHeadAttention as SwinV2CrAttention
from timm.models.xcit import PositionalEncodingFourier as XcitPositions
from torch import nn

from halfbyte.families.sketch import Sketch, handles


@handles(RelPosMlp, EdgePositions, XcitPositions)
def encoding(path: str, module: nn.Module, sketch: Sketch) -> None:
    """The whole module."""
    sketch.constants.add(path)


@handles(SwinV2Attention, SwinV2CrAttention)
def window_attention(path: str, module: nn.Module, sketch: Sketch) -> None:
    """Only the network that makes the bias from relative positions."""
    sketch.constants.update((f"{path}.cpb_mlp", f"{path}.meta_mlp"))
