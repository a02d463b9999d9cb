"""Ranges from percentiles: the candidates of RepQ-ViT, scored by the squared error of quantizing the tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from halfbyte.quantizers.log import LogQuantizer
from halfbyte.quantizers.uniform import UniformQuantizer

REPQ_PERCENTILES = (0.999, 0.9999, 0.99999)
MINMAX = (1.0,)


@dataclass(frozen=True)
class Rows:
    """A tensor as rows `[R, n]`, one row a scale, with the shape that the scales take in the tensor's own layout."""

    values: Tensor
    shape: tuple[int, ...]


def rows_of(x: Tensor, axis: int | None) -> Rows:
    """Split `x` into the rows that share a scale: one for `axis` None, else one an index of that dimension."""
    if axis is None:
        return Rows(x.reshape(1, -1), ())
    axis = axis % x.ndim
    shape = tuple(n if d == axis else 1 for d, n in enumerate(x.shape))
    return Rows(x.transpose(0, axis).reshape(x.shape[axis], -1), shape)


def quantiles(rows: Tensor, probabilities: Sequence[float]) -> Tensor:
    """Quantiles `[P, R]` of each row of `[R, n]`, float32, interpolated linearly between order statistics.

    Any n is possible (torch.quantile stops at 2**24 elements); only the few order statistics needed are selected.
    """
    count = rows.shape[1]
    ranks = [p * (count - 1) for p in probabilities]
    wanted = sorted({int(edge) for rank in ranks for edge in (np.floor(rank), np.ceil(rank))})
    found = dict(zip(wanted, _order_statistics(rows, wanted), strict=True))
    result = []
    for rank in ranks:
        low, high = found[int(np.floor(rank))].double(), found[int(np.ceil(rank))].double()
        result.append((low + (rank - np.floor(rank)) * (high - low)).float())
    return torch.stack(result)


def fit_uniform(
    quantizer: UniformQuantizer, x: Tensor, percentiles: Sequence[float] = REPQ_PERCENTILES
) -> UniformQuantizer:
    """Set the range of `quantizer` from `x` (RepQ-ViT, `init_quantization_scale`).

    For each p the range runs from the quantile 1 - p to the quantile p; each row keeps the first range with the least
    mean squared error.
    """
    rows = rows_of(x.detach(), quantizer.axis)
    found = quantiles(rows.values, [q for p in percentiles for q in (1 - p, p)])
    if not bool(torch.isfinite(found).all()):
        raise ValueError("a tensor to be quantized holds values that are not finite")
    ranges = [(found[2 * i], found[2 * i + 1]) for i in range(len(percentiles))]
    return fit_best_range(quantizer, rows, ranges)


def fit_best_range(
    quantizer: UniformQuantizer, rows: Rows, ranges: Sequence[tuple[Tensor, Tensor]], power: float = 2.0
) -> UniformQuantizer:
    """Give each row of `rows` the range `(low [R], high [R])` of `ranges` with the least mean |error|^power, the first
    on a tie."""
    low, high = (edge.clone() for edge in ranges[0])
    if len(ranges) > 1:
        least = torch.full_like(low, float("inf"), dtype=torch.float64)
        for candidate in ranges:
            error = _uniform_error(quantizer, rows.values, *candidate, power)
            better = error < least
            least = torch.where(better, error, least)
            low, high = torch.where(better, candidate[0], low), torch.where(better, candidate[1], high)
    quantizer.set_range(low.reshape(rows.shape), high.reshape(rows.shape))
    return quantizer


def fit_log(quantizer: LogQuantizer, x: Tensor, percentiles: Sequence[float] = REPQ_PERCENTILES) -> LogQuantizer:
    """Set the largest level of `quantizer` from the upper quantiles of `x`: the first with the least squared error."""
    values = x.detach().reshape(1, -1)
    best: tuple[float, Tensor] | None = None
    for candidate in quantiles(values, list(percentiles))[:, 0]:
        scale = candidate if float(candidate) > 0 else torch.ones_like(candidate)
        quantizer.set_scale(scale)
        error = float(_mean_error(values, quantizer.forward)[0])
        if best is None or error < best[0]:
            best = (error, scale)
    assert best is not None
    quantizer.set_scale(best[1])
    return quantizer


def _order_statistics(rows: Tensor, ranks: list[int]) -> list[Tensor]:
    if rows.device.type != "cpu":
        ordered = rows.sort(dim=1).values
        return [ordered[:, rank] for rank in ranks]
    partitioned = np.partition(rows.contiguous().numpy(), ranks, axis=1)
    return [torch.from_numpy(partitioned[:, rank].copy()) for rank in ranks]


def _uniform_error(quantizer: UniformQuantizer, values: Tensor, low: Tensor, high: Tensor, power: float) -> Tensor:
    trial = UniformQuantizer(
        quantizer.bits, None if values.shape[0] == 1 else 0,
        symmetric=quantizer.symmetric, covers_zero=quantizer.covers_zero,
    )  # fmt: skip
    trial.set_range(low[:, None], high[:, None])
    return _mean_error(values, trial.forward, power)


def _mean_error(values: Tensor, quantize: Callable[[Tensor], Tensor], power: float = 2.0) -> Tensor:
    """Mean |error|^power `[R]` in float64 of quantizing `[R, n]`, in pieces that stay in the cache."""
    rows, count = values.shape
    total = torch.zeros(rows, dtype=torch.float64, device=values.device)
    for piece in torch.split(values, max(1, 2**18 // rows), dim=1):
        error = (quantize(piece) - piece).double()
        total += (error.square_() if power == 2 else error.abs_().pow_(power)).sum(1)
    return total / count
