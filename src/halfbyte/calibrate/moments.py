"""Least squares of one stream on another from their moments, in one pass and in memory that does not grow with it."""

from __future__ import annotations

import torch
from torch import Tensor

# Less than this share of the strongest direction's variance is what float32 rounding leaves of no variance at all.
NO_VARIANCE = 1e-12


class Moments:
    """Centred second moments of x `[g, N, K]` and y `[g, N, O]` (g regressions side by side), in float64.

    From them follow the least-squares map, its rank-r relatives, and the squared error of any map at all
    (compensation.md 3.2).
    """

    def __init__(self) -> None:
        self.count = 0
        self.parts: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in the rows of a batch."""
        x, y = x.double(), y.double()
        mean_x, mean_y = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
        x, y = x - mean_x, y - mean_y
        xt = x.transpose(1, 2)
        self._merge(x.shape[1], (mean_x, mean_y, xt @ x, xt @ y, y.square().sum((1, 2))))

    def merge(self, other: Moments) -> Moments:
        """Those of both streams one behind the other."""
        both = Moments()
        for moments in (self, other):
            if moments.parts is not None:
                both._merge(moments.count, moments.parts)
        return both

    def _merge(self, count: int, parts: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]) -> None:
        if self.parts is None:
            self.count, self.parts = count, parts
            return
        (mean_x, mean_y, xx, xy, yy), total = self.parts, self.count + count
        weight = self.count * count / total
        dx, dy = parts[0] - mean_x, parts[1] - mean_y
        self.parts = (
            mean_x + dx * (count / total), mean_y + dy * (count / total),
            xx + parts[2] + weight * dx.transpose(1, 2) @ dx, xy + parts[3] + weight * dx.transpose(1, 2) @ dy,
            yy + parts[4] + weight * dy.square().sum((1, 2)),
        )  # fmt: skip
        self.count = total

    @property
    def mean_x(self) -> Tensor:
        """`[g, 1, K]`."""
        return self._known()[0]

    @property
    def mean_y(self) -> Tensor:
        """`[g, 1, O]`."""
        return self._known()[1]

    @property
    def xx(self) -> Tensor:
        """Sum of (x - mean)^T (x - mean), `[g, K, K]`."""
        return self._known()[2]

    @property
    def xy(self) -> Tensor:
        """`[g, K, O]`."""
        return self._known()[3]

    @property
    def yy(self) -> Tensor:
        """Sum of |y - mean|^2, `[g]`."""
        return self._known()[4]

    @property
    def bytes(self) -> int:
        """The memory that the moments take."""
        return sum(part.numel() * part.element_size() for part in self._known())

    def solve(self, ridge: float, *, start: Tensor | None = None) -> Tensor:
        """The map `[g, K, O]` with the least error plus `ridge` times the mean of xx's diagonal times the square of
        its distance from `start` (None: from zero).

        Directions of x that the ridge leaves singular (constant channels, more channels than rows) get no weight.
        """
        damped = _damped(self.xx, ridge * self.xx.diagonal(dim1=1, dim2=2).mean(1))
        if start is None:
            return _solution(damped, self.xy)
        return start + _solution(damped, self.xy - self.xx @ start)

    def solve_shrunk(self, ridge: float) -> tuple[Tensor, Tensor]:
        """The map `[g, K, O]` and the constant `[g, O]` with the least error plus `ridge` times the squares of both."""
        # The constant that is best for a map is smaller by this than without a ridge; what it leaves of the means adds
        # to the moments.
        kept = self.count / (self.count + ridge)
        mean_t = self.mean_x.transpose(1, 2) * (ridge * kept)
        gram = _damped(self.xx + mean_t @ self.mean_x, torch.full_like(self.yy, ridge))
        weight = _solution(gram, self.xy + mean_t @ self.mean_y)
        return weight, kept * self.intercept(weight)

    def intercept(self, weight: Tensor) -> Tensor:
        """The constant `[g, O]` that goes best with a map `[g, K, O]`."""
        return (self.mean_y - self.mean_x @ weight)[:, 0]

    def error(self, weight: Tensor, bias: Tensor | None = None) -> float:
        """Sum of |y - x W - b|^2 over all rows, for any W `[g, K, O]` and b `[g, O]` (None: the best one)."""
        quadratic = (weight * (self.xx @ weight - 2 * self.xy)).sum()
        error = self.yy.sum() + quadratic
        if bias is not None:
            error = error + self.count * (self.intercept(weight) - bias).square().sum()
        return float(error.detach().clamp(min=0))

    def principal(self, weight: Tensor) -> Tensor:
        """The directions `[g, O, O]` of y in which the map's prediction varies, the strongest first.

        `weight @ v[..., :r] @ v[..., :r]^T` is the best map of rank r where `weight` is the least-squares one
        (reduced-rank regression).
        """
        directions: Tensor = torch.linalg.eigh(weight.transpose(1, 2) @ self.xx @ weight)[1]
        return directions.flip(-1)

    def refit(self, first: Tensor) -> Tensor:
        """The best second factor `[g, r, O]` behind a given first one `[g, K, r]`."""
        gram = first.transpose(1, 2) @ self.xx @ first
        inverse: Tensor = torch.linalg.pinv(gram, hermitian=True)
        return inverse @ (first.transpose(1, 2) @ self.xy)

    def _known(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        if self.parts is None:
            raise ValueError("the moments of no rows at all")
        return self.parts


def _damped(gram: Tensor, ridge: Tensor) -> Tensor:
    """A Gram matrix `[g, K, K]` with `ridge` `[g]` on its diagonal."""
    return gram + torch.diag_embed(ridge[:, None].expand(gram.shape[:2]))


def _solution(gram: Tensor, right: Tensor) -> Tensor:
    """gram^-1 right, by the pseudoinverse where directions have no variance."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivots, largest = factor.diagonal(dim1=1, dim2=2).square(), gram.diagonal(dim1=1, dim2=2).amax(1)
    if bool(failed.any()) or bool((pivots.amin(1) <= NO_VARIANCE * largest).any()):
        inverse: Tensor = torch.linalg.pinv(gram, rtol=NO_VARIANCE, hermitian=True)
        return inverse @ right
    return torch.cholesky_solve(right, factor)
