"""How what stands between two convolutions becomes one step: a norm's scale and shift, a sum, and ReLU."""

from __future__ import annotations

from typing import Any

from halfbyte.program.ops import Array, Op
from halfbyte.runtime.compile import Compiler, Rows
from halfbyte.runtime.memory import View, dense, order_of


def affine(c: Compiler, op: Op, a: dict[str, Any], t: dict[str, Array]) -> None:
    """A scale and a shift for each channel."""
    x = c.value(op.inputs[0])
    if _gapless(x) and order_of(x)[-1] == a["axis"]:
        c.wait(op, Rows("map", x, t["scale"], t["shift"]), "relu", "add")
        return
    for kind, role in (("multiply", "scale"), ("add", "shift")):
        shape = tuple(-1 if axis == a["axis"] else 1 for axis in range(len(x.shape)))
        out = c.like(x)
        c.call("binary", kind, x, c.constant(t[role].reshape(shape)).expand(x.shape), out)
        x = out
    c.views[op.output] = x


def add(c: Compiler, op: Op) -> bool:
    """A sum of two equally shaped values that lie in memory alike; False where they are none."""
    first, second = op.inputs
    if not _is_map(c, first):
        first, second = second, first
    waits = first != second and _is_map(c, first)
    y = c.value(second)
    rows = c.waiting[first] if waits else Rows("map", c.value(first))
    if rows.y is not None or rows.relu or y.shape != rows.x.shape or not _alike(rows.x, y):
        return False
    if waits:
        del c.waiting[first]
    c.wait(op, rows._replace(y=y), "relu")
    return True


def relu(c: Compiler, op: Op, a: dict[str, Any], t: dict[str, Array]) -> None:
    """ReLU, of a map or of plain values."""
    name = op.inputs[0]
    if _is_map(c, name) and not c.waiting[name].relu:
        c.wait(op, c.waiting.pop(name)._replace(relu=True))
        return
    x = c.value(name)
    if _gapless(x):
        c.wait(op, Rows("map", x, relu=True))
    else:
        c.views[op.output] = c.like(x)
        c.call("unary", "relu", x, c.views[op.output], 0.0, 0.0)


def _is_map(c: Compiler, name: str) -> bool:
    return name in c.waiting and c.waiting[name].kind == "map"


def _gapless(view: View) -> bool:
    return view.strides == dense(view.shape, order_of(view))


def _alike(x: View, y: View) -> bool:
    return _gapless(x) and x.strides == y.strides
