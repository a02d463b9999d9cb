"""Progress of long jobs: a bar with an ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from halfbyte.printable import without_controls

T = TypeVar("T")
PLAIN_INTERVAL = 10.0


class Progress:
    """Follows loops over a known number of items and writes to standard error.

    `quiet` keeps it silent. Without a terminal it writes at most one line per loop each ten seconds.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.quiet = quiet
        self.stream = stream or sys.stderr

    def track(
        self, items: Iterable[T], description: str, total: int, detail: Callable[[], str] | None = None
    ) -> Iterator[T]:
        """Yield `items`, showing how many of `total` are done, how long the rest will take, and what `detail` says."""
        if self.quiet or total <= 1:
            yield from items
        elif self.stream.isatty():
            yield from self._bar(items, description, total, detail)
        else:
            yield from self._lines(items, description, total, detail)

    def say(self, text: str) -> None:
        """One plain line about what happens now."""
        if not self.quiet:
            print(without_controls(text), file=self.stream, flush=True)

    def _bar(self, items: Iterable[T], description: str, total: int, detail: Callable[[], str] | None) -> Iterator[T]:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[detail]}"),
        )  # fmt: skip
        with Bar(*columns, console=Console(file=self.stream), transient=True) as bar:
            task = bar.add_task(description, total=total, detail="")
            for item in items:
                yield item
                bar.update(task, advance=1, detail=detail() if detail else "")

    def _lines(self, items: Iterable[T], description: str, total: int, detail: Callable[[], str] | None) -> Iterator[T]:
        start = shown = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if now - shown >= PLAIN_INTERVAL and done < total:
                shown = now
                left = (now - start) / done * (total - done)
                more = f", {detail()}" if detail else ""
                self.say(f"{description}: {done} of {total}, {left:.0f} s left{more}")
