"""How each kind of operation becomes steps of a native plan: functions, quantizers, and what moves values about."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np

from halfbyte.errors import HalfbyteError
from halfbyte.program.ops import Array, Op
from halfbyte.runtime.compile import Compiler, Handler, Rows
from halfbyte.runtime.maps import add, affine, relu
from halfbyte.runtime.memory import View, order_of
from halfbyte.runtime.products import conv, linear, matmul

Attributes = dict[str, Any]
Tensors = dict[str, Array]
_UNARY = ("sigmoid", "silu", "tanh", "gelu_tanh", "hardsigmoid", "hardswish")
_BINARY = ("add", "subtract", "multiply", "divide")


def _source(c: Compiler, op: Op) -> Rows:
    """What a quantizer reads: a function that waits for it, or plain values."""
    name = op.inputs[0]
    several = max(len(op.attributes.get(number, [])) for number in ("scale", "zero")) > 1
    if name in c.waiting and c.waiting[name].kind == "map" and (several or op.kind != "quantize"):
        # A map ends in one uniform quantizer.
        c.value(name)
    return c.waiting.pop(name) if name in c.waiting else Rows("plain", c.packed_rows(c.value(name), False))


def _quantize(c: Compiler, op: Op, a: Attributes, t: Tensors) -> None:
    rows = _source(c, op)
    out = c.like(rows.x, 1)
    numbers = max(len(a["scale"]), len(a["zero"]))
    pairs = list(zip(*(np.broadcast_to(a[name], numbers).tolist() for name in ("scale", "zero")), strict=True))
    for index, (scale, zero) in enumerate(pairs):
        own, to = rows, out
        if numbers > 1:
            if rows.kind in ("norm", "softmax") and a["axis"] == len(out.shape) - 1:
                raise HalfbyteError(f"{op.output}: a scale for each column behind a norm is none of one integer model")
            own = rows._replace(x=rows.x.slice(a["axis"], index, index + 1))
            to = out.slice(a["axis"], index, index + 1)
        c.rows(own, to, uniform=(scale, a["beta"], float(zero), float(a["last"])))
    c.views[op.output], c.bits[op.output] = out, int(a["last"]).bit_length()


def _quantize_log(c: Compiler, op: Op, a: Attributes, t: Tensors) -> None:
    rows = _source(c, op)
    out = c.like(rows.x, 1)
    rising = np.array(a["thresholds"][::-1], np.int64)
    halves = np.arange(2**16)
    positive = np.where(halves < 2**15, halves, 0)
    table = (len(rising) - np.searchsorted(rising, positive, side="left")).astype(np.uint8)
    c.rows(rows, out, table=table, shift=a["shift"])
    c.views[op.output], c.bits[op.output] = out, len(rising).bit_length()


def _layer_norm(c: Compiler, op: Op, a: Attributes, t: Tensors) -> None:
    x = c.packed_rows(c.value(op.inputs[0]), True)
    channels = x.shape[-1]
    weight, bias = t.get("weight", np.ones(channels, np.float32)), t.get("bias", np.zeros(channels, np.float32))
    c.wait(op, Rows("norm", x, weight, bias, a["eps"]))


def _gelu(c: Compiler, op: Op, a: Attributes, t: Tensors) -> None:
    c.wait(op, Rows("gelu", c.packed_rows(c.value(op.inputs[0]), False)))


def _softmax(c: Compiler, op: Op, a: Attributes, t: Tensors) -> None:
    name, factor = op.inputs[0], 1.0
    if name in c.waiting and c.waiting[name].kind == "factor":
        waiting = c.waiting.pop(name)
        view, factor = waiting.x, waiting.factor
    else:
        view = c.value(name)
    if a["axis"] != len(view.shape) - 1:
        raise HalfbyteError(f"{op.output}: the native engine's softmax goes along the last dimension")
    c.wait(op, Rows("softmax", c.packed_rows(view, True), factor=factor))


def _rms_norm(c: Compiler, op: Op, a: Attributes, t: Tensors) -> None:
    x = c.value(op.inputs[0])
    x = x if x.reshape((x.size,)) is not None and order_of(x)[-1] == len(x.shape) - 1 else c.copied(x)
    channels, out = x.shape[-1], c.memory.make(4, x.shape)
    weight, bias = t.get("weight", np.ones(channels, np.float32)), t.get("bias", np.zeros(channels, np.float32))
    c.call("rms", x, out, weight, bias, a["eps"])
    c.views[op.output] = out


def _binary(c: Compiler, op: Op, a: Attributes, t: Tensors) -> None:
    if len(op.inputs) == 1:
        if op.kind == "multiply" and c.alone(op.output, "softmax"):
            c.waiting[op.output] = Rows("factor", c.value(op.inputs[0]), factor=a["scalar"])
            return
        x, y = c.value(op.inputs[0]), c.constant(np.array(a["scalar"], np.float32))
    elif op.kind == "add" and add(c, op):
        return
    else:
        x, y = (c.value(name) for name in op.inputs)
    shape = np.broadcast_shapes(x.shape, y.shape)
    x, y = x.expand(shape), y.expand(shape)
    full = x if all(stride or size == 1 for stride, size in zip(x.strides, shape, strict=True)) else y
    out = c.memory.make(4, shape, order_of(full))
    c.call("binary", op.kind, x, y, out)
    c.views[op.output] = out


def _unary(c: Compiler, op: Op, a: Attributes, t: Tensors) -> None:
    x = c.value(op.inputs[0])
    out = c.like(x)
    c.call("unary", op.kind, x, out, a.get("low", 0.0), a.get("high", 0.0))
    c.views[op.output] = out


def _mean(c: Compiler, op: Op, a: Attributes, t: Tensors) -> None:
    x = c.value(op.inputs[0])
    kept = [axis for axis in range(len(x.shape)) if axis not in a["axes"]]
    out = c.memory.make(4, tuple(x.shape[axis] for axis in kept))
    c.call("mean", x.transpose([*kept, *a["axes"]]), out, len(a["axes"]))
    shape = [1 if axis in a["axes"] else size for axis, size in enumerate(x.shape)]
    c.views[op.output] = c.reshaped(out, tuple(shape)) if a["keep"] else out


def _pool(c: Compiler, op: Op, a: Attributes, t: Tensors) -> None:
    largest = op.kind == "max_pool"
    x = c.value(op.inputs[0])
    x = _padded(c, x, [[0, 0], [0, 0], *a["pads"]], -np.inf if largest else 0.0)
    dilations = a.get("dilations", [1, 1])
    sizes = [
        (size - dilation * (kernel - 1) - 1) // stride + 1
        for size, dilation, kernel, stride in zip(x.shape[2:], dilations, a["kernel"], a["strides"], strict=True)
    ]
    steps = x.strides[2:]
    windows = replace(
        x, shape=(*x.shape[:2], *sizes, *a["kernel"]),
        strides=(*x.strides[:2], *(s * n for s, n in zip(a["strides"], steps, strict=True)),
                 *(d * n for d, n in zip(dilations, steps, strict=True))),
    )  # fmt: skip
    out = c.memory.make(4, windows.shape[:4], order_of(x))
    c.call(*(("largest", windows, out) if largest else ("mean", windows, out, 2)))
    c.views[op.output] = out


def _padded(c: Compiler, x: View, pads: list[list[int]], value: float) -> View:
    if not any(map(any, pads)):
        return x
    shape = tuple(size + sum(pad) for size, pad in zip(x.shape, pads, strict=True))
    out = c.memory.make(x.item, shape, order_of(x))
    c.call("fill", out, value)
    inner = out
    for axis, (before, _) in enumerate(pads):
        inner = inner.slice(axis, before, before + x.shape[axis])
    c.call("copy", x, inner)
    return out


def _pad(c: Compiler, op: Op, a: Attributes, t: Tensors) -> None:
    c.views[op.output] = _padded(c, c.value(op.inputs[0]), a["pads"], a["value"])


def _concat(c: Compiler, op: Op, a: Attributes, t: Tensors) -> None:
    parts, axis = [c.value(name) for name in op.inputs], a["axis"]
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    largest = max(parts, key=lambda part: part.size)
    out, start = c.memory.make(parts[0].item, tuple(shape), order_of(largest)), 0
    for part in parts:
        c.call("copy", part, out.slice(axis, start, start + part.shape[axis]))
        start += part.shape[axis]
    _same_bits(c, op)
    c.views[op.output] = out


def _roll(c: Compiler, op: Op, a: Attributes, t: Tensors) -> None:
    x = c.value(op.inputs[0])
    out = c.like(x, x.item)
    cuts, shifts = [], dict.fromkeys(a["axes"], 0)
    for shift, axis in zip(a["shifts"], a["axes"], strict=True):
        shifts[axis] += shift
    for axis, shift in shifts.items():
        size = x.shape[axis]
        by = shift % size
        # (from, to, length) of what stays in order.
        cuts.append([(axis, 0, by, size - by), *([(axis, size - by, 0, by)] if by else [])])
    for parts in itertools.product(*cuts):
        own, to = x, out
        for axis, start, place, length in parts:
            own, to = own.slice(axis, start, start + length), to.slice(axis, place, place + length)
        c.call("copy", own, to)
    _same_bits(c, op)
    c.views[op.output] = out


def _repeat(c: Compiler, op: Op, a: Attributes, t: Tensors) -> None:
    x = c.value(op.inputs[0])
    times = a["times"]
    x = x.expand((1,) * (len(times) - len(x.shape)) + x.shape)
    times = [1] * (len(x.shape) - len(times)) + list(times)
    out = c.memory.make(x.item, tuple(size * count for size, count in zip(x.shape, times, strict=True)))
    # One copy into a view that has each repeated dimension twice: which repetition, and the place in it.
    twice = [(count, size) if count > 1 else (size,) for size, count in zip(x.shape, times, strict=True)]
    to = out.reshape(tuple(itertools.chain.from_iterable(twice)))
    assert to is not None
    strides = [(0, stride) if len(sizes) > 1 else (stride,) for sizes, stride in zip(twice, x.strides, strict=True)]
    c.call("copy", replace(x, shape=to.shape, strides=tuple(itertools.chain.from_iterable(strides))), to)
    _same_bits(c, op)
    c.views[op.output] = out


def _gather(c: Compiler, op: Op, a: Attributes, t: Tensors) -> None:
    x, axis = c.value(op.inputs[0]), a["axis"]
    index = t["index"].tolist()
    out = c.memory.make(x.item, (*x.shape[:axis], len(index), *x.shape[axis + 1 :]))
    for place, entry in enumerate(index):
        c.call("copy", x.slice(axis, entry, entry + 1), out.slice(axis, place, place + 1))
    _same_bits(c, op)
    c.views[op.output] = out


def _view(c: Compiler, op: Op, a: Attributes, t: Tensors) -> None:
    x = c.value(op.inputs[0])
    if op.kind == "reshape":
        view = c.reshaped(x, _full_shape(tuple(a["shape"]), x.size))
    elif op.kind == "transpose":
        view = x.transpose(a["axes"])
    elif op.kind == "slice":
        view = x.slice(a["axis"], a["start"], a["stop"], a["step"])
    elif op.kind == "select":
        view = x.select(a["axis"], range(x.shape[a["axis"]])[a["index"]])
    else:
        view = x.expand(tuple(a["shape"]))
    _same_bits(c, op)
    c.views[op.output] = view


def _full_shape(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    known = int(np.prod([length for length in shape if length != -1]))
    return tuple(size // known if length == -1 else length for length in shape)


def _same_bits(c: Compiler, op: Op) -> None:
    if op.inputs[0] in c.bits:
        c.bits[op.output] = max(c.bits[name] for name in op.inputs)


OPERATIONS: dict[str, Handler] = {
    "quantize": _quantize, "quantize_log": _quantize_log, "linear": linear, "conv": conv, "matmul": matmul,
    "layer_norm": _layer_norm, "gelu": _gelu, "softmax": _softmax, "rms_norm": _rms_norm, "affine": affine,
    "mean": _mean, "max_pool": _pool, "average_pool": _pool, "pad": _pad, "concat": _concat, "roll": _roll,
    "repeat": _repeat, "gather": _gather, "constant": _view, "clip": _unary,
    "relu": relu, **dict.fromkeys(_BINARY, _binary), **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(("reshape", "transpose", "slice", "select", "expand"), _view),
}  # fmt: skip
