"""One process at a time: locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows: everyone gets every lock
    fcntl = None  # type: ignore[assignment]


class Lock:
    """Of what is open under `descriptor`, until `release` or the end of the process."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        _held.add(self)

    def release(self) -> None:
        """Let others have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.release()


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def lock(path: Path, flags: int = os.O_RDONLY) -> Lock | None:
    """Lock a file or folder, opened with these flags; None where somebody else holds its lock.

    Raises `OSError` where it cannot be opened. A file system without locks gives one to everybody.
    """
    if fcntl is None:
        return Lock(None)
    while True:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
        if _taken(descriptor):
            os.close(descriptor)
            return None
        if _is_at(descriptor, path):
            return Lock(descriptor)
        os.close(descriptor)


@contextmanager
def locked_folder(path: Path) -> Iterator[Lock | None]:
    """Make a folder, if it is not there, with those above it, and lock it; None where somebody else holds its lock.

    Where the with-block fails, the lock is free, and what was made here and is empty is gone again, unless somebody
    else has come to use it. Raises `OSError` where it cannot be made.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    held, busy = None, False
    try:
        path.mkdir(parents=True, exist_ok=True)
        held = lock(path)
        busy = held is None
        yield held
    except BaseException:
        if not busy:
            with suppress(OSError):
                for folder in made:
                    folder.rmdir()
        if held is not None:
            held.release()
        raise


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether what was locked still lies there: who held the lock before may have renamed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _leave_to_parent() -> None:
    """A process that reads images outlives by seconds a parent that was killed; the lock must not."""
    for held in list(_held):
        held.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
