"""The values that each site's operands take in the quantized model, beside what their quantizers can hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halfbyte.calibrate.statistics import Histogram
from halfbyte.families.layout import Layout
from halfbyte.findings.ruler import Ruler, outer_levels, ruler
from halfbyte.layers.site import SiteModule, WeightedSite
from halfbyte.prepare import model_state, site_module
from halfbyte.quantizers.base import Quantizer

BARS = 56
# A bar chart leaves out the ends of the values, of which these shares are left to either side.
_TAIL = 1e-4
# How far beyond the outer levels it reaches at the most, in widths of their range.
_BEYOND = 1.0
_LEAST_OCTAVE = -40.0


class OperandValues:
    """The extremes of an operand that passes by, how much of it is clipped, and its distribution where that is drawn.

    Memory does not grow with what passes.
    """

    def __init__(self, quantizer: Quantizer, drawn: bool) -> None:
        self.ruler = ruler(quantizer)
        self.quantizer = quantizer
        self.histogram = Histogram() if drawn else None
        self.least, self.largest = math.inf, -math.inf
        self.count = self.clipped = self.below = 0

    def add(self, x: Tensor) -> None:
        """Count the values of `x`, as the quantizer gets them."""
        least, largest = (float(edge) for edge in torch.aminmax(x))
        self.least, self.largest = min(self.least, least), max(self.largest, largest)
        self.count += x.numel()
        places = self.ruler.places(x)
        low, high = self.ruler.limits
        if self.ruler.codes or least + self.ruler.shift < low or largest + self.ruler.shift > high:
            self.clipped += int((places < low).sum()) + int((places > high).sum())
        if self.histogram is not None:
            self._draw(places)

    def _draw(self, places: Tensor) -> None:
        assert self.histogram is not None
        if self.ruler.logarithmic:
            # What lies nearer to zero than the least level has no logarithm that were worth drawing.
            kept = places[places > _least_drawn(self.ruler)]
            self.below += places.numel() - kept.numel()
            places = kept.log2().clamp(min=_LEAST_OCTAVE)
        if places.numel():
            self.histogram.add(places)

    def ranges(self) -> dict[str, Any]:
        """Extremes of the values and of the levels, and the percentage of values beyond the levels' limits."""
        low, high = outer_levels(self.ruler)
        return {
            "bits": self.quantizer.bits, "kind": self.quantizer.kind, "least": _short(self.least),
            "largest": _short(self.largest), "low": _short(low), "high": _short(high),
            "clipped": _short(100 * self.clipped / max(self.count, 1)),
        }  # fmt: skip

    def bars(self) -> dict[str, Any]:
        """The distribution as shares of all values between `low` and `high` (octaves where `logarithmic`); shares
        `below` and `above` of what is not drawn; the levels on the same line."""
        assert self.histogram is not None
        ruler, total = self.ruler, max(self.count, 1)
        levels = ruler.levels.cpu()
        if ruler.logarithmic:
            levels = levels[levels > 0].log2()
        low, high = self._window(float(levels[0]), float(levels[-1]))
        below, shares, above = _rebinned(self.histogram, low, high)
        return {
            "bits": self.quantizer.bits, "kind": self.quantizer.kind, "codes": ruler.codes, "shift": ruler.shift,
            "logarithmic": ruler.logarithmic, "low": _short(low), "high": _short(high),
            "below": _short(100 * (below + self.below) / total), "above": _short(100 * above / total),
            "shares": [_short(100 * share / total) for share in shares],
            "levels": [_short(float(level)) for level in levels],
        }  # fmt: skip

    def _window(self, first: float, last: float) -> tuple[float, float]:
        """What is drawn: all levels, and the values as far as they are neither rare nor far away."""
        assert self.histogram is not None
        reach = (last - first) or max(abs(first), 1.0)
        if math.isinf(self.histogram.least):  # Nothing was counted.
            return first - 0.1 * reach, last + 0.1 * reach
        low = min(first, max(self.histogram.quantile(_TAIL), first - _BEYOND * reach))
        high = max(last, min(self.histogram.quantile(1 - _TAIL), last + _BEYOND * reach))
        margin = 0.03 * (high - low)
        return low - margin, high + margin


@torch.inference_mode()
def operand_findings(
    model: nn.Module, layout: Layout, pixels: Tensor, drawn: Collection[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the operands of every site hold while the quantized `model` runs the images `[B, C, H, W]`, one by one.

    Returns a row for each operand (`OperandValues.ranges`), and the distributions of the sites `drawn`
    (`OperandValues.bars`). A site that no image reaches has no row.
    """
    values: dict[tuple[str, str], OperandValues] = {}

    def count(name: str, module: SiteModule, operand: str, x: Tensor) -> None:
        key = (name, operand)
        if key not in values:
            values[key] = OperandValues(module.quantizer(operand), name in drawn)
        values[key].add(x.detach().float())

    hooks = [site_module(model, site.name).register_forward_pre_hook(_counting(site.name, count))
             for site in layout.sites]  # fmt: skip
    try:
        with model_state(model, "quantized"):
            for image in pixels:
                model(image[None])
    finally:
        for hook in hooks:
            hook.remove()
    for site in layout.sites:
        module = site_module(model, site.name)
        if isinstance(module, WeightedSite):
            count(site.name, module, "weight", module.float_weight())
    order = [(site, operand) for site in layout.sites for operand in site.operands if (site.name, operand) in values]
    keys = {(site.name, operand): {"site": site.name, "role": site.role, "operand": operand} for site, operand in order}
    ranges = [{**key, **values[place].ranges()} for place, key in keys.items()]
    return ranges, [{**key, **values[place].bars()} for place, key in keys.items() if place[0] in drawn]


def _counting(name: str, count: Callable[[str, SiteModule, str, Tensor], None]) -> Callable[..., None]:
    def hook(module: SiteModule, inputs: tuple[Tensor, ...]) -> None:
        for operand, x in zip((operand for operand in module.operands if operand != "weight"), inputs, strict=False):
            scale = module.input_scale if isinstance(module, WeightedSite) else None
            count(name, module, operand, x if scale is None else x * scale)

    return hook


def _least_drawn(ruler: Ruler) -> float:
    """Half a step below the least level that is not zero."""
    positive = ruler.levels[ruler.levels > 0]
    return float(positive[0]) * math.sqrt(float(positive[0] / positive[1])) if len(positive) > 1 else 0.0


def _rebinned(histogram: Histogram, low: float, high: float) -> tuple[float, list[float], float]:
    """Counts below `low`, in equal bars up to `high`, and above; a bin's values lie evenly in it."""
    counts = histogram.counts.numpy()
    edges = np.linspace(histogram.low, histogram.high, len(counts) + 1)
    summed = np.concatenate(([0.0], counts.cumsum()))
    until = np.interp(np.linspace(low, high, BARS + 1), edges, summed)
    return float(until[0]), np.diff(until).tolist(), float(summed[-1] - until[-1])


def _short(value: float) -> float:
    """Four significant digits: enough to draw."""
    return float(f"{value:.4g}")
