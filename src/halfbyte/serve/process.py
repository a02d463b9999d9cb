"""uvicorn as it serves here: bounded connections, its signals, and a log that nobody can fill from outside."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI

from halfbyte.serve.connection import bounded

_BACKLOG = 128
_CONNECTIONS = 512
# Files that the process has open besides its connections.
_FILES = 32


class Process(uvicorn.Server):
    """The server of an application; SIGTERM and SIGINT end it, and leave no error behind.

    A request's header has `seconds` to arrive, as has an answer to be read. `busy` is how many requests there may be at
    once: there are twice as many connections and at least 512, fewer where the process may not open so many files.
    """

    def __init__(self, app: FastAPI, seconds: float, busy: int) -> None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        files = files if files > 0 else 2**20
        # asyncio accepts a whole backlog at a time, while another is handed over and one is being closed.
        backlog = min(_BACKLOG, max(8, files // 8))
        most = max(8, min(max(_CONNECTIONS, 2 * busy), files - 3 * backlog - _FILES))
        config = uvicorn.Config(
            app, http=bounded(seconds, most), ws="none", lifespan="off", access_log=False, log_level="error",
            server_header=False, backlog=backlog, timeout_graceful_shutdown=max(1, int(2 * seconds)),
        )  # fmt: skip
        super().__init__(config)
        self._told = False
        # Anyone may send nonsense, but not fill the log with it.
        logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        self._stop_on_signals()
        super().run(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._tell)
        await super().startup(sockets)

    def _stop_on_signals(self) -> None:
        # The server has handlers of its own while it runs, and then raises what it caught again: these end the process
        # as what was asked for, with exit code 0.
        def stop(*_: object) -> None:
            self.should_exit = True

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)

    def _tell(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # Told for every connection in the backlog, each second.
        if "socket.accept()" not in context["message"]:
            loop.default_exception_handler(context)
        elif not self._told:
            self._told = True
            logging.getLogger("uvicorn.error").error("no connection can be accepted: %s", context.get("exception"))
