"""Text of users' files, as it may be shown."""

from __future__ import annotations

import re
import unicodedata

_KEPT = "\n\t"
# Embeddings, overrides and isolates. Marks of direction and joiners, which many scripts need, are left.
_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNSHOWN = frozenset(("Cc", "Cs", "Zl", "Zp"))
# What moves a terminal's cursor, or makes it say something of its own.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """`text` with U+FFFD for control characters, line separators, lone surrogates (which no encoding can write) and
    direction overrides (which disguise a name)."""
    return text if text.isprintable() else "".join(c if _shown(c) else "\ufffd" for c in text)


def without_controls(text: str) -> str:
    """`text` with U+FFFD for control characters alone: a name that cannot be written is still to be told."""
    return _CONTROLS.sub("\ufffd", text)


def _shown(character: str) -> bool:
    return character in _KEPT or (character not in _TURNS and unicodedata.category(character) not in _UNSHOWN)
