"""Programs that were damaged, and what becomes of them; run as a process of its own, which a crash may end.

    python -m tests.program.fuzz SEED COUNT [SECONDS [ARTIFACT...]]

prints how many files came to which end as JSON: programs made here, or the program files and tensors of artifacts, with
their checksums mended. It ends with another exit code than 0, and the number of the file, where one crashes, takes more
than SECONDS of the processor, raises anything but `HalfbyteError`, or gives other logits natively than by the
interpreter.
"""

from __future__ import annotations

import collections
import faulthandler
import hashlib
import json
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tests.program.damage import program_damaged, tensors_damaged

from halfbyte.artifact_files import CONFIG, PROGRAM, QUANTIZATION, TENSORS, facts_sha256, json_bytes, read_facts
from halfbyte.errors import HalfbyteError
from halfbyte.program.check import work
from halfbyte.program.interpret import run
from halfbyte.program.load import load_program
from halfbyte.program.ops import INPUT, Op, Program
from halfbyte.program.store import from_bytes, to_bytes
from halfbyte.runtime import Engine, native

SHAPE = (4, 8, 8)
# Enough to see whether they affect each other.
IMAGES = 3
# Larger programs are built, but not run: they take long because they are large.
LARGEST_RUN = 2**22
# Real ones are larger: up to here they are compared with the interpreter, up to DeiT-Tiny's size run natively.
LARGEST_COMPARED, LARGEST_OF_ARTIFACTS = 2**26, 2**31
# A file's time is the processor's; one that waits for something else is given this many times as long.
WAITING = 30
SOUND = {"equal", "run by the engine alone"} if native.available() else {"refused by the engine"}


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


@cache
def bases() -> list[bytes]:
    """The sound files."""
    return [to_bytes(_maps()), to_bytes(_attention())]


def _one_line(error: HalfbyteError) -> None:
    assert "\n" not in str(error)


def outcome(load: Callable[[], Program], compared: int = LARGEST_RUN, run_at_all: int = LARGEST_RUN) -> str:
    """What becomes of a program; raises `AssertionError` where engine and interpreter differ.

    By its work: up to `compared` both run it, up to `run_at_all` the engine alone.
    """
    try:
        program = load()
    except HalfbyteError as error:
        _one_line(error)
        return "not loaded"
    wanted = work(program)
    try:
        engine = Engine(program, threads=2) if native.available() else None
    except HalfbyteError as error:
        _one_line(error)
        engine = None
    if wanted > max(compared, run_at_all):
        return "too large to run"
    count = IMAGES if wanted <= compared else 1
    images = np.random.default_rng(3).normal(0, 1, (count, *program.input_shape)).astype(np.float32)
    logits = None if engine is None else engine(images)
    if wanted > compared:
        return "refused by the engine" if logits is None else "run by the engine alone"
    try:
        expected = run(program, images)
    except HalfbyteError:
        return "refused by the interpreter"
    if logits is None:
        return "refused by the engine"
    if np.array_equal(logits, expected, equal_nan=True):
        return "equal"
    # A sum in float64 that rounds otherwise.
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    return "equal but for a rounding"


def of_programs(number: int) -> str:
    """The end of one damaged program, made here."""
    sound, chance = bases(), random.Random(number)
    content = program_damaged(sound[number % 2], sound[1 - number % 2], chance)
    return outcome(lambda: from_bytes(content))


def forge(folder: Path, scratch: Path, changed: Mapping[str, bytes]) -> None:
    """The artifact `folder` in `scratch`, with some files changed and all checksums mended."""
    facts, config = read_facts(folder)
    files = {name: (folder / name).read_bytes() for name in (PROGRAM, TENSORS)} | changed
    facts["tensors_sha256"] = hashlib.sha256(files[TENSORS]).hexdigest()
    facts["program"]["sha256"] = hashlib.sha256(files[PROGRAM]).hexdigest()
    facts["facts_sha256"] = facts_sha256(facts, config)
    for name, content in (files | {QUANTIZATION: json_bytes(facts), CONFIG: json_bytes(config)}).items():
        (scratch / name).write_bytes(content)


def of_artifacts(folders: list[Path], scratch: Path, number: int) -> str:
    """The end of one damaged artifact: its program, which may get parts of another one's, or the tensors."""
    chance = random.Random(number)
    folder, other = folders[number % len(folders)], chance.choice(folders)
    changed = {}
    if chance.random() < 0.75:
        contents = [(place / PROGRAM).read_bytes() for place in (folder, other)]
        changed[PROGRAM] = program_damaged(*contents, chance)
    if not changed or chance.random() < 0.1:
        changed[TENSORS] = tensors_damaged((folder / TENSORS).read_bytes(), chance)
    forge(folder, scratch, changed)
    return outcome(lambda: load_program(scratch), LARGEST_COMPARED, LARGEST_OF_ARTIFACTS)


def main(seed: int, count: int, seconds: float, folders: list[Path]) -> None:
    """Damage `count` files and say what became of them."""
    ends: collections.Counter[str] = collections.Counter()
    faulthandler.register(signal.SIGPROF, chain=True)
    with tempfile.TemporaryDirectory() as scratch:
        for folder in folders:
            forge(folder, Path(scratch), {})
            sound = outcome(lambda: load_program(scratch), LARGEST_COMPARED, LARGEST_OF_ARTIFACTS)
            assert sound in (*SOUND, "equal but for a rounding"), sound
        assert {outcome(lambda: from_bytes(content)) for content in bases()} <= SOUND  # noqa: B023
        for number in range(seed, seed + count):
            print(number, end="\r", file=sys.stderr, flush=True)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            faulthandler.dump_traceback_later(WAITING * seconds, exit=True)
            ends[of_artifacts(folders, Path(scratch), number) if folders else of_programs(number)] += 1
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
    print(json.dumps(dict(ends.most_common())))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float([*sys.argv, 2][3]), [Path(name) for name in sys.argv[4:]])
