"""The web application: an image in, its most probable classes out; every refusal is JSON with one line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from halfbyte.serve.classifier import Classifier
from halfbyte.serve.page import POLICY, page
from halfbyte.serve.picture import Limits, RefusedError, too_large

FIELD = "image"
FORM = "multipart/form-data"
# What a form adds to a file: boundaries, names, types.
_FORM_ROOM = 2**16
_SAFE = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


class Gate:
    """Lets so many requests in at once and refuses the others, so that neither memory nor waiting grows."""

    def __init__(self, places: int) -> None:
        self._free = places

    @contextmanager
    def entered(self) -> Iterator[None]:
        """One place for the length of a with-block; raises `RefusedError` where all are taken."""
        if self._free < 1:
            raise RefusedError(503, "too many requests are waiting; try again")
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


class Upload(Request):
    """A request whose body may be only so large and take only so long to arrive, looked at while it arrives."""

    limits: Limits

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The body's parts; raises `RefusedError` as soon as there are too many bytes, or too few after the time."""
        room = self.limits.upload + (_FORM_ROOM if self.is_form else 0)
        if (told := self.headers.get("content-length", "")).isdigit() and int(told) > room:
            raise too_large(self.limits)
        loop, parts = asyncio.get_running_loop(), super().stream()
        deadline = loop.time() + self.limits.seconds
        while True:
            try:
                part = await asyncio.wait_for(anext(parts), max(0.0, deadline - loop.time()))
            except StopAsyncIteration:
                return
            except (asyncio.TimeoutError, TimeoutError):
                raise RefusedError(408, f"the upload took longer than {self.limits.seconds:g} seconds") from None
            room -= len(part)
            if room < 0:
                raise too_large(self.limits)
            yield part

    @property
    def is_form(self) -> bool:
        return self.headers.get("content-type", "").lower().startswith(FORM)

    async def content(self) -> bytes:
        """The image file's bytes: the form's field `image`, or the whole body."""
        if not self.is_form:
            return await self.body()
        async with self.form(max_files=1, max_fields=1) as form:
            file = form.get(FIELD)
            if not isinstance(file, UploadFile):
                raise RefusedError(400, f"the form has no file in a field named {FIELD!r}")
            return await file.read()


def create_app(classifier: Classifier, concurrency: int, queue: int) -> FastAPI:
    """The application for one artifact: `concurrency` images are classified at once, `queue` more may wait."""
    # The interactive documentation would load its scripts from elsewhere.
    app = FastAPI(title=f"halfbyte: {classifier.facts['model']}", docs_url=None, redoc_url=None)
    gate, threads = Gate(concurrency + queue), ThreadPoolExecutor(concurrency, thread_name_prefix="classify")
    html = page(classifier.facts)
    _tell_refusals(app)

    @app.get("/", response_class=HTMLResponse, summary="A page to drop an image on")
    async def index() -> HTMLResponse:
        return HTMLResponse(html, headers={**_SAFE, "Content-Security-Policy": POLICY})

    @app.get("/health", summary="Whether the server answers")
    async def health() -> Response:
        return _json({"status": "ok"})

    @app.get("/model", summary="What is served, and its limits")
    async def model() -> Response:
        return _json(classifier.facts)

    @app.post("/predict", summary="The most probable classes of an image", openapi_extra=_BODY)
    async def predict(request: Request) -> Response:
        with gate.entered():
            upload = Upload(request.scope, request.receive)
            upload.limits = classifier.limits
            content = await upload.content()
            arrived = time.perf_counter()
            answer = await asyncio.get_running_loop().run_in_executor(threads, classifier, content)
            total = 1000 * (time.perf_counter() - arrived)
        taken = {
            "wait": total - answer.prepare - answer.engine, "prepare": answer.prepare, "engine": answer.engine,
            "total": total,
        }  # fmt: skip
        milliseconds = {name: round(value, 3) for name, value in taken.items()}
        return _json({"model": classifier.facts["model"], "top": answer.top, "milliseconds": milliseconds})

    return app


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            FORM: {"schema": {"type": "object", "properties": {FIELD: {"type": "string", "format": "binary"}}}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(content, status, {**_SAFE, **(headers or {})})


def _tell_refusals(app: FastAPI) -> None:
    """Every refusal as `{"error": one line}`."""

    def handles(kind: type[Exception]) -> Callable[..., Any]:
        return app.exception_handler(kind)

    @handles(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        # Behind a body that does not come there is no next request on the connection.
        more = {408: {"Connection": "close"}, 503: {"Retry-After": "1"}}.get(error.status)
        return _json({"error": str(error)}, error.status, more)

    @handles(HTTPException)
    async def outside(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return _json({"error": message}, error.status_code, dict(error.headers or {}))

    @handles(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> Response:
        return _json({"error": "the upload ended early"}, 400)

    @handles(FormParserError)
    async def malformed(_: Request, error: FormParserError) -> Response:
        return _json({"error": f"the form is damaged: {error}"}, 400)

    @handles(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return _json({"error": "the server failed; its log says why"}, 500)
