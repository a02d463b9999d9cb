"""Calibration by ranges alone: percentile, mean squared error, or the extremes, over any number of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from halfbyte.calibrate.mse import SHRINK_STEPS, fit_uniform_mse
from halfbyte.calibrate.percentile import MINMAX, REPQ_PERCENTILES, fit_uniform
from halfbyte.calibrate.statistics import Histogram
from halfbyte.errors import HalfbyteError
from halfbyte.families.layout import Layout
from halfbyte.layers.conv import QuantConv2d
from halfbyte.layers.site import SiteModule
from halfbyte.prepare import model_state, site_module
from halfbyte.quantizers.base import MAX_BITS, MIN_BITS
from halfbyte.quantizers.uniform import UniformQuantizer
from halfbyte.session import Session

UPSTREAM = ("float", "quantized")


@dataclass(frozen=True)
class Ranges(ABC):
    """Gives every activation a range from `images` images, every weight one from itself.

    upstream: `float`: from histograms of the float model, in memory that does not grow with the images; `quantized`: in
    one pass over the images as one batch, each range from what reaches it through those before it, as the published
    code does.
    """

    calibrates: ClassVar[bool] = True
    images: int = 32
    upstream: str = "float"

    def __post_init__(self) -> None:
        if self.upstream not in UPSTREAM:
            raise ValueError(f"upstream must be one of {', '.join(UPSTREAM)}")

    @abstractmethod
    def fit_stream(self, histogram: Histogram, quantizer: UniformQuantizer) -> None:
        """Set the range of an activation."""

    @abstractmethod
    def fit_tensor(self, quantizer: UniformQuantizer, x: Tensor) -> None:
        """Set the range of a whole tensor."""

    def run(self, session: Session) -> dict[str, Any]:
        """Fit every range; values that are not finite raise `HalfbyteError`."""
        try:
            with torch.no_grad():
                if self.upstream == "quantized":
                    self._fit_in_one_pass(session)
                else:
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

    def _fit_in_one_pass(self, session: Session) -> None:
        names = {site_module(session.model, site.name): site.name for site in session.layout.sites}
        fitted: set[tuple[SiteModule, str]] = set()
        steps = iter(session.progress.track(range(2 * len(names)), "calibrating", 2 * len(names)))

        def observe(module: SiteModule, operand: str, x: Tensor) -> Tensor:
            quantizer = _uniform(module, operand, names[module])
            if (module, operand) not in fitted:
                fitted.add((module, operand))
                self.fit_tensor(quantizer, x)
                next(steps, None)
            return quantizer(x)  # type: ignore[no-any-return]

        with model_state(session.model, "observe", observe):
            for batch in session.images(self.images, batch_size=self.images):
                session.model(batch)
        next(steps, None)

    def _fit(self, session: Session, histograms: dict[tuple[SiteModule, str], Histogram]) -> None:
        for site in session.layout.sites:
            module = site_module(session.model, site.name)
            for operand in site.operands:
                quantizer = _uniform(module, operand, site.name)
                if operand == "weight":
                    self.fit_tensor(quantizer, module.float_weight())  # type: ignore[operator]
                else:
                    self.fit_stream(histograms[module, operand], quantizer)
                    quantizer.to(session.device)


@dataclass(frozen=True)
class Percentile(Ranges):
    """For each tensor the percentile, of those given, with the least squared error.

    conv_input_bits: the width of every convolution's input; 0: as planned. 8 is what QwT's released code has whatever
    is asked for: its "W4/A4" ResNets are W4A8.
    """

    percentiles: tuple[float, ...] = REPQ_PERCENTILES
    conv_input_bits: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.conv_input_bits and not MIN_BITS <= self.conv_input_bits <= MAX_BITS:
            raise ValueError(f"conv_input_bits must be 0 (as planned), or from {MIN_BITS} to {MAX_BITS}")
        if not self.percentiles or not all(0.5 < p <= 1 for p in self.percentiles):
            raise ValueError("percentiles must lie above 0.5 and not above 1")

    def run(self, session: Session) -> dict[str, Any]:
        if not self.conv_input_bits:
            return super().run(session)
        changed = widen_convolution_inputs(session.model, session.layout, self.conv_input_bits)
        figures = super().run(session)
        note = f"the inputs of {changed} convolutions have {self.conv_input_bits} bits instead of those asked for"
        return {**figures, "note": note} if changed else figures

    def fit_stream(self, histogram: Histogram, quantizer: UniformQuantizer) -> None:
        histogram.fit_uniform(quantizer, self.percentiles)

    def fit_tensor(self, quantizer: UniformQuantizer, x: Tensor) -> None:
        fit_uniform(quantizer, x, self.percentiles)


@dataclass(frozen=True)
class Mse(Ranges):
    """For each tensor the fraction 1, 0.99, 0.98 ... of its extremes with the least mean |error|^power (BRECQ: 2.4)."""

    shrink_steps: int = SHRINK_STEPS
    power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.shrink_steps <= 100:
            raise ValueError("shrink_steps must be from 1 to 100")
        if self.power != 2 and self.upstream == "float":
            raise ValueError("power other than 2 goes with upstream: quantized")
        if not 1 <= self.power <= 10:
            raise ValueError("power must be from 1 to 10")

    def fit_stream(self, histogram: Histogram, quantizer: UniformQuantizer) -> None:
        histogram.fit_uniform_mse(quantizer, self.shrink_steps)

    def fit_tensor(self, quantizer: UniformQuantizer, x: Tensor) -> None:
        fit_uniform_mse(quantizer, x, self.shrink_steps, self.power)


@dataclass(frozen=True)
class MinMax(Ranges):
    """The extremes of each tensor."""

    def fit_stream(self, histogram: Histogram, quantizer: UniformQuantizer) -> None:
        histogram.fit_uniform(quantizer, MINMAX)

    def fit_tensor(self, quantizer: UniformQuantizer, x: Tensor) -> None:
        fit_uniform(quantizer, x, MINMAX)


def widen_convolution_inputs(model: nn.Module, layout: Layout, bits: int) -> int:
    """Give the input of every convolution behind the stem an unfitted quantizer of that width; returns how many had
    another one."""
    changed = 0
    for site in layout.sites:
        module = site_module(model, site.name)
        if site.role in ("conv", "depthwise") and isinstance(module, QuantConv2d):
            changed += module.quantizer("input").bits != bits
            module.set_quantizer("input", UniformQuantizer(bits, covers_zero=True))
    return changed


def _uniform(module: SiteModule, operand: str, site: str) -> UniformQuantizer:
    quantizer = module.quantizer(operand)
    if not isinstance(quantizer, UniformQuantizer):
        raise HalfbyteError(
            f"ranges cannot be fitted to the {quantizer.kind} quantizer of {site}, which an earlier "
            "step chose; let the step that calibrates ranges come first"
        )
    return quantizer
