"""The command line's verbs that hand an artifact to others: over a port, and through a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from halfbyte.cli_json import Json, check_writable, write_json

Artifact = Annotated[Path, typer.Argument(help="The folder of an artifact.", show_default=False)]

Repository = Annotated[str, typer.Argument(help="OWNER/NAME in the hub.", show_default=False)]
Endpoint = Annotated[str | None, typer.Option(help="Address of another hub.", show_default="the client's own")]


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the application."""
    for verb in (serve, push, pull):
        app.command()(verb)


def serve(
    artifact: Artifact,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 is any free one.")] = 8000,
    engine: Annotated[
        str | None, typer.Option(help="native or interpreter.", show_default="native, if it was built")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Cores for one image.", show_default="cores / concurrency")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(help="Images at once.", show_default="one a core")] = None,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more are answered 503.")] = 64,
    max_upload: Annotated[float, typer.Option(help="Megabytes of an upload.")] = 10.0,
    max_pixels: Annotated[float, typer.Option(help="Megapixels of an image.")] = 50.0,
) -> None:
    """Serve an artifact over HTTP: an image in, its five most probable classes out; with a page to try it."""
    from halfbyte.serve.server import ServeOptions
    from halfbyte.serve.server import serve as run

    run(ServeOptions(artifact, host, port, engine, threads, concurrency, queue, max_upload, max_pixels))


def push(
    run: Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)],
    repository: Repository,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    endpoint: Endpoint = None,
    json_file: Json = None,
) -> None:
    """Upload a run's artifact to a model hub, with a card made of its metrics."""
    from halfbyte.hub import push as run_push

    check_writable(json_file)
    facts = run_push(run, repository, private=private, endpoint=endpoint)
    print(f"pushed {len(facts['files'])} files to {facts['url']}, commit {facts['revision']}")
    write_json(json_file, facts)


def pull(
    repository: Repository,
    out: Annotated[Path, typer.Option(help="The folder to make.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit.", show_default="main")] = None,
    endpoint: Endpoint = None,
    json_file: Json = None,
) -> None:
    """Download an artifact from a model hub; the folder appears when all of it is there and checked."""
    from halfbyte.hub import pull as run_pull

    check_writable(json_file, out=out)
    facts = run_pull(repository, out, revision=revision, endpoint=endpoint)
    size = sum(facts["files"].values()) / 1e6
    print(f"pulled {len(facts['files'])} files, {size:.2f} MB, commit {facts['revision']}, into {out}")
    write_json(json_file, facts)
