"""The command line's verbs that hand an artifact to others: over a port, and through a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Artifact = Annotated[Path, typer.Argument(help="The folder of an artifact.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the verbs to the application."""
    app.command()(serve)


def serve(
    artifact: Artifact,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 is any free one.")] = 8000,
    engine: Annotated[
        str | None, typer.Option(help="native or interpreter.", show_default="native, if it was built")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="For one image.", show_default="all cores")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Images at once.", show_default="one a core")] = None,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more are answered 503.")] = 64,
    max_upload: Annotated[float, typer.Option(help="Megabytes of an upload.")] = 10.0,
    max_pixels: Annotated[float, typer.Option(help="Megapixels of an image.")] = 50.0,
) -> None:
    """Serve an artifact over HTTP: an image in, its five most probable classes out; with a page to try it."""
    from halfbyte.serve.server import ServeOptions
    from halfbyte.serve.server import serve as run

    run(ServeOptions(artifact, host, port, engine, threads, concurrency, queue, max_upload, max_pixels))
