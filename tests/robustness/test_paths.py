"""Paths of every kind for every option that takes one, and names that every file system can hold."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from tests.robustness.commands import Done, tree
from tests.robustness.damage import THINGS, clear
from tests.robustness.verbs import ASK, MODEL, VERBS, WRITE, Inputs

NAMES = [
    "with a space", "ünï cødé 模型 🙂", "new\nline", "tab\tand\rreturn", "quote'\"`$(x)", "[/b]:smile: 100%{x}",
    "-dash", "bytes \udcff\udc80", "trailing. ", "~", "x" * 200,
]  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("title", VERBS)
def test_folders_of_any_name(commands, inputs, place, title, name):
    verb = VERBS[title]
    shutil.copytree(inputs.folder, place / name)
    given = Inputs(place / name)
    out = None if verb.out is None else place / name / verb.out
    done = commands.run(*verb.command(given, out), "--json", place / name / "facts.json", folder=place)
    done.well()
    assert json.loads((place / name / "facts.json").read_text())
    assert out is None or out.exists()
    if title in ASK:
        # What was there has a name by now that nobody would choose twice.
        commands.run(*verb.command(given, out), folder=place).refused(" ".join(str(out).split()).encode(
            "utf-8", "backslashreplace").decode())  # fmt: skip


@pytest.mark.parametrize("name", ["-dash", "- -", "--force", "new\nline -x"], ids=ascii)
def test_relative_names_that_look_like_options(commands, inputs, place, name):
    folder = place / "below"
    shutil.copytree(inputs.folder, folder)
    named = {"images": f"{name}.npz", "recipe": f"{name}.yaml", "weights": f"{name}.safetensors", "artifact": name}
    for attribute, new in named.items():
        getattr(Inputs(folder), attribute).rename(folder / new)
    few = ("--calib-images", 4, "--limit", 2, "--workers", 0)
    for command in (
        ("quantize", MODEL, f"--recipe={named['recipe']}", f"--calib={named['images']}", f"--val={named['images']}",
         f"--weights={named['weights']}", f"--out={name} out", *few),
        ("labels", "--teacher", MODEL, f"--data={named['images']}", f"--out={name} labels", "--crops", 2),
        ("export", f"--out={name}.onnx", "--", name),
        ("eval", "--limit", 2, f"--val={named['images']}", f"--json={name}.json", "--", name),
        ("inspect", "--", name),
        ("recipes", "--", named["recipe"]),
    ):  # fmt: skip
        commands.run(*command, folder=folder).well()
    assert {f"{name}.onnx", f"{name}.json", f"{name} out", f"{name} labels"} <= set(os.listdir(folder))


LONG = {"a name": "x" * 256, "a name that leaves no room beside it": "x" * 248, "a path": "/".join(["x" * 200] * 30)}


@pytest.mark.parametrize("long", LONG)
@pytest.mark.parametrize("title", WRITE)
def test_names_that_are_too_long_are_told(commands, inputs, place, title, long):
    verb = VERBS[title]
    before = tree(place)
    out = place / f"{LONG[long]}{Path(verb.out).suffix}"
    done = commands.run(*verb.command(inputs, out), folder=place)
    if done.code:
        _told_too_long(done)
        assert tree(place) == before
    else:
        assert out.exists()
        clear(place)
    facts = place / f"{LONG[long]}.json"
    _told_too_long(commands.run(*verb.command(inputs, place / verb.out), "--json", facts, folder=place))


def _told_too_long(done: Done) -> None:
    """Assert one line that says so: it holds the name, however long, or the option."""
    assert done.code == 2, done
    assert "Traceback" not in done.err
    line = done.err.splitlines()[-1]
    assert line.startswith("halfbyte: ")
    assert "x" * 200 in line or "--json" in line or "--out" in line
    assert "name too long" in line


@pytest.mark.parametrize("title", VERBS)
def test_an_input_that_is_not_there_is_told(commands, inputs, place, title):
    verb = VERBS[title]
    whole = verb.command(inputs, None if verb.out is None else place / verb.out)
    for position, part in enumerate(whole):
        if isinstance(part, Path) and part.is_relative_to(inputs.folder):
            wrong = [*whole[:position], place / "not\nthere", *whole[position + 1 :]]
            # In one line: with a space for the line's end, or quoted as Python does.
            commands.run(*wrong, folder=place).refused(f"{place}/not", "there")
    assert tree(place) == {}


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: thing.__name__.strip("_"))
@pytest.mark.parametrize("title", VERBS)
def test_an_input_that_is_no_file_is_told(commands, inputs, place, title, thing):
    """A pipe that nobody writes into, a terabyte of nothing, or what else is in a file's place; never waited for."""
    verb = VERBS[title]
    whole = verb.command(inputs, None if verb.out is None else place / verb.out)
    for position, part in enumerate(whole):
        if isinstance(part, Path) and part.is_file() and part.is_relative_to(inputs.folder):
            wrong = place / f"wrong{part.suffix}"
            thing(wrong, random.Random(position))
            before = tree(place)
            done = commands.run(*whole[:position], wrong, *whole[position + 1 :], folder=place, seconds=300.0)
            done.refused(str(wrong))
            assert tree(place) == before
            clear(place)
