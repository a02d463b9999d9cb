"""Files in whose place something else may stand, and files that are written whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from halfbyte.artifact_files import write_files, write_option
from halfbyte.cli_json import check_writable
from halfbyte.errors import HalfbyteError
from halfbyte.files import open_file, read_file, temporary_folder
from halfbyte.locks import lock


def test_what_a_file_holds(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path / "file") == read_file(tmp_path / "file", 5) == b"12345"
    with pytest.raises(ValueError, match="more than 4 bytes"):
        read_file(tmp_path / "file", 4)
    with (tmp_path / "terabyte").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="more than 4 bytes"):
        read_file(tmp_path / "terabyte", 4)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, told in (
        (tmp_path / "pipe", "Not a regular"),
        (Path("/dev/zero"), "Not a regular"),
        (tmp_path, "director"),
    ):
        with pytest.raises(OSError, match=told):
            open_file(path)


def test_files_are_replaced_together(tmp_path):
    (tmp_path / "one").write_text("before")
    write_files(tmp_path, {"one": b"1", "two": b"2"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"one": b"1", "two": b"2"}


def test_where_another_process_writes_one_of_them_none_is_replaced(tmp_path):
    (tmp_path / "one").write_text("before")
    held = lock(tmp_path / "two.part", os.O_RDWR | os.O_CREAT)
    with pytest.raises(HalfbyteError, match=r"another process writes .*two.*choose another --out"):
        write_files(tmp_path, {"one": b"1", "two": b"2"})
    # The part is the other one's.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two.part"]
    assert (tmp_path / "one").read_text() == "before"
    held.release()
    write_files(tmp_path, {"one": b"1", "two": b"2"})


def test_a_folder_in_the_place_of_a_file_is_told_before_any_is_replaced(tmp_path):
    (tmp_path / "two").mkdir()
    with pytest.raises(HalfbyteError, match="two: a folder has its name; choose another --json"):
        write_files(tmp_path, {"one": b"1", "two": b"2"}, "--json")
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def test_a_file_behind_a_link_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "facts").write_text("before")
    (tmp_path / "link").symlink_to("facts")
    write_option(tmp_path / "link", b"after", "--json")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "facts").read_bytes() == b"after"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_written_into(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=write_option, args=(tmp_path / "pipe", b"facts", "--json"))
    writer.start()
    assert (tmp_path / "pipe").read_bytes() == b"facts"
    writer.join()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_takes_nothing_is_told():
    with pytest.raises(HalfbyteError, match=r"cannot write --json /dev/full: No space left.*; free some space or"):
        write_option(Path("/dev/full"), b"facts", "--json")


def test_other_errors_among_temporary_files_stay_as_they_are():
    with pytest.raises(KeyError), temporary_folder() as folder:
        raise KeyError(folder)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_room_for_temporary_files_is_told():
    with pytest.raises(HalfbyteError, match=r"no room for temporary files in .* set TMPDIR"), temporary_folder():
        Path("/dev/full").write_bytes(b"0")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_what_is_no_file_in_a_parts_place_is_told(tmp_path):
    os.mkfifo(tmp_path / "facts.json.part")
    with pytest.raises(HalfbyteError, match=r"facts\.json\.part is no file; remove it"):
        write_files(tmp_path, {"facts.json": b"0" * 200_000})
    (tmp_path / "facts.json.part").unlink()
    (tmp_path / "elsewhere").write_bytes(b"kept")
    (tmp_path / "facts.json.part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HalfbyteError, match="cannot write to"):
        write_files(tmp_path, {"facts.json": b"0"})
    assert (tmp_path / "elsewhere").read_bytes() == b"kept"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_an_options_file_in_a_folder_without_permission_is_told_before(tmp_path):
    (tmp_path / "facts.json").write_bytes(b"{}")
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(HalfbyteError, match="no permission there"):
            check_writable(tmp_path / "facts.json")
    finally:
        tmp_path.chmod(0o755)
