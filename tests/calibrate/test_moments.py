"""Streamed moments against sums over all rows at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from halfbyte.calibrate.moments import Moments


def rows(seed: int, groups: int = 1, count: int = 60, inputs: int = 5, outputs: int = 3, offset: float = 0.0):
    """Correlated x `[g, N, K]` and y `[g, N, O]` in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(groups, count, inputs) @ normal(groups, inputs, inputs) + offset * normal(groups, 1, inputs)
    y = x @ normal(groups, inputs, outputs) + 0.5 * normal(groups, count, outputs) + offset * normal(groups, 1, outputs)
    return x, y


def streamed(x: Tensor, y: Tensor, sizes: list[int]) -> Moments:
    moments = Moments()
    for part_x, part_y in zip(x.split(sizes, 1), y.split(sizes, 1), strict=True):
        moments.add(part_x, part_y)
    return moments


def direct(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    mean_x, mean_y = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    x, y = x - mean_x, y - mean_y
    return mean_x, mean_y, x.mT @ x, x.mT @ y, y.square().sum((1, 2))


def assert_same(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], tolerance: float = 1e-10) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max()) <= tolerance * max(1.0, float(other.abs().max()))


def sizes_of(count: int) -> st.SearchStrategy[list[int]]:
    """Ways to cut `count` rows into batches, of a single row too."""
    cuts = st.lists(st.integers(1, count - 1), unique=True, max_size=12).map(sorted)
    return cuts.map(lambda at: [b - a for a, b in zip([0, *at], [*at, count], strict=True)])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), groups=st.integers(1, 3), sizes=sizes_of(60), offset=st.sampled_from([0.0, 100.0]))
def test_batches_do_not_matter(seed: int, groups: int, sizes: list[int], offset: float) -> None:
    x, y = rows(seed, groups, offset=offset)
    moments = streamed(x, y, sizes)
    assert moments.count == 60
    assert_same(moments.parts, direct(x, y))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), sizes=sizes_of(60), place=st.integers(0, 12))
def test_two_streams_merge_to_one(seed: int, sizes: list[int], place: int) -> None:
    x, y = rows(seed, 2, offset=10.0)
    at = sum(sizes[:place])
    first = streamed(x[:, :at], y[:, :at], sizes[:place])
    second = streamed(x[:, at:], y[:, at:], sizes[place:])
    before = None if first.parts is None else tuple(part.clone() for part in first.parts)
    both = first.merge(second)
    assert both.count == 60
    assert_same(both.parts, direct(x, y))
    # Neither of the two was changed.
    if before is not None and first.parts is not both.parts:
        assert all(map(torch.equal, first.parts, before))


def test_float32_rows_are_summed_in_float64() -> None:
    x, y = (part.float() for part in rows(0, count=4000, offset=1000.0))
    assert_same(streamed(x, y, [40] * 100).parts, direct(x.double(), y.double()))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), groups=st.integers(1, 3))
def test_error_of_any_map(seed: int, groups: int) -> None:
    x, y = rows(seed, groups, offset=3.0)
    moments = streamed(x, y, [7] * 8 + [4])
    generator = torch.Generator().manual_seed(seed + 1)
    weight = torch.randn(groups, 5, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(groups, 3, generator=generator, dtype=torch.float64)
    wanted = float((y - x @ weight - bias[:, None]).square().sum())
    assert moments.error(weight, bias) == pytest.approx(wanted, rel=1e-10)
    best = moments.intercept(weight)
    wanted = float((y - x @ weight - best[:, None]).square().sum())
    assert moments.error(weight) == pytest.approx(wanted, rel=1e-10)
    assert moments.error(weight, best) == pytest.approx(wanted, rel=1e-10)
    assert moments.error(weight) <= moments.error(weight, bias)


def test_groups_are_separate_regressions() -> None:
    x, y = rows(1, groups=3)
    together = streamed(x, y, [20, 40])
    for ridge in (0.0, 1e-2):
        solved = together.solve(ridge)
        shrunk, constant = together.solve_shrunk(ridge)
        for group in range(3):
            alone = streamed(x[group : group + 1], y[group : group + 1], [20, 40])
            assert torch.allclose(solved[group], alone.solve(ridge)[0], rtol=1e-12)
            assert torch.allclose(shrunk[group], alone.solve_shrunk(ridge)[0][0], rtol=1e-12)
            assert torch.allclose(constant[group], alone.solve_shrunk(ridge)[1][0], rtol=1e-12)


# Solutions


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1.0])
def test_no_map_is_better(ridge: float) -> None:
    x, y = rows(2, offset=5.0)
    moments = streamed(x, y, [60])
    strength = ridge * float(moments.xx[0].diagonal().mean())
    start = torch.ones(1, 5, 3, dtype=torch.float64)

    def penalized(weight: Tensor, origin: Tensor) -> float:
        return moments.error(weight) + strength * float((weight - origin).square().sum())

    for given_start, origin in ((None, torch.zeros_like(start)), (start, start)):
        solution = moments.solve(ridge, start=given_start)
        least = penalized(solution, origin)
        for step in torch.randn(20, 1, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)):
            assert penalized(solution + 1e-3 * step, origin) > least


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 50.0])
def test_a_ridge_on_the_constant_too(ridge: float) -> None:
    x, y = rows(3, offset=5.0)
    weight, bias = streamed(x, y, [30, 30]).solve_shrunk(ridge)
    ones = torch.cat([x[0], torch.ones(60, 1, dtype=torch.float64)], 1)
    wanted = torch.linalg.solve(ones.T @ ones + ridge * torch.eye(6, dtype=torch.float64), ones.T @ y[0])
    assert torch.allclose(torch.cat([weight[0], bias]), wanted, rtol=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_reduced_rank_is_the_best_of_its_rank(rank: int) -> None:
    x, y = rows(4, count=200)
    moments = streamed(x, y, [100, 100])
    weight = moments.solve(0.0)
    strongest = moments.principal(weight)[..., :rank]
    reduced = weight @ strongest @ strongest.mT
    # What is left of the prediction by the largest singular values (Eckart and Young).
    prediction = ((x - x.mean(1, keepdim=True)) @ weight)[0]
    left, values, right = torch.linalg.svd(prediction, full_matrices=False)
    wanted = (left[:, :rank] * values[:rank]) @ right[:rank]
    assert torch.allclose(((x - x.mean(1, keepdim=True)) @ reduced)[0], wanted, atol=1e-9)
    lost = float(values[rank:].square().sum())
    assert moments.error(reduced) - moments.error(weight) == pytest.approx(lost, rel=1e-8, abs=1e-8)
    assert torch.allclose(weight @ strongest @ moments.refit(weight @ strongest), reduced, atol=1e-9)


def test_the_second_factor_is_the_best_behind_any_first() -> None:
    x, y = rows(5)
    moments = streamed(x, y, [60])
    first = torch.randn(1, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    second = moments.refit(first)
    least = moments.error(first @ second)
    for step in torch.randn(20, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)):
        assert moments.error(first @ (second + 1e-3 * step)) > least


# Where there is no unique solution


def assert_least_map(moments: Moments, x: Tensor, y: Tensor, ridges: tuple[float, ...] = (0.0, 1e-12)) -> None:
    wanted = torch.linalg.lstsq(
        (x - x.mean(1, keepdim=True))[0], (y - y.mean(1, keepdim=True))[0], rcond=1e-6, driver="gelsd"
    ).solution
    for ridge in ridges:
        weight = moments.solve(ridge)
        assert bool(weight.isfinite().all())
        assert torch.allclose(weight[0], wanted, atol=1e-5)
        assert float(weight.abs().max()) <= 2 * float(wanted.abs().max())
    shrunk, bias = moments.solve_shrunk(0.0)
    assert torch.allclose(shrunk[0], wanted, atol=1e-5)
    assert bool(bias.isfinite().all())


def test_constant_channels_get_no_weight() -> None:
    x, y = rows(6)
    x[..., 2], x[..., 4] = 7.0, 0.0
    moments = streamed(x, y, [25, 35])
    assert_least_map(moments, x, y)
    for ridge in (0.0, 1e-4):
        assert float(moments.solve(ridge)[0, [2, 4]].abs().max()) < 1e-9
    for group in (moments.solve(0.0), moments.solve_shrunk(0.0)[0]):
        assert float(group[0, 0].abs().max()) > 0.1


def test_a_constant_channel_in_one_group_leaves_the_others_alone() -> None:
    x, y = rows(7, groups=2)
    free = streamed(x, y, [60]).solve(0.0)
    x[0, :, 1] = 3.0
    weight = streamed(x, y, [60]).solve(0.0)
    assert torch.allclose(weight[1], free[1], atol=1e-9)
    assert float(weight[0, 1].abs().max()) < 1e-9


def test_more_channels_than_rows() -> None:
    x, y = rows(8, count=6, inputs=20)
    moments = streamed(x, y, [2, 4])
    assert_least_map(moments, x, y)
    assert moments.error(moments.solve(0.0)) < 1e-12 * float(moments.yy)


def test_copied_channels_share_their_weight() -> None:
    x, y = rows(9)
    # As float32 leaves it: equal but for rounding.
    x[..., 3] = (x[..., 0] * 0.1).float().double() * 10
    moments = streamed(x, y, [60])
    assert_least_map(moments, x, y, ridges=(0.0,))
    weight = moments.solve(0.0)[0]
    assert torch.allclose(weight[0], weight[3], atol=1e-6)


def test_constant_rows_have_no_map_and_no_error() -> None:
    x, y = torch.full((1, 10, 4), 2.0), torch.full((1, 10, 3), -5.0)
    moments = streamed(x, y, [5, 5])
    for ridge in (0.0, 1e-4):
        weight = moments.solve(ridge)
        assert not weight.any()
        assert torch.equal(moments.intercept(weight), torch.full((1, 3), -5.0, dtype=torch.float64))
        assert moments.error(weight) == 0.0
        assert not moments.refit(weight[..., :2]).any()


def test_no_rows_at_all() -> None:
    with pytest.raises(ValueError, match="no rows"):
        Moments().solve(0.0)
    assert Moments().merge(Moments()).parts is None
