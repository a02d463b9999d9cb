"""The squared error that quantizing makes in a tensor itself, for many candidates at once."""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.calibrate.grids import Candidates

# Boundaries looked up at a time.
_PIECE = 2**22


class OwnError:
    """Sum of squared differences between each row of `[R, m]` and its affine quantization.

    The rows are sorted once; then each candidate needs the places of its 2**bits - 1 decision boundaries only, and
    sums of values and of squares between them, whatever m is (section 4.3 D of the method's analysis).
    """

    exact_rough = True
    polishes = False  # the error itself costs less

    def __init__(self, rows: Tensor, bits: int) -> None:
        self.bits = bits
        self.ordered = rows.sort(dim=1).values.contiguous()
        start = torch.zeros(len(rows), 1, dtype=torch.float64, device=rows.device)
        wide = self.ordered.double()
        self.sums = torch.cat((start, wide.cumsum(1)), dim=1)
        self.squares = wide.square().sum(1)

    def __call__(self, candidates: Candidates) -> Tensor:
        each = max(1, _PIECE // (self.ordered.shape[0] << self.bits))
        return torch.cat([self._errors(tried.scale, tried.other) for tried in candidates.split(each)])

    def rough(self, candidates: Candidates) -> Tensor:
        return self(candidates)

    def polished(self, candidate: Candidates, spacing: Tensor) -> Candidates:
        raise NotImplementedError

    def _errors(self, scale: Tensor, zero_point: Tensor) -> Tensor:
        count, rows = scale.shape
        codes = torch.arange(1 << self.bits, device=scale.device, dtype=torch.float64)
        steps = codes - zero_point.double()[..., None]  # [n, R, codes]
        # round(x / s) passes from step to step + 1 at step + 1/2.
        edges = ((steps[..., :-1] + 0.5) * scale.double()[..., None]).float()
        found = torch.searchsorted(self.ordered, edges.transpose(0, 1).reshape(rows, -1).contiguous())
        places = found.view(rows, count, -1)
        first = torch.zeros_like(places[..., :1])
        places = torch.cat((first, places, torch.full_like(first, self.ordered.shape[1])), dim=2)
        held = places.diff(dim=2).double()
        summed = self.sums.gather(1, places.flatten(1)).view(places.shape).diff(dim=2)
        value = (steps * scale.double()[..., None]).transpose(0, 1)
        errors = self.squares[:, None] + (value * value * held - 2 * value * summed).sum(2)
        return errors.clamp_(min=0).transpose(0, 1)
