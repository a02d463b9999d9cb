"""Mistakes that the user can mend, told in one line."""

from __future__ import annotations

import difflib
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
