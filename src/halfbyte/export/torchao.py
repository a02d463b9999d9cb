"""Scales of linear layers in the form of torchao's static int8 config."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from safetensors.numpy import save

from halfbyte.errors import HalfbyteError
from halfbyte.program.check import value_shapes
from halfbyte.program.ops import Array, Op, Program

# torchao's codes are signed.
_SIGNED = 128


def to_torchao(program: Program, facts: dict[str, Any], state: dict[str, Array] | None) -> bytes:
    """A safetensors file of every linear site with evenly spaced inputs, and of the rest of the model where `state`,
    that of the plain architecture, is given.

    Of each such site: `.act_quant_scale` float32 and `.act_quant_zero_point` int8, of one element and as many
    dimensions as its input, for `Int8StaticActivationInt8WeightConfig(granularity=[PerTensor(), PerRow()],
    act_mapping_type=ASYMMETRIC)`, the weight `.weight` float32 [O, I] with the values of its codes, from which torchao
    takes its own per-row int8, and `.bias`. torchao's codes reach over all 8 bits: inputs beyond the range of a
    narrower quantizer are not clipped there. The metadata names the config, the sites, those left out, and whether the
    file holds the whole model. Raises `HalfbyteError` where no site can be written.
    """
    sources = {op.output: op for op in program.ops if op.kind == "quantize"}
    shapes = value_shapes(program, 1)
    tensors = dict(state or {})
    sites, left_out = [], []
    for op in program.ops:
        if op.kind != "linear":
            continue
        quantizer = sources.get(op.inputs[0])
        if quantizer is None or not _fits(quantizer):
            left_out.append(op.output)
            continue
        sites.append(op.output)
        step, zero = (quantizer.attributes[name][0] for name in ("scale", "zero"))
        shape = [1] * len(shapes[op.inputs[0]][0])
        tensors[f"{op.output}.act_quant_scale"] = np.full(shape, step, np.float32)
        tensors[f"{op.output}.act_quant_zero_point"] = np.full(shape, zero - _SIGNED, np.int8)
        if state is None:
            tensors.update(_weight(program, op, np.float32(step)))
    if not sites:
        raise HalfbyteError(
            "torchao's static int8 config needs linear layers with evenly spaced inputs; there are none"
        )
    config = {
        "config": "Int8StaticActivationInt8WeightConfig", "granularity": ["PerTensor", "PerRow"],
        "act_mapping_type": "ASYMMETRIC", "architecture": program.facts.get("architecture"), "sites": sites,
        "left_out": left_out, "whole": state is not None, **facts,
    }  # fmt: skip
    return save(tensors, {"torchao": json.dumps(config, sort_keys=True)})


def _fits(quantizer: Op) -> bool:
    """Whether one step and one zero point of 8 bits say it all; an offset moves the steps off zero."""
    attributes = quantizer.attributes
    zero = attributes["zero"]
    return len(attributes["scale"]) == len(zero) == 1 and 0 <= zero[0] < 2 * _SIGNED and not attributes["beta"]


def _weight(program: Program, op: Op, step: np.float32) -> dict[str, Array]:
    parts = {role: program.tensors[name] for role, name in op.tensors.items()}
    numbers = parts["weight"].astype(np.int64) - parts["zero"].astype(np.int64)[:, None]
    weight = numbers * (parts["scale"].astype(np.float64) / step)[:, None]
    found = {f"{op.output}.weight": weight.astype(np.float32)}
    return {**found, f"{op.output}.bias": parts["bias"]} if "bias" in parts else found
