"""Files that are not what they were: bits that flipped, ends that are missing, fields with other values."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from typing import Any

from halfbyte.program.store import MAGIC, framed

NUMBERS = (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 64, 127, 128, 255, 256, 2**15, 2**16, 2**23, 2**31 - 1, 2**31, 2**63)
FRAME = len(MAGIC) + 32


def split(content: bytes) -> tuple[Any, bytes]:
    """The header and the payload of a program's file."""
    (length,) = struct.unpack("<I", content[FRAME : FRAME + 4])
    return json.loads(content[FRAME + 4 : FRAME + 4 + length]), content[FRAME + 4 + length :]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    parts = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [(value, key) for key, _ in parts] + [place for _, part in parts for place in places(part)]


def _other(value: Any, chance: random.Random) -> Any:
    """A value of the same type, for the most part."""
    if chance.random() < 0.05:
        return chance.choice([None, True, "", [], {}, -1, 0.5, 2**70, [[]], "input"])
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return chance.choice([value + 1, value - 1, -value, 2 * value, chance.choice(NUMBERS), -chance.choice(NUMBERS)])
    if isinstance(value, float):
        return chance.choice([-value, value * 2, value * 1e9, 0.0, 2.0**-140, 2.0**127, float(chance.choice(NUMBERS))])
    if isinstance(value, list) and value:
        return chance.choice([value[1:], [*value, value[-1]], value[::-1], [*value] * 2, []])
    return value


def _changed(header: Any, chance: random.Random) -> None:
    """One field of a header: another value, gone, or swapped with its like."""
    fields = places(header)
    part, key = chance.choice(fields)
    way = chance.random()
    if way < 0.5:
        part[key] = _other(part[key], chance)
    elif way < 0.55:
        del part[key]
    else:
        own = part[key]
        like = [(p, k) for p, k in fields if type(p[k]) is type(own) and not isinstance(own, (dict, list))]
        if like:
            other, place = chance.choice(like)
            if chance.random() < 0.5:
                other[place], part[key] = own, other[place]
            else:
                part[key] = other[place]


def _flipped(content: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(chance.choice([1, 1, 4, 32])):
        if damaged:
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def _resized(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content) + 1)
    return chance.choice([content[:place], content + content[:place], content[:place] + b"\0" * 9 + content[place:]])


def _spliced(header: Any, other: Any, chance: random.Random) -> None:
    """Some operations, or tensors, in the place of others; half of the time those of another file."""
    source = chance.choice([header, other])
    part = chance.choice(["ops", "ops", "tensors"])
    start, place = chance.randrange(len(source[part]) + 1), chance.randrange(len(header[part]) + 1)
    count = chance.choice([1, 1, 2, 8])
    header[part][place : place + chance.choice([0, count])] = source[part][start : start + count]


def _signed(body: bytes) -> bytes:
    return MAGIC + hashlib.sha256(body).digest() + body


def program_damaged(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """A program's file with some damage, its checksum mended in nine cases of ten; `other`: a file to take parts of."""
    way = chance.random()
    if way < 0.1:
        return (_flipped if chance.random() < 0.5 else _resized)(content, chance)
    header, payload = split(content)
    if way < 0.25 and payload:
        return framed(json.dumps(header).encode(), _flipped(payload, chance))
    if way < 0.3:
        return framed(json.dumps(header).encode(), _resized(payload, chance))
    if way < 0.35:
        return framed(_flipped(json.dumps(header).encode(), chance), payload)
    if way < 0.38:
        place = chance.random()
        return _signed(content[FRAME : int(place * len(content))] + other[int(place * len(other)) :])
    if way < 0.45:
        _spliced(header, split(other)[0], chance)
        return framed(json.dumps(header).encode(), payload)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        _changed(header, chance)
    return framed(json.dumps(header).encode(), payload)


def tensors_damaged(content: bytes, chance: random.Random) -> bytes:
    """The same of a safetensors file: its values, its header, or its length."""
    way = chance.random()
    if way < 0.1:
        return _resized(content, chance)
    start = 8 + int.from_bytes(content[:8], "little")
    if way < 0.5:
        return content[:start] + _flipped(content[start:], chance)
    if way < 0.6:
        return _flipped(content[:start], chance) + content[start:]
    header = json.loads(content[8:start])
    _changed(header, chance)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[start:]
