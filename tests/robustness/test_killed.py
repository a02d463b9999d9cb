"""SIGKILL at any moment: what is resumed ends in the bytes of an undisturbed run, a file is whole or absent."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.robustness.commands import Commands, tree
from tests.robustness.verbs import MEASURED, RESUME, VERBS, WRITE, Inputs

pytestmark = pytest.mark.slow

MOMENTS = 24


@pytest.fixture(scope="module")
def undisturbed(commands, inputs, tmp_path_factory) -> dict[str, dict[str, str]]:
    """What each verb leaves."""
    found = {}
    for title in WRITE:
        folder = tmp_path_factory.mktemp("undisturbed")
        commands.run(*VERBS[title].command(inputs, Path(VERBS[title].out)), folder=folder).well()
        found[title] = _lasting(folder)
    return found


def _lasting(folder: Path) -> dict[str, str]:
    return {name: held for name, held in tree(folder).items() if Path(name).name not in MEASURED}


def _goes_on(commands: Commands, inputs: Inputs, place: Path, title: str, expected: dict[str, str]) -> None:
    """Assert what must be true behind a kill; then empty the folder."""
    verb = VERBS[title]
    command = verb.command(inputs, Path(verb.out))
    if title in RESUME:
        commands.run(*command, "--resume", folder=place).well()
    else:
        found = _lasting(place)
        whole = {name: held for name, held in found.items() if ".part" not in name}
        # OpenVINO's second file is what the first one needs.
        assert whole == expected or (verb.out not in whole and whole.items() <= expected.items())
        if verb.over is not None or whole != expected:
            commands.run(*command, *(verb.over or ()), folder=place).well()
    assert _lasting(place) == expected
    for path in place.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _changes(commands: Commands, inputs: Inputs, place: Path, title: str, numbers: Iterator[int]) -> Iterator[int]:
    """Kill the verb right before each of these changes on disk, until there is none of that number."""
    verb = VERBS[title]
    for number in numbers:
        done = commands.run(*verb.command(inputs, Path(verb.out)), folder=place, die_before=number)
        assert done.code in (0, -signal.SIGKILL), done
        yield number
        if done.code == 0:
            return


@pytest.mark.parametrize("title", WRITE)
def test_killed_before_every_change_on_disk(commands, inputs, place, undisturbed, title):
    kills = 0
    for number in _changes(commands, inputs, place, title, iter(range(1, 1000))):
        _goes_on(commands, inputs, place, title, undisturbed[title])
        kills = number - 1
    assert kills > 2


@pytest.mark.parametrize("title", WRITE)
def test_killed_at_random_moments(commands, inputs, place, undisturbed, title):
    verb, draw = VERBS[title], random.Random(title)
    start = time.monotonic()
    commands.run(*verb.command(inputs, Path(verb.out)), folder=place).well()
    seconds = time.monotonic() - start
    killed = 0
    for _ in range(MOMENTS):
        for path in place.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        running = commands.start(*verb.command(inputs, Path(verb.out)), folder=place)
        time.sleep(draw.uniform(0, seconds))
        running.kill()
        killed += running.wait().code == -signal.SIGKILL
        _goes_on(commands, inputs, place, title, undisturbed[title])
    assert killed > MOMENTS / 3


@pytest.mark.parametrize("title", ["quantize"])
def test_a_run_over_another_one_killed_keeps_the_results_or_goes_on(commands, inputs, place, undisturbed, title):
    verb = VERBS[title]
    command = verb.command(inputs, Path(verb.out))
    for number in (2, 12):
        commands.run(*command, "--seed", 1, folder=place).well()
        before = _lasting(place)
        done = commands.run(*command, "--force", folder=place, die_before=number)
        assert done.code == -signal.SIGKILL
        kept = {name: held for name, held in _lasting(place).items() if not name.endswith(".part")}
        assert {name: kept[name] for name in before} == before
        again = commands.run(*command, "--resume", folder=place)
        if again.code:
            # It was killed before it had said that it is another run.
            again.refused("other settings", "seed")
            commands.run(*command, "--force", folder=place).well()
        assert _lasting(place) == undisturbed[title]
        shutil.rmtree(place / verb.out)
