"""Every integer operation of the native engine gives the interpreter's bits, for every pair of widths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from halfbyte.errors import HalfbyteError
from halfbyte.program.interpret import run
from halfbyte.program.ops import INPUT, Op, Program
from halfbyte.runtime import Engine, native

pytestmark = pytest.mark.skipif(not native.available(), reason="the native kernels were not built")
WIDTHS = range(2, 9)
BATCH = {"batch": 1, "plus": 0}
# (groups, inputs, outputs, kernel, strides, dilations, pads)
CONVS = {
    "plain": (1, 6, 5, (3, 3), [1, 1], [1, 1], [[1, 1], [1, 1]]),
    "strided": (1, 3, 17, (3, 2), [2, 3], [1, 1], [[0, 1], [2, 0]]),
    "dilated": (1, 6, 4, (2, 3), [1, 2], [3, 2], [[2, 2], [0, 3]]),
    "grouped": (3, 6, 9, (3, 3), [1, 1], [1, 1], [[1, 1], [1, 1]]),
    "depthwise": (6, 6, 6, (3, 3), [2, 1], [1, 2], [[1, 0], [2, 2]]),
    "pointwise": (1, 6, 7, (1, 1), [1, 1], [1, 1], [[0, 0], [0, 0]]),
}


class Build:
    """A program that is put together operation by operation; each method returns the name of its value."""

    def __init__(self, shape: tuple[int, int, int], seed: int) -> None:
        self.shape, self.generator = shape, np.random.default_rng(seed)
        self.ops: list[Op] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.results: list[str] = []

    def op(self, kind: str, inputs: tuple[str, ...], attributes: dict[str, Any], **tensors: np.ndarray) -> str:
        name = f"v{len(self.ops)}"
        self.tensors |= {f"{name}.{role}": tensor for role, tensor in tensors.items()}
        self.ops.append(Op(kind, inputs, name, attributes, {role: f"{name}.{role}" for role in tensors}))
        return name

    def codes(self, x: str, bits: int, **others: Any) -> str:
        """The images hold codes already, so that extreme ones can be given."""
        plain = {"scale": [1.0], "zero": [0], "beta": 0.0, "last": 2**bits - 1, "axis": None}
        return self.op("quantize", (x,), plain | others)

    def weight(self, shape: tuple[int, ...], bits: int, way: str) -> dict[str, np.ndarray]:
        last, rows = 2**bits - 1, shape[0]
        codes = {"low": np.zeros(shape), "high": np.full(shape, last)}.get(
            way, self.generator.integers(0, last + 1, shape)
        )
        zero = {"low": np.full(rows, last), "high": np.zeros(rows)}.get(way, self.generator.integers(0, last + 1, rows))
        return {
            "weight": codes.astype(np.uint8), "zero": zero.astype(np.int32),
            "scale": self.generator.uniform(0.1, 1, rows).astype(np.float32),
            "bias": self.generator.normal(0, 1, rows).astype(np.float32),
        }  # fmt: skip

    def result(self, name: str, elements: int) -> None:
        self.results.append(self.op("reshape", (name,), {"shape": [BATCH, elements]}))

    def same(self, images: np.ndarray) -> None:
        """Engine and interpreter agree in all results."""
        self.op("concat", tuple(self.results), {"axis": 1})
        program = Program(tuple(self.ops), self.tensors, self.shape, self.ops[-1].output)
        images = images.astype(np.float32)
        np.testing.assert_array_equal(Engine(program, threads=2)(images), run(program, images))


def extremes(shape: tuple[int, ...], bits: int) -> np.ndarray:
    """Images of random codes, of all 0 and of all the largest."""
    random = np.random.default_rng(bits).integers(0, 2**bits, shape)
    return np.stack([random, np.zeros(shape, int), np.full(shape, 2**bits - 1)])


@pytest.mark.parametrize("a", WIDTHS)
def test_linears(isa, a):
    build = Build((3, 5, 70), a)
    x = build.codes(INPUT, a)
    for w in WIDTHS:
        for way, zero in (
            ("random", 3),
            ("low", 2**a - 1),
            ("high", 0),
            ("low", 0),
            ("high", -(2**a)),
            ("random", 300),
        ):
            y = build.op("linear", (x,), {"bits": w, "input": {"zero": [zero]}}, **build.weight((19, 70), w, way))
            build.result(y, 3 * 5 * 19)
    build.same(extremes(build.shape, a))


@pytest.mark.parametrize("a", WIDTHS)
@pytest.mark.parametrize("conv", CONVS)
def test_convolutions(isa, conv, a):
    groups, inputs, outputs, kernel, strides, dilations, pads = CONVS[conv]
    build = Build((inputs, 7, 9), a)
    x = build.codes(INPUT, a)
    sizes = [
        (size + sum(pad) - dilation * (length - 1) - 1) // stride + 1
        for size, pad, dilation, length, stride in zip((7, 9), pads, dilations, kernel, strides, strict=True)
    ]
    for w in WIDTHS:
        # A zero point beyond the codes is what pads with more bits than they have.
        for way, zero in (("random", 2 ** (a - 1)), ("low", 2**a - 1), ("high", 0), ("high", 255)):
            attributes = {"bits": w, "input": {"zero": [zero]}, "strides": strides, "pads": pads,
                          "dilations": dilations, "groups": groups}  # fmt: skip
            y = build.op("conv", (x,), attributes, **build.weight((outputs, inputs // groups, *kernel), w, way))
            build.result(y, outputs * sizes[0] * sizes[1])
    build.same(extremes(build.shape, a))


@pytest.mark.parametrize("a", WIDTHS)
def test_products_of_activations(isa, a):
    """Both operands come from the images: their extremes meet. Zero points by head, and at both ends."""
    build = Build((2, 9, 37), a)
    left = build.codes(INPUT, a)
    for b in WIDTHS:
        right = build.op("transpose", (build.codes(INPUT, b),), {"axes": [0, 1, 3, 2]})
        for zeros in (([0], [2**b - 1]), ([2**a - 1, 0], [0, 2**b - 1]), ([-5], [1, 300])):
            attributes = {"left": {"zero": zeros[0]}, "right": {"zero": zeros[1]}, "scale": [0.5, 0.125]}
            build.result(build.op("matmul", (left, right), attributes), 2 * 9 * 9)
    build.same(extremes(build.shape, a))


@pytest.mark.parametrize("largest", [2**8 - 1, 2**15 - 1])
@pytest.mark.parametrize("a", WIDTHS)
def test_products_of_levels(isa, a, largest):
    """The largest levels, whose sums pass 2^31 with wide codes on the right."""
    build = Build((2, 7, 530), a)
    left = build.codes(INPUT, a)
    levels = np.linspace(0, largest, 2**a).astype(int).tolist()
    for b in WIDTHS:
        right = build.op("transpose", (build.codes(INPUT, b),), {"axes": [0, 1, 3, 2]})
        for zeros in ([0], [2**b - 1, 0], [-900]):
            attributes = {"left": {"levels": levels}, "right": {"zero": zeros}, "scale": [0.5]}
            build.result(build.op("matmul", (left, right), attributes), 2 * 7 * 7)
        y = build.op("linear", (left,), {"bits": b, "input": {"levels": levels}}, **build.weight((5, 530), b, "high"))
        build.result(y, 2 * 7 * 5)
    build.same(extremes(build.shape, a))


@pytest.mark.parametrize("bits", range(1, 9))
def test_quantizers(isa, bits):
    """Uniform ones with one pair of numbers or one a head, and logarithmic ones, of values on their very bounds."""
    build = Build((3, 5, 67), bits)
    last, generator = 2**bits - 1, np.random.default_rng(bits)
    for attributes in (
        {"scale": [0.3], "zero": [last // 2], "beta": -0.125, "axis": None},
        {"scale": [2.0**-140], "zero": [0], "axis": None},
        {"scale": [0.5], "zero": [-(2**22)], "axis": None},
        {"scale": [1.0, 0.25, 2.0**100], "zero": [0, last, 40], "axis": 1},
        {"scale": [0.7], "zero": [2, 1, 0], "axis": 1},
    ):  # fmt: skip
        attributes["scale"] = [float(np.float32(scale)) for scale in attributes["scale"]]
        x = build.codes(INPUT, bits, **attributes)
        build.result(build.op("linear", (x,), {"bits": 2, "input": {"zero": [0]}}, **_eye(67)), 3 * 5 * 67)
    for shift in (0.0, 2.0**-20):
        thresholds = sorted(generator.integers(0, 2**15, last).tolist(), reverse=True)
        x = build.op("quantize_log", (INPUT,), {"shift": shift, "thresholds": thresholds})
        build.result(build.op("linear", (x,), {"bits": 2, "input": {"zero": [0]}}, **_eye(67)), 3 * 5 * 67)
    values = generator.normal(0, 4, (2, *build.shape)).astype(np.float32)
    halves = np.round(values[0] * 4) / 8
    special = values[1].copy()
    special.reshape(-1)[:6] = [0.0, -0.0, np.inf, -np.inf, 3.4e38, 1e-45]
    build.same(np.stack([values[0], halves, special]))


def _eye(size: int) -> dict[str, np.ndarray]:
    """A weight that hands the codes on."""
    one = np.ones(size, np.float32)
    return {"weight": np.eye(size, dtype=np.uint8), "zero": np.zeros(size, np.int32), "scale": one, "bias": 0 * one}


def test_what_cannot_be_exact_is_refused():
    """Sums past 2^31 that are no sums of levels, and what pads beyond 8 bits."""
    far = Build((1, 4, 300), 0)
    y = far.op(
        "linear", (far.codes(INPUT, 8),), {"bits": 8, "input": {"zero": [2**23]}}, **far.weight((3, 300), 8, "high")
    )
    far.result(y, 12)
    wide = Build((1, 4, 300), 0)
    operand = {"zero": [2**20]}
    x = wide.codes(INPUT, 8)
    y = wide.op(
        "matmul",
        (x, wide.op("transpose", (x,), {"axes": [0, 1, 3, 2]})),
        {"left": operand, "right": operand, "scale": [1.0]},
    )
    wide.result(y, 16)
    deep = Build((2, 4, 4), 0)
    own = {
        "bits": 8,
        "strides": [1, 1],
        "pads": [[0, 0], [0, 0]],
        "dilations": [1, 1],
        "groups": 2,
        "input": {"zero": [0]},
    }
    parts = deep.weight((2, 1, 3, 3), 8, "high") | {"zero": np.full(2, 2**23, np.int32)}
    deep.result(deep.op("conv", (deep.codes(INPUT, 8),), own, **parts), 8)
    for build in (far, wide, deep):
        program = Program(tuple(build.ops), build.tensors, build.shape, build.ops[-1].output)
        assert np.isfinite(run(program, np.zeros((1, *build.shape), np.float32))).all()
        with pytest.raises(
            HalfbyteError, match=r"^v\d: .* cannot run a step .* may pass 2\^31.*; use --engine interpreter$"
        ) as raised:
            Engine(program)
        assert "\n" not in str(raised.value)
    padded = Build((2, 4, 4), 0)
    attributes = own | {"pads": [[1, 0], [0, 0]], "input": {"zero": [256]}, "groups": 1}
    padded.result(padded.op("conv", (padded.codes(INPUT, 8),), attributes, **padded.weight((2, 2, 3, 3), 8, "low")), 12)
    with pytest.raises(HalfbyteError, match="has no convolution of such codes"):
        Engine(Program(tuple(padded.ops), padded.tensors, padded.shape, padded.ops[-1].output))
