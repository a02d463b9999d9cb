"""The squared error that quantizing one operand of a product makes in the product, for many candidates at once.

Both forms work on differences from the values, so that nothing large cancels in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from halfbyte.calibrate.grids import Candidates
from halfbyte.calibrate.polish import Form, best_scale, uniform_crossing, uniform_window
from halfbyte.calibrate.trials import Trial

# Elements that are worked on at a time: small enough for a processor's cache.
_PIECE = 2**19
# On what a race ranks its candidates: a share of all rows, but no fewer values and rows than these, and no more rows.
ROUGH_SHARE, LEAST_VALUES, LEAST_ROWS, MOST_ROWS = 8, 2**17, 768, 2048


class WeightError:
    """Error of each output row o of W x for candidates of the weight's rows, with the input as it is quantized.

    weight: `[g, O, I]` (g groups of a convolution, else 1). gram: `[g, I, I]`, sum of x^ x^T. cross: `[g, O, I]`, sum
    of r x^T with r = W x^ - y, what the quantized input alone changes. In d = W^ - W the error is
    d gram d^T + 2 d . cross + r . r, and the tokens appear no more (section 4.3 B of the method's analysis).
    """

    exact_rough = True
    polishes = True

    def __init__(self, weight: Tensor, bits: int, gram: Tensor, cross: Tensor, residual: Tensor) -> None:
        self.weight, self.bits, self.residual = weight, bits, residual
        self.gram, self.cross = gram, cross

    def __call__(self, candidates: Candidates) -> Tensor:
        groups, rows, inputs = self.weight.shape
        shape = (-1, groups, rows, 1)
        each = max(1, _PIECE // self.weight.numel())
        errors = []
        for tried in candidates.split(each):
            change = quantization_change(self.weight, tried.scale.view(shape), tried.other.view(shape), self.bits)
            by_group = change.transpose(0, 1).reshape(groups, -1, inputs)
            spread = torch.bmm(by_group, self.gram).view(groups, -1, rows, inputs).transpose(0, 1)
            spread = spread.add(self.cross, alpha=2.0).mul_(change)
            errors.append(spread.sum(-1).double().view(len(tried.scale), -1) + self.residual)
        return torch.cat(errors)

    def rough(self, candidates: Candidates) -> Tensor:
        return self(candidates)

    def polished(self, candidate: Candidates, spacing: Tensor) -> Candidates:
        rows = self.weight.flatten(0, 1)
        form = Form(rows, (torch.bmm(self.weight, self.gram) - self.cross).flatten(0, 1), self.gram)
        window = uniform_window(form, candidate, spacing, self.bits)
        best = best_scale(form, uniform_crossing(form, candidate, *window, self.bits), *window)
        return Candidates(best[None], candidate.other)


class OutputError:
    """Error of the product for candidates of one operand, the other one as it is quantized.

    The product's error is |e A + t|^2 + rest for e = Q(v) - v, summed over the rows v of the operand: A is the other
    operand and t what its quantization alone changes. Where A has more columns than rows, both are rotated into its
    row space first (section 4.3 C and G). Rows that share a matrix stand together: trials hold `[G, m, K]`, A is
    `[H, G, K, k]` and t `[H, G, m, k]` for H searches (heads), each over G groups (images) of m rows.
    """

    def __init__(self, trials: Sequence[Trial], matrix: Tensor, target: Tensor) -> None:
        self.trials = trials
        self.polishes = trials[0].polishes
        self.rest = torch.zeros(len(trials), dtype=torch.float64, device=matrix.device)
        if matrix.shape[-1] > matrix.shape[-2]:
            matrix, target = self._rotated(matrix, target)
        self.matrix, self.target = matrix, target
        groups, rows, inputs = trials[0].values.shape
        wanted = min(max(groups * rows // ROUGH_SHARE, LEAST_VALUES // inputs, LEAST_ROWS), MOST_ROWS)
        # Heads have their own candidates but less data each, and scatter more: all of it costs little.
        stride = max(1, min(rows, groups * rows // wanted)) if len(trials) == 1 else 1
        self.exact_rough = stride == 1
        # How many times the part has to be taken for the whole.
        self.multiple = rows / (rows // stride)
        self._form: Form | None = None
        self._part = list(trials), target
        if stride > 1:
            some = self._some(groups, rows, stride)
            parts = [trial.of(trial.values.take_along_dim(some[0], 1)) for trial in trials]
            self._part = parts, target.take_along_dim(some, 2)

    def __call__(self, candidates: Candidates) -> Tensor:
        return self._errors(candidates, list(self.trials), self.target) + self.rest

    def rough(self, candidates: Candidates) -> Tensor:
        return self(candidates) if self.exact_rough else self._errors(candidates, *self._part)

    def _some(self, groups: int, rows: int, stride: int) -> Tensor:
        """Every so-many-th row, from another first one in each group: neighbouring tokens are alike, and a row of one
        number may differ from the others in all groups. Index `[1, G, rows // stride, 1]`."""
        device = self.matrix.device
        first = torch.arange(groups, device=device) % stride
        chosen = first[:, None] + stride * torch.arange(rows // stride, device=device)
        return chosen[None, :, :, None]

    def polished(self, candidate: Candidates, spacing: Tensor) -> Candidates:
        if self._form is None:
            self._form = self._make_form()
        return Candidates(self.trials[0].polished(self._form, candidate, spacing)[None], candidate.other)

    def _make_form(self) -> Form:
        values = torch.stack([trial.values for trial in self.trials]).flatten(0, 1)
        matrix, target = self.matrix.flatten(0, 1), self.target.flatten(0, 1)
        transposed = matrix.transpose(1, 2)
        pull = torch.bmm(torch.bmm(values, matrix) - target, transposed)
        return Form(values.flatten(0, 1), pull.flatten(0, 1), torch.bmm(matrix, transposed))

    def _rotated(self, matrix: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The same error with `[H, G, K, K]`: A^T = Q R turns |e A + t| into |e R^T + t Q| and what Q leaves out."""
        basis, triangle = torch.linalg.qr(matrix.transpose(-1, -2))
        inside = target @ basis
        self.rest = target.double().square().sum((1, 2, 3)) - inside.double().square().sum((1, 2, 3))
        return triangle.transpose(-1, -2).contiguous(), inside

    def _errors(self, candidates: Candidates, trials: list[Trial], target: Tensor) -> Tensor:
        return torch.stack(
            [self._head(candidates, trial, self.matrix[head], target[head], head) for head, trial in enumerate(trials)],
            dim=1,
        )

    def _head(self, candidates: Candidates, trial: Trial, matrix: Tensor, target: Tensor, head: int) -> Tensor:
        groups, rows, inputs = trial.values.shape
        count = len(candidates.scale)
        errors = torch.zeros(count, dtype=torch.float64, device=matrix.device)
        together = max(1, _PIECE // groups // inputs)  # rows of all candidates at a time
        for start in range(0, rows, together):
            chosen = slice(start, min(rows, start + together))
            part = trial if together >= rows else trial.part(chosen)
            part.prepare(candidates, head)
            wide = target[:, chosen]
            each = max(1, together // wide.shape[1])
            for first in range(0, count, each):
                tried = range(first, min(count, first + each))
                change = matrix.new_empty(groups, len(tried), *part.values.shape[1:])
                for place, candidate in enumerate(tried):
                    part.change(candidate, change[:, place])
                made = torch.bmm(change.flatten(1, 2), matrix).view(*change.shape[:3], -1).add_(wide[:, None])
                norms = torch.linalg.vector_norm(made.flatten(2), dim=2).double()
                errors[first : first + len(tried)] += norms.square().sum(0)
        return errors


class SummedError:
    """The sum of the errors of several calls of one site, whose operands differ in shape."""

    def __init__(self, calls: Sequence[OutputError]) -> None:
        self.calls = calls
        self.polishes = all(call.polishes for call in calls)
        self.exact_rough = all(call.exact_rough for call in calls)

    def __call__(self, candidates: Candidates) -> Tensor:
        return torch.stack([call(candidates) for call in self.calls]).sum(0)

    def rough(self, candidates: Candidates) -> Tensor:
        """Each call looks at a part of its rows, and counts as if it had seen all."""
        return torch.stack([call.rough(candidates) * call.multiple for call in self.calls]).sum(0)

    def polished(self, candidate: Candidates, spacing: Tensor) -> Candidates:
        """The best scale of each call: what the sum makes of them, is for the search to see."""
        best = [call.polished(candidate, spacing) for call in self.calls]
        return Candidates(torch.cat([one.scale for one in best]), torch.cat([one.other for one in best]))


def quantization_change(values: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Affinely quantized values less the values, for parameters that broadcast against them."""
    steps = torch.round(values / scale)
    steps = torch.minimum(torch.maximum(steps, -zero_point, out=steps), (1 << bits) - 1 - zero_point, out=steps)
    return steps.mul_(scale).sub_(values)
