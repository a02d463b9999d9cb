"""ViT, DeiT, DINOv2, EVA and BEiT: transformer blocks with the norm in front."""

from __future__ import annotations

from timm.layers.attention import Attention, AttentionRope
from timm.layers.mlp import Mlp
from timm.models.beit import Attention as TimmBeitAttention
from timm.models.beit import Block as BeitBlock
from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ResPostBlock
from torch import nn

from halfbyte.families.sketch import Sketch, handles
from halfbyte.layers.attention import AttentionAdapter, BeitAttention, PlainViTAttention, ViTAttention

_ADAPTERS: dict[type[nn.Module], type[AttentionAdapter]] = {
    Attention: PlainViTAttention,
    AttentionRope: ViTAttention,
    EvaAttention: ViTAttention,
    TimmBeitAttention: BeitAttention,
}
PROJECTIONS = ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj")
EXPANSIONS = ("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x", "mlp.w12", "mlp.w1", "mlp.w2")


@handles(*_ADAPTERS)
def attention(path: str, module: nn.Module, sketch: Sketch) -> None:
    """Rewrite the attention so that both products are sites."""
    sketch.adapters[path] = _ADAPTERS[type(module)]


@handles(Block, BeitBlock, EvaBlock)
def block(path: str, module: nn.Module, sketch: Sketch) -> None:
    """A block whose two norms feed the projections and the first layer of the MLP."""
    sketch.blocks.add(path)
    sketch.norm_feeds(path, "norm1", (*PROJECTIONS, "attn.gate"))
    sketch.norm_feeds(path, "norm2", EXPANSIONS)


@handles(ResPostBlock, EvaBlockPostNorm)
def post_norm_block(path: str, module: nn.Module, sketch: Sketch) -> None:
    """A block whose norms come behind the attention and the MLP: they feed the residual sum, no site."""
    sketch.blocks.add(path)


@handles(Mlp)
def mlp(path: str, module: nn.Module, sketch: Sketch) -> None:
    """fc1, nonlinearity, fc2; with a norm between, fc2 reads the norm and not the nonlinearity."""
    if isinstance(module.norm, nn.Identity):
        sketch.activation_feeds(path, "act", ("fc2",))
