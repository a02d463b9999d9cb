"""Every kind of quantizer has a line on which its levels lie, and values beside them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from halfbyte.findings.ruler import outer_levels, ruler
from halfbyte.quantizers.base import Quantizer
from halfbyte.quantizers.groupwise import CentredQuantizer, GroupwiseQuantizer
from halfbyte.quantizers.log import GELU_SHIFT, AdaLogQuantizer, Log2Quantizer, LogSqrt2Quantizer
from halfbyte.quantizers.lsq import LsqQuantizer
from halfbyte.quantizers.twin import TwinUniformQuantizer
from halfbyte.quantizers.uniform import UniformQuantizer


def _uniform(**options: object) -> Quantizer:
    quantizer = UniformQuantizer(4, **options)
    shape = (6, 1) if quantizer.axis == 0 else ()
    quantizer.set_range(-torch.rand(shape) - 0.5, torch.rand(shape) + 0.2)
    return quantizer


def _log(kind: type, **options: object) -> Quantizer:
    quantizer = kind(3, **options)
    quantizer.set_scale(torch.tensor(0.7))
    return quantizer


def _lsq(**options: object) -> Quantizer:
    quantizer = LsqQuantizer(4, **options)
    quantizer.set_step(torch.rand(6, 1) + 0.1 if quantizer.axis == 0 else torch.tensor(0.11), torch.tensor(0.05))
    return quantizer


def _groups() -> Quantizer:
    quantizer = GroupwiseQuantizer(4, 2)
    quantizer.set_ranges(torch.tensor([0.5, 2.0]), torch.tensor([0, 1, 0, 1, 1]))
    return quantizer


def _centred() -> Quantizer:
    quantizer = CentredQuantizer(4)
    quantizer.set_range(torch.tensor(0.31), torch.tensor(1.1))
    return quantizer


def _twin() -> Quantizer:
    quantizer = TwinUniformQuantizer(4)
    quantizer.set_scales(torch.tensor(0.02), torch.tensor(0.16))
    return quantizer


QUANTIZERS = {
    "uniform": _uniform,
    "uniform by channel": lambda: _uniform(axis=0),
    "uniform with fractional zero points": lambda: _uniform(axis=0, fractional=True),
    "log2": lambda: _log(Log2Quantizer),
    "log sqrt2 without a zero": lambda: _log(LogSqrt2Quantizer, zero=False),
    "adalog, shifted": lambda: _log(AdaLogQuantizer, shift=GELU_SHIFT),
    "log sqrt2 as published": lambda: _log(LogSqrt2Quantizer, paper_exact=True),
    "lsq": _lsq,
    "lsq by channel": lambda: _lsq(axis=0),
    "lsq with an offset": lambda: _lsq(with_offset=True),
    "groups": _groups,
    "centred": _centred,
    "twin": _twin,
}


@pytest.fixture(params=QUANTIZERS)
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    torch.manual_seed(0)
    return QUANTIZERS[request.param]()


def values(count: int = 4000) -> Tensor:
    """`[6, count, 5]`, far beyond what the quantizers hold, and nearly zero."""
    torch.manual_seed(1)
    return torch.randn(6, count // 30, 5) * torch.logspace(-4, 0.5, 5)


def test_quantized_values_lie_on_levels(quantizer: Quantizer) -> None:
    x = values() if quantizer.scale.ndim < 2 else values().flatten(1)
    x = x.abs() if "log" in quantizer.kind else x
    line = ruler(quantizer)
    places = line.places(quantizer(x)).double().flatten()
    distance = (places[:, None] - line.levels[None]).abs().amin(1)
    assert float(distance.max()) < 1e-4 * max(1.0, float(line.levels.abs().max()))
    assert bool((line.levels.diff() > 0).all())
    assert len(line.levels) <= quantizer.levels + 1


def test_what_is_beyond_the_limits_is_clipped_and_nothing_else(quantizer: Quantizer) -> None:
    x = values() if quantizer.scale.ndim < 2 else values().flatten(1)
    x = x.abs() if "log" in quantizer.kind else x
    line = ruler(quantizer)
    places, quantized = line.places(x).double(), line.places(quantizer(x)).double()
    low, high = line.limits
    beyond = (places < low - 1e-6) | (places > high + 1e-6)
    assert beyond.any()
    outer = (quantized - line.levels[0]).abs().minimum((quantized - line.levels[-1]).abs())
    assert float(outer[beyond].max()) < 1e-4
    if not line.logarithmic and quantizer.kind != "twin_uniform":
        # Inside, a uniform grid misses nothing by more than half a step.
        step = float(line.levels.diff().max())
        inside = ~beyond & (places > low) & (places < high)
        assert float((quantized - places)[inside].abs().max()) <= step * 0.501


def test_outer_levels_are_the_extremes_of_what_comes_out(quantizer: Quantizer) -> None:
    x = values() if quantizer.scale.ndim < 2 else values().flatten(1)
    x = torch.cat([x, torch.full_like(x, 100.0), torch.full_like(x, 1e-9 if "log" in quantizer.kind else -100.0)], 1)
    found = quantizer(x)
    low, high = outer_levels(ruler(quantizer))
    assert high == pytest.approx(float(found.max()), rel=1e-5)
    assert low == pytest.approx(float(found.min()), rel=1e-5, abs=1e-6)


def test_where_scales_differ_places_are_codes(quantizer: Quantizer) -> None:
    line = ruler(quantizer)
    assert line.codes == (quantizer.scale.numel() > 1)
    if line.codes:
        assert line.levels.tolist() == list(range(len(line.levels)))
