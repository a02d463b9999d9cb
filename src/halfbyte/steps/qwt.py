"""QwT: a linear map beside each block compensates, in closed form, what its quantization cost (Fu et al., CVPR 2025).

Regression from streamed moments with a ridge, in integers, and a held-out decision: compensation.md sections 1 and 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from halfbyte.block_stream import TARGETS, BlockStream, Unit, watched
from halfbyte.calibrate.moments import Moments
from halfbyte.calibrate.side_fit import (
    SideFit,
    fit_full,
    fit_half,
    fit_low_rank,
    fit_published,
    largest_code,
    least_rank,
    unit_quantizer,
    weight_quantizer,
)
from halfbyte.data.store import BatchStore
from halfbyte.layers.compensation import FORMS, HalfBranch, IntegerBranch, Shape
from halfbyte.layers.linear import QuantLinear
from halfbyte.layers.site import State, WeightedSite
from halfbyte.prepare import model_state, site_module
from halfbyte.quantizers.packing import packed_size
from halfbyte.session import Session

NAME = "qwt"
PLACES = ("output", "before_activation")
# The published ridge of a convolution, an absolute number.
PUBLISHED_RIDGE = 1e-3
LIMITS = {"start_block": (0, 10**6), "rank": (0, 10**6), "factor": (1, 10**6),
          "added": (0, 10), "enough": (0, 1), "ridge": (0, 1)}  # fmt: skip


@dataclass(frozen=True)
class QwT:
    """Compensation of every block with one input and one output, in order, each seeing those before it.

    images: calibration images, of which an eighth decides whether a block's compensation stays. start_block: the first
    block that gets one. target: what a block shall give, `local`: what it would in float for the same input; `stream`:
    what it gives in the float model. form: `lowrank` (8-bit; beside convolutions `int8`), `int8`, or `float16`. rank:
    of the low-rank form; 0: the least that reaches `enough` of the gain, within `added` times the bytes of the block's
    weights. ridge: relative to the mean variance of the regressors. kernel_size, factor: of the convolution beside a
    block of convolutions, which has `factor` input channels a group. place: `output`, or `before_activation` where a
    nonlinearity ends the block.

    `paper_exact` restores float16, no ridge for tokens and 1e-3 for convolutions, all images for both fit and decision.
    """

    calibrates: ClassVar[bool] = False
    images: int = 512
    start_block: int = 0
    target: str = "local"
    form: str = "lowrank"
    rank: int = 0
    added: float = 0.07
    enough: float = 0.99
    ridge: float = 1e-4
    kernel_size: int = 1
    factor: int = 64
    place: str = "output"

    def __post_init__(self) -> None:
        for name, choices in (("target", TARGETS), ("form", FORMS), ("place", PLACES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}")
        for name, (least, most) in LIMITS.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from {least} to {most}")
        if self.images < 8:
            raise ValueError("images must be at least 8: an eighth of them decides")
        if self.kernel_size not in (1, 3, 5, 7):
            raise ValueError("kernel_size must be 1, 3, 5 or 7")

    def run(self, session: Session) -> dict[str, Any]:
        """Fit the blocks one behind the other; the figures tell each one's share of the error that was explained."""
        # The published procedure hands on what the float32 weights give.
        halves: State = "observe" if session.recipe.paper_exact else "quantized"
        stream = BlockStream(session, self.images, both=self.target == "stream", halves=halves)
        units = [unit for unit in stream.units if shape_of(self, session, unit) is not None][self.start_block :]
        for unit in stream.visit(session.parts(units, "compensating blocks")):
            session.notes.append(_Fitting(self, session, stream, unit).run())
        return {"blocks": session.notes}


def shape_of(step: QwT, session: Session, unit: Unit) -> Shape | None:
    """The shape of a unit's compensation; None where it cannot have one."""
    own = [site for site in unit.block.sites if site.role not in ("side", "qk", "pv")]
    if not own:
        return None
    last = cast(WeightedSite, site_module(session.model, own[-1].name))
    channels, before, behind = len(last.float_weight()), unit.input_shape, unit.output_shape
    if isinstance(last, QuantLinear) and behind[-1] == channels:
        return Shape(before[-1], channels) if before[:-1] == behind[:-1] else None
    if len(before) == len(behind) == 4 and behind[1] == channels:
        inputs = before[1]
        groups = max(inputs // step.factor, 1)
        for stride in (1, 2):
            fits = all(-(-size // stride) == left for size, left in zip(before[2:], behind[2:], strict=True))
            if fits and inputs % groups == channels % groups == 0:
                return Shape(inputs, channels, step.kernel_size, stride, groups)
    return None


class _Fitting:
    """The compensation of one unit."""

    def __init__(self, step: QwT, session: Session, stream: BlockStream, unit: Unit) -> None:
        self.step, self.session, self.stream, self.unit = step, session, stream, unit
        self.exact = session.recipe.paper_exact
        shape = shape_of(step, session, unit)
        assert shape is not None
        self.shape, self.like = shape, shape.site()
        lowest = "int8" if shape.kernel and step.form == "lowrank" else step.form
        self.form = "float16" if self.exact else lowest
        end = unit.block.end if step.place == "before_activation" and not self.exact else None
        self.ends_unit = end is None
        self.at = end or _last_part(unit.module, unit.block.name)
        plan = session.bits.roles["side"]
        self.bits = (plan.weight or 8, plan.activation or 8)
        self.quantizer = unit_quantizer(self.bits[1]).to(session.device)
        self.inverse_scale = self._inverse_scale()

    def run(self) -> dict[str, Any]:
        """Fit, decide, attach, and hand on what the unit gives now; returns figures."""
        outputs = BatchStore()
        float_outputs = BatchStore()
        fitted, held_out, spread = self._moments(outputs, float_outputs)
        if self.exact:
            fitted = held_out = fitted.merge(held_out)
        fit, rank = self._fit(fitted)
        nothing = torch.zeros_like(fit.dense)
        before = spread if self.exact else held_out.error(nothing, torch.zeros_like(fit.bias).view(len(nothing), -1))
        after = held_out.error(fit.dense, fit.bias.view(len(nothing), -1))
        r2 = 1 - after / before if before > 0 else 0.0
        figures = {"block": self.unit.block.name, "r2": round(r2, 5), "kept": r2 > 0, "rank": rank,
                   "moments_bytes": fitted.bytes + held_out.bytes}  # fmt: skip
        if r2 > 0:
            self._attach(fit, rank)
        self._advance(outputs, float_outputs, r2 > 0)
        return figures

    def _regressor(self, x: Tensor) -> Tensor:
        """What the compensation multiplies: the codes of the input, or the input."""
        if self.form == "float16":
            return x
        scale = self.inverse_scale.view(-1, 1, 1) if self.shape.kernel else self.inverse_scale
        return self.quantizer.centred(x * scale)

    def _inverse_scale(self) -> Tensor:
        """`[I]`: what takes the largest magnitude of each input channel to the largest code."""
        axis = 1 if self.shape.kernel else -1
        largest = torch.zeros(self.shape.inputs, device=self.session.device)
        for number in self.stream.numbers():
            rows = self.stream.inputs[number].movedim(axis, 0).flatten(1)
            largest = torch.maximum(largest, rows.abs().amax(1))
        for found in self.session.world.gather(largest):
            largest = torch.maximum(largest, found.to(largest.device))
        return torch.where(largest > 0, largest_code(self.bits[1]) / largest, torch.ones_like(largest))

    def _moments(self, outputs: BatchStore, float_outputs: BatchStore) -> tuple[Moments, Moments, float]:
        """Of the batches that fit and those that decide; and the spread of the error that the published R2 takes."""
        fitted, held_out = Moments(), Moments()
        sums, squares, images = torch.zeros((), dtype=torch.float64, device=self.session.device), 0.0, 0
        for decides, moments, sum_of_images, square, count in self.stream.in_order(
            self._measured(outputs, float_outputs)
        ):
            fitted, held_out = (fitted, held_out.merge(moments)) if decides else (fitted.merge(moments), held_out)
            sums, squares, images = sums + sum_of_images, squares + square, images + count
        if not self.shape.kernel:
            return fitted, held_out, float(fitted.merge(held_out).yy.sum())
        # Of a convolution each place has its own mean.
        return fitted, held_out, squares - float(sums.square().sum()) / images

    def _measured(
        self, outputs: BatchStore, float_outputs: BatchStore
    ) -> Iterator[tuple[bool, Moments, Tensor, float, int]]:
        """Of each batch of this process whether it decides, its moments, sums over its images, and their number."""
        for number in self.stream.numbers():
            x = self.stream.inputs[number]
            origin = self.stream.float_inputs[number] if self.stream.both else x
            with watched(self.session.aligned.get_submodule(self.at)) as exact:
                wanted = self.stream.run_float(self.unit, origin)
            with watched(self.session.model.get_submodule(self.at)) as quantized:
                given = self.stream.run(self.unit, x)
            outputs.append(given)
            if self.stream.both:
                float_outputs.append(wanted)
            error = exact[-1][1] - quantized[-1][1]
            moments = Moments()
            moments.add(self.like.patches(self._regressor(x)), self.like.by_patch(error))
            square = float(error.double().square().sum())
            yield self.stream.held_out(number), moments, error.double().sum(0), square, len(error)

    def _fit(self, moments: Moments) -> tuple[SideFit, int]:
        if self.exact:
            ridge = PUBLISHED_RIDGE if self.shape.kernel else 0.0
            return fit_published(moments, ridge), 0
        weight = moments.solve(self.step.ridge)
        if self.form == "float16":
            return fit_half(moments, weight), 0
        if self.form == "int8":
            return fit_full(moments, weight, self.bits[0]), 0
        rank = self.step.rank or least_rank(moments, weight, self._most_rank(), self.step.enough)
        rank = min(rank, self.shape.inputs, self.shape.outputs)
        return fit_low_rank(moments, weight, rank, self.bits, self._reach), rank

    def _most_rank(self) -> int:
        """The largest rank whose factors stay within the bytes that the block may grow by."""
        modules = [site_module(self.session.model, site.name) for site in self.unit.block.sites]
        weighted = [module for module in modules if isinstance(module, WeightedSite)]
        size = sum(packed_size(len(m.codes().flatten()), m.quantizer("weight").bits) for m in weighted)
        return max(1, int(self.step.added * size * 8 / self.bits[0] / (self.shape.inputs + self.shape.outputs)))

    def _reach(self, down: Tensor) -> Tensor:
        """The largest magnitude `[r]` of the regressors' product with `[K, r]`."""
        largest = torch.zeros(down.shape[1], device=down.device)
        for number in self.stream.numbers():
            rows = self.like.patches(self._regressor(self.stream.inputs[number]))[0]
            largest = torch.maximum(largest, (rows @ down.float()).abs().amax(0))
        for found in self.session.world.gather(largest):
            largest = torch.maximum(largest, found.to(largest.device))
        return largest

    def _attach(self, fit: SideFit, rank: int) -> None:
        shape = self.shape
        self.session.edit(
            "add_compensation", block=self.unit.block.name, at=self.at, child=NAME, form=self.form, inputs=shape.inputs,
            outputs=shape.outputs, kernel=shape.kernel, stride=shape.stride, groups=shape.groups, rank=rank,
        )  # fmt: skip
        branch = self.session.model.get_submodule(f"{self.at}.{NAME}")
        with torch.no_grad():
            if isinstance(branch, HalfBranch):
                assert branch.bias is not None
                branch.weight.copy_(fit.weights[0].view_as(branch.weight))
                branch.bias.copy_(fit.bias)
                return
            assert isinstance(branch, IntegerBranch)
            branch.inverse_scale.copy_(self.inverse_scale)
            modules = [cast(WeightedSite, getattr(branch, name)) for name in branch.sites]
            for module, rows in zip(modules, fit.weights, strict=True):
                weight = cast(Tensor, module.weight)
                weight.copy_(rows.view_as(weight))
                module.set_quantizer("input", unit_quantizer(self.bits[1]).to(weight.device))
                module.set_quantizer("weight", weight_quantizer(weight.detach(), self.bits[0]))
            cast(Tensor, modules[-1].bias).copy_(fit.bias)

    def _advance(self, outputs: BatchStore, float_outputs: BatchStore, kept: bool) -> None:
        known = float_outputs if self.stream.both else None
        if kept and not self.ends_unit:
            self.stream.advance(float_outputs=known)
            return
        if kept:
            branch = self.session.model.get_submodule(f"{self.at}.{NAME}")
            with torch.no_grad(), model_state(branch, self.stream.halves):
                for number in self.stream.numbers():
                    outputs[number] = outputs[number] + branch(self.stream.inputs[number])
        self.stream.advance(outputs, known)


def _last_part(module: nn.Module, path: str) -> str:
    """The module whose output is a block's: of a Sequential, which runs whatever it holds, its last part."""
    while isinstance(module, nn.Sequential) and len(module):
        name, module = list(module.named_children())[-1]
        path = f"{path}.{name}"
    return path
