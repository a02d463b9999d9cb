"""RepQ-ViT: post-training quantization by scale reparameterization (Li et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from halfbyte.calibrate.percentile import REPQ_PERCENTILES, fit_log, fit_uniform
from halfbyte.errors import HalfbyteError
from halfbyte.layers.site import SiteModule, WeightedSite
from halfbyte.prepare import model_state, site_module
from halfbyte.quantizers.base import Quantizer
from halfbyte.quantizers.log import LogQuantizer, LogSqrt2Quantizer
from halfbyte.quantizers.uniform import UniformQuantizer
from halfbyte.session import Session
from halfbyte.steps.reparameterize import constant_channels, fold_channels, reparameterizable


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
        modules = [site_module(session.model, site) for site in sites]
        per_channel = cast(UniformQuantizer, modules[0].quantizer("input"))
        scale, zero_point = per_channel.calibrated(per_channel.scale), per_channel.calibrated(per_channel.zero_point)
        target = fold_channels(
            session, norm, sites, scale.flatten(), zero_point.flatten(), constant,
            round_zero_point=not session.recipe.paper_exact,
        )  # fmt: skip
        for module in modules:
            quantizer = UniformQuantizer(per_channel.bits, fractional=session.recipe.paper_exact)
            quantizer.set_parameters(target.scale, target.zero_point)
            module.set_quantizer("input", quantizer)
            fit(module.quantizer("weight"), cast(WeightedSite, module).float_weight(), self.percentiles)


def fit(quantizer: Quantizer, x: Tensor, percentiles: Sequence[float]) -> None:
    """Fit a quantizer of either kind by percentiles; values that are not finite raise `HalfbyteError`."""
    try:
        if isinstance(quantizer, LogQuantizer):
            fit_log(quantizer, x, percentiles)
        else:
            fit_uniform(cast(UniformQuantizer, quantizer), x, percentiles)
    except ValueError as error:
        raise HalfbyteError(f"calibration failed: {error}; are these the weights of this model?") from None
