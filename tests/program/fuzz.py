"""Programs that were damaged, and what becomes of them; run as a process of its own, which a crash may end.

    python -m tests.program.fuzz SEED COUNT [SECONDS]

prints how many files came to which end as JSON. It ends with another exit code than 0, and the number of the file,
where one crashes, takes longer than SECONDS, raises anything but `HalfbyteError`, or gives other logits natively than
by the interpreter.
"""

from __future__ import annotations

import collections
import faulthandler
import json
import random
import struct
import sys
from typing import Any

import numpy as np

from halfbyte.errors import HalfbyteError
from halfbyte.program.check import work
from halfbyte.program.interpret import run
from halfbyte.program.ops import INPUT, Op, Program
from halfbyte.program.store import MAGIC, framed, from_bytes, to_bytes
from halfbyte.runtime import Engine, native

SHAPE = (4, 8, 8)
# Enough to see whether they affect each other.
IMAGES = 3
# Larger programs are built, but not run: they take long because they are large.
LARGEST_RUN = 2**22
NUMBERS = (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 64, 127, 128, 255, 256, 2**15, 2**16, 2**23, 2**31 - 1, 2**31, 2**63)
FRAME = len(MAGIC) + 32


def _codes(name: str, x: str, bits: int = 4, **others: Any) -> Op:
    return Op(
        "quantize", (x,), name, {"scale": [0.25], "zero": [7], "beta": 0.0, "last": 2**bits - 1, "axis": None} | others
    )


def _maps() -> Program:
    """A convolution of each kind, pools, and a head."""
    generator = np.random.default_rng(1)
    tensors: dict[str, np.ndarray] = {}
    ops = [Op("clip", (INPUT,), "x0", {"low": -8.0, "high": 8.0})]
    for number, (groups, kernel, stride, pad) in enumerate([(1, 3, 1, 1), (2, 3, 2, 0), (4, 2, 1, 1)]):
        name = f"c{number}"
        tensors |= {
            f"{name}.weight": generator.integers(0, 16, (4, 4 // groups, kernel, kernel)).astype(np.uint8),
            f"{name}.zero": generator.integers(6, 10, 4).astype(np.int32),
            f"{name}.scale": np.float32([0.03, 0.02, 0.01, 0.02]),
            f"{name}.bias": np.float32([0.5, -1, 0, 1]),
        }
        attributes = {"bits": 4, "input": {"zero": [7]}, "strides": [stride] * 2, "pads": [[pad, pad]] * 2,
                      "dilations": [1, 1], "groups": groups}  # fmt: skip
        roles = {role: f"{name}.{role}" for role in ("weight", "zero", "scale", "bias")}
        ops += [_codes(f"q{number}", f"x{number}"), Op("conv", (f"q{number}",), name, attributes, roles),
                Op("relu", (name,), f"x{number + 1}")]  # fmt: skip
    ops += [
        Op(
            "max_pool",
            ("x3",),
            "p",
            {"kernel": [2, 2], "strides": [1, 1], "pads": [[1, 0], [0, 1]], "dilations": [1, 1]},
        ),
        Op("roll", ("p",), "r", {"shifts": [1, -1], "axes": [2, 3]}),
        Op("pad", ("r",), "d", {"pads": [[0, 0], [0, 0], [1, 0], [0, 2]], "value": 0.5}),
        Op("slice", ("d",), "s", {"axis": 2, "start": 0, "stop": 4, "step": 2}),
        Op("gather", ("s",), "g", {"axis": 3}, {"index": "index"}),
        Op("repeat", ("g",), "t", {"times": [1, 1, 2, 1]}),
        Op("reshape", ("t",), "out", {"shape": [{"batch": 1, "plus": 0}, 48]}),
    ]
    tensors["index"] = np.int32([3, 0, 1])
    return Program(tuple(ops), tensors, SHAPE, "out")


def _attention() -> Program:
    """Tokens with a norm, two heads, logarithmic codes, GELU, and a residual."""
    generator = np.random.default_rng(2)
    batch = {"batch": 1, "plus": 0}
    tensors = {"one": np.ones(16, np.float32), "none": np.zeros(16, np.float32),
               "token": np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 1, 16)}  # fmt: skip
    roles = {}
    for name, shape in {"qkv": (48, 16), "mlp": (8, 16), "head": (5, 8)}.items():
        tensors |= {
            f"{name}.weight": generator.integers(0, 16, shape).astype(np.uint8),
            f"{name}.zero": np.full(shape[0], 8, np.int32), f"{name}.scale": np.full(shape[0], 0.02, np.float32),
            f"{name}.bias": np.linspace(-1, 1, shape[0], dtype=np.float32),
        }  # fmt: skip
        roles[name] = {role: f"{name}.{role}" for role in ("weight", "zero", "scale", "bias")}
    plain = {"bits": 4, "input": {"zero": [7]}}
    log = {
        "shift": 0.0,
        "thresholds": sorted((int(np.float32(2.0**-k).view(np.uint32)) >> 16 for k in range(15)), reverse=True),
    }
    ops = [
        Op("reshape", (INPUT,), "x", {"shape": [batch, 16, 16]}),
        Op("constant", (), "c", {}, {"value": "token"}),
        Op("expand", ("c",), "e", {"shape": [batch, 1, 16]}),
        Op("concat", ("e", "x"), "tokens", {"axis": 1}),
        Op("layer_norm", ("tokens",), "n", {"eps": 1e-5}, {"weight": "one", "bias": "none"}),
        _codes("nq", "n"),
        Op("linear", ("nq",), "y", plain, roles["qkv"]),
        Op("reshape", ("y",), "y5", {"shape": [batch, 17, 3, 2, 8]}),
        Op("transpose", ("y5",), "yt", {"axes": [2, 0, 3, 1, 4]}),
        *(Op("select", ("yt",), name, {"axis": 0, "index": index}) for index, name in enumerate("qkv")),
        _codes("qq", "q", scale=[0.25, 0.5], zero=[7, 3], axis=1),
        Op("transpose", ("k",), "kt", {"axes": [0, 1, 3, 2]}),
        _codes("kq", "kt"),
        Op("matmul", ("qq", "kq"), "a",
           {"left": {"zero": [7, 3]}, "right": {"zero": [7]}, "scale": [2.0**-6, 2.0**-5]}),
        Op("multiply", ("a",), "as", {"scalar": 0.25}),
        Op("softmax", ("as",), "p", {"axis": 3}),
        Op("quantize_log", ("p",), "pq", log),
        _codes("vq", "v", 3),
        Op("matmul", ("pq", "vq"), "o",
           {"left": {"levels": [0, *(2**k for k in range(15))]}, "right": {"zero": [7]}, "scale": [2.0**-10]}),
        Op("transpose", ("o",), "ot", {"axes": [0, 2, 1, 3]}),
        Op("reshape", ("ot",), "o3", {"shape": [batch, 17, 16]}),
        Op("add", ("o3", "tokens"), "h"),
        _codes("hq", "h"),
        Op("linear", ("hq",), "m", plain, roles["mlp"]),
        Op("gelu", ("m",), "mg"),
        _codes("mq", "mg", 8, zero=[7]),
        Op("linear", ("mq",), "l", plain, roles["head"]),
        Op("select", ("l",), "out", {"axis": 1, "index": 0}),
    ]  # fmt: skip
    return Program(tuple(ops), tensors, SHAPE, "out")


def bases() -> list[bytes]:
    """The sound files."""
    return [to_bytes(_maps()), to_bytes(_attention())]


def _split(content: bytes) -> tuple[Any, bytes]:
    (length,) = struct.unpack("<I", content[FRAME : FRAME + 4])
    return json.loads(content[FRAME + 4 : FRAME + 4 + length]), content[FRAME + 4 + length :]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    parts = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [(value, key) for key, _ in parts] + [place for _, part in parts for place in _places(part)]


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
    places = _places(header)
    part, key = chance.choice(places)
    way = chance.random()
    if way < 0.5:
        part[key] = _other(part[key], chance)
    elif way < 0.55:
        del part[key]
    else:
        own = part[key]
        like = [(p, k) for p, k in places if type(p[k]) is type(own) and not isinstance(own, (dict, list))]
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


def mutated(content: bytes, chance: random.Random) -> bytes:
    """The file with some damage; its checksum mended in nine cases of ten."""
    way = chance.random()
    if way < 0.1:
        return (_flipped if chance.random() < 0.5 else _resized)(content, chance)
    header, payload = _split(content)
    if way < 0.25:
        return framed(json.dumps(header).encode(), _flipped(payload, chance))
    if way < 0.3:
        return framed(json.dumps(header).encode(), _resized(payload, chance))
    if way < 0.35:
        return framed(_flipped(json.dumps(header).encode(), chance), payload)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        _changed(header, chance)
    return framed(json.dumps(header).encode(), payload)


def _one_line(error: HalfbyteError) -> None:
    assert "\n" not in str(error)


def outcome(content: bytes) -> str:
    """What becomes of a file; raises `AssertionError` where engine and interpreter differ."""
    try:
        program = from_bytes(content)
    except HalfbyteError as error:
        _one_line(error)
        return "not loaded"
    large = work(program) > LARGEST_RUN
    try:
        engine = Engine(program, threads=2) if native.available() else None
    except HalfbyteError as error:
        _one_line(error)
        engine = None
    if large:
        return "too large to run"
    images = np.random.default_rng(3).normal(0, 1, (IMAGES, *program.input_shape)).astype(np.float32)
    try:
        expected = run(program, images)
    except HalfbyteError:
        return "refused by the interpreter"
    if engine is None:
        return "refused by the engine"
    logits = engine(images)
    if np.array_equal(logits, expected, equal_nan=True):
        return "equal"
    # A sum in float64 that rounds otherwise.
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    return "equal but for a rounding"


def main(seed: int, count: int, seconds: float = 2.0) -> None:
    """Damage `count` files and say what became of them."""
    ends: collections.Counter[str] = collections.Counter()
    sound = bases()
    assert [outcome(content) for content in sound] == (
        ["equal"] * 2 if native.available() else ["refused by the engine"] * 2
    )
    for number in range(seed, seed + count):
        content = mutated(sound[number % len(sound)], random.Random(number))
        print(number, end="\r", file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(seconds, exit=True)
        ends[outcome(content)] += 1
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(dict(ends.most_common())))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:]))
