"""`halfbyte serve`: what it is asked for, its socket, and what it says."""

from __future__ import annotations

import errno
import importlib.util
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from halfbyte.errors import HalfbyteError
from halfbyte.progress import Progress
from halfbyte.report.wording import bit_widths
from halfbyte.runtime.engine import available_cores

_PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
MOST_PORT = 65535


@dataclass(frozen=True)
class ServeOptions:
    """What `serve` is asked for; the fields are the options of the command.

    `port` 0 is a free one. `concurrency`: images classified at once (None: one a core), on `threads` cores each (None:
    what `concurrency` leaves to each); `queue`: requests that may wait; `max_upload` in MB, `max_pixels` in millions,
    as the picture is stored and as it is resized.
    """

    artifact: Path
    host: str = "127.0.0.1"
    port: int = 8000
    engine: str | None = None
    threads: int | None = None
    concurrency: int | None = None
    queue: int = 64
    max_upload: float = 10.0
    max_pixels: float = 50.0


def serve(options: ServeOptions, progress: Progress | None = None) -> None:
    """Serve an artifact until SIGTERM or SIGINT; what runs then is finished first.

    Where an image is not finished within a minute, the process ends here instead of returning.
    Raises `HalfbyteError` for missing packages, what is no artifact, impossible options, and an address in use.
    """
    progress = progress or Progress()
    _require_packages()
    _check(options)
    from halfbyte.serve.app import create_app
    from halfbyte.serve.classifier import Classifier
    from halfbyte.serve.picture import Limits
    from halfbyte.serve.process import Process
    from halfbyte.serve.workers import Workers

    limits = Limits(int(options.max_upload * 1e6), int(options.max_pixels * 1e6))
    concurrency = options.concurrency or available_cores()
    # Threads that wait for each other take time of their own; where all cores are busy anyway, one an image is better.
    threads = available_cores() // concurrency or 1 if options.threads is None else options.threads
    classifier = Classifier(options.artifact, limits, options.engine, threads, progress)
    listener = _listener(options.host, options.port)
    workers = Workers(concurrency)
    server = Process(create_app(classifier, workers, options.queue), limits.seconds, concurrency + options.queue)
    bits = bit_widths(*classifier.facts["bits"].values())
    progress.say(f"serving {classifier.facts['model']} ({bits}, {classifier.engine}) on {_address(listener)}")
    server.run([listener])
    progress.say("stopped")
    if not workers.stop():
        # Python waits for its threads before it ends, however long they take.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(0)


def _require_packages() -> None:
    missing = [name for package, name in _PACKAGES.items() if importlib.util.find_spec(package) is None]
    if missing:
        raise HalfbyteError(f"serving needs {', '.join(missing)}; pip install 'halfbyte[serve]'")


def _check(options: ServeOptions) -> None:
    if not 0 <= options.port <= MOST_PORT:
        raise HalfbyteError(f"--port {options.port}: must be from 0 (any free one) to {MOST_PORT}")
    for name, value, least in (("concurrency", options.concurrency, 1), ("queue", options.queue, 0)):
        if value is not None and value < least:
            raise HalfbyteError(f"--{name} must be at least {least}, not {value}")
    for name, most in (("max-upload", options.max_upload), ("max-pixels", options.max_pixels)):
        if not 0 < most <= 1000:
            raise HalfbyteError(f"--{name} {most:g}: must be above 0 and at most 1000")


def _listener(host: str, port: int) -> socket.socket:
    """A socket that listens; raises `HalfbyteError` where the address is none, or in use."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family)
        # Its connections inherit that an answer's body does not wait until its header is acknowledged, 40 ms later;
        # asyncio only asks for it where a socket names its protocol.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except UnicodeError:  # a label that is empty, too long or not a name's
        raise HalfbyteError(f"cannot listen on {host!r}: it is no host's name; choose another --host") from None
    except OSError as error:
        another = "--port, or 0 for a free one" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        # The text of the error names the address once more; that of a host's name that was not found is its own.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise HalfbyteError(f"cannot listen on {host}, port {port}: {reason}; choose another {another}") from None


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
