"""Batch-norm re-estimation: the norms' statistics become those of what reaches them in the quantized model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from halfbyte.block_stream import BlockStream, Unit
from halfbyte.calibrate.channel_moments import ChannelMoments
from halfbyte.errors import InapplicableError
from halfbyte.evaluate import Loop, evaluate
from halfbyte.layers.norm import ExactBatchNorm
from halfbyte.prepare import model_state
from halfbyte.session import Session

# So many images tell what the step changed: agreement with the float model before and after.
JUDGED_IMAGES = 128
STATISTICS = ("matched", "measured")


@dataclass(frozen=True)
class BnRecalibrate:
    """Sets each BatchNorm's running mean and variance by what reaches it over `images` calibration images.

    Quantized weights and activations shift what a norm receives; its trained statistics no longer describe it (Sun et
    al., "Hybrid 8-bit floating point training and inference", NeurIPS 2019). One norm after the other in the order in
    which they run, each behind those that were set before it. statistics: `matched`: such that each channel of the
    norm's output has the mean and the variance that it has in the float model for the same images, so that nothing
    changes where quantization does not; `measured`: those of the norm's input, the unbiased variance as in training.
    The latter also move to the calibration images a model that was trained on others.
    """

    calibrates: ClassVar[bool] = False
    images: int = 512
    statistics: str = "matched"

    def __post_init__(self) -> None:
        if self.statistics not in STATISTICS:
            raise ValueError(f"statistics must be one of {', '.join(STATISTICS)}")
        if self.images < 2:
            raise ValueError("images must be at least 2")

    def run(self, session: Session) -> dict[str, Any]:
        """Set the statistics; the figures tell how far they moved and what this did to the agreement with the float
        model, on calibration images.

        mean_moved: root mean square over all channels of the mean's change in trained standard deviations.
        deviation_ratio: geometric mean over all channels of the standard deviation by the trained one.
        """
        stream = BlockStream(session, self.images)
        known = _float_moments(session, stream) if self.statistics == "matched" else {}
        groups = _groups(session, stream)
        if not groups:
            raise InapplicableError("the model has no BatchNorm left; leave bn_recalibrate out of the recipe")
        judge = _Judge(session)
        if not session.notes:
            session.notes.append(judge.figures())
        for group in session.parts(groups, "re-estimating norms"):
            for norm in group.norms:
                found = _measure(session, stream, group.unit, norm)
                session.notes.append(_set(session, norm, found, known.get(norm.name)))
        before, moved = session.notes[0], session.notes[1:]
        channels = sum(note["channels"] for note in moved)
        after = judge.figures()
        return {
            "norms": len(moved),
            "mean_moved": round(math.sqrt(sum(note["squares"] for note in moved) / channels), 5),
            "deviation_ratio": round(math.exp(sum(note["logarithms"] for note in moved) / channels), 5),
            "agreement_before": before["agreement"], "agreement": after["agreement"],
            "kl_before": before["kl"], "kl": after["kl"],
        }  # fmt: skip


class _Norm(NamedTuple):
    """A norm by its path, and how often it runs in a forward pass."""

    name: str
    calls: int


class _Group(NamedTuple):
    """Norms that run one behind the other in a unit, or outside of all units."""

    unit: Unit | None
    norms: list[_Norm]


class _MeasuredError(Exception):
    """Ends a forward pass of which nothing more is needed."""


@torch.no_grad()
def _groups(session: Session, stream: BlockStream) -> list[_Group]:
    """The norms of the model in the order of their first calls, by the innermost unit that holds them."""
    called: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any) -> None:
            called[name] = called.get(name, 0) + 1

        return hook

    norms = {name: module for name, module in session.model.named_modules() if isinstance(module, ExactBatchNorm)}
    handles = [module.register_forward_pre_hook(note(name)) for name, module in norms.items()]
    try:
        with model_state(session.model, "quantized"):
            session.model(next(session.images(1)))
    finally:
        for handle in handles:
            handle.remove()
    units = sorted(stream.units, key=lambda unit: -len(unit.block.name))

    def unit_of(norm: str) -> Unit | None:
        return next((unit for unit in units if norm.startswith(f"{unit.block.name}.")), None)

    placed = [(unit_of(name), _Norm(name, calls)) for name, calls in called.items()]
    runs = itertools.groupby(placed, key=lambda pair: pair[0].block.name if pair[0] is not None else None)
    groups = []
    for _, run in runs:
        members = list(run)
        groups.append(_Group(members[0][0], [norm for _, norm in members]))
    return groups


def _measure(session: Session, stream: BlockStream, unit: Unit | None, norm: _Norm) -> ChannelMoments:
    """The moments of a norm's input in the quantized model."""
    module = session.model.get_submodule(norm.name)
    own: list[ChannelMoments] = []
    calls = 0

    def measure(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal calls
        sums = ChannelMoments.of(inputs[0])
        calls += 1
        if calls == 1:
            own.append(sums)
        else:
            own[-1] = own[-1].merged(sums)
        if calls == norm.calls:
            raise _MeasuredError

    handle = module.register_forward_pre_hook(measure)
    try:
        for run in _passes(session, stream, unit):
            calls = 0
            with suppress(_MeasuredError):
                run()
    finally:
        handle.remove()
    return _total(session, own)


@torch.no_grad()
def _float_moments(session: Session, stream: BlockStream) -> dict[str, ChannelMoments]:
    """The moments of every norm's input in the float model."""
    found: dict[str, list[ChannelMoments]] = {}

    def measure(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found.setdefault(name, []).append(ChannelMoments.of(inputs[0]))

        return hook

    names = [name for name, module in session.model.named_modules() if isinstance(module, ExactBatchNorm)]
    handles = [session.teacher.get_submodule(name).register_forward_pre_hook(measure(name)) for name in names]
    try:
        for batch in session.own_images(stream.images, stream.batch_size):
            session.teacher(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _total(session, sums) for name, sums in found.items()}


def _passes(session: Session, stream: BlockStream, unit: Unit | None) -> Iterator[Any]:
    """One function a batch that runs the unit (None: the model) on it."""
    if unit is not None:
        (here,) = stream.visit([unit])
        for number in stream.numbers():
            yield lambda number=number: stream.run(here, stream.inputs[number])
        return
    with torch.no_grad(), model_state(session.model, "quantized"):
        for batch in session.own_images(stream.images, stream.batch_size):
            yield lambda batch=batch: session.model(batch)


def _total(session: Session, own: list[ChannelMoments]) -> ChannelMoments:
    """The moments of all processes' batches, merged in one order for any number of processes."""
    shares: list[list[ChannelMoments]] = session.world.gather(own)
    longest = max(len(share) for share in shares)
    first, *others = [share[number] for number in range(longest) for share in shares if number < len(share)]
    for sums in others:
        first = first.merged(sums)
    return first


@torch.no_grad()
def _set(session: Session, norm: _Norm, found: ChannelMoments, known: ChannelMoments | None) -> dict[str, Any]:
    """Give a norm its statistics, to match `known` where given; returns by how much they moved, summed over the
    channels."""
    module = cast(ExactBatchNorm, session.model.get_submodule(norm.name))
    trained = module.running_mean.double(), (module.running_var.double() + module.eps).sqrt()
    if known is None:
        module.restate(found.mean, found.variance)
    else:
        # (x - mean') / deviation' shall have the moments that (x - mean) / deviation has in the float model. A channel
        # that is all but constant has no deviation to match.
        ratio = ((found.variance + module.eps) / (known.variance + module.eps)).sqrt()
        mean = found.mean + (trained[0] - known.mean) * ratio
        module.restate(mean, ((trained[1] * ratio).square() - module.eps).clamp(min=0))
    deviation = (module.running_var.double() + module.eps).sqrt()
    shift = (module.running_mean.double() - trained[0]) / trained[1]
    return {
        "norm": norm.name, "channels": len(shift), "squares": float(shift.square().sum()),
        "logarithms": float((deviation / trained[1]).log().sum()),
    }  # fmt: skip


class _Judge:
    """Tells how the quantized model agrees with the float model on the first calibration images."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.images = session.calibration.subset(range(min(JUDGED_IMAGES, len(session.calibration))))
        self.loop = Loop(session.batch_size, session.workers, session.device, session.world)
        self.reference = evaluate(session.teacher, self.images, self.loop)[1]

    def figures(self) -> dict[str, float]:
        """The agreement in percent, and the divergence of the predictions."""
        with model_state(self.session.model, "quantized"):
            found, _ = evaluate(self.session.model, self.images, self.loop, self.reference)
        return {"agreement": round(found.agreement or 0.0, 3), "kl": round(found.kl or 0.0, 6)}
