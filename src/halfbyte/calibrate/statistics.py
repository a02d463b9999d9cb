"""Statistics of tensors that pass by once, in memory that does not grow with them."""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.calibrate.percentile import MINMAX, REPQ_PERCENTILES
from halfbyte.quantizers.log import LogQuantizer
from halfbyte.quantizers.uniform import UniformQuantizer

BINS = 2**14


class Histogram:
    """Counts of a stream's values in equal bins whose range doubles when a value falls outside.

    The extremes are exact; a quantile is an order statistic, exact to one bin: at most 2 / 2**14 of the range seen.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.counts = torch.zeros(bins, dtype=torch.float64)
        self.low = self.high = 0.0
        self.least, self.largest = float("inf"), float("-inf")

    def add(self, x: Tensor) -> None:
        """Count every element of `x`; raises `ValueError` where one is not finite."""
        values = x.detach().float().reshape(-1)
        least, largest = (float(edge) for edge in torch.aminmax(values))
        if not (abs(least) < float("inf") and abs(largest) < float("inf")):
            raise ValueError("a tensor to be quantized holds values that are not finite")
        if self.largest == float("-inf"):
            width = (largest - least) or max(abs(largest), 1.0) * 2.0**-10
            self.low, self.high = least, least + width
        while largest > self.high:
            self._widen(upwards=True)
        while least < self.low:
            self._widen(upwards=False)
        self.least, self.largest = min(self.least, least), max(self.largest, largest)
        width = (self.high - self.low) / len(self.counts)
        index = ((values.double() - self.low) / width).long().clamp_(0, len(self.counts) - 1)
        self.counts += torch.bincount(index, minlength=len(self.counts)).cpu()

    def quantile(self, probability: float) -> float:
        """The value below which that share of the stream lies."""
        if probability <= 0 or probability >= 1:
            return self.least if probability <= 0 else self.largest
        summed = self.counts.cumsum(0)
        index = int(torch.searchsorted(summed, probability * summed[-1]))
        return min(max(self.centre(index), self.least), self.largest)

    def centre(self, index: int) -> float:
        """The middle of a bin."""
        return self.low + (index + 0.5) * (self.high - self.low) / len(self.counts)

    def _widen(self, upwards: bool) -> None:
        width = self.high - self.low
        halved = self.counts.view(-1, 2).sum(1)
        empty = torch.zeros_like(halved)
        self.counts = torch.cat((halved, empty) if upwards else (empty, halved))
        self.low, self.high = (self.low, self.high + width) if upwards else (self.low - width, self.high)

    def _error(self, quantizer: UniformQuantizer | LogQuantizer) -> float:
        kept = self.counts.nonzero()[:, 0]
        centres = (self.low + (kept.double() + 0.5) * (self.high - self.low) / len(self.counts)).float()
        return float((self.counts[kept] * (quantizer(centres) - centres).double().square()).sum())

    def fit_uniform(self, quantizer: UniformQuantizer, percentiles: tuple[float, ...] = REPQ_PERCENTILES) -> None:
        """Set a per-tensor range as `percentile.fit_uniform` does, from the counts."""
        self._fit_ranges(quantizer, [(self.quantile(1 - p), self.quantile(p)) for p in percentiles])

    def fit_uniform_mse(self, quantizer: UniformQuantizer, steps: int) -> None:
        """Set a per-tensor range as `mse.fit_uniform_mse` does, from the counts."""
        low, high = self.quantile(1 - MINMAX[0]), self.quantile(MINMAX[0])
        self._fit_ranges(quantizer, [((1 - 0.01 * i) * low, (1 - 0.01 * i) * high) for i in range(steps)])

    def fit_log(self, quantizer: LogQuantizer, percentiles: tuple[float, ...] = REPQ_PERCENTILES) -> None:
        """Set the largest level as `percentile.fit_log` does, from the counts."""
        best = (float("inf"), 1.0)
        for scale in (self.quantile(p) for p in percentiles):
            if scale > 0:
                quantizer.set_scale(torch.tensor(scale))
                best = min(best, (self._error(quantizer), scale), key=lambda pair: pair[0])
        quantizer.set_scale(torch.tensor(best[1]))

    def _fit_ranges(self, quantizer: UniformQuantizer, ranges: list[tuple[float, float]]) -> None:
        best: tuple[float, tuple[float, float]] | None = None
        for low, high in ranges:
            quantizer.set_range(torch.tensor(low), torch.tensor(high))
            error = self._error(quantizer) if len(ranges) > 1 else 0.0
            if best is None or error < best[0]:
                best = (error, (low, high))
        assert best is not None
        quantizer.set_range(torch.tensor(best[1][0]), torch.tensor(best[1][1]))
