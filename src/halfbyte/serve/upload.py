"""A request's body on its way into memory: bounded in bytes, alone and with all others, and in time."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from halfbyte.serve.gate import Gate
from halfbyte.serve.picture import Limits, RefusedError, too_large

FIELD = "image"
FORM = "multipart/form-data"
# What a form adds to a file: boundaries, names, types.
_FORM_ROOM = 2**16


class _Form(MultiPartParser):
    # Starlette would write larger files to the disk, which may be full; their bytes are counted before they come here.
    spool_max_size = 0


class Upload(Request):
    """A request whose body may be only so large and take only so long to arrive, looked at while it arrives.

    Its bytes are taken from `memory`, which all uploads share, until `release`.
    """

    def __init__(self, request: Request, limits: Limits, memory: Gate) -> None:
        super().__init__(request.scope, request.receive)
        self._limits, self._memory, self._held = limits, memory, 0

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The body's parts; raises `RefusedError` as soon as there are too many bytes, or too few after the time."""
        room = self._limits.upload + (_FORM_ROOM if self.is_form else 0)
        if (told := self.headers.get("content-length", "")).isdigit() and int(told) > room:
            raise too_large(self._limits)
        loop, parts = asyncio.get_running_loop(), super().stream()
        deadline = loop.time() + self._limits.seconds
        while True:
            try:
                part = await asyncio.wait_for(anext(parts), max(0.0, deadline - loop.time()))
            except StopAsyncIteration:
                return
            except (asyncio.TimeoutError, TimeoutError):
                raise RefusedError(408, f"the upload took longer than {self._limits.seconds:g} seconds") from None
            if self._held + len(part) > room:
                raise too_large(self._limits)
            self._memory.take(len(part))
            self._held += len(part)
            yield part

    def release(self) -> None:
        """Give back what the body took of the shared memory."""
        self._memory.give(self._held)
        self._held = 0

    @property
    def is_form(self) -> bool:
        return self.headers.get("content-type", "").lower().startswith(FORM)

    async def content(self) -> bytes:
        """The image file's bytes: the form's field `image`, or the whole body."""
        async with aclosing(self.stream()) as parts:
            if not self.is_form:
                # Many small parts that are joined at the end would take twice the memory.
                whole = io.BytesIO()
                async for part in parts:
                    whole.write(part)
                return whole.getvalue()
            try:
                form = await _Form(self.headers, parts, max_files=1, max_fields=1).parse()
            except MultiPartException as error:
                raise RefusedError(400, f"the form is damaged: {error.message}") from None
            except (TypeError, ValueError):
                # So the parsers fail at odd charsets and parameters.
                raise RefusedError(400, "the form is damaged: its header cannot be read") from None
        file = form.get(FIELD)
        if not isinstance(file, UploadFile):
            raise RefusedError(400, f"the form has no file in a field named {FIELD!r}")
        return await file.read()
