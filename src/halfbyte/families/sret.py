"""SReT: sliced attention, and blocks that run twice with a projection of its own behind each run."""

from __future__ import annotations

from torch import nn

from halfbyte.families.sketch import Sketch, handles
from halfbyte.layers.attention import SlicedAttentionAdapter
from halfbyte.models.sret import Block, Mlp, Projection, SlicedAttention


@handles(SlicedAttention)
def attention(path: str, module: nn.Module, sketch: Sketch) -> None:
    """Rewrite the attention so that both products are sites."""
    sketch.adapters[path] = SlicedAttentionAdapter


@handles(Block)
def block(path: str, module: nn.Module, sketch: Sketch) -> None:
    """A block whose two norms feed the projections and the first layer of the MLP."""
    sketch.blocks.add(path)
    sketch.norm_feeds(path, "norm1", ("attn.qkv",))
    sketch.norm_feeds(path, "norm2", ("mlp.fc1",))


@handles(Projection)
def projection(path: str, module: nn.Module, sketch: Sketch) -> None:
    """The MLP behind one run of a block."""
    sketch.blocks.add(path)
    sketch.norm_feeds(path, "norm1", ("mlp.fc1",))


@handles(Mlp)
def mlp(path: str, module: nn.Module, sketch: Sketch) -> None:
    """fc1, GELU, fc2."""
    sketch.activation_feeds(path, "act", ("fc2",))
