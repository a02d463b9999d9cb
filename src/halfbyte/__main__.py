"""`python -m halfbyte` and the command `halfbyte`."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from types import FrameType

from halfbyte.errors import HalfbyteError, ToldElsewhereError, outside_reason
from halfbyte.printable import without_controls

REFUSED, INTERRUPTED = 2, 130
_IMPORT = ("importlib._bootstrap", "_frozen_importlib")
RESUMABLE = ("quantize", "train", "labels", "reproduce")


def main() -> None:
    """Run the command line; a mistake of the user's ends in one line and exit code 2."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    # A stream that was closed before the start is None.
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A path may hold bytes that are no text, which a strict stream refuses to print.
            stream.reconfigure(errors="backslashreplace")
    try:
        os.getcwd()
    except OSError:
        _refuse("the working directory is gone; change to one that exists")
    try:
        from halfbyte.cli import app

        with warnings.catch_warnings():
            # Of images that cannot be read Halfbyte tells by itself.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            app()
    except ToldElsewhereError:
        sys.exit(REFUSED)
    except HalfbyteError as error:
        _refuse(str(error))
    except (OSError, MemoryError, RuntimeError) as error:
        reason = outside_reason(error)
        if reason is None:
            raise
        _refuse(reason)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            print(_interrupted(), file=sys.stderr)
        raise


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End at once where a library is being loaded: some lose an exception there, or are left half made."""
    while frame is not None:
        if frame.f_globals.get("__name__") in _IMPORT:
            os.write(2, f"{_interrupted()}\n".encode())
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _interrupted() -> str:
    resumable = any(verb in RESUMABLE for verb in sys.argv[1:2])
    return f"halfbyte: interrupted{'; the same command with --resume continues' if resumable else ''}"


def _refuse(reason: str) -> None:
    print(without_controls(f"halfbyte: {reason}"), file=sys.stderr)
    sys.exit(REFUSED)


if __name__ == "__main__":
    main()
