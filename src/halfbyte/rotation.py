"""Changes of basis that cost nothing at run time: what is turned on the way in is turned back on the way out.

QuaRot (Ashkboos et al., 2024): LayerNorm becomes RMSNorm once the stream's mean is taken out of all that writes to it
and the norm's affine part is in what reads it; then any orthogonal matrix may stand in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from halfbyte.hadamard import rotation
from halfbyte.layers.attention import AttentionAdapter
from halfbyte.layers.linear import QuantLinear
from halfbyte.layers.norm import ExactLayerNorm, ExactRMSNorm
from halfbyte.layers.site import WeightedSite
from halfbyte.prepare import replace_module, site_module


@torch.no_grad()
def rotate_stream(
    model: nn.Module,
    writers: Iterable[str],
    scales: Mapping[str, str],
    tokens: Iterable[str],
    readers: Mapping[str, Iterable[str]],
    seed: int | None,
) -> None:
    """Turn a residual stream, as `families.stream.Stream` describes it; the sites that read it have a bias.

    Raises `ValueError` where the parts do not fit each other.
    """
    for writer, scale in scales.items():
        _fold_scale(model, _weighted(model, writer), scale)
    norms = {name: model.get_submodule(name) for name in readers}
    widths: set[int] = set()
    for name, norm in norms.items():
        if not isinstance(norm, ExactLayerNorm):
            raise ValueError(f"{name} is not a LayerNorm")
        widths.update(norm.normalized_shape)
        for site in readers[name]:
            _fold_affine(norm, _weighted(model, site))
    if len(widths) != 1:
        raise ValueError(f"the norms of the stream have widths {sorted(widths)}")
    (width,) = widths
    turn = rotation(width, seed)
    centred = turn - turn.mean(0)
    for name in writers:
        module = _weighted(model, name)
        _apply(module.weight, lambda weight: centred.T.to(weight) @ weight.flatten(1))
        _apply(module.bias, lambda bias: bias @ centred.to(bias))
    for name in tokens:
        _apply(cast(Tensor, getattr(model, name)), lambda token: token @ centred.to(token))
    for name, norm in norms.items():
        for site in readers[name]:
            _apply(_weighted(model, site).weight, lambda weight: weight @ turn.to(weight))
        replace_module(model, name, ExactRMSNorm(cast(ExactLayerNorm, norm)))


@torch.no_grad()
def rotate_heads(model: nn.Module, attention: str, scores: bool, values: bool, seed: int | None) -> None:
    """Turn q and k of each head `[d]` alike (`scores`), v and what the projection reads (`values`).

    Raises `ValueError` where `attention` is none.
    """
    module = model.get_submodule(attention)
    if not isinstance(module, AttentionAdapter):
        raise ValueError(f"{attention} is not an attention")
    packed = getattr(module, "qkv", None)
    sites = [packed] if packed is not None else [module.q_proj, module.k_proj, module.v_proj]
    if not all(isinstance(site, QuantLinear) for site in (*sites, module.proj)):
        raise ValueError(f"{attention} has projections that are not quantized")
    # The three packed projections have all heads; of separate ones those of k and v may have fewer.
    weight = cast(Tensor, cast(QuantLinear, sites[0]).weight)
    width = len(weight) // (module.num_heads * (3 if packed is not None else 1))
    turn = rotation(width, seed)
    if packed is not None:
        rows = len(weight) // 3
        ranges = [(packed, slice(start, start + rows)) for start in (0, rows, 2 * rows)]
    else:
        ranges = [(site, slice(None)) for site in sites]
    chosen = (ranges[:2] if scores else []) + (ranges[2:] if values else [])
    for site, part in chosen:
        _turn_rows(cast(QuantLinear, site), part, turn)
    if values:
        proj = cast(QuantLinear, module.proj)
        _apply(proj.weight, lambda weight: (weight.unflatten(1, (-1, width)) @ turn.to(weight)).flatten(1))


def _turn_rows(site: QuantLinear, rows: slice, turn: Tensor) -> None:
    """Let the outputs `rows` of a linear, heads of `len(turn)` channels, come turned: y R."""
    width = len(turn)
    for parameter in (site.weight, site.bias):
        if parameter is not None:
            part = parameter[rows].double().reshape(-1, width, *parameter.shape[1:])
            turned = torch.einsum("hd...,de->he...", part, turn.to(part))
            parameter[rows] = turned.reshape(parameter[rows].shape).to(parameter.dtype)


def _fold_scale(model: nn.Module, site: WeightedSite, path: str) -> None:
    """Make a LayerScale, a module or a parameter, part of the site before it."""
    parent, _, name = path.rpartition(".")
    owner: Any = model.get_submodule(parent)
    part = getattr(owner, name)
    gamma = cast(Tensor, part.gamma if isinstance(part, nn.Module) else part).double()
    _apply(site.weight, lambda weight: weight * gamma.to(weight).view(-1, *[1] * (weight.ndim - 1)))
    _apply(site.bias, lambda bias: bias * gamma.to(bias))
    if isinstance(part, nn.Module):
        replace_module(model, path, nn.Identity())
    else:
        delattr(owner, name)
        setattr(owner, name, None)


def _fold_affine(norm: ExactLayerNorm, site: WeightedSite) -> None:
    """Make a norm's weight and bias part of a site that reads it; the norm is left as it is."""
    assert site.weight is not None
    assert site.bias is not None
    weight = site.weight.double()
    if norm.bias is not None:
        site.bias.copy_(site.bias.double() + weight @ norm.bias.double())
    if norm.weight is not None:
        site.weight.copy_(weight * norm.weight.double())


def _apply(parameter: Tensor | None, function: Any) -> None:
    """Replace a parameter, in place, by a function of its float64 value."""
    if parameter is not None:
        parameter.copy_(function(parameter.double()).view_as(parameter))


def _weighted(model: nn.Module, name: str) -> WeightedSite:
    module = site_module(model, name)
    if not isinstance(module, WeightedSite) or module.weight is None:
        raise ValueError(f"{name} has no weight")
    return module
