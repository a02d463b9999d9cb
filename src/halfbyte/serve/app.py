"""The web application: an image in, its most probable classes out; every refusal is JSON with one line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from python_multipart.exceptions import FormParserError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from halfbyte.serve.classifier import Classifier
from halfbyte.serve.gate import Gate
from halfbyte.serve.page import POLICY, page
from halfbyte.serve.picture import REFUSAL_HEADERS, RefusedError
from halfbyte.serve.upload import FIELD, FORM, Upload
from halfbyte.serve.workers import Workers

_SAFE = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def create_app(classifier: Classifier, workers: Workers, queue: int) -> FastAPI:
    """The application for one artifact: one image a worker is classified at once, `queue` more may wait."""
    # The interactive documentation would load its scripts from elsewhere.
    app = FastAPI(title=f"halfbyte: {classifier.facts['model']}", docs_url=None, redoc_url=None, redirect_slashes=False)
    places = workers.count + queue
    # Uploads arrive before they are let in: who sends slowly takes the bytes that came, and nobody's place.
    gate, memory = Gate(places), Gate(places * classifier.limits.upload)
    html = page(classifier.facts)
    _tell_refusals(app)

    @app.head("/", include_in_schema=False)
    @app.get("/", response_class=HTMLResponse, summary="A page to drop an image on")
    async def index() -> HTMLResponse:
        return HTMLResponse(html, headers={**_SAFE, "Content-Security-Policy": POLICY})

    @app.head("/health", include_in_schema=False)
    @app.get("/health", summary="Whether the server answers")
    async def health() -> Response:
        return _json({"status": "ok"})

    @app.get("/model", summary="What is served, and its limits")
    async def model() -> Response:
        return _json(classifier.facts)

    @app.post("/predict", summary="The most probable classes of an image", openapi_extra=_BODY)
    async def predict(request: Request) -> Response:
        upload = Upload(request, classifier.limits, memory)
        try:
            content = await upload.content()
            with gate.entered():
                arrived = time.perf_counter()
                answer = await workers.run(classifier, content)
                total = 1000 * (time.perf_counter() - arrived)
        except asyncio.CancelledError:
            # The server has waited long enough for what ran when it was told to stop.
            raise RefusedError(503, "the server stops") from None
        finally:
            upload.release()
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
        return _json({"error": str(error)}, error.status, REFUSAL_HEADERS.get(error.status))

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
