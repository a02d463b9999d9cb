"""The integer model as data: tensors, and a flat list of operations in the order in which they run.

Values are arrays with the images in the first dimension; their dtype is float32, or uint8 for codes. What depends on
the number of images B is written `{"batch": a, "plus": c}` and stands for a * B + c. Every kind of operation is in
`KINDS` (kinds.py); `interpret.py` defines what it computes, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from halfbyte.errors import HalfbyteError

Array = npt.NDArray[Any]
# The name of the images, float32 `[B, C, H, W]`, preprocessed.
INPUT = "input"


@dataclass(frozen=True)
class Op:
    """One operation: `output` = kind(`inputs`). `attributes` are plain JSON values, `tensors` say which of the
    program's tensors has which role."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """`ops` take `INPUT`, float32 `[B, *input_shape]`, to the value `output`, float32 `[B, classes]`.

    `facts` are plain values about the model ("architecture", "classes", "preprocessing" ...). "approximate" among them
    lists the operations that torch computes in float32 in an order of its own; the program rounds them once.
    """

    ops: tuple[Op, ...]
    tensors: dict[str, Array]
    input_shape: tuple[int, ...]
    output: str
    facts: dict[str, Any] = field(default_factory=dict)


def checked_images(images: Any, shape: tuple[int, ...]) -> Array:
    """`images` as contiguous float32 `[B, *shape]`.

    Raises `HalfbyteError` for another shape, for none, and for whole numbers: pixels that nobody preprocessed.
    """
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[1:] != shape or not len(array):
        wanted = ", ".join(map(str, shape))
        raise HalfbyteError(f"the model takes images [B, {wanted}], one or more, not {list(array.shape)}")
    if array.dtype.kind != "f":
        raise HalfbyteError(
            f"the model takes preprocessed images of floats, not {array.dtype}; scale and normalise the pixels first"
        )
    return np.ascontiguousarray(array, np.float32)


def readers(program: Program) -> dict[str, list[Op]]:
    """The operations that read each value, by its name; none for what nobody reads."""
    found: dict[str, list[Op]] = {}
    for op in program.ops:
        for name in op.inputs:
            found.setdefault(name, []).append(op)
    return found


def at_batch(value: Any, batch: int) -> Any:
    """An attribute for B = `batch`: every `{"batch": a, "plus": c}` in it becomes a * B + c."""
    if isinstance(value, dict):
        if value.keys() == {"batch", "plus"}:
            return value["batch"] * batch + value["plus"]
        return {key: at_batch(part, batch) for key, part in value.items()}
    return [at_batch(part, batch) for part in value] if isinstance(value, list) else value
