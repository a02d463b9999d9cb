"""Every verb: exit code 0 and its result, or 2 and one line, and then nothing on disk has changed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.robustness.commands import tree
from tests.robustness.verbs import ASK, RESUME, VERBS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("title", VERBS)
def test_a_verb_does_what_it_is_asked_for(commands, inputs, place, title):
    verb = VERBS[title]
    before = tree(inputs.folder)
    out = None if verb.out is None else place / verb.out
    done = commands.run(*verb.command(inputs, out), "--json", place / "facts.json", folder=place)
    done.well()
    assert json.loads((place / "facts.json").read_text())
    assert out is None or out.exists()
    assert tree(inputs.folder) == before


@pytest.mark.parametrize("title", VERBS)
def test_a_verb_refuses_a_wrong_option_and_leaves_nothing(commands, inputs, place, title):
    verb = VERBS[title]
    out = None if verb.out is None else place / verb.out
    done = commands.run(*verb.command(inputs, out), "--json", place / "none" / "facts.json", folder=place)
    done.refused("--json", "folder that exists")
    assert tree(place) == {}


@pytest.mark.parametrize("title", ASK)
def test_a_verb_leaves_what_is_there(commands, inputs, place, title):
    verb = VERBS[title]
    out = place / verb.out
    commands.run(*verb.command(inputs, out), folder=place).well()
    before = tree(place)
    commands.run(*verb.command(inputs, out), folder=place).refused(f"--out {out}")
    assert tree(place) == before


@pytest.mark.parametrize("title", RESUME)
def test_resume_on_what_is_finished_changes_nothing(commands, inputs, place, title):
    verb = VERBS[title]
    command = (*verb.command(inputs, place / verb.out), "--resume")
    first = commands.run(*command, folder=place)
    first.well()
    before = tree(place)
    again = commands.run(*command, folder=place)
    again.well()
    assert again.out == first.out
    assert tree(place) == before


def test_the_module_run_as_a_program_keeps_the_same_contract(inputs, place):
    """What the other tests see of a command in a process that has its imports already."""
    command = [sys.executable, "-m", "halfbyte", "inspect", str(inputs.artifact), "--json"]
    done = subprocess.run([*command, str(place / "none" / "x")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"halfbyte: --json {place / 'none' / 'x'}: give a file in a folder that exists\n"
    done = subprocess.run([*command, str(place / "facts.json")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, f"wrote {place / 'facts.json'}\n")
