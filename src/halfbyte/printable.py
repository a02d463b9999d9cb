"""Text of users' files, as it may be shown."""

from __future__ import annotations

import re

_KEPT = "\n\t\u00a0"
# What moves a terminal's cursor, or makes it say something of its own.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """`text` with U+FFFD for control characters, lone surrogates (which no encoding can write) and direction overrides
    (which disguise a name)."""
    return "".join(c if c.isprintable() or c in _KEPT else "\ufffd" for c in text)


def without_controls(text: str) -> str:
    """`text` with U+FFFD for control characters alone: a name that cannot be written is still to be told."""
    return _CONTROLS.sub("\ufffd", text)
