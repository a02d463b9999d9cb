"""Locks: one holder, freed by release and by death, also where a child of the dead process lives on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from halfbyte.locks import lock, locked_folder

HOLD = """
import os, sys, time
from pathlib import Path
from halfbyte.locks import lock, locked_folder
held = lock(Path(sys.argv[1]))
if not os.fork():
    print(os.getpid(), flush=True)
time.sleep(600)
"""


def test_one_holds_a_lock_until_it_lets_it_go(tmp_path):
    first = lock(tmp_path)
    assert lock(tmp_path) is None
    first.release()
    first.release()
    second = lock(tmp_path)
    assert second is not None
    del second
    assert lock(tmp_path) is not None


def test_what_was_renamed_is_locked_no_more(tmp_path):
    part = tmp_path / "part"
    first = lock(part, os.O_RDWR | os.O_CREAT)
    part.rename(tmp_path / "whole")
    assert lock(part, os.O_RDWR | os.O_CREAT) is not None
    first.release()


def test_what_is_not_there_cannot_be_locked(tmp_path):
    with pytest.raises(FileNotFoundError):
        lock(tmp_path / "none")


def test_a_dead_process_holds_nothing_though_its_child_lives(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    try:
        assert lock(tmp_path) is None
        holder.kill()
        holder.wait()
        os.kill(child, 0)
        assert lock(tmp_path) is not None
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_child_does_not_let_its_parents_lock_go(tmp_path):
    held = lock(tmp_path)
    child = os.fork()
    if not child:
        held.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert lock(tmp_path) is None


def test_a_folder_that_was_made_in_vain_is_gone_again(tmp_path):
    place = tmp_path / "runs" / "one"
    with pytest.raises(KeyError), locked_folder(place) as held:
        raise KeyError(held, place.is_dir())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_made_and_holds_something_stays(tmp_path):
    def begin() -> None:
        with locked_folder(tmp_path / "one"):
            (tmp_path / "one" / "log").touch()
            raise KeyError

    with pytest.raises(KeyError):
        begin()
    assert (tmp_path / "one" / "log").exists()
    assert lock(tmp_path / "one") is not None


def test_the_empty_folder_of_somebody_else_stays(tmp_path, monkeypatch):
    """Two make it at once: who comes second to its lock must not remove it under the first one's feet."""
    place = tmp_path / "one"
    make, firsts = Path.mkdir, []

    def made_by_another(path, *arguments, **options):
        make(path)
        firsts.append(lock(path))
        make(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", made_by_another)
    with pytest.raises(KeyError, match="None"), locked_folder(place) as held:
        raise KeyError(held)
    assert place.is_dir()
    assert firsts[0] is not None
