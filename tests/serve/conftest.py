"""A small artifact, a server of it in a process of its own, and clients that may say anything."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from halfbyte.serve.app import create_app
from halfbyte.serve.classifier import Classifier
from halfbyte.serve.connection import bounded
from halfbyte.serve.process import Process
from halfbyte.serve.workers import Workers

BOUNDARY = "between-two-parts"
STARTS, ENDS = 60, 30


@dataclass
class Reply:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def top(self) -> list[dict[str, Any]]:
        assert self.status == 200, self.body
        return self.json["top"]

    def refused(self, status: int, *parts: str) -> None:
        """Assert a status and one line as JSON that holds `parts`."""
        assert self.status == status, self.body
        assert list(self.json) == ["error"]
        line = self.json["error"]
        assert "\n" not in line
        assert len(line) < 300
        for part in parts:
            assert part in line


@dataclass
class Server:
    """A process that serves; None is the tests' own."""

    process: subprocess.Popen[str] | None
    port: int
    said: list[str] = field(default_factory=list)

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        connection = self.connection()
        try:
            connection.request(method, path, body, headers or {})
            return answer_of(connection)
        finally:
            connection.close()

    def predict(self, content: bytes, kind: str = "application/octet-stream") -> Reply:
        return self.ask("POST", "/predict", content, {"Content-Type": kind})

    def predict_form(self, content: bytes, name: str = "image", file: str | None = "a.png") -> Reply:
        return self.predict(form(content, name, file), f"multipart/form-data; boundary={BOUNDARY}")

    def is_well(self) -> None:
        """Assert that it still runs and answers."""
        assert self.process.poll() is None
        assert self.ask("GET", "/health").json == {"status": "ok"}

    def resident(self) -> int:
        """Bytes of memory in use."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def stopped_by(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(ENDS)


def answer_of(connection: http.client.HTTPConnection) -> Reply:
    response = connection.getresponse()
    return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def begin_upload(server: Server, content: bytes) -> http.client.HTTPConnection:
    """A connection on which half of an image was sent."""
    connection = server.connection()
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Length", str(len(content)))
    connection.endheaders(content[: len(content) // 2])
    return connection


def form(content: bytes, name: str, file: str | None) -> bytes:
    """A form with one field, a file's where it has a file's name."""
    named = f'; filename="{file}"\r\nContent-Type: image/png' if file is not None else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


@contextmanager
def serving(folder: Path, *options: object) -> Iterator[Server]:
    """`halfbyte serve` of an artifact on a free port."""
    command = [sys.executable, "-m", "halfbyte", "serve", str(folder), "--port", "0", *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    lines: queue.Queue[str] = queue.Queue()
    said: list[str] = []

    def read() -> None:
        for line in process.stderr:
            said.append(line)
            lines.put(line)
        lines.put("")

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while True:
            line = lines.get(timeout=STARTS)
            assert line, said
            if found := re.search(r" on http://127\.0\.0\.1:(\d+)$", line):
                break
        yield Server(process, int(found[1]), said)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(ENDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        reader.join(ENDS)
        process.stderr.close()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + ENDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def serving_here(classifier: Classifier, queue: int = 0, most: int = 64) -> Iterator[tuple[Server, Process]]:
    """A server with one worker in a thread of this process, so that a test can hold what it needs."""
    workers = Workers(1)
    web = Process(create_app(classifier, workers, queue), classifier.limits.seconds, 1 + queue)
    web.config.http = bounded(classifier.limits.seconds, most)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=lambda: asyncio.run(web.serve([listener])))
        thread.start()
        try:
            yield Server(None, port), web
        finally:
            web.should_exit = True
            thread.join(ENDS)
    assert not thread.is_alive()
    wait_for(workers.stop)


@pytest.fixture(scope="session")
def start() -> Callable[..., Any]:
    return serving


@pytest.fixture(scope="session")
def artifact(vit_run) -> Path:
    """A 4-bit `fashion_vit`."""
    return vit_run


@pytest.fixture(scope="session")
def server(artifact) -> Iterator[Server]:
    """One that all tests of a session ask; it must survive all of them without a word."""
    with serving(artifact) as running:
        yield running
        running.is_well()
        assert len(running.said) == 1, running.said


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def with_scans(width: int, height: int, more: int) -> bytes:
    """A progressive JPEG whose last scan comes `more` times again."""
    content = encoded(Image.new("L", (width, height)), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + more * content[last:-2] + content[-2:]


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    return encoded


@pytest.fixture(scope="session")
def noise() -> Callable[..., Image.Image]:
    """A colour picture of these sides that is the same for the same `seed`."""

    def make(width: int, height: int, seed: int = 0) -> Image.Image:
        # Few values in large fields, so that different pictures are different classes.
        few = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
        return Image.fromarray(few).resize((width, height), Image.Resampling.NEAREST)

    return make


@pytest.fixture(scope="session")
def png(noise) -> bytes:
    return encoded(noise(28, 28))
