"""Bounds on what is done at once: some refuse what is too much, others let it wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from halfbyte.serve.picture import RefusedError


class Gate:
    """Gives out so many units and refuses what asks for more, so that neither memory nor waiting grows."""

    def __init__(self, units: int) -> None:
        self._free = units

    def take(self, units: int = 1) -> None:
        """Take units, to be given back; raises `RefusedError` where fewer are left."""
        if self._free < units:
            raise RefusedError(503, "too many requests are waiting; try again")
        self._free -= units

    def give(self, units: int = 1) -> None:
        self._free += units

    @contextmanager
    def entered(self) -> Iterator[None]:
        """One unit for the length of a with-block; raises `RefusedError` as `take`."""
        self.take()
        try:
            yield
        finally:
            self.give()


class Share:
    """Gives out so many units to threads, which wait until there are enough."""

    def __init__(self, units: int) -> None:
        self._free = units
        self._first, self._changed = threading.Lock(), threading.Condition()

    @contextmanager
    def taken(self, units: int) -> Iterator[None]:
        """Units for the length of a with-block; never more than there are in all."""
        # One waits for units and the others for that one: small requests cannot keep a large one from its turn.
        with self._first, self._changed:
            self._changed.wait_for(lambda: self._free >= units)
            self._free -= units
        try:
            yield
        finally:
            with self._changed:
                self._free += units
                self._changed.notify_all()
