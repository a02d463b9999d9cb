"""Commands in this process, many of them: what each ends in, and whether that is what a user may be told.

Whoever uses this is a process of its own, which a crash, or a command that never ends, may end.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfbyte.__main__ import main

# More than what the libraries have taken already.
MEMORY = 6 * 2**30
# On the clock: a command that waits for something takes no time on the processor.
WAITS = 1800.0


class TooLongError(BaseException):
    """Ends a command that has had its time on the processor."""


@dataclass
class Ends:
    """What became of all commands, and those that ended as none may."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {"counts": dict(self.counts.most_common()), "wrong": self.wrong}


def limit_memory() -> None:
    """Let this process have no more than a few gigabytes beyond what it has."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY,) * 2)


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """`TooLongError` after so many seconds on the processor; the end of this process where it waits for ever."""

    def stop(*_: object) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    faulthandler.dump_traceback_later(WAITS, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)


def run(arguments: list[str], named: str, seconds: float, may_be_long: bool = False) -> tuple[str, str | None]:
    """Run a command; returns "done", "refused" or "long", and what is wrong with its end, None where nothing is.

    A refusal must be one line that holds `named`.
    """
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["halfbyte", *arguments]
    code: Any = 0
    try:
        with _time_limit(seconds), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as stop:
                code = stop.code or 0
    except TooLongError:
        return "long", None if may_be_long else f"still at work after {seconds} s"
    except BaseException:
        return "crashed", traceback.format_exc(limit=-6)
    lines = err.getvalue().splitlines()
    told = "" if not lines else lines[-1]
    if code == 0:
        noise = [line for line in lines if "Warning" in line or "Error" in line]
        return "done", f"done, but says {noise}" if noise else None
    if code != 2 or out.getvalue() or not told.startswith("halfbyte: ") or named not in told or len(told) > 1500:
        return "refused", f"exit code {code}, prints {out.getvalue()[-300:]!r}, says {err.getvalue()[-1500:]!r}"
    if any("Warning" in line or "Traceback" in line for line in lines):
        return "refused", f"also says {err.getvalue()[-1500:]!r}"
    return "refused", None


def follow(numbers: range, one: Callable[[int, Ends], None]) -> Ends:
    """Do `one` for every number, which is shown, so that a crash tells by which it came."""
    ends = Ends()
    for number in numbers:
        print(number, end="\r", file=sys.stderr, flush=True)
        one(number, ends)
    return ends
