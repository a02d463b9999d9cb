"""Two processes that write to one place: the second is told, and a lock ends with the process that held it."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from tests.robustness.commands import Commands, Running, tree
from tests.robustness.verbs import RESUME, VERBS, Inputs

from halfbyte.locks import lock

pytestmark = pytest.mark.slow

LINES = ("another process", "holds a finished run", "holds an unfinished run", "holds soft labels")


def _stopped_at_work(commands: Commands, inputs: Inputs, place: Path, title: str) -> Running:
    """A process of the verb that is halted while it writes into its folder."""
    verb = VERBS[title]
    running = commands.start(*verb.command(inputs, place / verb.out), folder=place)
    sign = place / verb.out / ("labels.json" if title == "labels" else "log.jsonl")
    while not sign.exists():
        assert running.code() is None
        time.sleep(0.001)
    os.kill(running.number, signal.SIGSTOP)
    return running


@pytest.mark.parametrize("title", RESUME)
def test_the_second_is_refused_while_the_first_is_at_work(commands, inputs, place, title):
    verb = VERBS[title]
    command = verb.command(inputs, place / verb.out)
    first = _stopped_at_work(commands, inputs, place, title)
    try:
        before = tree(place)
        for option in ((), ("--resume",), *(() if verb.over is None else (verb.over,))):
            done = commands.run(*command, *option, folder=place)
            done.refused("another process writes into", str(place / verb.out))
        assert tree(place) == before
    finally:
        os.kill(first.number, signal.SIGCONT)
    first.wait().well()
    commands.run(*command, "--resume", folder=place).well()


@pytest.mark.parametrize("title", RESUME)
def test_a_killed_process_blocks_nobody(commands, inputs, place, title):
    verb = VERBS[title]
    _stopped_at_work(commands, inputs, place, title).kill()
    commands.run(*verb.command(inputs, place / verb.out), "--resume", folder=place).well()


def _race(commands: Commands, inputs: Inputs, place: Path, title: str) -> None:
    """Two at once: one does the work, the other is told, and the folder is as one of them leaves it."""
    verb = VERBS[title]
    command = verb.command(inputs, place / verb.out)
    both = [commands.start(*command, folder=place) for _ in range(2)]
    done = sorted((running.wait() for running in both), key=lambda ended: ended.code)
    done[0].well()
    line = done[1].told()
    assert any(part in line for part in LINES), line
    again = commands.run(*command, "--resume", folder=place)
    again.well()
    shutil.rmtree(place / verb.out)


@pytest.mark.parametrize("title", RESUME)
def test_two_that_begin_at_once(commands, inputs, place, title):
    for _ in range(10):
        _race(commands, inputs, place, title)


@pytest.mark.parametrize("title", ["export onnx", "export openvino", "export torchao"])
def test_a_file_that_another_process_writes_is_left_to_it(commands, inputs, place, title):
    verb = VERBS[title]
    held = lock(place / f"{verb.out}.part", os.O_RDWR | os.O_CREAT)
    before = tree(place)
    line = commands.run(*verb.command(inputs, place / verb.out), folder=place).told("another process writes")
    assert str(place / verb.out) in line
    assert tree(place) == before
    held.release()
    commands.run(*verb.command(inputs, place / verb.out), folder=place).well()
    assert not list(place.glob("*.part"))


def test_facts_that_another_process_writes_are_left_to_it(commands, inputs, place):
    (place / "facts.json").write_text("{}")
    held = lock(place / "facts.json.part", os.O_RDWR | os.O_CREAT)
    command = (*VERBS["inspect"].command(inputs), "--json", place / "facts.json")
    commands.run(*command, folder=place).told("another process writes", "--json")
    assert (place / "facts.json").read_text() == "{}"
    held.release()
    commands.run(*command, folder=place).well()
