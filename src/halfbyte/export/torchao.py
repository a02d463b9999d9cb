"""Scales of linear layers in the form of torchao's static int8 config."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from safetensors.numpy import save

from halfbyte.errors import HalfbyteError
from halfbyte.program.ops import Array, Program

# torchao's codes are signed.
_SIGNED = 128


def to_torchao(program: Program, facts: dict[str, Any]) -> bytes:
    """A safetensors file of every linear site with evenly spaced inputs.

    Of each site: `.act_quant_scale` float32 [1, 1] and `.act_quant_zero_point` int8 [1, 1] for
    `Int8StaticActivationInt8WeightConfig(granularity=[PerTensor(), PerRow()], act_mapping_type=ASYMMETRIC)`, the weight
    `.weight` float32 [O, I] with the values of its codes, from which torchao takes its own per-row int8, and `.bias`.
    torchao's codes reach over all 8 bits: inputs beyond the range of a narrower quantizer are not clipped there. The
    metadata names the config and the sites left out. Raises `HalfbyteError` where no site can be written.
    """
    sources = {op.output: op for op in program.ops if op.kind == "quantize"}
    tensors: dict[str, Array] = {}
    left_out = []
    for op in program.ops:
        if op.kind != "linear":
            continue
        quantizer = sources.get(op.inputs[0])
        if quantizer is None or not 0 <= (zero := quantizer.attributes["zero"][0]) < 2 * _SIGNED:
            left_out.append(op.output)
            continue
        step = np.float32(quantizer.attributes["scale"][0])
        parts = {role: program.tensors[name] for role, name in op.tensors.items()}
        numbers = parts["weight"].astype(np.int64) - parts["zero"].astype(np.int64)[:, None]
        weight = numbers * (parts["scale"].astype(np.float64) / step)[:, None]
        tensors[f"{op.output}.act_quant_scale"] = np.full((1, 1), step, np.float32)
        tensors[f"{op.output}.act_quant_zero_point"] = np.full((1, 1), zero - _SIGNED, np.int8)
        tensors[f"{op.output}.weight"] = weight.astype(np.float32)
        if "bias" in parts:
            tensors[f"{op.output}.bias"] = parts["bias"]
    if not tensors:
        raise HalfbyteError(
            "torchao's static int8 config needs linear layers with evenly spaced inputs; there are none"
        )
    config = {
        "config": "Int8StaticActivationInt8WeightConfig", "granularity": ["PerTensor", "PerRow"],
        "act_mapping_type": "ASYMMETRIC", "left_out": left_out, **facts,
    }  # fmt: skip
    return save(tensors, {"torchao": json.dumps(config, sort_keys=True)})
