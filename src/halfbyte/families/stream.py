"""What a rotation must know of a model: who writes to the residual stream, who reads it, and which heads stand free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from timm.layers.patch_embed import PatchEmbed
from timm.models.beit import Beit
from timm.models.beit import Block as BeitBlock
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from halfbyte.families.vit import EXPANSIONS, PROJECTIONS
from halfbyte.layers.attention import AttentionAdapter
from halfbyte.layers.norm import ExactLayerNorm
from halfbyte.layers.site import WeightedSite

_MODELS = (VisionTransformer, VisionTransformerDistilled, Beit, Eva)
_BLOCKS = (Block, BeitBlock, EvaBlock)
_READERS: dict[str, tuple[str, ...]] = {"norm1": (*PROJECTIONS, "attn.gate"), "norm2": EXPANSIONS}
_TOKENS = ("cls_token", "dist_token", "reg_token", "pos_embed")


@dataclass(frozen=True)
class Stream:
    """A prepared model's residual stream, by module paths.

    writers: the sites whose outputs are added up in it. scales: of a writer, the LayerScale behind it, a module or a
    parameter. tokens: parameters `[..., C]` that are part of the stream. readers: of each norm, the sites that read it.
    """

    writers: tuple[str, ...]
    scales: dict[str, str]
    tokens: tuple[str, ...]
    readers: dict[str, tuple[str, ...]]


def residual_stream(model: nn.Module) -> Stream | str:
    """The one stream of a prepared ViT from its patches to its classifier, or why its basis cannot be changed."""
    if type(model) not in _MODELS:
        return f"{type(model).__name__} has no residual stream of one width that is known here"
    parts: Any = model
    for name in ("norm_pre", "patch_embed.norm"):
        if not _absent(_part(model, name)):
            return f"{name} stands in the stream"
    if type(parts.patch_embed) is not PatchEmbed or getattr(parts, "attn_pool", None) is not None:
        return "its patches or its pool are made by a network of their own"
    if getattr(parts, "global_pool", "") not in ("token", "avg"):
        return "its tokens are not pooled by a mean"
    scales: dict[str, str] = {}
    readers: dict[str, tuple[str, ...]] = {}
    writers = ["patch_embed.proj"]
    for path, block in ((path, block) for path, block in model.named_modules() if path.rpartition(".")[0] == "blocks"):
        if type(block) not in _BLOCKS:
            return f"{path} is a {type(block).__name__}"
        for norm, sites in _READERS.items():
            readers[f"{path}.{norm}"] = tuple(f"{path}.{site}" for site in sites if _is_site(block, site))
        outputs = [f"{path}.attn.proj", *(f"{path}.mlp.{name}" for name in ("fc2", "w3") if _is_site(block.mlp, name))]
        for writer, names in zip(outputs, (("ls1", "gamma_1"), ("ls2", "gamma_2")), strict=False):
            found = [name for name in names if not _absent(getattr(block, name, None))]
            if found:
                scales[writer] = f"{path}.{found[0]}"
        writers += outputs
    last = [name for name in ("norm", "fc_norm") if not _absent(_part(model, name))]
    heads = tuple(name for name in ("head", "head_dist") if _is_site(model, name))
    if len(last) != 1 or not heads:
        return "there is not one norm before its classifier"
    readers[last[0]] = heads
    if len(writers) != 2 * len(parts.blocks) + 1:
        return "a block has not one attention and one MLP"
    for norm, sites in readers.items():
        if not sites or type(_part(model, norm)) is not ExactLayerNorm:
            return f"{norm} is not a LayerNorm that linears alone read"
    missing = [name for name in writers if not _is_site(model, name)]
    if missing:
        return f"{missing[0]} is not quantized"
    tokens = tuple(name for name in _TOKENS if not _absent(getattr(model, name, None)))
    return Stream(tuple(writers), scales, tokens, readers)


@dataclass(frozen=True)
class Heads:
    """An attention's free rotations. scores: q and k may be turned alike, values: v with what reads it."""

    name: str
    scores: bool
    values: bool


def free_heads(model: nn.Module) -> list[Heads]:
    """The attentions of a prepared model with packed or separate projections in which nothing but products stands
    between q and k, or between v and the projection behind."""
    found = []
    for path, module in model.named_modules():
        if not isinstance(module, AttentionAdapter) or not isinstance(module.proj, WeightedSite):
            continue
        norms = (getattr(module, name, None) for name in ("q_norm", "k_norm"))
        scores = not module.turns_with_position and all(map(_absent, norms))
        values = all(_absent(getattr(module, name, None)) for name in ("norm", "gate"))
        if scores or values:
            found.append(Heads(path, scores, values))
    return found


def _absent(part: object) -> bool:
    return part is None or isinstance(part, nn.Identity)


def _part(model: nn.Module, path: str) -> Any:
    part: Any = model
    for name in path.split("."):
        part = getattr(part, name, None)
    return part


def _is_site(parent: nn.Module, path: str) -> bool:
    return isinstance(cast(object, _part(parent, path)), WeightedSite)
