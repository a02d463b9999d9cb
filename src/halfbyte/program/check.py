"""Whether a program can run: names defined once and before their use, every part of the form that its kind asks for."""

from __future__ import annotations

import math

import numpy as np

from halfbyte.errors import HalfbyteError, did_you_mean
from halfbyte.form import misfit
from halfbyte.program.batch import Use, images_axis
from halfbyte.program.kinds import KINDS, LARGEST_ZERO, Kind
from halfbyte.program.ops import INPUT, Array, Op, Program, at_batch
from halfbyte.program.shapes import MisfitError, Shape, output_shape

# Shape and dtype of each value.
Values = dict[str, tuple[Shape, str]]

# Elements of one value of one image: what an honest model stays far below.
LARGEST_VALUE = 2**28
MOST_OPS = 2**17
# Multiply-adds of one image, values counted as a few each.
MOST_WORK = 2**40
_WORK_OF_VALUE = 2**3
_DTYPES = ("uint8", "int32", "float32")
# Shapes that fit for both fit for any number: of each value one dimension is a multiple of it, the others are fixed.
_BATCHES = (1, 2)


def check(program: Program) -> None:
    """Raise `HalfbyteError`, in one line that names the operation, unless `program` can run for any batch."""
    wrong = misfit(list(program.input_shape), [int], "input")
    if wrong or len(program.input_shape) != 3 or not 0 < math.prod(program.input_shape) <= LARGEST_VALUE:
        raise HalfbyteError(f"a program takes images [C, H, W], not {list(program.input_shape)}")
    if min(program.input_shape) < 1 or len(program.ops) > MOST_OPS:
        raise HalfbyteError("a program must have sizes above zero and an honest number of operations")
    for name, tensor in program.tensors.items():
        if tensor.dtype.name not in _DTYPES or (tensor.dtype == np.float32 and not np.isfinite(tensor).all()):
            raise HalfbyteError(f"the program's tensor {name} must be finite and one of {', '.join(_DTYPES)}")
    for op in program.ops:
        _check_op(op, program)
    one, two = (value_shapes(program, batch) for batch in _BATCHES)
    if _work(program, one) > MOST_WORK:
        raise HalfbyteError("the program needs more than 2**40 multiply-adds for one image")
    _check_images(program, one, two)
    for batch, values in zip(_BATCHES, (one, two), strict=True):
        shape, dtype = values.get(program.output, ((), ""))
        if dtype != "float32" or len(shape) != 2 or shape[0] != batch:
            raise HalfbyteError(f"the program's output {program.output} must be float32 [B, classes], is {list(shape)}")


def _check_images(program: Program, one: Values, two: Values) -> None:
    """No image may change what becomes of another one: engines run them one by one."""
    axes: dict[str, int | None] = {INPUT: 0}
    for op in program.ops:
        inputs, shapes = [axes[name] for name in op.inputs], [one[name][0] for name in op.inputs]
        attributes, of_two = (at_batch(op.attributes, batch) for batch in _BATCHES)
        use = Use(inputs, shapes, attributes, of_two, one[op.output][0], two[op.output][0])
        try:
            axes[op.output] = images_axis(op.kind, use)
        except MisfitError as error:
            raise HalfbyteError(f"{_where(op)} {error}") from None


def value_shapes(program: Program, batch: int) -> Values:
    """Shape and dtype of every value for `batch` images; raises `HalfbyteError` where an operation does not fit."""
    values: Values = {INPUT: ((batch, *program.input_shape), "float32")}
    for op in program.ops:
        for name in op.inputs:
            if name not in values:
                raise HalfbyteError(f"{_where(op)} uses {name} before it is defined")
        if op.output in values:
            raise HalfbyteError(f"{_where(op)} defines {op.output} a second time")
        dtypes = {values[name][1] for name in op.inputs}
        takes = KINDS[op.kind].takes
        if len(dtypes) > 1 or (takes is not None and dtypes - {takes}):
            raise HalfbyteError(f"{_where(op)} takes {takes or 'one dtype'}, not {' and '.join(sorted(dtypes))}")
        tensors = {role: program.tensors[name] for role, name in op.tensors.items()}
        try:
            shape = output_shape(
                op.kind, [values[name][0] for name in op.inputs], at_batch(op.attributes, batch), tensors
            )
        except (ValueError, IndexError, OverflowError) as error:
            raise HalfbyteError(f"{_where(op)} does not fit its inputs: {error}") from None
        if math.prod(shape) > LARGEST_VALUE * batch or min(shape, default=1) < 1 or len(shape) > 8:
            raise HalfbyteError(f"{_where(op)} makes a value of the impossible size {list(shape)}")
        values[op.output] = (shape, _dtype(op, dtypes))
    return values


def work(program: Program) -> int:
    """About how many multiply-adds one image takes; raises `HalfbyteError` where an operation does not fit."""
    return _work(program, value_shapes(program, 1))


def _work(program: Program, values: Values) -> int:
    return sum(math.prod(values[op.output][0]) * _terms(op, program, values) for op in program.ops)


def _terms(op: Op, program: Program, values: Values) -> int:
    """About how many multiply-adds one value of its output takes."""
    if op.kind in ("linear", "conv"):
        return math.prod(program.tensors[op.tensors["weight"]].shape[1:])
    if op.kind == "matmul":
        return values[op.inputs[0]][0][-1]
    if op.kind in ("average_pool", "max_pool"):
        return int(math.prod(op.attributes["kernel"])) * _WORK_OF_VALUE
    inputs = max((math.prod(values[name][0]) for name in op.inputs), default=1)
    return max(1, inputs // math.prod(values[op.output][0])) * _WORK_OF_VALUE


def _dtype(op: Op, inputs: set[str]) -> str:
    if op.kind.startswith("quantize"):
        return "uint8"
    return next(iter(inputs)) if KINDS[op.kind].takes is None else "float32"


def _check_op(op: Op, program: Program) -> None:
    kind = KINDS.get(op.kind)
    if kind is None:
        raise HalfbyteError(f"unknown kind of operation {op.kind!r}{did_you_mean(op.kind, KINDS)}")
    if not op.output or (len(op.inputs) not in kind.arity if kind.arity is not None else not op.inputs):
        raise HalfbyteError(f"{_where(op)} has {len(op.inputs)} inputs")
    attributes = dict(op.attributes)
    if (wrong := misfit(attributes, kind.attributes, "")) is not None:
        raise HalfbyteError(f"{_where(op)}: the attribute {wrong.lstrip('.') or 'list'} is missing or wrong")
    if (extra := next(iter(attributes.keys() - kind.attributes.keys()), None)) is not None:
        raise HalfbyteError(f"{_where(op)} has an attribute {extra!r} that {op.kind} does not know")
    _check_tensors(op, kind, program.tensors)
    if op.kind in ("linear", "conv"):
        _check_sums(op, program.tensors)


def _check_tensors(op: Op, kind: Kind, tensors: dict[str, Array]) -> None:
    wanted = {role.rstrip("?"): dtype for role, dtype in kind.tensors.items()}
    needed = {role for role in kind.tensors if not role.endswith("?")}
    if not needed <= op.tensors.keys() <= wanted.keys():
        raise HalfbyteError(f"{_where(op)} needs the tensors {', '.join(kind.tensors)}, has {', '.join(op.tensors)}")
    for role, name in op.tensors.items():
        if name not in tensors:
            raise HalfbyteError(f"{_where(op)}: the program has no tensor {name}")
        if tensors[name].dtype.name != wanted[role]:
            raise HalfbyteError(f"{_where(op)}: its {role} {name} must be {wanted[role]}")


def _check_sums(op: Op, tensors: dict[str, Array]) -> None:
    zero = tensors[op.tensors["zero"]]
    if zero.size and int(np.abs(zero.astype(np.int64)).max()) > LARGEST_ZERO:
        raise HalfbyteError(f"{_where(op)} has a zero point beyond 2**23")


def _where(op: Op) -> str:
    return f"the operation {op.kind} {op.output!r}"
