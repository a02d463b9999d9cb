"""Fast progressive combining search: candidates refined around the best ones, step by step (AdaLog, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from halfbyte.calibrate.grids import Candidates, Grid


class CandidateError(Protocol):
    """What a search minimises: float64 errors `[n, R]` of candidates `[n, R]`.

    `rough` may look at a part of the data; where it does not, `exact_rough` is true. `polishes` tells whether
    `polished` is there for these candidates.
    """

    exact_rough: bool
    polishes: bool

    def __call__(self, candidates: Candidates) -> Tensor:
        """The errors."""

    def rough(self, candidates: Candidates) -> Tensor:
        """The errors as estimated from a part of the data, good enough to rank candidates that differ clearly."""

    def polished(self, candidate: Candidates, spacing: Tensor) -> Candidates:
        """The best scales within `spacing` `[R]` of a candidate `[1, R]`, one or several."""


@dataclass(frozen=True)
class Search:
    """How a search runs; the defaults of the first three are the published ones.

    count: candidates a step. kept: how many of them the next step refines. steps: how often.
    keep_incumbent: what was kept stays in the running (the published refinement does not try it again).
    drop_duplicates: neighbouring refinements coincide at their ends; the copies give way to others.
    race: rank on a part of the data, let the `finalists` compete on all of it, and replace the last steps, behind
    `rough_steps`, by the exact best scale near the `polished` best of these.
    """

    count: int = 128
    kept: int = 16
    steps: int = 6
    keep_incumbent: bool = True
    drop_duplicates: bool = True
    race: bool = True
    rough_steps: int = 3
    finalists: int = 16
    polished: int = 3

    @property
    def points(self) -> int:
        """How many scales a step tries around each kept one."""
        return self.count // self.kept


@dataclass(frozen=True)
class Found:
    """The best candidate of each row, and its error: `[R]` each."""

    scale: Tensor
    other: Tensor
    error: Tensor


def progressive_search(grid: Grid, error: CandidateError, search: Search, least_scale: float = 0.0) -> Found:
    """Search from a grid; `least_scale` is a bound that refinements are raised to."""
    if search.race:
        return _raced(grid, error, search, least_scale)
    current, spacing = grid.candidates, grid.spacing
    errors = error(current)
    for _ in range(search.steps - 1):
        if not bool((spacing > 0).any()):
            break
        kept, kept_errors = _best(current, errors, search)
        current = _refined(kept, spacing, search.points, least_scale)
        spacing = spacing / (search.points - 0.5)
        errors = error(current)
        if search.keep_incumbent:
            current, errors = current.joined(kept), torch.cat((errors, kept_errors))
    return _found(current, errors)


def _raced(grid: Grid, error: CandidateError, search: Search, least_scale: float) -> Found:
    """The same search with its ranking on a part of the data and its last steps in one."""
    current, spacing = grid.candidates, grid.spacing
    window = spacing
    errors = error.rough(current)
    pool, pool_errors = current, errors
    steps = min(search.steps, search.rough_steps) if error.polishes else search.steps
    for _ in range(steps - 1):
        if not bool((spacing > 0).any()):
            break
        kept, kept_errors = _best(current, errors, search)
        current = _refined(kept, spacing, search.points, least_scale)
        window, spacing = spacing, spacing / (search.points - 0.5)
        errors = error.rough(current)
        pool, pool_errors = pool.joined(current), torch.cat((pool_errors, errors))
        if search.keep_incumbent:
            current, errors = current.joined(kept), torch.cat((errors, kept_errors))
    if not error.exact_rough:
        varied = _varied(pool, pool_errors, window, search.finalists)
        pool = varied.joined(pool.best(pool_errors, search.finalists // 4)[0])
        pool_errors = error(pool)
    # The second time around what the first has found: the best may lie beyond the first windows.
    for count in (search.polished, 1) if error.polishes else ():
        best = [error.polished(one, window) for one in _varied(pool, pool_errors, window, count).split(1)]
        polished = Candidates(
            torch.cat([one.scale for one in best]).clamp(min=least_scale), torch.cat([one.other for one in best])
        )
        pool, pool_errors = pool.joined(polished), torch.cat((pool_errors, error(polished)))
    return _found(pool, pool_errors)


def _varied(candidates: Candidates, errors: Tensor, window: Tensor, count: int) -> Candidates:
    """The best candidate of each row, then the best outside its window, and so on; repeated where these run out."""
    left = errors
    chosen: list[Candidates] = []
    for _ in range(count):
        best, least = candidates.best(left, 1)
        if chosen:
            out = ~least.isfinite()
            best = Candidates(
                torch.where(out, chosen[0].scale, best.scale), torch.where(out, chosen[0].other, best.other)
            )
        chosen.append(best)
        near = (candidates.other == best.other) & ((candidates.scale - best.scale).abs() <= 2 * window)
        left = left.masked_fill(near, float("inf"))
    return Candidates(torch.cat([one.scale for one in chosen]), torch.cat([one.other for one in chosen]))


def _found(candidates: Candidates, errors: Tensor) -> Found:
    best, least = candidates.best(errors, 1)
    return Found(best.scale[0], best.other[0], least[0])


def best_of(candidates: Candidates, error: CandidateError, search: Search, count: int = 1) -> tuple[Candidates, Tensor]:
    """The `count` best of a fixed set, best first, with their errors `[count, R]`."""
    if not search.race or error.exact_rough:
        return candidates.best(error(candidates), count)
    finalists, _ = candidates.best(error.rough(candidates), max(count, search.finalists))
    return finalists.best(error(finalists), count)


def better(new: Found, old: Found) -> Found:
    """Row by row the better of two, the old one on a tie."""
    wins = new.error < old.error
    return Found(
        torch.where(wins, new.scale, old.scale),
        torch.where(wins, new.other, old.other),
        torch.where(wins, new.error, old.error),
    )


def _best(candidates: Candidates, errors: Tensor, search: Search) -> tuple[Candidates, Tensor]:
    if search.drop_duplicates:
        errors = errors.masked_fill(_repeated(candidates), float("inf"))
    return candidates.best(errors, search.kept)


def _refined(kept: Candidates, spacing: Tensor, points: int, least_scale: float) -> Candidates:
    """`points` scales around each kept one, from half a spacing below it to half a spacing above."""
    shares = torch.linspace(-0.5, 0.5, points, device=spacing.device)
    scale = kept.scale[:, None] + shares[None, :, None] * spacing
    # Scales stay positive where outliers make the spacing larger than the scale.
    scale = torch.maximum(scale, (kept.scale[:, None] * 2.0**-6).clamp(min=least_scale))
    return Candidates(scale.flatten(0, 1), kept.other.repeat_interleave(points, dim=0))


def _repeated(candidates: Candidates) -> Tensor:
    """Boolean `[n, R]`: an earlier candidate of the row has the same `other` and, but for rounding, the same scale."""
    by_scale = candidates.scale.argsort(dim=0, stable=True)
    order = by_scale.gather(0, candidates.other.gather(0, by_scale).argsort(dim=0, stable=True))
    scale, other = candidates.scale.gather(0, order), candidates.other.gather(0, order)
    same = torch.zeros_like(scale, dtype=torch.bool)
    same[1:] = (other[1:] == other[:-1]) & (scale[1:] - scale[:-1] <= 1e-6 * scale[1:])
    return torch.zeros_like(same).scatter(0, order, same)
