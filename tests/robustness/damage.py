"""What becomes of files on bad disks and in bad hands: bytes, JSON and whole files that are not as they were written.

Everything is drawn by a `random.Random`, so that a number tells what was done.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

LARGE = 2**40
# In place of any value of a JSON file; as text, because not all of them are JSON.
VALUES = (
    "null", "true", "0", "-1", "3", "1.5", "1e999", "-1e308", "NaN", "Infinity", "9" * 40, "1" + "0" * 5000, '""',
    '"x"',
    '"../../x"', '"\\ud800"', '"\\u0000"', f'"{"x" * 5000}"', "[]", "{}", "[[]]", '{"a": 1}', "[" * 500 + "]" * 500,
    "[" * 100_000, '{"a":' * 500 + "1" + "}" * 500, "[1, 1]", "[null]", '["x", "x"]', "-9223372036854775809", "1e-320",
)  # fmt: skip


def flipped(content: bytes, chance: random.Random) -> bytes:
    """Some bits are others."""
    damaged = bytearray(content)
    for _ in range(chance.choice([1, 1, 4, 64])):
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def cut(content: bytes, chance: random.Random) -> bytes:
    """The end is missing."""
    return content[: chance.randrange(len(content))]


def grown(content: bytes, chance: random.Random) -> bytes:
    """Something is there that was not: at the end, at the start, or within."""
    place = chance.choice([0, len(content), chance.randrange(len(content))])
    more = chance.choice([b"\0", b"\0" * 4096, b"\n", b"}", content, chance.randbytes(100)])
    return content[:place] + more + content[place:]


def blanked(content: bytes, chance: random.Random) -> bytes:
    """A part holds zeros or noise, as after a crash of the file system."""
    start = chance.randrange(len(content))
    length = min(chance.choice([1, 512, 4096]), len(content) - start)
    held = chance.choice([bytes(length), chance.randbytes(length)])
    return content[:start] + held + content[start + length :]


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (flipped, cut, grown, blanked)


def recoded(content: bytes, chance: random.Random) -> bytes:
    """A text in another encoding, or with bytes that are none."""
    text = content.decode()
    place = chance.randrange(len(content))
    return chance.choice([
        b"\xef\xbb\xbf" + content, text.encode("utf-16"), text.encode("utf-32"), content.replace(b"\n", b"\r\n"),
        content[:place] + b"\xff\xfe" + content[place:], content[:place] + b"\xed\xa0\x80" + content[place:],
        content[:place] + b"\0" + content[place:], b" " * 100_000 + content,
    ])  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    parts = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [(value, key) for key, _ in parts] + [place for _, part in parts for place in places(part)]


_MARK = "\x01 here \x01"


def changed_json(plain: Any, chance: random.Random) -> tuple[Any, str]:
    """The value with one place changed, and its text, which may be what no value has (duplicate keys, NaN, depth).

    The value is None where only the text can be had.
    """
    plain = copy.deepcopy(plain)
    part, key = chance.choice(places(plain))
    way = chance.choice(["value", "value", "value", "gone", "twice", "renamed", "swapped", "again"])
    if way == "value":
        part[key] = _MARK
        text = json.dumps(plain).replace(json.dumps(_MARK), chance.choice(VALUES))
        try:
            return json.loads(text), text
        except (ValueError, RecursionError):
            return None, text
    if way == "gone":
        del part[key]
    elif way == "renamed" and isinstance(part, dict):
        part[chance.choice([f"{key} ", key.upper(), "x", ""])] = part.pop(key)
    elif way == "swapped":
        other, place = chance.choice(places(plain))
        part[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(part[key])
    elif way == "again" and isinstance(part, list):
        part.append(copy.deepcopy(part[key]))
    else:
        text = json.dumps(plain)
        if isinstance(part, dict):
            # The last one of two counts in most readers, the first one in some.
            own = json.dumps(part)
            text = text.replace(own, f"{{{json.dumps(key)}: {chance.choice(VALUES)}, {own[1:]}", 1)
            return plain, text
    try:
        return plain, json.dumps(plain)
    except (ValueError, RecursionError):
        return None, "{}"


def _folder(path: Path, chance: random.Random) -> None:
    path.mkdir()


def _pipe(path: Path, chance: random.Random) -> None:
    os.mkfifo(path)


def _link(path: Path, chance: random.Random) -> None:
    path.symlink_to(chance.choice(["nowhere", path.name, "/dev/zero", "/dev/null", "/proc/self/mem", "/", "/dev/full"]))


def _nothing(path: Path, chance: random.Random) -> None:
    """The file is missing."""


def _empty(path: Path, chance: random.Random) -> None:
    path.touch()


def _endless(path: Path, chance: random.Random) -> None:
    """A file of a terabyte that takes no room."""
    with path.open("wb") as file:
        file.truncate(LARGE)


THINGS: tuple[Callable[[Path, random.Random], None], ...] = (_folder, _pipe, _link, _nothing, _empty, _endless)


def put_in_place(path: Path, chance: random.Random) -> str:
    """Put something else where a file was; returns what."""
    path.unlink()
    thing = chance.choice(THINGS)
    thing(path, chance)
    return thing.__name__.strip("_")


def clear(folder: Path) -> None:
    """Empty a folder of whatever lies there."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
