"""Calibration by ranges alone: percentile, mean squared error, or the extremes, over any number of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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

FitStream = Callable[[Histogram, UniformQuantizer], None]
FitTensor = Callable[[UniformQuantizer, Tensor], object]


def fit_ranges(session: Session, images: int, stream: FitStream, tensor: FitTensor) -> dict[str, Any]:
    """Give every activation a range from its histogram over `images` images of the float model, every weight one from
    itself. Memory does not grow with the images."""
    histograms: dict[tuple[int, str], Histogram] = {}

    def collect(module: SiteModule, operand: str, x: Tensor) -> Tensor:
        if operand != "weight":
            histograms.setdefault((id(module), operand), Histogram()).add(x)
        return x

    total = -(-images // session.batch_size)
    try:
        with torch.no_grad(), model_state(session.model, "observe", collect):
            for batch in session.progress.track(session.images(images), "collecting statistics", total):
                session.model(batch)
        with torch.no_grad():
            for site in session.layout.sites:
                module = site_module(session.model, site.name)
                for operand in site.operands:
                    quantizer = module.quantizer(operand)
                    if not isinstance(quantizer, UniformQuantizer):
                        raise HalfbyteError(
                            f"ranges cannot be fitted to the {quantizer.kind} quantizer of {site.name}, which an "
                            "earlier step chose; let the step that calibrates ranges come first"
                        )
                    if operand == "weight":
                        tensor(quantizer, module.float_weight())  # type: ignore[operator]
                    else:
                        stream(histograms[id(module), operand], quantizer)
                        quantizer.to(session.device)
    except ValueError as error:
        raise HalfbyteError(f"calibration failed: {error}; are these the weights of this model?") from None
    return {}


@dataclass(frozen=True)
class Percentile:
    """For each tensor the percentile, of those given, with the least squared error."""

    images: int = 32
    percentiles: tuple[float, ...] = REPQ_PERCENTILES

    def __post_init__(self) -> None:
        if not self.percentiles or not all(0.5 < p <= 1 for p in self.percentiles):
            raise ValueError("percentiles must lie above 0.5 and not above 1")

    def run(self, session: Session) -> dict[str, Any]:
        """Fit every range."""
        return fit_ranges(
            session, self.images,
            lambda histogram, quantizer: histogram.fit_uniform(quantizer, self.percentiles),
            lambda quantizer, x: fit_uniform(quantizer, x, self.percentiles),
        )  # fmt: skip


@dataclass(frozen=True)
class Mse:
    """For each tensor the fraction 1, 0.99, 0.98 ... of its extremes with the least squared error."""

    images: int = 32
    shrink_steps: int = SHRINK_STEPS

    def __post_init__(self) -> None:
        if not 1 <= self.shrink_steps <= 100:
            raise ValueError("shrink_steps must be from 1 to 100")

    def run(self, session: Session) -> dict[str, Any]:
        """Fit every range."""
        return fit_ranges(
            session, self.images,
            lambda histogram, quantizer: histogram.fit_uniform_mse(quantizer, self.shrink_steps),
            lambda quantizer, x: fit_uniform_mse(quantizer, x, self.shrink_steps),
        )  # fmt: skip


@dataclass(frozen=True)
class MinMax:
    """The extremes of each tensor."""

    images: int = 32

    def run(self, session: Session) -> dict[str, Any]:
        """Fit every range."""
        return fit_ranges(
            session, self.images,
            lambda histogram, quantizer: histogram.fit_uniform(quantizer, MINMAX),
            lambda quantizer, x: fit_uniform(quantizer, x, MINMAX),
        )  # fmt: skip
