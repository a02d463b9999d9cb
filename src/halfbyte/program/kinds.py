"""Every kind of operation: what it computes, how many inputs it takes, the form of its attributes, its tensors.

Unless said otherwise values are float32, every operation is rounded to float32 once, and broadcasting is NumPy's.
"float64" means: of the input as float64, computed in float64, rounded once to float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from halfbyte.form import Form, misfit, nullable, number, optional, whole

# A zero point beyond is lost in float32.
LARGEST_ZERO = 2**23
LARGEST_LEVEL = 2**15
LARGEST_DIMENSION = 2**31


@dataclass(frozen=True)
class Kind:
    """`arity`: how many inputs (None: one or more). `tensors`: role -> dtype, a role that may be absent ends in "?".
    `takes`: the dtype of the inputs, None for any."""

    meaning: str
    attributes: dict[str, Form] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    arity: tuple[int, ...] | None = (1,)
    takes: str | None = "float32"


def _whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST_DIMENSION


def _float32(value: Any) -> bool:
    """A finite number that float32 holds exactly."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 3.5e38:
        return False
    with np.errstate(over="ignore"):
        return float(np.float32(value)) == value


def _positive(value: Any) -> bool:
    return _float32(value) and bool(value > 0)


def _epsilon(value: Any) -> bool:
    return number(value) and 0 <= value <= 1


def _size(value: Any) -> bool:
    symbolic = isinstance(value, dict) and value.keys() == {"batch", "plus"} and all(map(_whole_number, value.values()))
    return symbolic or _whole_number(value)


def _between(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: whole(low)(value) and value <= high


def _some(form: Form, count: int | None = None) -> Callable[[Any], bool]:
    """A list of entries of one form, not empty, or of exactly `count`."""

    def test(value: Any) -> bool:
        fits = isinstance(value, list) and (len(value) == count if count else 0 < len(value) <= 2**16)
        return fits and misfit(value, [form], "") is None

    return test


def _thresholds(value: Any) -> bool:
    descending = _some(_between(0, 2**15))(value) and all(a >= b for a, b in pairwise(value))
    return descending and len(value) <= 255


def _operand(value: Any) -> bool:
    """How codes become whole numbers: `{"zero": [z...]}`, code - z; `{"levels": [...]}`, a table by code."""
    if not isinstance(value, dict) or len(value) != 1:
        return False
    level = _some(lambda entry: _whole_number(entry) and abs(entry) <= LARGEST_LEVEL)
    zero = _some(lambda entry: _whole_number(entry) and abs(entry) <= LARGEST_ZERO)
    return zero(value.get("zero")) or (level(value.get("levels")) and len(value["levels"]) <= 256)


_PAIR = _some(_between(1, 2**15), 2)
_PADS = _some(_some(_between(0, 2**15), 2), 2)
_AXIS = _between(0, 7)
_BINARY = Kind("{} of two values, or of one and the number `scalar`", {"scalar": optional(_float32)}, arity=(1, 2))
_WINDOW = {"kernel": _PAIR, "strides": _PAIR, "pads": _PADS}
_WEIGHTED = {"weight": "uint8", "zero": "int32", "scale": "float32", "bias?": "float32"}


def _binary(sign: str) -> Kind:
    return Kind(_BINARY.meaning.format(sign), _BINARY.attributes, arity=_BINARY.arity)


KINDS: dict[str, Kind] = {
    # Codes.
    "quantize": Kind(
        "uint8 codes clip(rint((x - beta) / scale) + zero, 0, last): a true division, half to even. scale and zero "
        "hold one number, or one for each index of the dimension `axis`",
        {"scale": _some(_positive), "zero": _some(_whole_number), "beta": _float32, "last": _between(1, 255),
         "axis": nullable(_AXIS)},
    ),
    "quantize_log": Kind(
        "uint8 codes by thresholds: h, the upper 16 bits of the float32 x + shift (0 where the sign is set), has as "
        "code the number of thresholds (falling) that are not below h",
        {"shift": _float32, "thresholds": _thresholds},
    ),
    # Integer sums. An operand's codes become whole numbers first (`_operand`); y = f32(f32(sum) * scale) + bias.
    "linear": Kind(
        "codes [..., I] times weight [O, I], whose whole numbers are its codes of `bits` bits less `zero` [O]; scale "
        "and bias [O]",
        {"bits": _between(1, 8), "input": _operand}, _WEIGHTED, takes="uint8",
    ),
    "conv": Kind(
        "the same for maps [B, I, H, W] and weight [O, I / groups, kh, kw]; what pads [[top, bottom], [left, right]] "
        "adds around them counts as the whole number 0",
        {"bits": _between(1, 8), "input": _operand, "strides": _PAIR, "pads": _PADS, "dilations": _PAIR,
         "groups": _between(1, 2**20)},
        _WEIGHTED, takes="uint8",
    ),
    "matmul": Kind(
        "codes [..., M, K] times codes [..., K, N]; scale and each zero hold one number, or one for each index of the "
        "dimension 1",
        {"left": _operand, "right": _operand, "scale": _some(_positive)}, arity=(2,), takes="uint8",
    ),
    # Arithmetic in float32.
    "add": _binary("the sum"),
    "subtract": _binary("the difference"),
    "multiply": _binary("the product"),
    "divide": _binary("the quotient"),
    "affine": Kind("x * scale, then + shift; both [C] along the dimension `axis`", {"axis": _AXIS},
                   {"scale": "float32", "shift": "float32"}),
    "relu": Kind("max(x, 0)"),
    "clip": Kind("min(max(x, low), high)", {"low": _float32, "high": _float32}),
    "gelu": Kind("x * (1/2 + c * P(c^2) / Q(c^2)) as in halfbyte/gelu.py, each operation in float32"),
    # Arithmetic in float64, rounded once.
    "sigmoid": Kind("float64: 1 / (1 + exp(-x))"),
    "silu": Kind("float64: x / (1 + exp(-x))"),
    "tanh": Kind("float64: tanh(x)"),
    "gelu_tanh": Kind("float64: x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))"),
    "hardsigmoid": Kind("float64: min(max(x + 3, 0), 6) / 6"),
    "hardswish": Kind("float64: x * min(max(x + 3, 0), 6) / 6"),
    "softmax": Kind("float64: exp(x - max) over its sum, along `axis`", {"axis": _AXIS}),
    "layer_norm": Kind("float64: (x - mean) / sqrt(variance + eps) over the last dimension, * weight + bias [C]",
                       {"eps": _epsilon}, {"weight?": "float32", "bias?": "float32"}),
    "rms_norm": Kind("float64: x / sqrt(mean of squares + eps) over the last dimension, * weight + bias [C]",
                     {"eps": _epsilon}, {"weight?": "float32", "bias?": "float32"}),
    "group_norm": Kind("float64: of [B, C, ...], each of `groups` groups of channels normalised, * weight + bias [C]",
                       {"eps": _epsilon, "groups": _between(1, 2**20)}, {"weight?": "float32", "bias?": "float32"}),
    "mean": Kind("float64: the mean over `axes`", {"axes": _some(_AXIS), "keep": bool}),
    "average_pool": Kind("float64: the mean of each window of [B, C, H, W]; padding counts as zeros", _WINDOW),
    "max_pool": Kind("the largest of each window of [B, C, H, W]; padding never wins", _WINDOW | {"dilations": _PAIR}),
    # Places; of any dtype.
    "constant": Kind("the tensor `value`", {}, {"value": "float32"}, arity=(0,)),
    "reshape": Kind("the same elements, row by row, in `shape`", {"shape": _some(_size)}, takes=None),
    "transpose": Kind("the dimensions in the order `axes`", {"axes": _some(_AXIS)}, takes=None),
    "slice": Kind("from `start` to before `stop` in steps of `step` along `axis`",
                  {"axis": _AXIS, "start": _size, "stop": _size, "step": _between(1, 2**20)}, takes=None),
    "select": Kind("the entry `index` along `axis`, which goes", {"axis": _AXIS, "index": _size}, takes=None),
    "concat": Kind("the inputs one behind the other along `axis`", {"axis": _AXIS}, arity=None, takes=None),
    "expand": Kind("broadcast to `shape`", {"shape": _some(_size)}, takes=None),
    "repeat": Kind("as often one behind the other as `times` says for each dimension (missing ones come first)",
                   {"times": _some(_size)}, takes=None),
    "pad": Kind("`value` around it: pads [before, after] of each dimension",
                {"pads": _some(_some(_between(0, 2**15), 2)), "value": _float32}),
    "roll": Kind("the entries moved on by `shifts` along `axes`, round and round",
                 {"shifts": _some(_whole_number), "axes": _some(_AXIS)}, takes=None),
    "gather": Kind("the entries `index` [n] along `axis`", {"axis": _AXIS}, {"index": "int32"}, takes=None),
}  # fmt: skip
