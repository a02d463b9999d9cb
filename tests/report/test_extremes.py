"""Numbers that no run has, each alone among sound ones, draw no page that fails."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from tests.report import facts

from halfbyte.report.compare import render_comparison
from halfbyte.report.comparison import RunFacts, compare_runs
from halfbyte.report.run import render_run

Path = tuple[str | int, ...]
SOUND = {"metrics": facts.deit_tiny_metrics(), "findings": facts.findings(), "bench": facts.bench()}


def numbers(value: Any, place: Path = ()) -> Iterator[Path]:
    """Where numbers stand, of a list's entries the first alone."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers(item, (*place, key))
    elif isinstance(value, list):
        for index, item in enumerate(value[:1]):
            yield from numbers(item, (*place, index))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield place


def spoilt(place: Path, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(SOUND)
    inner: Any = made
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return made


@pytest.mark.parametrize("value", [1.7e308, -1.7e308, 5e-324, 10**400, 0], ids=["huge", "low", "tiny", "long", "zero"])
def test_one_extreme_number(value: Any) -> None:
    places = list(numbers(SOUND))
    assert len(places) > 50
    for place in places:
        made = spoilt(place, value)
        page = render_run(made["metrics"], "", made["findings"], made["bench"])
        if place[-1] != "outputs":
            runs = [RunFacts(name, **parts) for name, parts in (("a", SOUND), ("b", made))]
            page += render_comparison(compare_runs(runs))
        assert not {"nan", "inf"} & set(page.replace(">", " ").replace("<", " ").split()), place
