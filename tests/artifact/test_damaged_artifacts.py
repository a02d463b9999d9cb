"""Artifacts that were cut, flipped or replaced by other files: each loads as it was or is refused by name."""

from __future__ import annotations

import json
import random
import struct
import sys

import pytest

from halfbyte.__main__ import main
from halfbyte.artifact import load_artifact
from halfbyte.artifact_files import CONFIG, QUANTIZATION, TENSORS
from halfbyte.errors import HalfbyteError

FILES = TENSORS, CONFIG, QUANTIZATION


@pytest.mark.parametrize("name", [CONFIG, QUANTIZATION])
def test_json_cut_anywhere_is_refused(folder, name, refused):
    content = (folder / name).read_bytes()
    # Every byte of the small file; of the large one the ends and every so-many-th between.
    for length in {*range(0, len(content), len(content) // 500), *range(40), *range(len(content) - 40, len(content))}:
        (folder / name).write_bytes(content[:length])
        refused(name, "damaged")


def test_tensors_cut_anywhere_are_refused(folder, refused):
    content = (folder / TENSORS).read_bytes()
    for length in {*range(20), *range(20, len(content), 2503), len(content) - 1}:
        (folder / TENSORS).write_bytes(content[:length])
        refused(TENSORS, "sha256")


def test_tensors_cut_anywhere_with_the_right_checksum_are_refused(folder, forge, refused):
    content = (folder / TENSORS).read_bytes()
    for length in {*range(0, 20, 3), *range(20, len(content), 9973), len(content) - 1}:
        forge(lambda *_: None, blob=content[:length])
        refused("damaged")
        (folder / TENSORS).write_bytes(content)


def test_flipped_bits_of_tensors_are_refused(folder, refused):
    content = bytearray((folder / TENSORS).read_bytes())
    draw = random.Random(0)
    for _ in range(200):
        place, bit = draw.randrange(len(content)), 1 << draw.randrange(8)
        content[place] ^= bit
        (folder / TENSORS).write_bytes(content)
        refused(TENSORS, "sha256")
        content[place] ^= bit


@pytest.mark.parametrize("name", [CONFIG, QUANTIZATION])
def test_flipped_bits_of_json_are_refused_unless_they_say_the_same(folder, logits, name):
    content = bytearray((folder / name).read_bytes())
    said = json.loads(content)
    draw = random.Random(0)
    same = 0
    for _ in range(300):
        place, bit = draw.randrange(len(content)), 1 << draw.randrange(8)
        content[place] ^= bit
        (folder / name).write_bytes(content)
        try:
            load_artifact(folder)
        except HalfbyteError:
            pass
        else:
            assert json.loads(content) == said
            same += 1
        content[place] ^= bit
    assert same < 30


def test_damage_of_the_header_with_the_right_checksum_raises_nothing_else(folder, forge, told):
    content = (folder / TENSORS).read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    draw = random.Random(0)
    for place in [*range(8), *(draw.randrange(8, end) for _ in range(40))]:
        broken = bytearray(content)
        broken[place] ^= 1 << draw.randrange(8)
        forge(lambda *_: None, blob=bytes(broken))
        try:
            load_artifact(folder)
        except HalfbyteError as error:
            told(error)
        (folder / TENSORS).write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name, refused):
    (folder / name).unlink()
    refused(name)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_a_files_place_is_told(folder, name, refused):
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(name)


@pytest.mark.parametrize("name", FILES)
def test_an_empty_file_is_told(folder, name, refused):
    (folder / name).write_bytes(b"")
    refused(name)


@pytest.mark.parametrize(
    "content",
    [
        b"null", b"[]", b'"x"', b"3", b"{}", b"[" * 10**5, b'{"a":' * 10**5, b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"\x00",
        b"{} {}", b'{"version": 1' + b"0" * 10**4 + b"}", b'{"format": "halfbyte", "version": true}', b"NaN",
    ],
    ids=lambda content: repr(content[:20]),
)  # fmt: skip
@pytest.mark.parametrize("name", [CONFIG, QUANTIZATION])
def test_json_of_another_kind_is_told(folder, name, content, refused):
    (folder / name).write_bytes(content)
    refused()


@pytest.mark.parametrize("name", [CONFIG, QUANTIZATION])
def test_json_of_gigabytes_is_not_read(folder, name, refused):
    with (folder / name).open("r+b") as file:
        file.truncate(2**33)
    refused(name, "damaged", "more than")


@pytest.mark.parametrize("command", ["eval", "inspect"])
def test_the_command_tells_damage_in_one_line(folder, monkeypatch, capsys, command):
    content = bytearray((folder / TENSORS).read_bytes())
    content[-1] ^= 1
    (folder / TENSORS).write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["halfbyte", command, str(folder)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith(f"halfbyte: {folder / TENSORS} is damaged")
    assert (folder / TENSORS).read_bytes() == content
