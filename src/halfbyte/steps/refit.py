"""Refit: weights fitted again to the inputs that quantization leaves them (compensation.md 3.4).

Least squares on the quantized input, then error-feedback rounding (GPTQ) with the same moments. The integer model stays
what it was, in other codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from halfbyte.block_stream import TARGETS, BlockStream, Unit, watched
from halfbyte.calibrate.error_feedback import by_row, rounded_with_feedback
from halfbyte.calibrate.moments import Moments
from halfbyte.errors import HalfbyteError
from halfbyte.layers.linear import QuantLinear
from halfbyte.layers.site import WeightedSite
from halfbyte.prepare import site_module
from halfbyte.quantizers.uniform import UniformQuantizer
from halfbyte.session import Session

SITES = ("all", "last")


@dataclass(frozen=True)
class Refit:
    """Fit the weights of every block, one behind the other, each seeing those before it.

    images: calibration images, of which an eighth decides whether a site keeps its new weight. sites: `all` of a block,
    or its `last`. target: what they give in float for the same input (`local`) or in the float model (`stream`). A
    linear whose output is added to the block's is fitted to what the block lacks, every other site to what it lacks
    itself. ridge: how strongly weights are held where they were, relative to the mean variance of their inputs: held
    loosely, weights that meet noise shrink, and the blocks behind pay for it.
    """

    calibrates: ClassVar[bool] = False
    images: int = 512
    sites: str = "all"
    target: str = "local"
    ridge: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in (("target", TARGETS), ("sites", SITES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}")
        if self.images < 8:
            raise ValueError("images must be at least 8: an eighth of them decides")
        if not 0 <= self.ridge <= 100:
            raise ValueError("ridge must be from 0 to 100")

    def run(self, session: Session) -> dict[str, Any]:
        """Fit block by block; the figures tell what was left of each site's held-out error.

        Raises `HalfbyteError` for weights whose steps are not uniform ones.
        """
        for site in session.layout.sites:
            module = site_module(session.model, site.name)
            if isinstance(module, WeightedSite) and not isinstance(module.quantizer("weight"), UniformQuantizer):
                kind = module.quantizer("weight").kind
                raise HalfbyteError(
                    f"refit fits weights of uniform steps; {site.name} has {kind} ones: leave refit out"
                )
        stream = BlockStream(session, self.images, both=self.target == "stream")
        for unit in stream.visit(session.parts(stream.units, "fitting weights")):
            names = [site.name for site in unit.block.sites if site.role not in ("qk", "pv", "side")]
            for name in names if self.sites == "all" else names[-1:]:
                session.notes.append(_Fitting(self, session, stream, unit, name).run())
            stream.advance()
        return {"sites": session.notes}


class _Fitting:
    """The fit of one site of a unit."""

    def __init__(self, step: Refit, session: Session, stream: BlockStream, unit: Unit, name: str) -> None:
        self.step, self.session, self.stream, self.unit, self.name = step, session, stream, unit, name
        self.module = cast(WeightedSite, site_module(session.model, name))
        if self.module.bias is None:
            session.edit("add_bias", site=name)
        self.ends_block = self._adds_to_output()

    def run(self) -> dict[str, Any]:
        """Fit, round, and keep the better of the two weights."""
        module, (fitted, held_out) = self.module, self._moments()
        assert module.bias is not None
        groups, shape = len(fitted.xx), module.codes().shape
        quantizer = by_row(cast(UniformQuantizer, module.quantizer("weight")))

        def dense(codes: Tensor) -> Tensor:
            return quantizer.dequantize(codes).double().view(groups, -1, codes.shape[1]).transpose(1, 2)

        old = dense(module.codes().flatten(1))
        trained = module.float_weight().double().flatten(1).view(groups, -1, old.shape[1]).transpose(1, 2)
        wanted = fitted.solve(self.step.ridge, start=trained).transpose(1, 2).reshape(-1, old.shape[1])
        codes = rounded_with_feedback(wanted, fitted.xx, quantizer)
        bias = fitted.intercept(dense(codes))
        before = held_out.error(old, module.bias.double().view(groups, -1))
        after = held_out.error(dense(codes), bias)
        if after < before:
            module.refit(codes.view(shape), bias.flatten())
        return {"site": self.name, "error_left": round(after / before, 5) if before else 1.0, "kept": after < before}

    def _moments(self) -> tuple[Moments, Moments]:
        """Of the quantized input and what the site should have given, for the batches that fit and that decide."""
        fitted, held_out = Moments(), Moments()
        for decides, moments in self.stream.in_order(self._measured()):
            fitted, held_out = (fitted, held_out.merge(moments)) if decides else (fitted.merge(moments), held_out)
        return fitted, held_out

    def _measured(self) -> Iterator[tuple[bool, Moments]]:
        """Of each batch of this process whether it decides, and its moments."""
        stream, unit, module = self.stream, self.unit, self.module
        for number in stream.numbers():
            x = stream.inputs[number]
            origin = stream.float_inputs[number] if stream.both else x
            with watched(module) as seen:
                given = stream.run(unit, x)
            if self.ends_block:
                lacking = stream.run_float(unit, origin) - given
                wanted = [y + lacking.view_as(y) for _, y in seen]
            else:
                with watched(module) as exact:
                    stream.run(unit, origin, "float")
                wanted = [y for _, y in exact]
            moments = Moments()
            for (before, _), target in zip(seen, wanted, strict=True):
                moments.add(module.patches(module.quantizer("input")(before)), module.by_patch(target))
            yield stream.held_out(number), moments

    def _adds_to_output(self) -> bool:
        """Whether the site is a linear whose output is added, as it is, to the unit's."""
        if not isinstance(self.module, QuantLinear) or not len(self.stream.inputs):
            return False
        x = self.stream.inputs[0][:1]
        before = self.stream.run(self.unit, x)
        if before.shape[-1] != self.module.out_features:
            return False
        # No constant: the next norm would not see it.
        moved = torch.linspace(-1, 1, self.module.out_features, device=x.device)
        handle = self.module.register_forward_hook(lambda _module, _inputs, y: y + moved)
        try:
            after = self.stream.run(self.unit, x)
        finally:
            handle.remove()
        return bool(torch.isclose(after - before, moved.expand_as(before), atol=1e-3).all())
