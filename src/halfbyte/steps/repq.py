"""RepQ-ViT: post-training quantization by scale reparameterization (Li et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from halfbyte.calibrate.percentile import REPQ_PERCENTILES, fit_log, fit_uniform
from halfbyte.errors import HalfbyteError
from halfbyte.layers.norm import ExactLayerNorm
from halfbyte.layers.site import SiteModule, WeightedSite
from halfbyte.prepare import model_state, site_module
from halfbyte.quantizers.base import Quantizer
from halfbyte.quantizers.log import LogQuantizer, LogSqrt2Quantizer
from halfbyte.quantizers.uniform import CONSTANT_RANGE, UniformQuantizer
from halfbyte.session import Session


@dataclass(frozen=True)
class RepQ:
    """Percentile calibration, LayerNorm-to-linear reparameterization, log-sqrt2 codes after softmax.

    images: calibration images, passed as one batch. percentiles: the upper quantiles tried for each range.
    """

    calibrates: ClassVar[bool] = True
    images: int = 32
    percentiles: tuple[float, ...] = REPQ_PERCENTILES

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError("images must be at least 1")
        if not self.percentiles or not all(0.5 < p <= 1 for p in self.percentiles):
            raise ValueError("percentiles must lie above 0.5 and not above 1")

    def run(self, session: Session) -> dict[str, Any]:
        """Calibrate from what reaches each quantizer, upstream error included, in one pass; then reparameterize."""
        groups = reparameterizable(session)
        self._choose_quantizers(session, [name for names in groups.values() for name in names])
        with torch.no_grad():
            constants = self._calibrate(session)
            for norm, sites in groups.items():
                self._reparameterize(session, norm, sites, constants[sites[0]])
        return {"reparameterized_norms": len(groups)}

    def _choose_quantizers(self, session: Session, per_channel: list[str]) -> None:
        for site in session.layout.sites:
            module = site_module(session.model, site.name)
            if site.name in per_channel:
                module.set_quantizer("input", UniformQuantizer(module.quantizer("input").bits, axis=-1))
            if site.role == "pv":
                bits = module.quantizer("left").bits
                module.set_quantizer("left", LogSqrt2Quantizer(bits, paper_exact=session.recipe.paper_exact))

    def _calibrate(self, session: Session) -> dict[str, Tensor]:
        """Fit every quantizer to the first tensor that reaches it; returns the constant channels of each site's input
        that has a scale a channel."""
        names = {site_module(session.model, site.name): site.name for site in session.layout.sites}
        constants: dict[str, Tensor] = {}
        operands = 2 * len(session.layout.sites)
        steps = iter(session.progress.track(range(operands), "calibrating", operands))

        def observe(module: SiteModule, operand: str, x: Tensor) -> Tensor:
            quantizer = module.quantizer(operand)
            if not quantizer.fitted:
                if getattr(quantizer, "axis", None) == -1:
                    constants[names[module]] = constant_channels(x)
                fit(quantizer, x, self.percentiles)
                next(steps, None)
            return quantizer(x)  # type: ignore[no-any-return]

        with model_state(session.model, "observe", observe):
            for batch in session.images(self.images, batch_size=self.images):
                session.model(batch)
        next(steps, None)
        return constants

    def _reparameterize(self, session: Session, norm: str, sites: list[str], constant: Tensor) -> None:
        modules = [cast(WeightedSite, site_module(session.model, site)) for site in sites]
        for site, module in zip(sites, modules, strict=True):
            session.edit("track_scale", site=site)
            if module.bias is None:
                session.edit("add_bias", site=site)
        layer_norm = session.model.get_submodule(norm)
        assert isinstance(layer_norm, ExactLayerNorm)
        if layer_norm.weight is None or layer_norm.bias is None:
            session.edit("add_norm_affine", norm=norm)
        per_channel = cast(UniformQuantizer, modules[0].quantizer("input"))
        scale, zero_point = per_channel.calibrated(per_channel.scale), per_channel.calibrated(per_channel.zero_point)
        target = reparameterize(
            layer_norm, modules, scale.flatten(), zero_point.flatten(),
            round_zero_point=not session.recipe.paper_exact, constant=constant,
        )  # fmt: skip
        for module in modules:
            quantizer = UniformQuantizer(per_channel.bits, fractional=session.recipe.paper_exact)
            quantizer.set_parameters(*target)
            module.set_quantizer("input", quantizer)
            fit(module.quantizer("weight"), module.float_weight(), self.percentiles)


def reparameterizable(session: Session) -> dict[str, list[str]]:
    """The norms whose whole output goes into linears of one activation width, with those linears."""
    groups: dict[str, list[str]] = {}
    for site in session.layout.sites:
        if site.norm is not None and isinstance(session.model.get_submodule(site.norm), ExactLayerNorm):
            groups.setdefault(site.norm, []).append(site.name)
    return {
        norm: sites
        for norm, sites in groups.items()
        if len({session.recipe.bits.of(session.layout.site(site))[1] for site in sites}) == 1
    }


def reparameterize(
    norm: nn.Module,
    linears: Sequence[WeightedSite],
    scale: Tensor,
    zero_point: Tensor,
    *,
    round_zero_point: bool,
    constant: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Fold per-channel scales s and zero points z `[C]` into the norm before and the linears behind (section 3.2).

    In place: norm weight and bias become w / r1 and b / r1 - r2, each linear's W -> W r1 and c -> c + (W r1) r2, with
    r1 = s / mean(s) and r2 = min / r1 - min~, where min = -s z and min~ = -mean(s) z~. The function is unchanged.
    Returns mean(s) and z~ = mean(z), rounded with `round_zero_point`: r2 takes up what the rounding moved.

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
    return target_scale.float(), target_zero_point.float()


def constant_channels(x: Tensor) -> Tensor:
    """The value of each channel (last dimension) of `x` that has only one, float32 `[C]`; NaN for the others."""
    low, high = x.flatten(0, -2).aminmax(dim=0)
    one_value = high - low <= CONSTANT_RANGE * torch.maximum(low.abs(), high.abs())
    return torch.where(one_value, low, float("nan"))


def fit(quantizer: Quantizer, x: Tensor, percentiles: Sequence[float]) -> None:
    """Fit a quantizer of either kind by percentiles; values that are not finite raise `HalfbyteError`."""
    try:
        if isinstance(quantizer, LogQuantizer):
            fit_log(quantizer, x, percentiles)
        else:
            fit_uniform(cast(UniformQuantizer, quantizer), x, percentiles)
    except ValueError as error:
        raise HalfbyteError(f"calibration failed: {error}; are these the weights of this model?") from None
