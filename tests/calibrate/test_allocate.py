"""Budgets are kept and spent well."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.calibrate.allocate import allocate


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 4), st.floats(0, 1))
def test_the_budget_is_kept_and_the_choice_is_near_the_best(seed, things, offers, share):
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(things, offers, generator=generator).cumsum(1)
    cost = torch.rand(things, offers, generator=generator).flip(1).cumsum(1).flip(1)
    least, most = float(size.min(1).values.sum()), float(size.max(1).values.sum())
    budget = least + share * (most - least) + 1e-5
    choice = allocate(cost, size, budget)
    rows = range(things)
    assert sum(float(size[row, choice[row]]) for row in rows) <= budget
    costs = {
        option: sum(float(cost[row, option[row]]) for row in rows)
        for option in itertools.product(range(offers), repeat=things)
        if sum(float(size[row, option[row]]) for row in rows) <= budget
    }
    found, best = costs[tuple(choice)], min(costs.values())
    # Lagrange's choice misses at most what one thing can gain.
    assert best - 1e-9 <= found <= best + float((cost.max(1).values - cost.min(1).values).max()) + 1e-9


def test_all_of_it_where_it_is_enough_and_an_error_where_it_is_not():
    cost, size = torch.tensor([[4.0, 2.0, 1.0]] * 3), torch.tensor([[2.0, 3.0, 4.0]] * 3)
    assert allocate(cost, size, 12.0) == [2, 2, 2]
    assert allocate(cost, size, 6.0) == [0, 0, 0]
    assert sorted(allocate(cost, size, 7.5)) == [0, 0, 1]
    with pytest.raises(ValueError, match="smallest choice"):
        allocate(cost, size, 5.9)
