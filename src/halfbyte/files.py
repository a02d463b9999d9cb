"""Files and folders where users have them: what stands in a file's place may be no file."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from halfbyte.errors import HalfbyteError

# What a folder of soft labels begins with, and what the tables of `reproduce` are called.
LABELS, TABLE = "labels.json", ("table.json", "table.md")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# A disk with fewer bytes is full, whatever a library calls it.
_LEAST = 2**16


def real_path(path: Path) -> Path:
    """The absolute path without links; of links in a circle as far as they lead."""
    # `Path.resolve` raises RuntimeError there before Python 3.13.
    return Path(os.path.realpath(path))


def open_file(path: Path | str) -> BinaryIO:
    """Open a file to read it; raises `OSError` also for a pipe or a device, which may have no end or never begin."""
    # Without O_NONBLOCK opening a pipe waits for who writes into it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "Not a regular file", str(path))


def read_file(path: Path | str, limit: int | None = None) -> bytes:
    """What a file holds; raises `OSError` as `open_file` does, and `ValueError` where it is more than `limit` bytes."""
    with open_file(path) as file:
        # What is larger is not read at all: a file may say that it has a terabyte and take no room on the disk.
        if limit is not None and os.fstat(file.fileno()).st_size > limit:
            raise ValueError(f"more than {limit} bytes")
        return file.read()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for the files of other libraries, for the length of a with-block; raises `HalfbyteError` where its disk
    is full."""
    with tempfile.TemporaryDirectory(prefix="halfbyte-") as folder:
        try:
            yield Path(folder)
        except Exception as error:
            full = isinstance(error, OSError) and error.errno in FULL
            if full or shutil.disk_usage(folder).free < _LEAST:
                raise no_room("files", error) from None
            raise


def no_room(what: str, error: Exception) -> HalfbyteError:
    """The error of a folder for temporary files that is full."""
    reason = (isinstance(error, OSError) and error.strerror) or error
    return HalfbyteError(
        f"no room for temporary {what} in {tempfile.gettempdir()} ({reason}); free some space, or set TMPDIR"
    )


def reason(error: OSError) -> str:
    """Why a file could not be written."""
    return error.strerror or str(error)


def remedy(error: OSError, option: str) -> str:
    """What a user can do about that."""
    return f"{'free some space or ' if error.errno in FULL else ''}choose another {option}"
