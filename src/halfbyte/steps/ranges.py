"""Calibration by ranges alone: percentile, mean squared error, or the extremes, over any number of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from halfbyte.calibrate.mse import SHRINK_STEPS, fit_uniform_mse
from halfbyte.calibrate.percentile import MINMAX, REPQ_PERCENTILES, fit_uniform
from halfbyte.calibrate.statistics import Histogram
from halfbyte.errors import HalfbyteError
from halfbyte.layers.site import SiteModule
from halfbyte.prepare import model_state, site_module
from halfbyte.quantizers.uniform import UniformQuantizer
from halfbyte.session import Session


@dataclass(frozen=True)
class Ranges(ABC):
    """Gives every activation a range from its histogram over `images` images of the float model, every weight one from
    itself. Memory does not grow with the images."""

    calibrates: ClassVar[bool] = True
    images: int = 32

    @abstractmethod
    def fit_stream(self, histogram: Histogram, quantizer: UniformQuantizer) -> None:
        """Set the range of an activation."""

    @abstractmethod
    def fit_tensor(self, quantizer: UniformQuantizer, x: Tensor) -> None:
        """Set the range of a weight."""

    def run(self, session: Session) -> dict[str, Any]:
        """Fit every range; values that are not finite raise `HalfbyteError`."""
        try:
            with torch.no_grad():
                self._fit(session, self._histograms(session))
        except ValueError as error:
            raise HalfbyteError(f"calibration failed: {error}; are these the weights of this model?") from None
        return {}

    def _histograms(self, session: Session) -> dict[tuple[SiteModule, str], Histogram]:
        histograms: dict[tuple[SiteModule, str], Histogram] = {}

        def collect(module: SiteModule, operand: str, x: Tensor) -> Tensor:
            if operand != "weight":
                histograms.setdefault((module, operand), Histogram()).add(x)
            return x

        total = -(-self.images // session.batch_size)
        with model_state(session.model, "observe", collect):
            for batch in session.progress.track(session.images(self.images), "collecting statistics", total):
                session.model(batch)
        return histograms

    def _fit(self, session: Session, histograms: dict[tuple[SiteModule, str], Histogram]) -> None:
        for site in session.layout.sites:
            module = site_module(session.model, site.name)
            for operand in site.operands:
                quantizer = module.quantizer(operand)
                if not isinstance(quantizer, UniformQuantizer):
                    raise HalfbyteError(
                        f"ranges cannot be fitted to the {quantizer.kind} quantizer of {site.name}, which an earlier "
                        "step chose; let the step that calibrates ranges come first"
                    )
                if operand == "weight":
                    self.fit_tensor(quantizer, module.float_weight())  # type: ignore[operator]
                else:
                    self.fit_stream(histograms[module, operand], quantizer)
                    quantizer.to(session.device)


@dataclass(frozen=True)
class Percentile(Ranges):
    """For each tensor the percentile, of those given, with the least squared error."""

    percentiles: tuple[float, ...] = REPQ_PERCENTILES

    def __post_init__(self) -> None:
        if not self.percentiles or not all(0.5 < p <= 1 for p in self.percentiles):
            raise ValueError("percentiles must lie above 0.5 and not above 1")

    def fit_stream(self, histogram: Histogram, quantizer: UniformQuantizer) -> None:
        histogram.fit_uniform(quantizer, self.percentiles)

    def fit_tensor(self, quantizer: UniformQuantizer, x: Tensor) -> None:
        fit_uniform(quantizer, x, self.percentiles)


@dataclass(frozen=True)
class Mse(Ranges):
    """For each tensor the fraction 1, 0.99, 0.98 ... of its extremes with the least squared error."""

    shrink_steps: int = SHRINK_STEPS

    def __post_init__(self) -> None:
        if not 1 <= self.shrink_steps <= 100:
            raise ValueError("shrink_steps must be from 1 to 100")

    def fit_stream(self, histogram: Histogram, quantizer: UniformQuantizer) -> None:
        histogram.fit_uniform_mse(quantizer, self.shrink_steps)

    def fit_tensor(self, quantizer: UniformQuantizer, x: Tensor) -> None:
        fit_uniform_mse(quantizer, x, self.shrink_steps)


@dataclass(frozen=True)
class MinMax(Ranges):
    """The extremes of each tensor."""

    def fit_stream(self, histogram: Histogram, quantizer: UniformQuantizer) -> None:
        histogram.fit_uniform(quantizer, MINMAX)

    def fit_tensor(self, quantizer: UniformQuantizer, x: Tensor) -> None:
        fit_uniform(quantizer, x, MINMAX)
