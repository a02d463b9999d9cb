"""A program as a native plan for one image: operations become steps on views, functions and quantizers are joined, and
what only moves values about becomes a view wherever it can."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from halfbyte.errors import HalfbyteError
from halfbyte.program.interpret import compute
from halfbyte.program.ops import INPUT, Array, Op, Program, at_batch, readers
from halfbyte.runtime.memory import CONSTANTS, IMAGE, RESULT, Memory, View, aligned, order_of

_PRODUCTS = ("linear", "conv", "matmul")
# What an honest model stays far below: steps of a plan, and bytes of what is known when it is built.
MOST_STEPS, MOST_KNOWN = 2**13, 2**28


class Rows(NamedTuple):
    """A function of the values of a view, row by row, that a quantizer may follow.

    A "map" multiplies by `weight` and adds `bias` along the innermost dimension, adds the view `y`, and ends with a
    ReLU, each where it is there.
    """

    kind: str
    x: View
    weight: Array | None = None
    bias: Array | None = None
    eps: float = 0.0
    factor: float = 1.0
    y: View | None = None
    relu: bool = False


class Compiler:
    """Turns the operations of a checked program into the calls that build a plan.

    `views` are the values so far by name, `bits` the widths of codes. An operation whose result is not needed as such
    (what a quantizer reads alone, a factor in front of a softmax) waits in `waiting`.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.memory = Memory()
        # The operation, the step, its arguments.
        self.calls: list[tuple[str, str, tuple[Any, ...]]] = []
        self.where = ""
        self.constants: list[tuple[View, Array]] = []
        self.known: dict[str, Array] = {}
        self.known_bytes = 0
        self.waiting: dict[str, Rows] = {}
        self.bits: dict[str, int] = {}
        self.consumers = readers(program)
        self.views = {INPUT: self.memory.make(4, (1, *program.input_shape), place=IMAGE)}

    def run(self) -> tuple[int, bytes, int]:
        """Compile everything; returns the bytes of the arena, the constants, and the size of the result."""
        from halfbyte.runtime.operations import OPERATIONS

        for op in self.program.ops:
            if op.kind not in OPERATIONS:
                raise HalfbyteError(f"the native engine has no {op.kind} ({op.output})")
            self.where, attributes = op.output, at_batch(op.attributes, 1)
            tensors = {role: self.program.tensors[name] for role, name in op.tensors.items()}
            if op.kind not in _PRODUCTS and all(name in self.known for name in op.inputs):
                with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
                    self.know(op, compute(op.kind, [self.known[name] for name in op.inputs], attributes, tensors))
                continue
            OPERATIONS[op.kind](self, op, attributes, tensors)
        result = self.value(self.program.output)
        self.call("copy", result, self.memory.make(4, result.shape, place=RESULT))
        blob, offset = bytearray(), 0
        for view, array in self.constants:
            view.block.offset, offset = offset, offset + aligned(array.nbytes)
            blob += array.tobytes() + bytes(offset - len(blob) - array.nbytes)
        return self.memory.settle(), bytes(blob), result.size

    def know(self, op: Op, result: Array) -> None:
        """The value of an operation, the same for all images."""
        self.known_bytes += result.nbytes
        if self.known_bytes > MOST_KNOWN:
            raise HalfbyteError(f"{op.output}: the constants of the program take more than {MOST_KNOWN >> 20} MiB")
        self.known[op.output] = result
        if result.dtype == np.uint8:
            self.bits[op.output] = int(result.max()).bit_length()

    def call(self, step: str, *arguments: Any) -> None:
        """The next step, its views among the arguments."""
        if len(self.calls) >= MOST_STEPS:
            raise HalfbyteError(f"the program needs more than {MOST_STEPS} native steps")
        self.memory.use(*(argument for argument in arguments if isinstance(argument, View)))
        self.calls.append((self.where, step, arguments))
        self.memory.step += 1

    def alone(self, name: str, *kinds: str) -> bool:
        """Whether all that reads a value is one operation of these kinds."""
        readers = self.consumers.get(name, [])
        return len(readers) == 1 and readers[0].kind in kinds and name != self.program.output

    def wait(self, op: Op, rows: Rows, *others: str) -> None:
        """Compute a function when its values are needed: with the quantizer behind it, or an operation of another kind
        that takes it up, if that is all that reads it."""
        self.waiting[op.output] = rows
        if not self.alone(op.output, "quantize", "quantize_log", *others):
            self.value(op.output)

    def value(self, name: str) -> View:
        """The view of a value; one that waited is computed now."""
        if name in self.waiting:
            rows = self.waiting.pop(name)
            out = self.like(rows.x)
            self.rows(rows, out)
            self.views[name] = out
        if name in self.known and name not in self.views:
            self.views[name] = self.constant(self.known[name])
        return self.views[name]

    def constant(self, array: Array) -> View:
        """A view of an array that is known now."""
        array = np.ascontiguousarray(array)
        view = self.memory.make(array.itemsize, array.shape, place=CONSTANTS)
        self.constants.append((view, array))
        return view

    def like(self, view: View, item: int = 4) -> View:
        """A new array of the same shape that lies in memory in the same order."""
        return self.memory.make(item, view.shape, order_of(view))

    def copied(self, view: View, order: list[int] | None = None) -> View:
        """The same values without gaps, by default row by row."""
        out = self.memory.make(view.item, view.shape, order)
        self.call("copy", view, out)
        return out

    def reshaped(self, view: View, shape: tuple[int, ...]) -> View:
        """A view in another shape, of a copy where it must be."""
        found = view.reshape(shape)
        if found is None:
            found = self.copied(view).reshape(shape)
        assert found is not None
        return found

    def rows(self, rows: Rows, out: View, **quantizer: Any) -> None:
        """A function of rows into floats, or into codes by `uniform` or a `table` with a `shift`."""
        if rows.kind == "map":
            x, y, to = (view if view is None else view.transpose(order_of(rows.x)) for view in (rows.x, rows.y, out))
            self.call("map", x, y, to, rows.weight, rows.bias, rows.relu, quantizer.get("uniform"))
            return
        self.call(
            "rows", rows.kind, rows.x, out, rows.weight, rows.bias, rows.eps, rows.factor,
            quantizer.get("uniform"), quantizer.get("table"), quantizer.get("shift", 0.0),
        )  # fmt: skip

    def packed_rows(self, view: View, whole: bool) -> View:
        """A view of floats whose runs in memory are contiguous; `whole`: the last dimension is one of them."""
        order = [axis for axis in order_of(view) if view.shape[axis] > 1]
        good = not order or (view.strides[order[-1]] == 1 and all(view.strides[axis] > 0 for axis in order))
        last = len(view.shape) - 1
        if whole and view.shape[last] > 1:
            good = good and order[-1] == last
        return view if good else self.copied(view)


def build(program: Program, native: Any) -> tuple[Any, tuple[int, ...]]:
    """The native plan of a program, and the shape of its result for one image."""
    compiler = Compiler(program)
    arena, constants, size = compiler.run()
    plan = native.Plan(arena, 4 * math.prod(program.input_shape), 4 * size, np.frombuffer(constants or b"\0", np.uint8))
    for where, step, arguments in compiler.calls:
        resolved = [a.resolved() if isinstance(a, View) else a for a in arguments]
        try:
            getattr(plan, step)(*resolved)
        except ValueError as error:
            raise HalfbyteError(f"{where}: the native engine cannot run a step {step}: {error}") from None
    return plan, (size,)


Handler = Callable[[Compiler, Op, dict[str, Any], dict[str, Array]], None]
