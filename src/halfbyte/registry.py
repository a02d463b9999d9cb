"""A name -> thing table whose look-up error names the nearest spelling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from halfbyte.errors import HalfbyteError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Things of one sort by name, in the order in which they were registered."""

    def __init__(self, sort: str) -> None:
        self.sort = sort
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters what it decorates; a name taken twice raises `ValueError`."""

        def enter(thing: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.sort} {name!r} is registered twice")
            self._entries[name] = thing
            return thing

        return enter

    def get(self, name: str) -> T:
        """The thing called `name`; raises `HalfbyteError` with the nearest names."""
        if name not in self._entries:
            raise HalfbyteError(f"unknown {self.sort} {name!r}{did_you_mean(name, self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)
