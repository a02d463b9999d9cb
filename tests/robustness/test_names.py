"""The names of files that halfbyte chooses: those that every file system can hold."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.robustness.commands import tree
from tests.robustness.names import is_safe
from tests.robustness.verbs import VERBS, WRITE, Inputs

from halfbyte.run_folder import default_folder


@given(model=st.text(max_size=300), recipe=st.text(max_size=300), widths=st.sampled_from(["w4a4", "4.0bits", "3.2MB"]))
def test_a_folder_without_out_has_a_name_for_every_file_system(model, recipe, widths):
    folder = default_folder(model, recipe, widths)
    assert folder.parent == Path("runs")
    assert is_safe(folder.name), ascii(folder.name)
    assert folder.name.endswith(widths)


@pytest.mark.parametrize("name", ["CON", "nul.", "com1.x", "..", ".", "", "-x", 'a<b>c:d"e/f\\g|h?i*j', "x. ", "模型"])
def test_names_that_windows_keeps_for_itself(name):
    assert is_safe(default_folder(name, name, "w4a4").name)


def test_ordinary_names_stay_as_they_are():
    assert default_folder("fashion_vit", "adalog-qwt", "w4a4") == Path("runs/fashion_vit-adalog-qwt-w4a4")
    assert default_folder("vit_tiny.augreg", "repq", "4.0bits") == Path("runs/vit_tiny.augreg-repq-4.0bits")


@pytest.mark.slow
@pytest.mark.parametrize("title", WRITE)
def test_files_have_names_for_every_file_system(commands, inputs, place, title):
    """Whatever the recipe is called, and the folders of the images."""
    verb = VERBS[title]
    shutil.copytree(inputs.folder, place / "inputs")
    given = Inputs(place / "inputs")
    for recipe in (given.recipe, given.training):
        plain = yaml.safe_load(recipe.read_text())
        recipe.write_text(yaml.safe_dump({**plain, "name": 'CON: a<b>*?"|. '}))
    for number, folder in enumerate(sorted(given.pictures.iterdir())):
        folder.rename(given.pictures / f"aux: *{number}?. ")
    command = [given.pictures if part == given.images else part for part in verb.command(given)]
    before = set(tree(place))
    asked = ("--tensorboard",) if title == "train" else ()
    out = () if title in ("quantize", "train") else ("--out", place / verb.out)
    commands.run(*command, *asked, *out, folder=place).well()
    made = set(tree(place)) - before
    assert made
    for path in made:
        assert all(is_safe(part) for part in Path(path).parts), path


@pytest.mark.slow
def test_an_artifact_that_is_called_by_no_name_gives_a_folder_one(commands, inputs, place):
    """`--from .` has no name of its own."""
    shutil.copytree(inputs.artifact, place / "first")
    (place / "later.yaml").write_text(
        "name: later\nbits: {weight: 4, activation: 4}\nsteps: [bias_correct: {images: 4}]\n"
    )
    few = ("--calib-images", 4, "--limit", 2, "--workers", 0)
    done = commands.run("quantize", "--from", ".", "--recipe", place / "later.yaml", *few, folder=place / "first")
    done.well()
    assert os.listdir(place / "first" / "runs") == ["first-later-w4a4"]
