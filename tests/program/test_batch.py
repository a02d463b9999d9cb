"""Images of a batch that affect each other are refused; wherever else they lie, a batch gives what its images give."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from tests.program.conftest import images_of

from halfbyte.errors import HalfbyteError
from halfbyte.program import check as checking
from halfbyte.program.check import check
from halfbyte.program.interpret import Interpreter
from halfbyte.program.ops import INPUT, Op, Program, at_batch
from halfbyte.program.shapes import output_shape

SHAPE = (2, 4, 4)
BATCH = {"batch": 1, "plus": 0}
ROWS = {"shape": [BATCH, 32]}
WINDOW = {"kernel": [2, 1], "strides": [1, 1], "pads": [[1, 0], [0, 0]]}
PER_CONV = {"bits": 4, "input": {"zero": [7]}, "strides": [1, 1], "pads": [[1, 1], [0, 0]], "dilations": [1, 1],
            "groups": 1}  # fmt: skip
CODES = {"scale": [0.25], "zero": [7], "beta": 0.0, "last": 15, "axis": None}
PRODUCT = {"left": {"zero": [7]}, "right": {"zero": [7]}, "scale": [0.125]}
TENSORS = {
    "two": np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32),
    "square": np.linspace(-3, 3, 512, dtype=np.float32).reshape(2, 16, 16),
    "first": np.zeros(1, np.int32), "weight": np.arange(48, dtype=np.uint8).reshape(4, 4, 3, 1) % 16,
    "zero": np.full(4, 8, np.int32), "scale": np.ones(4, np.float32),
}  # fmt: skip

# Each gives the value `y` with as many elements as the images have, or what `Y` says.
Ops = list[tuple[str, tuple[str, ...], str, dict[str, Any]]]
MAPS_LAST = ("transpose", (INPUT,), "t", {"axes": [1, 2, 0, 3]})  # [2, 4, B, 4]
AND_BACK = {"axes": [2, 0, 1, 3]}
TOKENS = [("reshape", (INPUT,), "r", {"shape": [BATCH, 2, 16]}), ("quantize", ("r",), "rq", CODES),
          ("transpose", ("rq",), "left", {"axes": [1, 0, 2]}),
          ("transpose", ("rq",), "right", {"axes": [1, 2, 0]})]  # fmt: skip
MIXED: dict[str, Ops] = {
    "mean": [("mean", (INPUT,), "m", {"axes": [0], "keep": True}), ("subtract", (INPUT, "m"), "y", {})],
    "max_pool": [MAPS_LAST, ("max_pool", ("t",), "m", WINDOW | {"dilations": [1, 1]}),
                 ("transpose", ("m",), "y", AND_BACK)],
    "average_pool": [MAPS_LAST, ("average_pool", ("t",), "m", WINDOW), ("transpose", ("m",), "y", AND_BACK)],
    "concat": [("concat", (INPUT, INPUT), "c", {"axis": 0}), ("reshape", ("c",), "r", {"shape": [BATCH, 64]}),
               ("slice", ("r",), "y", {"axis": 1, "start": 16, "stop": 48, "step": 1})],
    "transpose": [("transpose", (INPUT,), "t", {"axes": [1, 0, 2, 3]}), ("reshape", ("t",), "y", ROWS)],
    "reshape": [("transpose", (INPUT,), "t", {"axes": [1, 0, 2, 3]}),
                ("reshape", ("t",), "y", {"shape": [{"batch": 2, "plus": 0}, 16]})],
    "reshape to one dimension": [("reshape", (INPUT,), "r", {"shape": [16, {"batch": 2, "plus": 0}]}),
                                 ("mean", ("r",), "m", {"axes": [1], "keep": False}),
                                 ("reshape", ("m",), "n", {"shape": [1, 1, 4, 4]}), ("add", (INPUT, "n"), "y", {})],
    "roll": [("roll", (INPUT,), "y", {"shifts": [1, 2], "axes": [2, 0]})],
    "softmax": [("softmax", (INPUT,), "y", {"axis": 0})],
    "slice": [("slice", (INPUT,), "s", {"axis": 0, "start": 0, "stop": 1, "step": 1}), ("add", (INPUT, "s"), "y", {})],
    "select": [("select", (INPUT,), "s", {"axis": 0, "index": 0}), ("add", (INPUT, "s"), "y", {})],
    "select the last": [("select", (INPUT,), "s", {"axis": 0, "index": {"batch": 1, "plus": -1}}),
                        ("add", (INPUT, "s"), "y", {})],
    "select by their number": [("select", (INPUT,), "s", {"axis": 3, "index": {"batch": 1, "plus": -1}}),
                               ("reshape", ("s",), "r", {"shape": [BATCH, 2, 4, 1]}), ("add", (INPUT, "r"), "y", {})],
    "gather": [("gather", (INPUT,), "g", {"axis": 0}), ("add", (INPUT, "g"), "y", {})],
    "pad": [("pad", (INPUT,), "p", {"pads": [[1, 0], [0, 0], [0, 0], [0, 0]], "value": 0.5}),
            ("slice", ("p",), "y", {"axis": 0, "start": 0, "stop": BATCH, "step": 1})],
    "repeat": [("repeat", (INPUT,), "t", {"times": [2, 1, 1, 1]}), ("reshape", ("t",), "r", {"shape": [BATCH, 64]}),
               ("slice", ("r",), "y", {"axis": 1, "start": 0, "stop": 32, "step": 1})],
    "expand": [("reshape", (INPUT,), "r", ROWS), ("expand", ("r",), "e", {"shape": [BATCH, BATCH, 32]}),
               ("mean", ("e",), "y", {"axes": [1], "keep": False})],
    "broadcast": [("reshape", (INPUT,), "a", {"shape": [BATCH, 1, 32]}),
                  ("reshape", (INPUT,), "b", {"shape": [1, BATCH, 32]}), ("subtract", ("a", "b"), "d", {}),
                  ("mean", ("d",), "y", {"axes": [1], "keep": False})],
    "attention": [*TOKENS, ("matmul", ("left", "right"), "a", PRODUCT), ("quantize", ("a",), "aq", CODES),
                  ("matmul", ("aq", "left"), "o", PRODUCT), ("transpose", ("o",), "y", {"axes": [1, 0, 2]})],
    "product over them": [*TOKENS, ("matmul", ("right", "left"), "a", PRODUCT),
                          ("mean", ("a",), "m", {"axes": [0, 1], "keep": False}),
                          ("reshape", ("m",), "n", {"shape": [4, 4]}), ("add", (INPUT, "n"), "y", {})],
    "convolution": [MAPS_LAST, ("quantize", ("t",), "q", CODES), ("conv", ("q",), "c", PER_CONV),
                    ("transpose", ("c",), "y", AND_BACK)],
    "layer_norm": [("transpose", (INPUT,), "t", {"axes": [1, 2, 3, 0]}), ("layer_norm", ("t",), "n", {"eps": 1e-5}),
                   ("transpose", ("n",), "y", {"axes": [3, 0, 1, 2]})],
    "group_norm": [("transpose", (INPUT,), "t", {"axes": [1, 0, 2, 3]}),
                   ("group_norm", ("t",), "n", {"eps": 1e-5, "groups": 1}),
                   ("transpose", ("n",), "y", {"axes": [1, 0, 2, 3]})],
}  # fmt: skip
# The images lie elsewhere, several entries each, or meet constants.
APART: dict[str, Ops] = {
    "in the second dimension": [("transpose", (INPUT,), "t", {"axes": [1, 0, 2, 3]}),
                                ("max_pool", ("t",), "m", WINDOW | {"dilations": [1, 1]}),
                                ("softmax", ("m",), "s", {"axis": 0}),
                                ("transpose", ("s",), "y", {"axes": [1, 0, 2, 3]})],
    "windows": [("reshape", (INPUT,), "w", {"shape": [BATCH, 2, 2, 2, 4]}),
                ("transpose", ("w",), "v", {"axes": [0, 2, 1, 3, 4]}),
                ("reshape", ("v",), "u", {"shape": [{"batch": 2, "plus": 0}, 4, 4]}),
                ("roll", ("u",), "y", {"shifts": [1], "axes": [1]})],
    "a mean and a dimension less": [("transpose", (INPUT,), "t", {"axes": [1, 2, 0, 3]}),
                                    ("mean", ("t",), "m", {"axes": [0, 1], "keep": False}),
                                    ("reshape", ("m",), "n", {"shape": [BATCH, 1, 1, 4]}),
                                    ("add", (INPUT, "n"), "y", {})],
    "columns of a constant": [*TOKENS, ("constant", (), "c", {}), ("quantize", ("c",), "cq", CODES),
                              ("matmul", ("cq", "right"), "a", PRODUCT),
                              ("transpose", ("a",), "y", {"axes": [2, 0, 1]})],
    "rows of a constant": [*TOKENS, ("constant", (), "c", {}), ("quantize", ("c",), "cq", CODES),
                           ("matmul", ("left", "cq"), "a", PRODUCT), ("transpose", ("a",), "y", {"axes": [1, 0, 2]})],
    "a constant for each": [("constant", (), "c", {}), ("repeat", ("c",), "e", {"times": [BATCH, 1, 1]}),
                            ("reshape", ("e",), "f", {"shape": [BATCH, 2, 256]}),
                            ("reshape", (INPUT,), "r", {"shape": [BATCH, 2, 16]}),
                            ("concat", ("f", "r"), "g", {"axis": 2}),
                            ("slice", ("g",), "y", {"axis": 2, "start": 250, "stop": 266, "step": 1})],
}  # fmt: skip
ROLES = {"gather": {"index": "first"}, "conv": {"weight": "weight", "zero": "zero", "scale": "scale"},
         "constant": {"value": "square"}}  # fmt: skip


def _program(ops: Ops) -> Program:
    made = [Op(kind, inputs, output, attributes, ROLES.get(kind, {})) for kind, inputs, output, attributes in ops]
    return Program((*made, Op("reshape", ("y",), "out", ROWS)), TENSORS, SHAPE, "out")


def _alone(program: Program, images: np.ndarray) -> np.ndarray:
    interpreter = Interpreter(program)
    return np.concatenate([interpreter(image[None]) for image in images])


IMAGES = images_of(SHAPE, 3).numpy()


@pytest.mark.parametrize("ops", MIXED.values(), ids=MIXED.keys())
def test_images_that_affect_each_other_are_refused(ops, monkeypatch):
    program = _program(ops)
    with pytest.raises(HalfbyteError, match="lets the images of a batch affect each other") as refused:
        check(program)
    assert "\n" not in str(refused.value)
    # And rightly so: it fits together, and its images give something else alone.
    monkeypatch.setattr(checking, "_check_images", lambda *_: None)
    assert not np.array_equal(Interpreter(program)(IMAGES), _alone(program, IMAGES))


def test_what_is_made_for_a_number_of_images_is_refused():
    ops: Ops = [("reshape", (INPUT,), "r", ROWS), ("constant", (), "c", {}), ("add", ("r", "c"), "a", {}),
                ("mean", ("a",), "m", {"axes": [0], "keep": True}), ("add", ("r", "m"), "y", {})]  # fmt: skip
    program = _program(ops)
    constant = Op("constant", (), "c", {}, {"value": "two"})
    program = Program(tuple(constant if op.kind == "constant" else op for op in program.ops), TENSORS, SHAPE, "out")
    with pytest.raises(HalfbyteError, match="the operation add 'a' lets the images"):
        check(program)


@pytest.mark.parametrize("ops", APART.values(), ids=APART.keys())
def test_a_batch_gives_what_its_images_give(ops):
    program = _program(ops)
    np.testing.assert_array_equal(Interpreter(program)(IMAGES), _alone(program, IMAGES))


def _sizes(shape: tuple[int, ...], chance: random.Random) -> list[Any] | None:
    """Another shape [..., B or 2B ..., ...] of [..., B, ...], given for one image; None where there is none."""
    elements = math.prod(shape)
    sizes = [chance.choice([size for size in range(1, elements + 1) if elements % size == 0]) for _ in range(3)]
    if elements % math.prod(sizes):
        return None
    sizes.append(elements // math.prod(sizes))
    place = chance.randrange(4)
    return [{"batch": size, "plus": 0} if axis == place else size for axis, size in enumerate(sizes)]


KINDS = ("transpose", "reshape", "mean", "softmax", "roll", "pad", "slice", "repeat", "layer_norm")


def _step(shape: tuple[int, ...], chance: random.Random) -> tuple[str, dict[str, Any]] | None:
    axes, axis = list(range(len(shape))), chance.randrange(len(shape))
    kind = chance.choice([*KINDS, "reshape"])
    if kind == "reshape":
        sizes = _sizes(shape, chance)
        return None if sizes is None else (kind, {"shape": sizes})
    return kind, {
        "transpose": {"axes": chance.sample(axes, len(axes))}, "mean": {"axes": [axis], "keep": True},
        "softmax": {"axis": axis}, "roll": {"shifts": [1], "axes": [axis]},
        "pad": {"pads": [[int(own == axis), 0] for own in axes], "value": 1.0},
        "slice": {"axis": axis, "start": 0, "stop": chance.randint(1, shape[axis]), "step": 1},
        "repeat": {"times": [1 + int(own == axis) for own in axes]}, "layer_norm": {"eps": 1e-5},
    }[kind]  # fmt: skip


def _walk(chance: random.Random) -> Program:
    """Some operations by chance, and rows of what they give."""
    ops, shape = [], (1, *SHAPE)
    while len(ops) < 5:
        step = _step(shape, chance)
        if step is None:
            continue
        kind, attributes = step
        ops.append(Op(kind, (ops[-1].output if ops else INPUT,), f"v{len(ops)}", attributes))
        shape = output_shape(kind, [shape], at_batch(attributes, 1), {})
    rows = {"shape": [BATCH, math.prod(shape)]}
    return Program((*ops, Op("reshape", (ops[-1].output,), "out", rows)), {}, SHAPE, "out")


def test_programs_by_chance():
    """Whatever is accepted gives for a batch what its images give."""
    accepted = refused = 0
    for seed in range(1500):
        program = _walk(random.Random(seed))
        try:
            check(program)
        except HalfbyteError as error:
            refused += "affect each other" in str(error)  # else it does not fit two images
            continue
        accepted += 1
        np.testing.assert_array_equal(Interpreter(program)(IMAGES), _alone(program, IMAGES))
    assert min(accepted, refused) > 200
