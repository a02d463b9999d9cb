"""What an upload takes of memory while it arrives."""

from __future__ import annotations

import asyncio
import os
import tracemalloc

import pytest
from starlette.requests import Request

from halfbyte.serve.gate import Gate
from halfbyte.serve.picture import Limits
from halfbyte.serve.upload import Upload

SIZE, PART = 8_000_000, 50_000


def arriving(parts: int, head: list[tuple[bytes, bytes]]) -> Request:
    """A request whose body comes in so many parts of random bytes."""
    left = iter(range(parts - 1, -1, -1))

    async def receive():
        more = next(left)
        return {"type": "http.request", "body": os.urandom(PART), "more_body": more > 0}

    return Request({"type": "http", "method": "POST", "headers": head}, receive)


@pytest.mark.parametrize("told", [True, False])
def test_a_body_lies_in_memory_once(told) -> None:
    head = [(b"content-length", str(SIZE).encode())] if told else []
    memory = Gate(SIZE)
    upload = Upload(arriving(SIZE // PART, head), Limits(), memory)

    async def whole() -> tuple[int, int]:
        tracemalloc.start()
        content = await upload.content()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return len(content), peak

    size, peak = asyncio.run(whole())
    assert size == SIZE
    # Room that is set aside while it grows is an eighth.
    assert peak < 1.3 * SIZE
    upload.release()
    memory.take(SIZE)
