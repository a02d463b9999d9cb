"""Searching both operands of a site in turn, each for the error of the product (AdaLog, section 3.4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from halfbyte.calibrate.fpcs import CandidateError, Found, progressive_search
from halfbyte.calibrate.grids import Grid, uniform_grid
from halfbyte.calibrate.operands import MOST_ZERO_POINTS, Operand, Settings
from halfbyte.calibrate.output_error import OutputError, SummedError, WeightError, quantization_change
from halfbyte.calibrate.own_error import OwnError
from halfbyte.quantizers.base import Quantizer

# Rows of the input that are multiplied at a time, in float32, before sums go on in float64.
_ROWS = 4096

Pairs = Iterable[tuple[Tensor, Tensor]]


class WeightSearch:
    """The rows of a weight `[g, O, I]` (g groups), each with its own scale and zero point."""

    def __init__(self, weight: Tensor, bits: int, settings: Settings, *, of_convolution: bool = False) -> None:
        self.weight, self.bits, self.settings = weight, bits, settings
        half = 1 << (bits - 1)
        self.rows = weight.flatten(0, 1)
        # A convolution's published grid has one scale only at 8 bits.
        uncapped = of_convolution and (settings.paper_exact or bits <= 6)
        self.grid: Grid = uniform_grid(
            self.rows, bits, settings.search.count, half if uncapped else min(MOST_ZERO_POINTS, half),
            centred_on_data=not settings.paper_exact,
        )  # fmt: skip

    def initial(self) -> Found:
        """By the error of the weight itself."""
        return progressive_search(self.grid, OwnError(self.rows, self.bits), self.settings.search)

    def improved(self, error: CandidateError, current: Found) -> Found:
        """The result of one search, or the rows of `current` that are better."""
        return self.settings.kept(progressive_search(self.grid, error, self.settings.search), current, error)

    def change(self, found: Found) -> Tensor:
        """Quantized weight less weight."""
        shape = (*self.weight.shape[:2], 1)
        return quantization_change(self.weight, found.scale.view(shape), found.other.view(shape), self.bits)

    def error(self, pairs: Pairs) -> WeightError:
        """The error of the output for inputs `[g, T, I]`, each given as they are and as they are quantized."""
        groups, outputs, inputs = self.weight.shape
        gram = torch.zeros(groups, inputs, inputs, dtype=torch.float64, device=self.weight.device)
        cross = torch.zeros(groups, outputs, inputs, dtype=torch.float64, device=self.weight.device)
        residual = torch.zeros(groups, outputs, dtype=torch.float64, device=self.weight.device)
        for exact, quantized in pairs:
            for x, used in zip(torch.split(exact, _ROWS, 1), torch.split(quantized, _ROWS, 1), strict=True):
                gram += torch.bmm(used.transpose(1, 2), used)
                if x is not used:
                    error = torch.bmm(used - x, self.weight.transpose(1, 2))
                    cross += torch.bmm(error.transpose(1, 2), used)
                    residual += error.double().square().sum(1)
        return WeightError(self.weight, self.bits, gram.float(), cross.float(), residual.flatten())


def search_linear(inputs: Operand, weight: WeightSearch) -> tuple[Found, Quantizer]:
    """Both operands of a linear: x `[1, 1, T, I]` and W `[1, O, I]`; returns the weight's rows and the input's
    quantizer."""
    x, w = inputs.values[0, 0], weight.weight[0]
    rows, current = weight.initial(), inputs.initial()

    def search_input() -> Found:
        change = weight.change(rows)[0]
        error = OutputError(inputs.trials(), (w + change).T[None, None], (x @ change.T)[None, None])
        return inputs.improved(error, current)

    def search_weight() -> Found:
        return weight.improved(weight.error([(x[None], inputs.quantized(current)[0])]), rows)

    for _ in range(inputs.settings.rounds):
        before = rows, current
        if inputs.first:
            current = search_input()
            rows = search_weight()
        else:
            rows = search_weight()
            current = search_input()
        if _same(before[0], rows) and _same(before[1], current):
            break  # each round depends on the last one alone: the next would find the same
    return rows, inputs.quantizer(current)


def search_product(
    left: Operand, right: Operand, calls: Sequence[tuple[Tensor, Tensor]] = ()
) -> tuple[Quantizer, Quantizer]:
    """Both operands of a product of activations, left `[H, G, M, K]` and right `[H, G, N, K]` (transposed), each of
    the two with as many heads as it is searched for. Where the site was called with several shapes, `calls` has
    these values of each; what counts is the sum of the calls' errors."""
    pairs = [(left.call(values), right.call(others)) for values, others in calls] or [(left, right)]
    one, other = left.initial(), right.initial()

    def output_error(operand: Operand, fixed: Operand, found: Found) -> OutputError:
        quantized = _as(fixed.quantized(found), operand)
        change = quantized - _as(fixed.values, operand)
        return OutputError(
            operand.trials(), quantized.transpose(-1, -2), torch.matmul(operand.values, change.transpose(-1, -2))
        )

    def summed(errors: list[OutputError]) -> CandidateError:
        return errors[0] if len(errors) == 1 else SummedError(errors)

    for _ in range(left.settings.rounds):
        before = one, other
        one = left.improved(summed([output_error(*pair, other) for pair in pairs]), one)
        other = right.improved(summed([output_error(*pair[::-1], one) for pair in pairs]), other)
        if _same(before[0], one) and _same(before[1], other):
            break
    return left.quantizer(one), right.quantizer(other)


def _as(values: Tensor, like: Operand) -> Tensor:
    """`values` `[H, G, m, K]` with the heads among the groups where the other operand is searched for all at once, and
    the other way round."""
    heads, groups = like.values.shape[:2]
    if values.shape[0] == heads:
        return values
    if heads == 1:
        return values.transpose(0, 1).flatten(0, 1)[None]
    return values.view(groups, heads, *values.shape[2:]).transpose(0, 1)


def _same(one: Found, other: Found) -> bool:
    return torch.equal(one.scale, other.scale) and torch.equal(one.other, other.other)
