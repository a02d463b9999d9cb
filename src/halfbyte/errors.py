"""Mistakes that the user can mend, told in one line."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable


class HalfbyteError(Exception):
    """A wrong path, name, shape, bit width or file; the message names the thing and the remedy.

    The command line prints it as one line and exits with code 2; nothing on disk was changed.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class InapplicableError(HalfbyteError):
    """A step that has nothing to do in this model; a recipe may say that it is left out then."""


class ToldElsewhereError(HalfbyteError):
    """What another process of the run tells the user already: of several that torchrun started, one prints."""


def did_you_mean(name: str, options: Iterable[str], count: int = 3) -> str:
    """A clause with the options nearest to `name`, or with all of them when they are few; empty when there are none."""
    known = sorted(options)
    near = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 20 else ""


def outside_reason(error: Exception) -> str | None:
    """What is wrong outside the program, with a remedy; None for an error of its own, whose traceback is wanted."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror or text or type(error).__name__}; mend that and give the command again"
    # torch tells both in RuntimeErrors, with advice for programmers behind the first sentence.
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "out of memory; give fewer images at a time (--batch-size) or in all (--calib-images, --limit)"
    if "DataLoader worker" in text:
        return f"a process that reads images died ({text.split('. ')[0]}); give --workers 0"
    return None


def check_installed(asked: str, packages: Iterable[str], extra: str) -> None:
    """Raise `HalfbyteError` unless all `packages`, which our `extra` installs, are there for what was `asked` for."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise HalfbyteError(f"{asked} needs {' and '.join(missing)}; pip install 'halfbyte[{extra}]'")
