"""What counts as a number of a JSON file."""

import math

import pytest

from halfbyte.form import misfit, number


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, -(10**400), True, "3", None, [3]])
def test_what_no_reader_can_compute_with_is_no_number(value: object) -> None:
    assert not number(value)
    assert misfit({"mean": [0.5, value]}, {"mean": [number]}, "facts") == "facts.mean[1]"


@pytest.mark.parametrize("value", [0, -3, 0.5, 1e308, 10**300])
def test_numbers(value: float) -> None:
    assert number(value)
