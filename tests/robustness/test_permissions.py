"""What may not be written or read: one line that names it, and nothing has changed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.robustness.commands import tree
from tests.robustness.verbs import RESUME, VERBS, WRITE, Inputs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="root heeds no permissions elsewhere"),
]


@pytest.fixture
def closed(place) -> Path:
    """A folder to be closed to who heeds permissions."""
    folder = place / "closed"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("title", WRITE)
def test_a_closed_folder_is_told(commands, inputs, closed, title):
    verb = VERBS[title]
    closed.chmod(0o555)
    before = tree(closed.parent)
    done = commands.run(*verb.command(inputs, closed / verb.out), folder=closed, plain=True)
    done.refused(str(closed), "ermission")
    assert tree(closed.parent) == before


@pytest.mark.parametrize("title", VERBS)
def test_facts_in_a_closed_folder_are_told_before_any_work(commands, inputs, closed, title):
    verb = VERBS[title]
    closed.chmod(0o555)
    before = tree(closed.parent)
    out = None if verb.out is None else closed.parent / verb.out
    done = commands.run(*verb.command(inputs, out), "--json", closed / "facts.json", folder=closed, plain=True)
    done.refused("--json", str(closed / "facts.json"), "permission")
    assert tree(closed.parent) == before


@pytest.mark.parametrize("title", [title for title in RESUME if title != "reproduce"])
def test_a_finished_run_in_a_closed_folder_is_shown_and_not_replaced(commands, inputs, closed, title):
    verb = VERBS[title]
    command = verb.command(inputs, closed / verb.out)
    commands.run(*command, folder=closed).well()
    for path in closed.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = tree(closed)
    commands.run(*command, "--resume", folder=closed, plain=True).well()
    if VERBS[title].over is not None:
        commands.run(*command, "--force", folder=closed, plain=True).refused(str(closed), "ermission")
    assert tree(closed) == before


@pytest.mark.parametrize("title", VERBS)
def test_an_input_that_may_not_be_read_is_told(commands, inputs, place, title):
    verb = VERBS[title]
    shutil.copytree(inputs.folder, place / "inputs")
    copied = Inputs(place / "inputs")
    command = verb.command(copied, None if verb.out is None else place / verb.out)
    used = {part for part in command if isinstance(part, Path) and part.is_relative_to(copied.folder)}
    for path in used:
        mode = path.stat().st_mode
        path.chmod(0)
        before = tree(place)
        done = commands.run(*command, folder=place, plain=True)
        if "Usage:" in done.err:
            # The parser looks at some paths itself, and tells it in a box, which may break the path.
            assert done.code == 2
            assert "is not readable" in " ".join(done.err.replace("│", "").split())
        else:
            done.refused(str(path), "ermission")
        assert tree(place) == before
        path.chmod(mode)


@pytest.mark.parametrize("title", WRITE)
def test_a_disk_that_is_read_only_is_told(commands, inputs, place, title):
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "ro", "tmpfs", str(place)]
    if mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("a file system can only be mounted by root")
    try:
        verb = VERBS[title]
        done = commands.run(*verb.command(inputs, place / verb.out), folder=place)
        done.refused(str(place), "ead-only")
        commands.run(*verb.command(inputs, place / verb.out), "--json", place / "x", folder=place).refused("ead-only")
    finally:
        subprocess.run([shutil.which("umount") or "umount", str(place)], check=True)
