"""Threads for what would hold up the server's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


class Workers:
    """`count` threads; what one has begun cannot be stopped, only left behind."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="classify")
        self._begun: set[Future[Any]] = set()

    async def run(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """What `work` returns, once a thread is free for it."""
        future = self._threads.submit(work, *arguments)
        self._begun.add(future)
        future.add_done_callback(self._begun.discard)
        return await asyncio.wrap_future(future)

    def stop(self) -> bool:
        """Begin nothing more; whether all that was begun has ended."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        return all(future.done() for future in list(self._begun))
