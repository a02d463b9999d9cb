"""Quantizers in any width, fitted roughly as the recipe's calibration will, to tell what a width would cost."""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.calibrate.log_error import fit_adalog
from halfbyte.calibrate.percentile import MINMAX, REPQ_PERCENTILES, Rows, fit_best_range, quantiles, rows_of
from halfbyte.families.layout import Site
from halfbyte.layers.activation import ExactGELU
from halfbyte.layers.norm import ExactLayerNorm
from halfbyte.layers.site import SiteModule, WeightedSite
from halfbyte.prepare import model_state, site_module
from halfbyte.quantizers.base import Quantizer
from halfbyte.quantizers.log import GELU_SHIFT, LEVEL_BITS, AdaLogQuantizer, LogSqrt2Quantizer, level_bits_behind_gelu
from halfbyte.quantizers.uniform import UniformQuantizer
from halfbyte.session import Session

# Images whose activations decide, values of one operand that do, and the shares of its extremes that are tried.
IMAGES, MOST = 16, 2**18
SHRINKS = tuple(1 - 0.05 * number for number in range(13))


class RoughQuantizers:
    """Every operand of these sites in each of these widths, fitted to the activations of a few images.

    RepQ-ViT's and AdaLog's are logarithmic behind softmax and GELU, and have a range for each channel behind a norm;
    AdaLog's have the base and the range with the least squared error, others RepQ-ViT's percentiles.
    """

    def __init__(self, session: Session, sites: list[Site], widths: list[int]) -> None:
        self._session, self._widths = session, widths
        self._sites = {site_module(session.model, site.name): site for site in sites}
        steps = {call.name for call in session.recipe.steps}
        self._searched = "adalog" in steps
        self._special = self._searched or "repq" in steps
        self._fitted: dict[tuple[str, str, int], Quantizer] = {}
        with torch.no_grad(), model_state(session.model, "observe", self._fit):
            for batch in session.images(min(IMAGES, len(session.calibration)), IMAGES):
                session.model(batch)

    def quantized(self, site: Site, operand: str, x: Tensor, bits: int) -> Tensor:
        """What an activation becomes in so many bits."""
        return self._fitted[site.name, operand, bits](x)  # type: ignore[no-any-return]

    def weight_changes(self, site: Site) -> Tensor:
        """`[widths, O, ...]`: what rounding to each width does to a weight; empty for a product of activations."""
        module = site_module(self._session.model, site.name)
        if not isinstance(module, WeightedSite):
            return torch.zeros(0)
        weight = module.float_weight().detach()
        quantizers = (self._uniform(UniformQuantizer(bits, axis=0), weight) for bits in self._widths)
        return torch.stack([quantizer(weight) - weight for quantizer in quantizers])

    def _fit(self, module: SiteModule, operand: str, x: Tensor) -> Tensor:
        site = self._sites.get(module)
        if site is not None and operand != "weight" and (site.name, operand, self._widths[0]) not in self._fitted:
            for bits in self._widths:
                self._fitted[site.name, operand, bits] = self._fit_to(site, operand, x, bits)
        return x

    def _fit_to(self, site: Site, operand: str, x: Tensor, bits: int) -> Quantizer:
        model = self._session.model
        feeds = model.get_submodule(site.activation) if site.activation and self._special else None
        maps = self._special and site.role == "pv" and operand == "left"
        if maps or isinstance(feeds, ExactGELU):
            shift = 0.0 if maps else GELU_SHIFT
            if self._searched:
                level_bits = LEVEL_BITS if maps else level_bits_behind_gelu(bits)
                return fit_adalog(AdaLogQuantizer(bits, shift=shift, level_bits=level_bits), x)
            log = LogSqrt2Quantizer(bits, shift=shift)
            log.set_scale(x.amax() + shift)
            return log
        norm = model.get_submodule(site.norm) if site.norm else None
        axis = 1 if site.role in ("qk", "pv") else x.ndim - 1 if isinstance(norm, ExactLayerNorm) else None
        covers_zero = bool(site_module(model, site.name).quantizer(operand).spec().get("covers_zero", False))
        return self._uniform(UniformQuantizer(bits, axis if self._special else None, covers_zero=covers_zero), x)

    def _uniform(self, quantizer: UniformQuantizer, x: Tensor) -> UniformQuantizer:
        rows = rows_of(x.detach(), quantizer.axis)
        tried: tuple[float, ...] = (1 - MINMAX[0], MINMAX[0])
        if not self._searched:
            tried = tuple(edge for share in REPQ_PERCENTILES for edge in (1 - share, share))
        edges = quantiles(rows.values, tried)
        ranges = list(zip(edges[::2], edges[1::2], strict=True))
        if self._searched:
            ranges = [(share * low, share * high) for low, high in ranges for share in SHRINKS]
        each = -(-rows.values.numel() // MOST)
        return fit_best_range(quantizer, Rows(rows.values[:, ::each], rows.shape), ranges)
