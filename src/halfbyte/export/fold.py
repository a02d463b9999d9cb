"""Norms of convolutions in the scales of what they follow.

What stands between a product and a quantizer keeps runtimes from computing both in one integer kernel, and OpenVINO
2026.4 loses the scale of some convolutions at it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from halfbyte.program.check import value_shapes
from halfbyte.program.ops import Array, Op, Program, readers

_PRODUCTS = ("linear", "conv")


def fold_affine(program: Program) -> Program:
    """The program with every `affine` that alone reads a linear or a convolution, along its outputs, in its scales.

    The integer sums stay; what they are multiplied by is rounded once where the program rounds twice. A product with an
    affine folded keeps its name.
    """
    shapes, read_by = value_shapes(program, 1), readers(program)
    tensors, ops, renamed = dict(program.tensors), list[Op](), dict[str, str]()
    for op in program.ops:
        if op.output in renamed:
            continue
        op = replace(op, inputs=tuple(renamed.get(name, name) for name in op.inputs))
        behind = read_by.get(op.output, [])
        if op.kind in _PRODUCTS and [reader.kind for reader in behind] == ["affine"] and op.output != program.output:
            axis = 1 if op.kind == "conv" else len(shapes[op.output][0]) - 1
            if behind[0].attributes["axis"] == axis:
                op = _folded(op, behind[0], tensors)
                renamed[behind[0].output] = op.output
        ops.append(op)
    return replace(program, ops=tuple(ops), tensors=tensors, output=renamed.get(program.output, program.output))


def _folded(op: Op, affine: Op, tensors: dict[str, Array]) -> Op:
    """The product with the affine operation in it; its new tensors are added to `tensors`."""
    parts = {role: tensors[name] for role, name in op.tensors.items()}
    factor, shift = (tensors[affine.tensors[role]].astype(np.float64) for role in ("scale", "shift"))
    scale = (parts["scale"] * factor).astype(np.float32)
    bias = parts.get("bias", np.float32(0)) * factor + shift
    weight, zero = parts["weight"].copy(), parts["zero"].copy()
    # Scales are positive: where the factor is not, the whole numbers change their sign, or are all 0.
    last = (1 << op.attributes["bits"]) - 1
    negative, nothing = scale < 0, scale == 0
    weight[negative], zero[negative] = last - weight[negative], last - zero[negative]
    weight[nothing], zero[nothing] = 0, 0
    scale = np.where(nothing, np.float32(1), np.abs(scale))
    made = {"weight": weight, "zero": zero, "scale": scale, "bias": bias.astype(np.float32)}
    names = {role: f"{op.output}.folded.{role}" for role in made}
    tensors.update((names[role], array) for role, array in made.items())
    return replace(op, tensors=names)
