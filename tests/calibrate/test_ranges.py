import numpy as np
import pytest
import torch

from halfbyte.calibrate.mse import fit_uniform_mse
from halfbyte.calibrate.percentile import MINMAX, fit_log, fit_uniform, quantiles
from halfbyte.calibrate.statistics import Histogram
from halfbyte.quantizers.log import LogSqrt2Quantizer
from halfbyte.quantizers.uniform import UniformQuantizer

HEAVY_TAILED = torch.randn(40000, generator=torch.Generator().manual_seed(1)) ** 3


def test_quantiles_interpolate_as_numpy_does() -> None:
    rows = torch.randn(5, 1001)
    wanted = [0.001, 0.25, 0.5, 0.9999, 1.0]
    expected = np.quantile(rows.double().numpy(), wanted, axis=1)
    assert np.abs(quantiles(rows, wanted).numpy() - expected).max() < 1e-6


def test_quantiles_of_more_elements_than_float32_can_count() -> None:
    many = torch.arange(2**24 + 2, dtype=torch.float32).flip(0)[None]
    assert float(quantiles(many, [0.5])[0, 0]) == pytest.approx((2**24 + 1) / 2, abs=1)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_percentiles_beat_the_extremes_on_a_heavy_tail(bits: int) -> None:
    def error(quantizer: UniformQuantizer) -> float:
        return float((quantizer(HEAVY_TAILED) - HEAVY_TAILED).square().mean())

    extremes = fit_uniform(UniformQuantizer(bits), HEAVY_TAILED, MINMAX)
    assert float(extremes.scale) == pytest.approx(float(HEAVY_TAILED.max() - HEAVY_TAILED.min()) / (2**bits - 1))
    assert error(fit_uniform(UniformQuantizer(bits), HEAVY_TAILED)) <= error(extremes)
    assert error(fit_uniform_mse(UniformQuantizer(bits), HEAVY_TAILED)) <= error(extremes)


def test_each_row_gets_its_own_best_range() -> None:
    weight = torch.randn(6, 300, generator=torch.Generator().manual_seed(2)) * torch.logspace(-2, 2, 6)[:, None]
    together = fit_uniform_mse(UniformQuantizer(3, axis=0), weight)
    for row, scale in zip(weight, together.scale.flatten(), strict=True):
        alone = fit_uniform_mse(UniformQuantizer(3), row)
        assert float(alone.scale) == pytest.approx(float(scale), rel=1e-6)


def test_constant_rows_among_others_do_no_harm() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(3))
    x[:, 1], x[:, 2] = 0.0, -2.5
    quantizer = fit_uniform(UniformQuantizer(4, axis=-1), x)
    assert torch.equal(quantizer(x)[:, 1:3], x[:, 1:3])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    x = torch.randn(100)
    x[7] = bad
    with pytest.raises(ValueError, match="not finite"):
        fit_uniform(UniformQuantizer(4), x, MINMAX)
    with pytest.raises(ValueError, match="not finite"):
        Histogram().add(x)


@pytest.mark.parametrize("bits", [3, 8])
def test_a_histogram_of_pieces_gives_nearly_the_range_of_the_whole(bits: int) -> None:
    histogram = Histogram()
    for piece in HEAVY_TAILED.split(999):
        histogram.add(piece)
    assert float(histogram.counts.sum()) == len(HEAVY_TAILED)
    streamed, whole = UniformQuantizer(bits), UniformQuantizer(bits)

    def excess() -> float:
        ratio = [(q(HEAVY_TAILED) - HEAVY_TAILED).square().mean() for q in (streamed, whole)]
        return float(ratio[0] / ratio[1])

    histogram.fit_uniform(streamed)
    fit_uniform(whole, HEAVY_TAILED)
    assert excess() < 1.1
    histogram.fit_uniform_mse(streamed, 80)
    fit_uniform_mse(whole, HEAVY_TAILED)
    assert excess() < 1.02


def test_a_histogram_keeps_every_count_when_its_range_grows() -> None:
    histogram = Histogram(bins=64)
    for value in (0.0, 1.0, -100.0, 1e5, 3.0):
        histogram.add(torch.full((10,), value))
    assert float(histogram.counts.sum()) == 50
    assert (histogram.quantile(0), histogram.quantile(1)) == (-100.0, 1e5)


def test_a_histogram_fits_log_levels() -> None:
    x = torch.rand(30000, generator=torch.Generator().manual_seed(4)) ** 8
    histogram, streamed = Histogram(), LogSqrt2Quantizer(4)
    histogram.add(x)
    histogram.fit_log(streamed)
    assert float(streamed.scale) == pytest.approx(float(fit_log(LogSqrt2Quantizer(4), x).scale), rel=0.01)
