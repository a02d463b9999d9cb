"""Where a plan's values lie: views of blocks of memory, and blocks that share memory where their lives do not meet."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace

from halfbyte.errors import HalfbyteError

ARENA, CONSTANTS, IMAGE, RESULT = range(4)
_ALIGNMENT = 64
# Of the values of one image; what an honest model stays far below.
MOST_BYTES = 2**32


@dataclass(eq=False)
class Block:
    """Some bytes in one of the places. `first` and `last` are the numbers of the steps that use it."""

    place: int
    size: int
    offset: int = 0
    first: int = -1
    last: int = -1


@dataclass(frozen=True)
class View:
    """An array: elements of `item` bytes (1: codes, 4: floats) in a block; `offset` and `strides` count elements."""

    block: Block
    item: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    def slice(self, axis: int, start: int, stop: int, step: int = 1) -> View:
        """From `start` to before `stop` along an axis."""
        count = len(range(*slice(start, stop, step).indices(self.shape[axis])))
        shape = (*self.shape[:axis], count, *self.shape[axis + 1 :])
        strides = (*self.strides[:axis], self.strides[axis] * step, *self.strides[axis + 1 :])
        return replace(self, shape=shape, strides=strides, offset=self.offset + start * self.strides[axis])

    def select(self, axis: int, index: int) -> View:
        """One entry along an axis, which goes."""
        one = self.slice(axis, index, index + 1)
        return replace(one, shape=_without(one.shape, axis), strides=_without(one.strides, axis))

    def transpose(self, axes: list[int]) -> View:
        """The dimensions in another order."""
        return replace(
            self, shape=tuple(self.shape[axis] for axis in axes), strides=tuple(self.strides[axis] for axis in axes)
        )

    def expand(self, shape: tuple[int, ...]) -> View:
        """Broadcast as NumPy does."""
        missing = len(shape) - len(self.shape)
        old_shape, old_strides = (1,) * missing + self.shape, (0,) * missing + self.strides
        strides = [0 if own == 1 else stride for own, stride in zip(old_shape, old_strides, strict=True)]
        return replace(self, shape=shape, strides=tuple(strides))

    def reshape(self, shape: tuple[int, ...]) -> View | None:
        """The same elements in another shape; None where that needs a copy."""
        strides: list[int] = []
        groups = _common_groups(self.shape, shape)
        if groups is None:
            return None
        for old, new in groups:
            dimensions = [(self.shape[axis], self.strides[axis]) for axis in old if self.shape[axis] > 1]
            if any(outer != inner * count for (_, outer), (count, inner) in itertools.pairwise(dimensions)):
                return None
            stride = dimensions[-1][1] if dimensions else 1
            own = []
            for axis in reversed(new):
                own.append(stride)
                stride *= shape[axis]
            strides += reversed(own)
        return replace(self, shape=shape, strides=tuple(strides))

    def resolved(self) -> tuple[int, int, int, list[int], list[int]]:
        """As the native plan takes it, once blocks have their offsets."""
        offset = self.block.offset // self.item + self.offset
        return self.block.place, self.item, offset, list(self.shape), list(self.strides)


def dense(shape: tuple[int, ...], order: list[int] | None = None) -> tuple[int, ...]:
    """Strides of an array without gaps, its dimensions from outermost to innermost in the given order."""
    strides, stride = [0] * len(shape), 1
    for axis in reversed(order if order is not None else range(len(shape))):
        strides[axis] = stride
        stride *= shape[axis]
    return tuple(strides)


def order_of(view: View) -> list[int]:
    """The dimensions from the one with the largest stride to the one with the smallest."""
    return sorted(range(len(view.shape)), key=lambda axis: -view.strides[axis])


@dataclass
class Memory:
    """Hands out blocks, follows their use, and places them."""

    blocks: list[Block] = field(default_factory=list)
    step: int = 0

    def make(self, item: int, shape: tuple[int, ...], order: list[int] | None = None, place: int = ARENA) -> View:
        """A new array without gaps."""
        block = Block(place, item * math.prod(shape))
        self.blocks.append(block)
        return View(block, item, shape, dense(shape, order))

    def use(self, *views: View) -> None:
        """The step that comes now reads or writes these."""
        for view in views:
            if view.block.first < 0:
                view.block.first = self.step
            view.block.last = self.step

    def settle(self) -> int:
        """Give the blocks of the arena their offsets; returns its size in bytes."""
        placed: list[Block] = []
        top = 0
        for block in sorted((b for b in self.blocks if b.place == ARENA and b.first >= 0), key=lambda b: -b.size):
            meeting = sorted(
                (b for b in placed if b.first <= block.last and block.first <= b.last), key=lambda b: b.offset
            )
            offset = 0
            for other in meeting:
                if offset + block.size <= other.offset:
                    break
                offset = max(offset, aligned(other.offset + other.size))
            block.offset = offset
            placed.append(block)
            top = max(top, offset + block.size)
        if top > MOST_BYTES:
            raise HalfbyteError(f"the program needs more than {MOST_BYTES >> 30} GiB for one image")
        return top


def aligned(size: int) -> int:
    """The next multiple of a cache line."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _without(values: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return values[:axis] + values[axis + 1 :]


def _common_groups(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]] | None:
    """Runs of old and of new dimensions with as many elements, one behind the other."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        left, right = [i] if i < len(old) else [], [j] if j < len(new) else []
        have = old[i] if left else 1
        want = new[j] if right else 1
        i, j = i + len(left), j + len(right)
        while have != want:
            if have < want and i < len(old):
                have *= old[i]
                left.append(i)
                i += 1
            elif want < have and j < len(new):
                want *= new[j]
                right.append(j)
                j += 1
            else:
                return None
        groups.append((left, right))
    return groups
