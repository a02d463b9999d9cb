"""What every file system can hold as a name."""

from __future__ import annotations

import re

RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?")


def is_safe(name: str) -> bool:
    """Whether Windows and everybody else can have a file of that name."""
    return (
        not re.search(r'[<>:"/\\|?*\x00-\x1f]', name) and name == name.rstrip(". ") and not RESERVED.fullmatch(name)
        and 0 < len(name.encode("utf-8", "surrogateescape")) <= 255 and not name.startswith("-")
    )  # fmt: skip
