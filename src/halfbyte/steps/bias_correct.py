"""Bias correction: a bias takes back what quantization moved its output's mean by (Nagel et al., ICCV 2019).

With `affine` the weight's scales take back what it did to the output's scale (compensation.md 3.4). Neither adds an
operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from halfbyte.block_stream import TARGETS, BlockStream, Unit, watched
from halfbyte.layers.conv import QuantConv2d
from halfbyte.layers.site import WeightedSite
from halfbyte.prepare import site_module
from halfbyte.session import Session

SITES = ("all", "last")
# An output whose scale a correction would change by more than this factor is left as it is.
MOST_RESCALED = 2.0


@dataclass(frozen=True)
class BiasCorrect:
    """Correct the sites of every block, one behind the other, each seeing those before it.

    images: calibration images. target: the output's statistics for the same input (`local`), or in the float model
    (`stream`). affine: the scale of each output channel too, by least squares. sites: `all` of a block or its `last`.
    """

    calibrates: ClassVar[bool] = False
    images: int = 256
    target: str = "stream"
    affine: bool = False
    sites: str = "all"

    def __post_init__(self) -> None:
        for name, choices in (("target", TARGETS), ("sites", SITES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}")
        if self.images < 1:
            raise ValueError("images must be at least 1")

    def run(self, session: Session) -> dict[str, Any]:
        """Correct block by block; the figures tell by how much of its spread an output's mean was off."""
        stream = BlockStream(session, self.images, both=True)
        for unit in stream.visit(session.parts(stream.units, "correcting biases")):
            session.notes += [self._correct(session, stream, unit, name) for name in self._names(unit)]
            stream.advance()
        return {"sites": session.notes}

    def _names(self, unit: Unit) -> list[str]:
        names = [site.name for site in unit.block.sites if site.role not in ("qk", "pv", "side")]
        return names if self.sites == "all" else names[-1:]

    def _correct(self, session: Session, stream: BlockStream, unit: Unit, name: str) -> dict[str, Any]:
        module = cast(WeightedSite, site_module(session.model, name))
        total = torch.zeros(5, len(module.codes()), dtype=torch.float64, device=session.device)
        rows = 0
        for sums, count in stream.in_order(self._measured(stream, unit, module)):
            total, rows = total + sums, rows + count
        total = total / rows
        y, q, qq, qy, yy = total.unbind(0)
        variance = qq - q * q
        scale = torch.where(variance > 0, (qy - q * y) / variance, torch.ones_like(q))
        fits = (scale > 1 / MOST_RESCALED) & (scale < MOST_RESCALED) & self.affine
        scale = torch.where(fits, scale, torch.ones_like(scale))
        if module.bias is None:
            session.edit("add_bias", site=name)
        module.correct(scale if self.affine else None, y - scale * q)
        spread = (yy - y * y).mean()
        return {"site": name, "mean_shift": round(float((y - q).square().mean() / spread.clamp(min=1e-30)), 6)}

    def _measured(self, stream: BlockStream, unit: Unit, module: WeightedSite) -> Iterator[tuple[Tensor, int]]:
        """Of each batch of this process the sums `[5, O]` over its rows of what is wanted of the site, of what it gives
        and of their products; and the rows."""
        origin = stream.float_inputs if self.target == "stream" else stream.inputs
        for number in stream.numbers():
            with watched(module) as exact:
                stream.run(unit, origin[number], "float")
            with watched(module) as quantized:
                stream.run(unit, stream.inputs[number])
            wanted, given = _channels(module, exact), _channels(module, quantized)
            products = (wanted, given, given * given, given * wanted, wanted * wanted)
            yield torch.stack([product.sum(1) for product in products]), wanted.shape[1]


def _channels(module: nn.Module, outputs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The outputs of all calls of a site, `[O, rows]` in float64."""
    axis = 1 if isinstance(module, QuantConv2d) else -1
    return torch.cat([y.double().movedim(axis, 0).flatten(1) for _, y in outputs], 1)
