"""A disk without room: one line, and the results that were there are still whole."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess

import pytest

from halfbyte import outcome


@pytest.fixture
def file_size_limit():
    """Sets the most bytes that this process may write into one file; real writes fail with EFBIG beyond."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_for_the_artifact_leaves_the_one_before(
    quantize, out, finished_run, monkeypatch, file_size_limit, read_run
):
    shutil.copytree(finished_run, out)
    save = outcome.save_artifact

    def save_on_a_full_disk(*arguments):
        file_size_limit(100_000)
        return save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(outcome, "save_artifact", save_on_a_full_disk)
        quantize("--w-bits", 3, "--force").refused(f"cannot write to {out}", "File too large", "free some space")
    file_size_limit(resource.RLIM_INFINITY)
    assert read_run(out).results == read_run(finished_run).results
    assert not list(out.glob("*.part"))
    assert quantize("--w-bits", 3, "--resume").code == 0
    assert read_run(out).events == ["start", "percentile", "finished"]


def test_no_room_for_the_state_is_told(quantize, out, finished_run, file_size_limit, read_run):
    shutil.copytree(finished_run, out)
    file_size_limit(100_000)
    quantize("--w-bits", 3, "--force").refused(f"state to {out}", "too large", "--resume")
    file_size_limit(resource.RLIM_INFINITY)
    assert read_run(out).results == read_run(finished_run).results
    assert not list(out.glob("*.part"))
    assert quantize("--w-bits", 3, "--resume").code == 0


@pytest.mark.parametrize(
    ("room", "failed"), [(0, "cannot write"), (1_000_000, "cannot save the run's state"), (2_700_000, "cannot write")]
)
def test_a_full_file_system_leaves_the_artifact_that_was_there(
    quantize, tmp_path, finished_run, room, failed, read_run
):
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in finished_run.iterdir()) + 8 * 4096
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", f"size={(size + room) // 4096 * 4096}", "tmpfs", str(disk)]
    if mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("a file system of a few megabytes can only be mounted by root")
    try:
        shutil.copytree(finished_run, disk / "run")
        with (disk / "filler").open("wb") as file:
            free = os.statvfs(disk)
            file.write(bytes(max(free.f_bavail * free.f_frsize - room, 0) // 4096 * 4096))
        forced = quantize("--out", disk / "run", "--a-bits", 7, "--force")
        forced.refused(failed, str(disk / "run"), "No space", "free some space")
        assert read_run(disk / "run").results == read_run(finished_run).results
        assert not list((disk / "run").glob("*.part"))
        (disk / "filler").unlink()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
