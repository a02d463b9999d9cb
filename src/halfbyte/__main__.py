"""`python -m halfbyte` and the command `halfbyte`."""

from __future__ import annotations

import io
import sys
import warnings

from halfbyte.errors import HalfbyteError, ToldElsewhereError

REFUSED, INTERRUPTED = 2, 130


def main() -> None:
    """Run the command line; a mistake of the user's ends in one line and exit code 2."""
    from halfbyte.cli import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A path may hold bytes that are no text, which a strict stream refuses to print.
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            # Of images that cannot be read Halfbyte tells by itself.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            app()
    except ToldElsewhereError:
        sys.exit(REFUSED)
    except HalfbyteError as error:
        _refuse(str(error))
    except (OSError, MemoryError, RuntimeError) as error:
        reason = _outside_reason(error)
        if reason is None:
            raise
        _refuse(reason)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            remedy = "; the same command with --resume continues" if sys.argv[1:2] == ["quantize"] else ""
            print(f"halfbyte: interrupted{remedy}", file=sys.stderr)
        raise


def _refuse(reason: str) -> None:
    print(f"halfbyte: {reason}", file=sys.stderr)
    sys.exit(REFUSED)


def _outside_reason(error: Exception) -> str | None:
    """What is wrong outside the program, with a remedy; None for an error of its own, whose traceback is wanted."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror or text or type(error).__name__}; mend that and give the command again"
    # torch tells both in RuntimeErrors, with advice for programmers behind the first sentence.
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "out of memory; give a smaller --batch-size, or fewer --calib-images"
    if "DataLoader worker" in text:
        return f"a process that reads images died ({text.split('. ')[0]}); give --workers 0"
    return None


if __name__ == "__main__":
    main()
