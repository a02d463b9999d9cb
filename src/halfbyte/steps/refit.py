"""Refit: the linear that ends a block is fitted again, to the inputs that quantization leaves it (compensation.md 3.4).

Least squares of what the block lacks on the quantized input of its last linear, then error-feedback rounding with the
same moments. The integer model stays what it was, in other codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

from halfbyte.block_stream import TARGETS, BlockStream, Unit, watched
from halfbyte.calibrate.error_feedback import rounded_with_feedback
from halfbyte.calibrate.moments import Moments, shared
from halfbyte.layers.linear import QuantLinear
from halfbyte.prepare import site_module
from halfbyte.session import Session


@dataclass(frozen=True)
class Refit:
    """Fit the last linear of every block whose output it adds to, one behind the other.

    images: calibration images, of which an eighth decides whether a block keeps its new weights. target: what the
    block gives in float for the same input (`local`) or in the float model (`stream`). ridge: how strongly the weights
    are held where they were, relative to the mean variance of the inputs.
    """

    calibrates: ClassVar[bool] = False
    images: int = 512
    target: str = "stream"
    ridge: float = 1e-2

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}")
        if self.images < 8:
            raise ValueError("images must be at least 8: an eighth of them decides")
        if not 0 <= self.ridge <= 1:
            raise ValueError("ridge must be from 0 to 1")

    def run(self, session: Session) -> dict[str, Any]:
        """Fit block by block; the figures tell what was left of each one's held-out error."""
        stream = BlockStream(session, self.images, both=self.target == "stream")
        for unit in stream.visit(session.parts(stream.units, "fitting last linears")):
            site = last_linear(session, stream, unit)
            if site is not None:
                session.notes.append(self._fit(session, stream, unit, site))
            stream.advance()
        return {"blocks": session.notes}

    def _fit(self, session: Session, stream: BlockStream, unit: Unit, name: str) -> dict[str, Any]:
        module = cast(QuantLinear, site_module(session.model, name))
        if module.bias is None:
            session.edit("add_bias", site=name)
        assert module.bias is not None
        fitted, held_out = self._moments(session, stream, unit, module)
        quantizer = module.quantizer("weight")
        old = quantizer.dequantize(module.codes()).double()
        wanted = fitted.solve(self.ridge, start=old.T[None])[0].T
        codes = rounded_with_feedback(wanted, fitted.xx[0], quantizer)
        new = quantizer.dequantize(codes).double()
        bias = fitted.intercept(new.T[None])
        before = held_out.error(old.T[None], module.bias.double()[None])
        after = held_out.error(new.T[None], bias)
        if after < before:
            module.refit(codes, bias[0])
        return {"block": unit.block.name, "error_left": round(after / before, 5), "kept": after < before}

    def _moments(
        self, session: Session, stream: BlockStream, unit: Unit, module: QuantLinear
    ) -> tuple[Moments, Moments]:
        """Of the linear's quantized input and what it should have given, for the batches that fit and that decide."""
        fitted, held_out = Moments(), Moments()
        quantizer = module.quantizer("input")
        for number in stream.numbers():
            x = stream.inputs[number]
            with watched(module) as seen:
                given = stream.run(unit, x)
            lacking = stream.run_float(unit, stream.float_inputs[number] if stream.both else x) - given
            ((before, behind),) = seen
            moments = held_out if stream.held_out(number) else fitted
            rows = quantizer(before).reshape(1, -1, before.shape[-1])
            moments.add(rows, (behind + lacking).reshape(1, -1, behind.shape[-1]))
        return shared(fitted, session.world), shared(held_out, session.world)


def last_linear(session: Session, stream: BlockStream, unit: Unit) -> str | None:
    """The last linear of a unit if its output is added to the unit's, unscaled; else None."""
    names = [site.name for site in unit.block.sites if site.role not in ("qk", "pv", "side")]
    module = site_module(session.model, names[-1]) if names else None
    if not isinstance(module, QuantLinear) or not len(stream.inputs):
        return None
    x = stream.inputs[0][:1]
    before = stream.run(unit, x)
    handle = module.register_forward_hook(lambda _module, _inputs, y: y + 1)
    try:
        moved = stream.run(unit, x) - before
    finally:
        handle.remove()
    return names[-1] if bool(((moved - 1).abs() < 1e-3 * (1 + before.abs())).all()) else None
