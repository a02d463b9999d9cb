"""The learning rate rises, falls, and does not end at nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest

from halfbyte.train.schedule import Schedule


def test_it_rises_falls_and_ends_above_zero():
    schedule = Schedule(rate=0.1, total=100, warmup=10, last=0.05)
    rates = [schedule.at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[9] == rates[10] == max(rates) == 0.1
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert 0.005 < rates[-1] < 0.0051
    assert Schedule(0.1, 100).at(99) > 0
    # Half of the way down is half of the way in time.
    assert Schedule(1.0, 100).at(50) == pytest.approx(0.5)


def test_a_rate_that_stays():
    assert [Schedule(0.1, 3, cosine=False).at(step) for step in range(3)] == [0.1] * 3
    assert [Schedule(0.1, 3, warmup=2, cosine=False).at(step) for step in range(3)] == [0.05, 0.1, 0.1]
