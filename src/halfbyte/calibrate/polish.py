"""The exact best scale near a candidate: between two changes of a code the error is a parabola in the scale.

A product's error with an operand quantized to levels l and a scale s is s^2 a - 2 s b + c, with a = l M l^T and b = l h
summed over the operand's rows, as long as no level changes. Inside a small window every value changes its level at most
once, at a scale that is known; so a and b follow all through the window from sums over these changes, and with them the
least error, exactly (section 4.3 F of the method's analysis, carried through).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from halfbyte.calibrate.grids import Candidates

# Changes of level in a row of values that a window may hold on average; the window is made narrower for it.
MOST_CHANGES = 12
_PIECE = 2**22


@dataclass(frozen=True)
class Form:
    """The error of a product in one operand's rows v^: sum of v^ M v^T - 2 v^ . h, but for a constant.

    values: `[N, K]`. pull: h `[N, K]`. matrices: `[G, K, K]`; every N / G rows in turn share one. Of R searches each
    owns N / R rows in turn.
    """

    values: Tensor
    pull: Tensor
    matrices: Tensor

    def spread(self, levels: Tensor) -> Tensor:
        """l M `[N, K]`."""
        grouped = levels.view(len(self.matrices), -1, levels.shape[1])
        return torch.bmm(grouped, self.matrices).view(levels.shape)


@dataclass(frozen=True)
class Crossing:
    """What happens to levels as the scale of each search grows from the start of its window to its end.

    levels: `[N, K]` at the start. row, column, change, scale `[C]`: which value takes another level, by how much, at
    which scale. offset: what a value has beside scale times level.
    """

    levels: Tensor
    row: Tensor
    column: Tensor
    change: Tensor
    scale: Tensor
    offset: float = 0.0


def best_scale(form: Form, crossing: Crossing, start: Tensor, end: Tensor) -> Tensor:
    """For each of R searches the scale of its window `[start, end]` `[R]` with the least error: float32 `[R]`."""
    searches = len(start)
    pull = _pull(form, crossing.offset)
    spread = form.spread(crossing.levels)
    changes = _by_scale(crossing, len(form.values) // searches)
    change_a, change_b = _effects(form, changes, spread, pull)
    a = (crossing.levels * spread).double().view(searches, -1).sum(1)
    b = (crossing.levels * pull).double().view(searches, -1).sum(1)
    # A parabola before the first change of each search, and one behind every change.
    searched = torch.arange(searches, device=start.device)
    owner = torch.cat((searched, changes.owner))
    firsts = torch.searchsorted(changes.owner, searched)
    all_a = torch.cat((a, _running(change_a, changes.owner, firsts) + a[changes.owner]))
    all_b = torch.cat((b, _running(change_b, changes.owner, firsts) + b[changes.owner]))
    low, high = _intervals(changes, firsts, start.double(), end.double())
    vertex = all_b / all_a.clamp(min=1e-300)
    best = torch.minimum(torch.maximum(vertex, _inside(low, high, 1e-6)), _inside(high, low, 1e-6))
    ranked = _sorted(owner, best * (best * all_a - 2 * all_b))
    return best[ranked[torch.searchsorted(owner[ranked], searched)]].float()


class _Changes(NamedTuple):
    """A crossing's changes, those of one search after the other, by the scale at which they happen."""

    owner: Tensor
    row: Tensor
    column: Tensor
    change: Tensor
    scale: Tensor


def _by_scale(crossing: Crossing, rows_of_a_search: int) -> _Changes:
    owner = crossing.row // rows_of_a_search
    order = _sorted(owner, crossing.scale)
    return _Changes(
        owner[order], crossing.row[order], crossing.column[order],
        crossing.change[order].double(), crossing.scale[order].double(),
    )  # fmt: skip


def _pull(form: Form, offset: float) -> Tensor:
    """h for levels without the offset: h - offset * (1 M)."""
    if not offset:
        return form.pull
    ones = form.values.new_full((len(form.matrices), 1, form.values.shape[1]), offset)
    moved = torch.bmm(ones, form.matrices)
    rows = len(form.values) // len(form.matrices)
    return form.pull - moved.expand(-1, rows, -1).reshape(form.pull.shape)


def _effects(form: Form, changes: _Changes, spread: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
    """By how much each change moves a and b, the earlier ones of its row done."""
    row, column, change = changes.row, changes.column, changes.change
    group = row // (len(form.values) // len(form.matrices))
    itself = change.square() * form.matrices[group, column, column].double()
    change_a = 2 * change * spread[row, column].double() + itself + _pairs(form, row, column, change)
    return change_a, change * pull[row, column].double()


def _intervals(changes: _Changes, firsts: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Where each parabola holds: first those before any change, then those behind each."""
    owner, scale = changes.owner, changes.scale
    last = torch.ones_like(owner, dtype=torch.bool)
    last[:-1] = owner[1:] != owner[:-1]
    until = torch.where(last, end[owner], torch.cat((scale[1:], scale[-1:])))
    changed = torch.bincount(owner, minlength=len(start)) > 0
    first = torch.where(changed, torch.cat((scale, scale.new_zeros(1)))[firsts], end)
    return torch.cat((start, scale)), torch.cat((first, until))


def _inside(edge: Tensor, other: Tensor, share: float) -> Tensor:
    """A scale a little inside an interval: at its edge rounding decides which level a value has."""
    moved = edge + (other - edge).sign() * share * edge
    return torch.where((other - edge).abs() > 2 * share * edge, moved, (edge + other) / 2)


def _sorted(major: Tensor, minor: Tensor) -> Tensor:
    order = minor.argsort(stable=True)
    return order[major[order].argsort(stable=True)]


def _running(changes: Tensor, owner: Tensor, firsts: Tensor) -> Tensor:
    """Sums of each search's changes so far."""
    summed = torch.cat((changes.new_zeros(1), changes.cumsum(0)))
    return summed[1:] - summed[firsts][owner]


def _pairs(form: Form, row: Tensor, column: Tensor, change: Tensor) -> Tensor:
    """What earlier changes in the same row add to the effect of each: 2 change_i sum of M_ij change_j, float64."""
    by_row = row.argsort(stable=True)
    rows, counts = torch.unique_consecutive(row[by_row], return_counts=True)
    result = torch.zeros_like(change)
    if not len(rows):
        return result
    first = counts.cumsum(0) - counts
    inputs = form.matrices.shape[1]
    flat = form.matrices.view(-1)
    per_group = len(form.values) // len(form.matrices)
    most = int(counts.max())
    for part in torch.split(torch.arange(len(rows), device=row.device), max(1, _PIECE // most**2)):
        width = torch.arange(int(counts[part].max()), device=row.device)
        held = width < counts[part][:, None]
        place = by_row[(first[part][:, None] + width).clamp(max=len(by_row) - 1)]
        columns, changes = column[place], torch.where(held, change[place], 0.0)
        base = (rows[part] // per_group * inputs * inputs)[:, None, None]
        between = flat[base + columns[:, :, None] * inputs + columns[:, None, :]].double().tril_(-1)
        added = 2 * changes * (between @ changes[:, :, None])[:, :, 0]
        result[place[held]] = added[held]
    return result


def uniform_crossing(form: Form, candidate: Candidates, start: Tensor, end: Tensor, bits: int) -> Crossing:
    """The changes of affine levels for zero points `candidate.other` `[1, R]`."""
    searches = len(start)
    values = form.values.view(searches, -1)
    low = -candidate.other[0, :, None]
    high = low + ((1 << bits) - 1)
    before, after = (
        torch.minimum(torch.maximum(torch.round(values / scale[:, None]), low), high) for scale in (start, end)
    )
    owner, place = (before != after).nonzero(as_tuple=True)
    changed = owner, place
    middle = (before[changed] + after[changed]) / 2
    flat = owner * values.shape[1] + place
    width = form.values.shape[1]
    return Crossing(
        before.view(form.values.shape), flat // width, flat % width, after[changed] - before[changed],
        values[changed] / middle,
    )  # fmt: skip


def uniform_window(form: Form, candidate: Candidates, spacing: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Start and end `[R]` of windows around `candidate` in which no value changes its level twice."""
    scale = candidate.scale[0]
    low = -candidate.other[0]
    largest = torch.maximum(low.abs(), (low + ((1 << bits) - 1)).abs()).clamp(min=1)
    values = form.values.view(len(scale), -1)
    typical = torch.minimum(values.abs().mean(1) / scale, largest).clamp(min=0.1)
    share = torch.minimum(spacing / scale, MOST_CHANGES / 2 / form.values.shape[1] / typical)
    share = torch.minimum(share, 0.45 / largest)
    return scale * (1 - share), scale * (1 + share)


def log_window(candidate: Candidates, spacing: Tensor, inputs: int, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Start and end `[R]` for log quantizers with `steps` `[R]` codes an octave."""
    scale = candidate.scale[0]
    octaves = MOST_CHANGES / 2 / inputs / steps
    share = torch.minimum(spacing / scale, octaves.clamp(max=0.45 / steps) * 0.69)
    return scale * (1 - share), scale * (1 + share)


def log_crossing(
    keys: Tensor, index: Tensor | None, levels: Tensor, steps: float, start: Tensor, end: Tensor, offset: float
) -> Crossing:
    """The changes of log levels, one search.

    keys: float32, the x for which x / scale decides as a value does: `[N, K]`, or those that occur with the place
    `index` `[N, K]` of each value among them. levels: `[symbols]`, those of the codes, largest first, for the scale 1.
    """
    last = len(levels) - 1
    position = -torch.log2(keys.double().clamp(min=1e-300)) * steps
    before, after = (
        torch.floor(position + torch.log2(scale.double()) * steps + 0.5).clamp(0, last).long() for scale in (start, end)
    )
    crosses, at_start = before != after, levels[before]
    if index is not None:
        crosses, at_start = crosses[index], at_start[index]
    row, column = crosses.nonzero(as_tuple=True)
    place = (row, column) if index is None else index[row, column].long()
    left, entered = before[place], after[place]
    scale = keys[place].double() * 2.0 ** ((entered.double() - 0.5) / steps)
    return Crossing(at_start, row, column, levels[entered] - levels[left], scale.float(), offset)
