"""`python -m halfbyte` and the command `halfbyte`."""

from __future__ import annotations

import sys

from halfbyte.errors import HalfbyteError


def main() -> None:
    """Run the command line; a mistake of the user's ends in one line and exit code 2."""
    from halfbyte.cli import app

    try:
        app()
    except HalfbyteError as error:
        print(f"halfbyte: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("halfbyte: interrupted; the same command with --resume continues", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
