"""Swin Transformer: windows, relative positions, patch merging."""

from __future__ import annotations

from typing import cast

from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock, WindowAttention
from torch import nn

from halfbyte.families.sketch import Sketch, handles
from halfbyte.layers.attention import SwinAttention


@handles(WindowAttention)
def attention(path: str, module: nn.Module, sketch: Sketch) -> None:
    """Rewrite the window attention so that both products are sites."""
    sketch.adapters[path] = SwinAttention


@handles(SwinTransformerBlock)
def block(path: str, module: nn.Module, sketch: Sketch) -> None:
    """norm1 feeds qkv only where the windows fill the map: otherwise zeros are padded in between, and a norm whose
    output is shifted would no longer agree with them."""
    sketch.blocks.add(path)
    resolution = cast("tuple[int, int]", module.input_resolution)
    window = cast("tuple[int, int]", module.window_size)
    if all(size % side == 0 for size, side in zip(resolution, window, strict=True)):
        sketch.norm_feeds(path, "norm1", ("attn.qkv",))
    sketch.norm_feeds(path, "norm2", ("mlp.fc1",))


@handles(PatchMerging)
def merging(path: str, module: nn.Module, sketch: Sketch) -> None:
    """A LayerNorm over four patches' channels, then a linear without bias."""
    sketch.blocks.add(path)
    sketch.roles[f"{path}.reduction"] = "reduction"
    sketch.norm_feeds(path, "norm", ("reduction",))
