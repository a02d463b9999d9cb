"""Artifacts that were damaged or forged, and what every verb that reads them says.

    python -m tests.robustness.artifacts FOLDER OTHER SEED COUNT

FOLDER holds an artifact, OTHER another one; prints as JSON what became of the commands, and what ended as none may.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.robustness.commands import tree
from tests.robustness.damage import BYTES, changed_json, put_in_place, recoded
from tests.robustness.here import Ends, follow, limit_memory, run

from halfbyte.artifact_files import CONFIG, PROGRAM, QUANTIZATION, TENSORS, facts_sha256
from halfbyte.program.store import MAGIC, framed

FILES = (TENSORS, CONFIG, QUANTIZATION, PROGRAM)
COMMANDS = {
    "inspect": [], "eval torch": ["--limit", "2", "--workers", "0"],
    "eval native": ["--limit", "2", "--workers", "0", "--engine", "native"],
    "eval interpreter": ["--limit", "2", "--workers", "0", "--engine", "interpreter"],
    "export onnx": ["--to", "onnx"], "export openvino": ["--to", "openvino"], "export torchao": ["--to", "torchao"],
}  # fmt: skip
SECONDS = 60.0


class Mutant:
    """A copy of an artifact to be changed."""

    def __init__(self, folder: Path, source: Path, other: Path, chance: random.Random) -> None:
        self.folder, self.other, self.chance = folder, other, chance
        for name in FILES:
            shutil.copy(source / name, folder / name)

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_bytes())

    def bytes_of_a_file(self) -> str:
        """One file's bytes are others."""
        name, way = self.chance.choice(FILES), self.chance.choice(BYTES)
        path = self.folder / name
        path.write_bytes(way(path.read_bytes(), self.chance))
        return f"{name} {way.__name__}"

    def another_thing(self) -> str:
        """No file in the place of one."""
        name = self.chance.choice(FILES)
        return f"{name} is {put_in_place(self.folder / name, self.chance)}"

    def another_file(self) -> str:
        """A file of the same artifact, or of another one, in its place."""
        name = self.chance.choice(FILES)
        of = self.chance.choice([self.folder, self.other, self.other])
        held = (of / (name if of == self.other else self.chance.choice(FILES))).read_bytes()
        (self.folder / name).write_bytes(held)
        return f"{name} swapped"

    def another_encoding(self) -> str:
        """JSON in bytes that JSON does not lie in."""
        name = self.chance.choice([CONFIG, QUANTIZATION])
        path = self.folder / name
        path.write_bytes(recoded(path.read_bytes(), self.chance))
        return f"{name} recoded"

    def another_value(self) -> str:
        """One place in the JSON is another, by accident (the checksum tells) or by a forger who mends it."""
        name = self.chance.choice([CONFIG, QUANTIZATION, QUANTIZATION])
        plain, text = changed_json(self.json(name), self.chance)
        (self.folder / name).write_text(text)
        if plain is None or self.chance.random() < 0.2:
            return f"{name} changed"
        self._mend({name: plain}, keep=name)
        return f"{name} forged"

    def another_header(self) -> str:
        """The header of the tensors says something else, and the checksums fit."""
        content = (self.folder / TENSORS).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header, payload = json.loads(content[8 : 8 + length]), content[8 + length :]
        way = self.chance.choice(["length", "value", "value", "tensor", "tensor", "bytes"])
        if way == "length":
            size = self.chance.choice([0, 1, 7, length - 1, length + 1, 2 * length, 2**31, 2**63, 2**64 - 1])
            blob = struct.pack("<Q", size) + content[8:]
        elif way == "bytes":
            damaged = self.chance.choice(BYTES)(content[8 : 8 + length], self.chance)
            blob = struct.pack("<Q", len(damaged)) + damaged + payload
        elif way == "value":
            text = changed_json(header, self.chance)[1].encode("utf-8", "surrogatepass")
            blob = struct.pack("<Q", len(text)) + text + payload
        else:
            entry = header[self.chance.choice(sorted(set(header) - {"__metadata__"}))]
            entry.update(self.chance.choice([
                {"dtype": self.chance.choice(["F64", "F16", "BF16", "U8", "I8", "I32", "BOOL", "C64", "F8_E5M2"])},
                {"shape": [2**62, 2**62]}, {"shape": [*entry["shape"], 1]}, {"shape": []}, {"shape": [0]},
                {"shape": entry["shape"][::-1]}, {"data_offsets": [0, 0]},
                {"data_offsets": entry["data_offsets"][::-1]},
                {"data_offsets": [0, len(payload)]}, {"data_offsets": [2**63, 2**64]}, {"data_offsets": [-4, 0]},
            ]))  # fmt: skip
            text = json.dumps(header).encode()
            blob = struct.pack("<Q", len(text)) + text + payload
        (self.folder / TENSORS).write_bytes(blob)
        self._mend({})
        return f"header {way}"

    def another_tensor(self) -> str:
        """The bytes of some tensors are others, and the checksums fit."""
        content = (self.folder / TENSORS).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        payload = bytearray(content[8 + length :])
        held = self.chance.choice([
            b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\0\0\0\x80", b"\xff" * 4, self.chance.randbytes(4)
        ])  # fmt: skip
        for _ in range(self.chance.choice([1, 16, 256])):
            place = self.chance.randrange(len(payload) // 4) * 4
            payload[place : place + 4] = held
        (self.folder / TENSORS).write_bytes(content[: 8 + length] + payload)
        self._mend({})
        return "tensors forged"

    def another_program(self) -> str:
        """The program's header or its payload says something else, and the checksums fit."""
        content = (self.folder / PROGRAM).read_bytes()
        start = len(MAGIC) + 32
        (length,) = struct.unpack("<I", content[start : start + 4])
        header, payload = content[start + 4 : start + 4 + length], content[start + 4 + length :]
        if self.chance.random() < 0.7:
            text = changed_json(json.loads(header), self.chance)[1]
            made = framed(text.encode("utf-8", "surrogatepass"), payload)
        else:
            made = framed(header, self.chance.choice(BYTES)(payload, self.chance))
        (self.folder / PROGRAM).write_bytes(made)
        self._mend({})
        return "program forged"

    def _mend(self, changed: dict[str, Any], keep: str | None = None) -> None:
        """Make all checksums right again, but for those in the text of `keep`, to which only its own is added."""
        facts = changed.get(QUANTIZATION) if QUANTIZATION in changed else self.json(QUANTIZATION)
        config = changed.get(CONFIG) if CONFIG in changed else self.json(CONFIG)
        if not isinstance(facts, dict):
            return
        if keep is None:
            facts["tensors_sha256"] = hashlib.sha256((self.folder / TENSORS).read_bytes()).hexdigest()
            facts["program"] = {"sha256": hashlib.sha256((self.folder / PROGRAM).read_bytes()).hexdigest()}
        facts["facts_sha256"] = facts_sha256(facts, config)
        (self.folder / QUANTIZATION).write_text(json.dumps(facts))

    def change(self) -> str:
        """Do one thing to it; returns what."""
        ways = (
            self.bytes_of_a_file, self.another_thing, self.another_file, self.another_encoding, self.another_value,
            self.another_value, self.another_value, self.another_header, self.another_header, self.another_tensor,
            self.another_program,
        )  # fmt: skip
        return self.chance.choice(ways)()


def one(source: Path, other: Path, number: int, ends: Ends) -> None:
    """Make the mutant of that number, and give it to every verb."""
    chance = random.Random(number)
    with tempfile.TemporaryDirectory(prefix="halfbyte-mutant-") as place:
        folder = Path(place) / "artifact"
        folder.mkdir()
        what = Mutant(folder, source, other, chance).change()
        before = tree(folder)
        seen = set()
        for command, options in COMMANDS.items():
            verb, _, kind = command.partition(" ")
            ending = {"onnx": ".onnx", "openvino": ".xml", "torchao": ".safetensors"}.get(kind)
            out = Path(place) / f"out{ending}"
            written = ["--out", str(out)] if verb == "export" else []
            end, wrong = run([verb, str(folder), *options, *written], str(folder), SECONDS)
            seen.add(end)
            if wrong is None and end == "refused" and out.exists():
                wrong = "refused, but written"
            if wrong is not None:
                ends.wrong.append(f"{number}, {what}, {command}: {wrong}")
            out.unlink(missing_ok=True)
        if tree(folder) != before:
            ends.wrong.append(f"{number}, {what}: changed on disk")
        ends.counts["refused by all" if seen == {"refused"} else "taken by all" if seen == {"done"} else "by some"] += 1


def main(source: str, other: str, seed: str, count: str) -> None:
    """Print what became of so many."""
    limit_memory()
    numbers = range(int(seed), int(seed) + int(count))
    print(json.dumps(follow(numbers, lambda number, ends: one(Path(source), Path(other), number, ends)).as_dict()))


if __name__ == "__main__":
    main(*sys.argv[1:])
