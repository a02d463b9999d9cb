"""A process that has imported what every command imports, and becomes the commands that it is asked for.

    python -m tests.robustness.server

Each command is a process of its own, with its own files, limits and end, but without the seconds of the imports. A line
of JSON asks for one, the answer is its process id; a line with a process id alone asks how it ended, the answer is null
while it runs.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from typing import Any, NoReturn

# What commands import when they are needed, and what these import in their turn.
MODULES = (
    "halfbyte.api", "halfbyte.bench", "halfbyte.cli", "halfbyte.export.onnx", "halfbyte.export.openvino",
    "halfbyte.export.verify", "halfbyte.hub", "halfbyte.labels", "halfbyte.peers", "halfbyte.reproduce.run",
    "halfbyte.report.compare", "onnxruntime.quantization",
    "timm.data.transforms_factory", "torch.onnx", "torch.utils.tensorboard",
)  # fmt: skip
# What Python tells its audit hooks of changes on disk, besides files that are opened.
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")


def _die_before(number: int, folder: str) -> None:
    """Kill this process right before it changes something below `folder` for the so-many-th time."""
    left = number

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        changes = event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if changes and any(isinstance(place, (str, bytes, os.PathLike)) and os.path.abspath(os.fsdecode(place))
                           .startswith(folder) for place in arguments):  # fmt: skip
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _heed_permissions() -> None:
    """Give up root's right to read and write whatever the modes of files say."""
    if os.geteuid():
        return
    # Version 3 of the kernel's structures; of 64 rights the first three pass over modes and owners.
    header, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, rights):
        raise OSError(ctypes.get_errno(), "capget")
    for place in range(3):
        rights[place] &= ~0b111
    if libc.capset(header, rights):
        raise OSError(ctypes.get_errno(), "capset")


def _become(asked: dict[str, Any]) -> NoReturn:
    """Run a command as `python -m halfbyte` would."""
    from halfbyte.__main__ import main

    code: Any = 0
    try:
        for number, place in enumerate((os.devnull, asked["out"], asked["err"])):
            os.dup2(os.open(place, os.O_RDWR | os.O_CREAT, 0o644), number)
        os.chdir(asked["folder"])
        os.environ.update(asked["environment"])
        tempfile.tempdir = None
        if asked["largest_file"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (asked["largest_file"],) * 2)
        if asked["plain"]:
            _heed_permissions()
        if asked["die_before"] is not None:
            _die_before(asked["die_before"], asked["folder"])
        sys.argv = ["halfbyte", *asked["arguments"]]
        main()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def main() -> None:
    """Answer until the last line."""
    for module in MODULES:
        importlib.import_module(module)
    print("ready", flush=True)
    while line := sys.stdin.buffer.readline():
        asked = json.loads(line)
        if isinstance(asked, int):
            ended, status = os.waitpid(asked, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        else:
            answer = os.fork() or _become(asked)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
