"""The steps by name, and how a recipe's parameters become them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import typing
from typing import Any

from halfbyte.errors import HalfbyteError, did_you_mean
from halfbyte.recipe import Recipe, StepCall
from halfbyte.registry import Registry
from halfbyte.session import Step
from halfbyte.steps.adalog import AdaLog
from halfbyte.steps.bias_correct import BiasCorrect
from halfbyte.steps.bn_recalibrate import BnRecalibrate
from halfbyte.steps.fold_batchnorm import FoldBatchNorm
from halfbyte.steps.groupwise import Groupwise
from halfbyte.steps.learned_steps import LearnedSteps
from halfbyte.steps.mixed import Mixed
from halfbyte.steps.qla import QLA
from halfbyte.steps.quantformer import Quantformer
from halfbyte.steps.qwt import QwT
from halfbyte.steps.ranges import MinMax, Mse, Percentile
from halfbyte.steps.reconstruct import Reconstruct
from halfbyte.steps.reconstruct_mlp import ReconstructMlp
from halfbyte.steps.refit import Refit
from halfbyte.steps.repq import RepQ
from halfbyte.steps.rotate import Rotate
from halfbyte.steps.train import Train
from halfbyte.strict_yaml import shown

STEPS: Registry[type[Any]] = Registry("step")
STEPS.register("repq")(RepQ)
STEPS.register("adalog")(AdaLog)
STEPS.register("percentile")(Percentile)
STEPS.register("mse")(Mse)
STEPS.register("minmax")(MinMax)
STEPS.register("learned_steps")(LearnedSteps)
STEPS.register("groupwise")(Groupwise)
STEPS.register("bias_correct")(BiasCorrect)
STEPS.register("refit")(Refit)
STEPS.register("reconstruct")(Reconstruct)
STEPS.register("fold_batchnorm")(FoldBatchNorm)
STEPS.register("rotate")(Rotate)
STEPS.register("reconstruct_mlp")(ReconstructMlp)
STEPS.register("mixed")(Mixed)
STEPS.register("bn_recalibrate")(BnRecalibrate)
STEPS.register("qwt")(QwT)
STEPS.register("qla")(QLA)
STEPS.register("train")(Train)
STEPS.register("quantformer")(Quantformer)


def resolve(recipe: Recipe) -> list[tuple[str, Step]]:
    """The steps of a recipe with their names; raises `HalfbyteError` that names the key and the nearest spelling."""
    steps = [(call.name, _build(call, recipe.source)) for call in recipe.steps]
    for (before, earlier), (name, later) in itertools.pairwise(steps):
        if _turn(later) < _turn(earlier):
            raise HalfbyteError(
                f"{recipe.source}: {name} {from_scratch(later)} and cannot follow {before}; put it first"
            )
    return steps


def from_scratch(step: Step) -> str | None:
    """What a step does to a model that was not calibrated yet; None for one that goes on from a calibrated model."""
    return ("changes the trained weights", "calibrates from scratch", None)[_turn(step)]


def _turn(step: Step) -> int:
    """The steps that change the trained weights come first, then those that calibrate, then all others."""
    return 0 if getattr(step, "prepares", False) else 1 if step.calibrates else 2


def with_defaults(recipe: Recipe) -> Recipe:
    """The recipe with each step's every parameter written out."""
    calls = tuple(StepCall(name, _plain(dataclasses.asdict(typing.cast(Any, step)))) for name, step in resolve(recipe))
    return dataclasses.replace(recipe, steps=calls)


def _plain(parameters: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in parameters.items()}


def _build(call: StepCall, source: str) -> Step:
    if call.name not in STEPS:
        raise HalfbyteError(f"{source}: unknown step {call.name!r}{did_you_mean(call.name, STEPS)}")
    kind = STEPS.get(call.name)
    types = typing.get_type_hints(kind)
    fields = [field.name for field in dataclasses.fields(kind)]
    values = {}
    for key, value in call.parameters.items():
        if key not in fields:
            raise HalfbyteError(f"{source}: {call.name} has no parameter {key!r}{did_you_mean(key, fields)}")
        values[key] = _typed(value, types[key], f"{source}: {call.name}.{key}")
    try:
        step: Step = kind(**values)
    except ValueError as error:
        raise HalfbyteError(f"{source}: {call.name}: {error}") from None
    return step


def _typed(value: Any, wanted: Any, where: str) -> Any:
    """`value` if it is of the type of a step's field: bool, int, float, str, or a tuple of one of them."""
    if typing.get_origin(wanted) is tuple:
        item = typing.get_args(wanted)[0]
        values = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_typed(entry, item, where) for entry in values)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise HalfbyteError(f"{where} must be of type {getattr(wanted, '__name__', wanted)}, not {shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise HalfbyteError(f"{where} must be finite, not {value}")
    return value
