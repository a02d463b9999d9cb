"""Attention with its two products as Sites: the forward passes of timm's attention classes, rewritten.

Each adapter takes over the children of the module that it replaces, so parameters keep their names.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from halfbyte.layers.activation import exact_sigmoid, exact_softmax
from halfbyte.layers.linear import QuantLinear
from halfbyte.layers.matmul import QuantMatMul
from halfbyte.layers.site import Stateful
from halfbyte.layers.slicing import join_tokens, slice_tokens, slicing


class AttentionAdapter(Stateful):
    """What all attentions share: heads `[B, h, N, d]`, scores, softmax, and the weighted sum of the values."""

    qkv: nn.Module
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    norm: nn.Module
    gate: nn.Module
    proj: nn.Module
    # Whether q and k may be turned by their position (rotary embedding) before their product.
    turns_with_position: ClassVar[bool] = False
    # How many heads of q share one of k and v.
    kv_groups: int = 1

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        for name, child in attention.named_children():
            self.add_module(name, child)
        for name, parameter in attention.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in attention.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=name not in attention._non_persistent_buffers_set)
        self.num_heads = cast(int, attention.num_heads)
        self.scale = cast(float, attention.scale)
        self.qk = QuantMatMul()
        self.pv = QuantMatMul()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
        """Attention of q, k, v `[B, h, N, d]`, with `bias` added to the scores; the heads merged to `[B, N, h * d]`.

        `scale` multiplies the scores (None: q was scaled before).
        """
        scores = self.qk(q, k.transpose(-2, -1))
        if scale is not None:
            scores = scores * scale
        if bias is not None:
            scores = scores + bias
        mixed = self.pv(exact_softmax(scores, self.state), v)
        return cast(Tensor, mixed.transpose(1, 2).flatten(2))

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v `[B, h, N, d]`, from the one projection `qkv` or from three; k and v may have fewer heads."""
        if getattr(self, "qkv", None) is None:
            fewer = self.num_heads // self.kv_groups
            return (
                heads_of(self.q_proj(x), self.num_heads),
                heads_of(self.k_proj(x), fewer),
                heads_of(self.v_proj(x), fewer),
            )
        packed = self.qkv(x)
        q, k, v = packed.reshape(*packed.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v


def heads_of(x: Tensor, count: int) -> Tensor:
    """`[B, N, h * d]` to `[B, h, N, d]`."""
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def _score_bias(mask: Tensor | None, is_causal: bool, x: Tensor) -> Tensor | None:
    """An attention mask in the form that is added to the scores; a causal one is made here."""
    if is_causal:
        return x.new_full((x.shape[1], x.shape[1]), float("-inf")).triu_(1)
    if mask is not None and mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=x.dtype).masked_fill_(~mask, float("-inf"))
    return mask


class ViTAttention(AttentionAdapter):
    """timm's Attention, AttentionRope and EvaAttention: packed or separate projections, norms of q and k, rotary
    embedding, a norm and a gate behind the weighted sum."""

    turns_with_position = True

    def __init__(self, attention: nn.Module) -> None:
        super().__init__(attention)
        self.prefix_tokens = int(getattr(attention, "num_prefix_tokens", 0))
        self.rotate_half = bool(getattr(attention, "rotate_half", False))
        self.kv_groups = int(getattr(attention, "num_kv_groups", 1))
        if getattr(self, "qkv", None) is not None and getattr(self, "q_bias", None) is not None:
            merge_qkv_bias(self)

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        gate = exact_sigmoid(self.gate(x), self.state) if getattr(self, "gate", None) is not None else None
        q, k, v = self.projected(x)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = self._rotated(q, rope), self._rotated(k, rope)
        if self.kv_groups > 1:
            k, v = (t.repeat_interleave(self.kv_groups, dim=1) for t in (k, v))
        mixed = self.norm(self.attend(q, k, v, _score_bias(attn_mask, is_causal, x), self.scale))
        if gate is not None:
            mixed = mixed * gate
        return cast(Tensor, self.proj(mixed))

    def _rotated(self, x: Tensor, rope: Tensor) -> Tensor:
        from timm.layers.pos_embed_sincos import apply_rot_embed_cat

        prefix, rest = x[:, :, : self.prefix_tokens], x[:, :, self.prefix_tokens :]
        return torch.cat((prefix, apply_rot_embed_cat(rest, rope, half=self.rotate_half)), dim=2).type_as(x)


class PlainViTAttention(ViTAttention):
    """timm's Attention, whose second argument is the mask (no rotary embedding)."""

    turns_with_position = False

    def forward(  # type: ignore[override]
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        return super().forward(x, None, attn_mask, is_causal)


class BeitAttention(AttentionAdapter):
    """timm's BEiT attention, which never calls its `qkv` module: bias of q and v only, relative position bias."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__(attention)
        self.window_size = cast(Any, attention).window_size
        if getattr(self, "q_bias", None) is not None:
            merge_qkv_bias(self)

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        bias = shared_rel_pos_bias
        if getattr(self, "relative_position_bias_table", None) is not None:
            own = relative_position_bias(self.relative_position_bias_table, self.relative_position_index)
            bias = own if bias is None else own + bias
        return cast(Tensor, self.proj(self.attend(*self.projected(x), bias, self.scale)))


class SwinAttention(AttentionAdapter):
    """timm's WindowAttention: q is scaled before the product; relative position bias, mask of shifted windows."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.projected(x)
        bias = relative_position_bias(self.relative_position_bias_table, self.relative_position_index)
        if mask is not None:
            windows = mask.shape[0]
            bias = (bias + mask[:, None]).repeat(x.shape[0] // windows, 1, 1, 1)
        return cast(Tensor, self.proj(self.attend(q * self.scale, k, v, bias, None)))


class SlicedAttentionAdapter(AttentionAdapter):
    """SReT's attention inside groups of tokens, of which a block's two runs have different numbers."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__(attention)
        self.groups = cast(Any, attention).groups

    def forward(self, x: Tensor, repetition: int) -> Tensor:
        groups, order = slicing(self, x, repetition)
        mixed = self.attend(*self.projected(slice_tokens(x, groups, order)), None, self.scale)
        return cast(Tensor, self.proj(join_tokens(mixed, groups, order)))


def relative_position_bias(table: Any, index: Any) -> Tensor:
    """Bias `[1, h, N, N]` from a table `[positions, h]` and an index `[N, N]` into it."""
    return cast(Tensor, table[index.reshape(-1)].view(*index.shape, -1).permute(2, 0, 1)[None])


def merge_qkv_bias(attention: AttentionAdapter) -> None:
    """Give the projection `qkv` the bias (q, k, v) that the attention kept beside it."""
    parts = (attention.q_bias, attention.k_bias, attention.v_bias)
    bias = nn.Parameter(torch.cat([cast(Tensor, part).detach() for part in parts]))
    qkv = attention.qkv
    if isinstance(qkv, QuantLinear):
        qkv.bias = bias
    else:
        cast(nn.Linear, qkv).bias = bias
    for name in ("q_bias", "k_bias", "v_bias"):
        delattr(attention, name)
