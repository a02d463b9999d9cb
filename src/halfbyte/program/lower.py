"""From a quantized model to a program, whatever its family: record its forward pass twice, and see what changed.

With two images and with three; a number that differs between the recordings is a multiple of the number of images, plus
something. Then constants are computed, what is done twice is done once, and what nobody reads is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from halfbyte.errors import HalfbyteError
from halfbyte.families.layout import Layout
from halfbyte.prepare import example_input, model_state, site_module
from halfbyte.program import aten, sites
from halfbyte.program.check import check
from halfbyte.program.ops import INPUT, Array, Op, Program
from halfbyte.program.trace import Record, Recorder, as_array

_IMAGES = (2, 3)
# A constant is computed beforehand where that makes nothing larger, or is small.
_SMALL = 1024


def lower(model: nn.Module, layout: Layout, facts: Mapping[str, Any] | None = None) -> Program:
    """The program of a prepared and calibrated model, in whatever state; the model stays as it is.

    `facts` are kept in the program. Raises `HalfbyteError`, which names the module and the remedy, for what integers
    cannot compute exactly: float layers, simulated quantizers, operations that no program has.
    """
    for site in layout.sites:
        for operand in site.operands:
            if not site_module(model, site.name).quantizer(operand).fitted:
                raise HalfbyteError(f"the {operand} of {site.name} was never calibrated; begin with a calibration step")
    with torch.inference_mode(False), torch.no_grad(), _evaluating(model), model_state(model, "quantized"):
        (few, output), (more, again) = (_record(model, count) for count in _IMAGES)
    if len(few.records) != len(more.records) or output != again:
        raise HalfbyteError("the model runs other operations for other numbers of images; no program can")
    records = [_merged(*pair) for pair in zip(few.records, more.records, strict=True)]
    known = {"approximate": sorted(set(few.approximate))} if few.approximate else {}
    program = _assembled(_folded(records), output, tuple(example_input(model).shape[1:]), {**(facts or {}), **known})
    check(program)
    return program


def _record(model: nn.Module, count: int) -> tuple[Recorder, int]:
    images = example_input(model, count)
    recorder = Recorder(model, images, sites.RULES, aten.RULES)
    with recorder.following(), recorder:
        output = model(images)
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        raise HalfbyteError("a program's model gives logits [B, classes], this one gives something else")
    return recorder, recorder.value(output)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _merged(few: Record, more: Record) -> Record:
    """One record of two, with what depends on the number of images written so."""
    same = few.kind == more.kind and few.inputs == more.inputs and few.output == more.output
    tensors = few.tensors.keys() == more.tensors.keys()
    if not same or not tensors or any(not _equal(few.tensors[role], more.tensors[role]) for role in few.tensors):
        raise HalfbyteError(f"{few.where} runs other operations for other numbers of images; no program can")
    few.attributes = {key: _linear(few.attributes[key], more.attributes[key], few.where) for key in few.attributes}
    if few.sample is not None and more.sample is not None and few.sample.shape != more.sample.shape:
        if few.kind == "constant":
            raise HalfbyteError(f"{few.where} makes a constant whose size depends on the number of images")
        few.sample = None
    elif few.kind == "constant" and not torch.equal(_sample(few), _sample(more)):
        raise HalfbyteError(f"{few.where} makes other constants in every run; no program can")
    return few


def _sample(record: Record) -> torch.Tensor:
    assert record.sample is not None
    return record.sample


def _equal(one: Array, other: Array) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool((one == other).all())


def _linear(few: Any, more: Any, where: str) -> Any:
    if isinstance(few, dict):
        return {key: _linear(few[key], more[key], where) for key in few}
    if isinstance(few, list) and len(few) == len(more):
        return [_linear(a, b, where) for a, b in zip(few, more, strict=True)]
    if few == more:
        return few
    if not isinstance(few, int) or not isinstance(more, int):
        raise HalfbyteError(f"{where} computes with a number that depends on the number of images; no program can")
    slope = (more - few) // (_IMAGES[1] - _IMAGES[0])
    return {"batch": slope, "plus": few - slope * _IMAGES[0]}


def _folded(records: list[Record]) -> list[Record]:
    """The records with constants computed, where that pays."""
    sizes: dict[int, int] = {}
    result = []
    for record in records:
        constant = record.kind == "constant"
        if record.sample is not None and not constant and all(value in sizes for value in record.inputs):
            elements = record.sample.numel()
            constant = elements <= max(_SMALL, sum(sizes[value] for value in record.inputs))
        if constant:
            sizes[record.output] = _sample(record).numel()
            name = record.name if record.kind == "constant" else None
            result.append(Record("constant", (), record.output, where=record.where, name=name, sample=record.sample))
        else:
            result.append(record)
    return result


def _assembled(records: list[Record], output: int, input_shape: tuple[int, ...], facts: dict[str, Any]) -> Program:
    """Names for values and tensors; equal operations once, unread ones never."""
    names, read = _Names(), _read(records, output)
    values: dict[int, str] = {0: INPUT}
    tensors: dict[str, Array] = {}
    ops: list[Op] = []
    made: dict[str, str] = {}
    for record in records:
        if record.output not in read:
            continue
        parts = dict(record.tensors)
        if record.kind == "constant":
            if not _sample(record).is_floating_point():
                raise HalfbyteError(f"{record.where} computes with a constant that is not float; no program can")
            parts = {"value": as_array(_sample(record))}
        roles = {}
        for role, tensor in sorted(parts.items()):
            own = record.name if record.kind == "constant" else f"{record.name or record.where}.{role}"
            roles[role] = names.tensor(tensor, own or "constant")
            tensors[roles[role]] = np.ascontiguousarray(tensor)
        inputs, attributes = tuple(values[value] for value in record.inputs), _plain(record.attributes)
        key = json.dumps([record.kind, inputs, attributes, roles], sort_keys=True)
        if key not in made:
            made[key] = names.value(record.name or "v")
            ops.append(Op(record.kind, inputs, made[key], attributes, roles))
        values[record.output] = made[key]
    return Program(tuple(ops), tensors, input_shape, values[output], facts)


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    """As a file gives them back: lists instead of tuples, plain numbers."""
    read: dict[str, Any] = json.loads(json.dumps(attributes))
    return read


def _read(records: list[Record], output: int) -> set[int]:
    """The values on which the output depends."""
    read = {output}
    for record in reversed(records):
        if record.output in read:
            read.update(record.inputs)
    return read


class _Names:
    """Names for values, and for tensors, of which equal ones get the same."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}
        self._by_content: dict[tuple[Any, ...], str] = {}

    def value(self, wanted: str) -> str:
        """A name that no other value has: that of the module, or a number."""
        count = self._used[wanted] = self._used.get(wanted, 0) + 1
        if wanted == "v":
            return f"v{count}"
        return wanted if count == 1 else f"{wanted}#{count}"

    def tensor(self, tensor: Array, wanted: str) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(tensor).tobytes()).digest()
        key = (tensor.dtype.name, tensor.shape, digest)
        if key not in self._by_content:
            self._by_content[key] = self.value(f"{wanted}:")
        return self._by_content[key].replace(":", "")
