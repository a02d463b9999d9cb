"""What goes wrong outside the program, a full memory or Ctrl-C, is one line; the program's own errors are not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
import torch

from halfbyte import api

pytestmark = pytest.mark.usefixtures("no_folder_left")


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (PermissionError(13, "Permission denied", "some.file"), "some.file: Permission denied"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (MemoryError(), "--batch-size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nAdvice"), "--batch-size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "--batch-size"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is"), "--workers 0"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_trouble_with_the_machine_is_one_line(halfbyte, monkeypatch, error, part):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(api, "inspect_model", fail)
    halfbyte("inspect", "fashion_resnet").refused(part)


def test_an_error_of_the_program_keeps_its_traceback(halfbyte, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(api, "inspect_model", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        halfbyte("inspect", "fashion_resnet")


def test_an_interrupted_command_says_how_to_go_on(quantize, halfbyte, monkeypatch, request):
    def interrupt(*_, **__):
        signal.raise_signal(signal.SIGINT)
        time.sleep(1)

    monkeypatch.setattr(api, "read_inputs", interrupt)
    monkeypatch.setattr(api, "inspect_model", interrupt)
    # A shell starts what it runs in the background with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    outcome = quantize()
    assert (outcome.code, outcome.err) == (130, "halfbyte: interrupted; the same command with --resume continues\n")
    outcome = halfbyte("inspect", "fashion_resnet")
    assert (outcome.code, outcome.err) == (130, "halfbyte: interrupted\n")


def test_ctrl_c_while_a_library_is_loaded_ends_at_once(tmp_path):
    # Code that loses the exception, as some that is compiled does.
    swallowing = """
import signal
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    pass
"""
    (tmp_path / "swallowing.py").write_text(swallowing)
    program = "import sys, halfbyte.__main__ as m, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "import typer\ntyper.Typer.__call__ = lambda self: __import__('swallowing')\nm.main()"
    for verb, remedy in (("eval", ""), ("train", "; the same command with --resume continues")):
        command = [sys.executable, "-c", program, verb]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", f"halfbyte: interrupted{remedy}\n")


def test_killed_while_the_state_is_written_leaves_its_own_part_alone(halfbyte, tmp_path):
    """The system ends the process within the first file that grows beyond its limit: the state."""
    command = ("quantize", "fashion_resnet", "--recipe", "percentile", "--calib-images", "32", "--limit", "4")
    command += ("--workers", "0", "--out", str(tmp_path / "out"))
    program = (
        "import resource, signal, sys\n"
        "sys.dont_write_bytecode = True\n"  # Python would keep what the limit cuts off.
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from halfbyte.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *command], cwd=tmp_path, timeout=300)
    assert done.returncode == -signal.SIGXFSZ
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"log.jsonl", "resume.safetensors.part"}
    assert halfbyte(*command, "--resume").code == 0
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith((".", "resume"))]


def test_a_narrow_terminal_shows_all_figures(halfbyte, monkeypatch, finished_run):
    monkeypatch.setenv("COLUMNS", "20")
    outcome = halfbyte("eval", finished_run, "--limit", 4)
    assert "agreement %" in outcome.out
    assert "fashion_resnet" in outcome.out
