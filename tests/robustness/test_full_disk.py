"""A disk without room: one line, what was there is whole, and with room again the same command goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.robustness.commands import Done, tree
from tests.robustness.verbs import MEASURED, RESUME, VERBS, WRITE

pytestmark = pytest.mark.slow

PAGE = 4096
SIZE = 64 * 2**20
# Shares of what a verb writes for which there is room.
SHARES = tuple(number / 8 for number in range(9))


@pytest.fixture
def disk(place) -> Iterator[Path]:
    """A file system of 64 MB of its own."""
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    if mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield place
    subprocess.run([shutil.which("umount") or "umount", str(place)], check=True)


def _fill(disk: Path, room: int) -> None:
    """Leave so many bytes, rounded to pages."""
    free = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(max(free.f_bavail * free.f_frsize - room, 0) // PAGE * PAGE))


def _artifact(folder: Path) -> dict[str, str]:
    return {name: held for name, held in tree(folder).items() if Path(name).name not in ("filler", *MEASURED)}


@pytest.mark.parametrize("title", WRITE)
def test_no_room_for_what_a_verb_writes(commands, inputs, disk, title):
    """With room for each share of what the verb writes over an earlier result."""
    verb = VERBS[title]
    command = verb.command(inputs, disk / verb.out)
    commands.run(*command, folder=disk).well()
    expected, used = _artifact(disk), sum(path.stat().st_size for path in disk.rglob("*") if path.is_file())
    failed = 0
    for share in SHARES:
        if verb.over is None:
            shutil.rmtree(disk / verb.out)
        before = _artifact(disk)
        _fill(disk, int(share * used))
        done = commands.run(*command, *(verb.over or ()), folder=disk)
        (disk / "filler").unlink()
        if done.code:
            failed += 1
            _told(done, title, disk)
            kept = {name: held for name, held in _artifact(disk).items() if not name.endswith("resume.safetensors")}
            # The rows of a table are removed first: they may have had other settings.
            assert verb.over is None or title == "reproduce" or kept == before
            commands.run(*command, *(("--resume",) if verb.folder else verb.over or ()), folder=disk).well()
        assert _artifact(disk) == expected
    assert failed >= 2


def _told(done: Done, title: str, disk: Path) -> None:
    """Assert that the disk is told to be full: by `pull` with the repository, by `reproduce` perhaps of a row, where
    the table still fits."""
    if title == "pull":
        done.told("No space left", "free some space")
    elif title == "reproduce" and done.code == 1:
        assert "No space left" in done.err
        assert "Traceback" not in done.err
    else:
        done.told(str(disk), "No space left")


@pytest.mark.parametrize("title", VERBS)
def test_no_room_for_the_facts_leaves_those_that_are_there(commands, inputs, disk, tmp_path, title):
    verb = VERBS[title]
    facts = disk / "facts.json"
    facts.write_text("{}")
    _fill(disk, 0)
    # Elsewhere there is room.
    out = None if verb.out is None else tmp_path / verb.out
    done = commands.run(*verb.command(inputs, out), "--json", facts, folder=disk)
    done.told("--json", "No space left", str(disk))
    assert facts.read_text() == "{}"
    assert {path.name for path in disk.iterdir()} == {"facts.json", "filler"}


@pytest.mark.parametrize("title", WRITE)
def test_a_limit_on_the_size_of_files_is_told(commands, inputs, place, title):
    """As a quota is; also where nothing can be mounted."""
    verb = VERBS[title]
    # What is printed goes into a file here too, and `compare` prints a table.
    largest = 10_000 if title == "compare" else 1000
    done = commands.run(*verb.command(inputs, place / verb.out), folder=place, largest_file=largest)
    # `reproduce` names the row that it is at, `compare` has shown its table.
    ended = done.told if title in ("reproduce", "compare") else done.refused
    # OpenVINO's converter writes to the folder for temporary files first, `pull` tells the repository.
    ended("" if title in ("export openvino", "pull") else str(place), "too large")
    if title in RESUME:
        commands.run(*verb.command(inputs, place / verb.out), "--resume", folder=place).well()
    else:
        assert tree(place) == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("title", VERBS)
def test_an_output_that_takes_nothing_is_told(commands, inputs, place, title):
    verb = VERBS[title]
    out = None if verb.out is None else place / verb.out
    done = commands.run(*verb.command(inputs, out), folder=place, out=Path("/dev/full"))
    if title == "report":
        done.well()  # It writes a file alone.
    else:
        # `reproduce` names the row that it is at.
        (done.told if title == "reproduce" else done.refused)("No space left")


@pytest.mark.parametrize(
    "arguments", [("recipes",), pytest.param(("eval", "fashion_resnet", "--limit", "64"), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_no_error(closed, place, arguments):
    command = f'exec "$0" -m halfbyte "$@" --json facts.json {closed}'
    done = subprocess.run(["sh", "-c", command, sys.executable, *arguments], capture_output=True, cwd=place)
    assert done.returncode == 0, done
    assert b"Error" not in done.stderr
    assert (place / "facts.json").is_file()


def test_an_output_that_nobody_reads_to_its_end_is_no_error():
    command = [sys.executable, "-m", "halfbyte", "recipes", "repq"]
    done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    done.stdout.close()
    assert done.stderr.read() == ""
    assert done.wait() in (0, 1)
