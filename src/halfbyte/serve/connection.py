"""A client's connection: only so many at once, and each may only so long keep the server waiting."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from halfbyte.serve.picture import REFUSAL_HEADERS


class Connection(H11Protocol):
    """uvicorn's connection, which alone would wait for ever for a first request and for a slow reader."""

    seconds: float
    most: int

    _since = 0.0
    _silence: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > self.most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._silence, self._stall, self._end):
            if timer is not None:
                timer.cancel()

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "the request is not valid HTTP/1.1")

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    @property
    def _incomplete(self) -> bool:
        return self._idle or self.cycle.more_body

    def _watch(self) -> None:
        """Let a request's header take only so long, from the connection's beginning or the last answer on."""
        if self._idle and self._silence is None:
            self._since = self.loop.time()
            self._silence = self.loop.call_later(self.seconds, self.transport.abort)
        elif not self._idle and self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _make_room(self) -> None:
        """Hang up on the client that has kept the server waiting longest; where none does, on this one."""
        others = [other for other in self.connections if isinstance(other, Connection) and other is not self]
        # One that was refused and does not read is open until its time is up.
        here = [other for other in others
                if not other.transport.is_closing() or other.transport.get_write_buffer_size()]  # fmt: skip
        if len(here) < self.most:
            return
        if waiting := [other for other in here if other._incomplete]:
            min(waiting, key=lambda other: other._since).transport.abort()
        else:
            self._refuse(503, "too many connections; try again")

    def _refuse(self, status: int, line: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": line}).encode()
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
            headers |= REFUSAL_HEADERS.get(status, {})
            phrase = HTTPStatus(status).phrase
            events = (
                h11.Response(status_code=status, headers=list(headers.items()), reason=phrase),
                h11.Data(b"" if not self._idle and self.scope["method"] == "HEAD" else body),
                h11.EndOfMessage(),
            )
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        if not self._idle:
            # Whatever answers the request now would come too late.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
        # That waits for a reader of what was written before.
        self._end = self.loop.call_later(self.seconds, self.transport.abort)


def bounded(seconds: float, most: int) -> type[Connection]:
    """`Connection` of which at most `most` are open, and wait at most so many seconds."""
    return type("Bounded", (Connection,), {"seconds": seconds, "most": most})
