"""Each shortcut of the search against the direct evaluation: quantize, multiply, subtract, square."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from halfbyte.calibrate.grids import Candidates, log_grid, uniform_grid
from halfbyte.calibrate.output_error import OutputError, SummedError, WeightError
from halfbyte.calibrate.own_error import OwnError
from halfbyte.calibrate.trials import LogTrial, Trial, TwinTrial, UniformTrial
from halfbyte.quantizers.log import GELU_SHIFT, AdaLogQuantizer, Log2Quantizer, LogQuantizer, LogSqrt2Quantizer
from halfbyte.quantizers.twin import TwinUniformQuantizer
from halfbyte.quantizers.uniform import UniformQuantizer

BITS = (2, 3, 4, 6, 8)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(x: Tensor, bits: int, scale: Tensor, zero_point: Tensor) -> Tensor:
    quantizer = UniformQuantizer(bits)
    quantizer.set_parameters(scale, zero_point)
    return quantizer(x)


def direct(x: Tensor, quantize, candidates: Candidates, row: int, product) -> Tensor:
    """The squared error of `product` for every candidate of a row, one after the other."""
    exact = product(x.double())
    errors = [
        (product(quantize(x, candidates.scale[j, row], candidates.other[j, row]).double()) - exact).square().sum()
        for j in range(len(candidates.scale))
    ]
    return torch.stack(errors)


def assert_same_choice(got: Tensor, expected: Tensor, kept: int = 16) -> None:
    assert torch.allclose(got, expected, rtol=2e-4, atol=1e-9 * float(expected.max()))
    assert int(got.argmin()) == int(expected.argmin())
    # Behind the best, candidates whose errors agree to float32 may change places.
    limit = expected.sort().values[kept - 1] * (1 + 1e-5)
    assert bool((expected[got.argsort(stable=True)[:kept]] <= limit).all())


@pytest.mark.parametrize("bits", BITS)
def test_own_error(bits: int) -> None:
    rows = noise(3, 500) * torch.tensor([[1.0], [0.01], [30.0]])
    grid = uniform_grid(rows, bits, 128, min(16, 2**bits), centred_on_data=True).candidates
    got = OwnError(rows, bits)(grid)
    for row in range(3):
        expected = direct(rows[row], lambda x, s, z: quantized(x, bits, s, z), grid, row, lambda x: x)
        assert_same_choice(got[:, row], expected)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("groups", [1, 4])
def test_weight_error_through_the_gram_matrix(bits: int, groups: int) -> None:
    weight, x = noise(groups, 6, 24) * 0.1, noise(groups, 400, 24, seed=1) @ noise(24, 24, seed=2)
    used = quantized(x, 8, (x.max() - x.min()) / 255, torch.round(-x.min() * 255 / (x.max() - x.min())))
    residual = (used - x) @ weight.transpose(1, 2)
    error = WeightError(
        weight, bits, used.transpose(1, 2) @ used, residual.transpose(1, 2) @ used, residual.square().sum(1).flatten()
    )
    rows = weight.flatten(0, 1)
    grid = uniform_grid(rows, bits, 128, min(16, 2 ** (bits - 1)), centred_on_data=True).candidates
    got = error(grid)
    for row in range(len(rows)):
        group = row // 6
        exact = x[group].double() @ rows[row].double()
        expected = torch.stack(
            [
                (used[group].double() @ quantized(rows[row], bits, s[row], z[row]).double() - exact).square().sum()
                for s, z in zip(grid.scale, grid.other, strict=True)
            ]
        )
        assert_same_choice(got[:, row], expected)


def _output_error(trials: list[Trial], other: Tensor, change: Tensor) -> OutputError:
    values = torch.stack([trial.values for trial in trials])
    return OutputError(trials, other + change, values @ change)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("columns", [5, 60], ids=["few columns", "more columns than rows"])
def test_output_error(bits: int, columns: int) -> None:
    """Two heads of three groups; with more columns than rows both are rotated."""
    x, other = noise(2, 3, 40, 16), noise(2, 3, 16, columns, seed=1)
    change = 0.05 * noise(2, 3, 16, columns, seed=2)
    error = _output_error([UniformTrial(head, bits) for head in x], other, change)
    grid = uniform_grid(x.flatten(1), bits, 128, min(16, 2**bits), centred_on_data=True).candidates
    got = error(grid)
    for head in range(2):
        exact = x[head].double() @ other[head].double()
        used = (other + change)[head].double()
        expected = torch.stack(
            [
                (quantized(x[head], bits, s[head], z[head]).double() @ used - exact).square().sum()
                for s, z in zip(grid.scale, grid.other, strict=True)
            ]
        )
        assert_same_choice(got[:, head], expected)


LIKES = [
    AdaLogQuantizer(4), AdaLogQuantizer(3, shift=GELU_SHIFT), AdaLogQuantizer(8), AdaLogQuantizer(4, paper_exact=True),
    AdaLogQuantizer(4, paper_exact=True, shift=GELU_SHIFT), Log2Quantizer(4), LogSqrt2Quantizer(3),
]  # fmt: skip


@pytest.mark.parametrize("like", LIKES, ids=[str(like.spec()) for like in LIKES])
def test_a_log_trial_changes_what_its_quantizer_changes(like: LogQuantizer) -> None:
    x = torch.nn.functional.gelu(2 * noise(2, 30, 20)) if like.shift else noise(2, 30, 20).mul(3).softmax(-1)
    trial = LogTrial(x, like)
    bases = torch.tensor(like.bases(like.bits, like.paper_exact), dtype=torch.float32)
    candidates = log_grid(0.05, 2.0, 5, torch.cat((bases, -bases))).candidates
    trial.prepare(candidates, 0)
    out = torch.empty_like(x)
    for j in range(0, len(candidates.scale), 7):
        trial.change(j, out)
        base = int(candidates.other[j, 0])
        options = {"paper_exact": like.paper_exact, "shift": like.shift, "zero": base > 0}
        options |= {"base": abs(base)} if isinstance(like, AdaLogQuantizer) else {}
        quantizer = type(like)(like.bits, **options)
        quantizer.set_scale(candidates.scale[j, 0])
        assert torch.allclose(out, quantizer(x) - x, rtol=0, atol=2e-7 * float(candidates.scale[j, 0]) + 1e-7)


@pytest.mark.parametrize("signed", [True, False])
def test_a_twin_trial_changes_what_its_quantizer_changes(signed: bool) -> None:
    x = noise(1, 30, 20) if signed else noise(1, 30, 20).softmax(-1)
    trial, out = TwinTrial(x, 4, signed), torch.empty_like(x)
    trial.prepare(Candidates(torch.tensor([[0.02], [0.1]]), torch.tensor([[4.0], [-1.0]])), 0)
    for j, (fine, exponent) in enumerate(((0.02, 4), (0.1, -1))):
        quantizer = TwinUniformQuantizer(4, signed=signed)
        quantizer.set_scales(torch.tensor(fine), torch.tensor(fine) * 2.0**exponent)
        trial.change(j, out)
        assert torch.equal(out, quantizer(x) - x)


def test_a_rough_error_ranks_like_the_whole_one() -> None:
    x, other = noise(1, 1, 8000, 32), noise(1, 1, 32, 24, seed=1)
    error = _output_error([UniformTrial(x[0], 4)], other, 0.05 * noise(1, 1, 32, 24, seed=2))
    assert not error.exact_rough
    grid = uniform_grid(x.flatten(1), 4, 128, 16, centred_on_data=True).candidates
    rough, whole = error.rough(grid)[:, 0], error(grid)[:, 0]
    assert float(whole[rough.argmin()] / whole.min()) < 1.02
    assert np.corrcoef(rough.log(), whole.log())[0, 1] > 0.999


@pytest.mark.parametrize("heads", [1, 3])
def test_calls_of_one_shape_apart_are_what_they_are_together(heads: int) -> None:
    values, matrix, target = (
        noise(heads, 1200, 7, 16),
        noise(heads, 1200, 16, 10, seed=1),
        noise(heads, 1200, 7, 10, seed=2),
    )

    def error(images: slice) -> OutputError:
        trials = [UniformTrial(head[images], 4) for head in values]
        return OutputError(trials, matrix[:, images], 0.1 * target[:, images])

    whole, apart = error(slice(1200)), SummedError([error(slice(400)), error(slice(400, 1200))])
    grid = uniform_grid(values.flatten(1), 4, 128, 16, centred_on_data=True).candidates
    assert torch.allclose(apart(grid), whole(grid), rtol=1e-6)
    assert apart.exact_rough == whole.exact_rough == (heads > 1)
    # What a part of the rows tells of each call adds up to the same sum.
    best = whole(grid).argmin(0)
    rough, exact = apart.rough(grid).gather(0, best[None]), apart(grid).gather(0, best[None])
    assert torch.allclose(rough, exact, rtol=0.05)
    start = Candidates(grid.scale.gather(0, best[None]), grid.other.gather(0, best[None]))
    polished = apart.polished(start, 0.01 * start.scale[0])
    assert polished.scale.shape == polished.other.shape == (2, heads)
    assert bool((apart(polished).amin(0) <= exact[0] * (1 + 1e-6)).all())
