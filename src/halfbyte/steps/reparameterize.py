"""Per-channel scales behind a LayerNorm folded into the norm and the linears that it feeds (RepQ-ViT, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from halfbyte.layers.norm import ExactLayerNorm
from halfbyte.layers.site import WeightedSite
from halfbyte.prepare import site_module
from halfbyte.quantizers.uniform import CONSTANT_RANGE
from halfbyte.session import Session


class Folded(NamedTuple):
    """What a reparameterization did: the norm gives x / r1 - r2 `[C]` now, for one scale and zero point."""

    scale: Tensor
    zero_point: Tensor
    r1: Tensor
    r2: Tensor


def fold_channels(
    session: Session,
    norm: str,
    sites: list[str],
    scale: Tensor,
    zero_point: Tensor,
    constant: Tensor,
    *,
    round_zero_point: bool,
) -> Folded:
    """Make the input of `sites`, all fed by `norm`, fit for one scale and zero point.

    `scale`, `zero_point`, `constant` `[C]`: what each channel asks for, as in `reparameterize`.
    """
    modules = [cast(WeightedSite, site_module(session.model, site)) for site in sites]
    for site, module in zip(sites, modules, strict=True):
        session.edit("track_scale", site=site)
        if module.bias is None:
            session.edit("add_bias", site=site)
    layer_norm = session.model.get_submodule(norm)
    assert isinstance(layer_norm, ExactLayerNorm)
    if layer_norm.weight is None or layer_norm.bias is None:
        session.edit("add_norm_affine", norm=norm)
    return reparameterize(layer_norm, modules, scale, zero_point, round_zero_point=round_zero_point, constant=constant)


def reparameterizable(session: Session) -> dict[str, list[str]]:
    """The norms whose whole output goes into linears of one activation width, with those linears."""
    groups: dict[str, list[str]] = {}
    for site in session.layout.sites:
        if site.norm is not None and isinstance(session.model.get_submodule(site.norm), ExactLayerNorm):
            groups.setdefault(site.norm, []).append(site.name)
    return {
        norm: sites
        for norm, sites in groups.items()
        if len({session.bits.of(session.layout.site(site))[1] for site in sites}) == 1
    }


def reparameterize(
    norm: nn.Module,
    linears: Sequence[WeightedSite],
    scale: Tensor,
    zero_point: Tensor,
    *,
    round_zero_point: bool,
    constant: Tensor | None = None,
) -> Folded:
    """Fold per-channel scales s and zero points z `[C]` into the norm before and the linears behind (section 3.2).

    In place: norm weight and bias become w / r1 and b / r1 - r2, each linear's W -> W r1 and c -> c + (W r1) r2, with
    r1 = s / mean(s) and r2 = min / r1 - min~, where min = -s z and min~ = -mean(s) z~. The function is unchanged.
    The result holds mean(s) and z~ = mean(z), rounded with `round_zero_point`: r2 takes up what the rounding moved.

    `constant` `[C]` holds the value of each channel that has only one, else NaN. Such channels keep r1 = 1, are moved
    onto the code of min~, and have no say in the means.
    """
    weight, bias = cast(Tensor, norm.weight), cast(Tensor, norm.bias)
    values = torch.full_like(scale, float("nan")) if constant is None else constant
    varies = values.isnan()
    counted = varies if bool(varies.any()) else ~varies
    target_scale = scale[counted].double().mean()
    target_zero_point = zero_point[counted].double().mean()
    if round_zero_point:
        target_zero_point = target_zero_point.round()
    # Rounded to the type in which the linears remember it, so that the trained weights give these again.
    r1 = torch.where(varies, scale.double() / target_scale, 1.0).float().double()
    minimum = torch.where(varies, -scale.double() * zero_point, values.double())
    r2 = minimum / r1 + target_zero_point * target_scale
    weight.copy_(weight.double() / r1)
    bias.copy_(bias.double() / r1 - r2)
    for linear in linears:
        offset = cast(Tensor, linear.bias)
        linear.rescale_weight(r1.float())
        if linear.folded_scale is not None:
            linear.folded_scale.mul_(r1.float())
        offset.copy_(offset.double() + cast(Tensor, linear.weight).double() @ r2)
    return Folded(target_scale.float(), target_zero_point.float(), r1.float(), r2.float())


def constant_channels(x: Tensor) -> Tensor:
    """The value of each channel (last dimension) of `x` that has only one, float32 `[C]`; NaN for the others."""
    low, high = x.flatten(0, -2).aminmax(dim=0)
    one_value = high - low <= CONSTANT_RANGE * torch.maximum(low.abs(), high.abs())
    return torch.where(one_value, low, float("nan"))
