"""Which dimension of each value holds the images, and that no operation lets them affect each other.

An engine may run one image after the other where every value of B images is, along one dimension, the values of the
single images one behind the other. Such a dimension may hold several entries an image: heads, windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from halfbyte.program.shapes import MisfitError, Shape

# What may say how many images there are: only sizes into which values are laid out anew.
_LAID_OUT = ("reshape", "expand", "repeat")


class Use(NamedTuple):
    """An operation, and where its inputs hold the images.

    `axes`: which dimension of each input holds them, None for a constant. The `shapes` of the inputs, `attributes` and
    the shape `made` are those for one image.
    """

    axes: list[int | None]
    shapes: list[Shape]
    attributes: Mapping[str, Any]
    attributes_of_two: Mapping[str, Any]
    made: Shape
    made_of_two: Shape

    @property
    def axis(self) -> int:
        """That of the input, for operations of one."""
        (axis,) = self.axes
        assert axis is not None
        return axis

    @property
    def grown(self) -> list[int]:
        """The dimensions of the output that depend on the number of images."""
        sizes = zip(self.made, self.made_of_two, strict=True)
        return [axis for axis, (one, two) in enumerate(sizes) if one != two]


# Which dimension of the output holds the images; raises `MisfitError` where they affect each other.
Rule = Callable[[Use], int]


def images_axis(kind: str, use: Use) -> int | None:
    """The dimension of an operation's output that holds the images; None where it is the same for all.

    Raises `MisfitError` where the images of a batch affect each other.
    """
    _require(kind in _LAID_OUT or use.attributes == use.attributes_of_two)
    if any(axis is not None for axis in use.axes):
        axis = _RULES.get(kind, _in_place)(use)
    elif use.grown:
        axis = use.grown[0]
    else:
        return None
    _require(use.grown == [axis] and use.made_of_two[axis] == 2 * use.made[axis])
    return axis


def _require(apart: bool) -> None:
    if not apart:
        raise MisfitError("lets the images of a batch affect each other, which no program may")


def _in_place(use: Use) -> int:
    return use.axis


def _not_last(use: Use) -> int:
    _require(use.axis < len(use.shapes[0]) - 1)
    return use.axis


def _up_to(last: int) -> Rule:
    """Dimensions behind `last` are reduced together."""

    def rule(use: Use) -> int:
        _require(use.axis <= last)
        return use.axis

    return rule


def _not_along(use: Use) -> int:
    """Of one input or of several; all must hold their images in the same place."""
    axis = use.axes[0]
    _require(all(other == axis for other in use.axes) and axis != use.attributes["axis"])
    assert axis is not None
    return axis


def _select(use: Use) -> int:
    return _not_along(use) - int(use.attributes["axis"] < use.axis)


def _mean(use: Use) -> int:
    gone = use.attributes["axes"]
    _require(use.axis not in gone)
    return use.axis if use.attributes["keep"] else use.axis - sum(axis < use.axis for axis in gone)


def _roll(use: Use) -> int:
    _require(use.axis not in use.attributes["axes"])
    return use.axis


def _pad(use: Use) -> int:
    _require(not any(use.attributes["pads"][use.axis]))
    return use.axis


def _transpose(use: Use) -> int:
    return int(use.attributes["axes"].index(use.axis))


def _reshape(use: Use) -> int:
    """Before the images the same number of elements as was: else they no longer lie one behind the other."""
    grown = use.grown
    _require(len(grown) == 1 and math.prod(use.made[: grown[0]]) == math.prod(use.shapes[0][: use.axis]))
    return grown[0]


def _broadcast(use: Use) -> int:
    """Dimensions meet from the last one on."""
    meeting = {len(use.made) - len(shape) + axis
               for axis, shape in zip(use.axes, use.shapes, strict=True) if axis is not None}  # fmt: skip
    _require(len(meeting) == 1)
    return meeting.pop()


def _repeat(use: Use) -> int:
    axis = _broadcast(use)
    _require(use.attributes["times"][axis] == 1)
    return axis


def _matmul(use: Use) -> int:
    left, right = use.axes
    rows, columns = len(use.made) - 2, len(use.made) - 1
    if left is None or right is None:
        # With a constant each image has rows or columns of its own; sums that go through them have not.
        axis = right if left is None else left
        _require(axis != (rows if left is None else columns))
    else:
        axis = left
        _require(left == right < rows)
    assert axis is not None
    return axis


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("linear", "layer_norm", "rms_norm"), _not_last),
    **dict.fromkeys(("conv", "group_norm"), _up_to(0)), **dict.fromkeys(("average_pool", "max_pool"), _up_to(1)),
    **dict.fromkeys(("softmax", "slice", "gather", "concat"), _not_along), "select": _select, "mean": _mean,
    "roll": _roll, "pad": _pad, "transpose": _transpose, "reshape": _reshape, "repeat": _repeat, "matmul": _matmul,
    **dict.fromkeys(("add", "subtract", "multiply", "divide", "expand"), _broadcast),
}  # fmt: skip
