"""A run to push, a hub on loopback, and the command with a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.conftest import Command, Outcome
from tests.hub.stub import TOKEN, Stub, running

NAME = "somebody/fashion_vit-w4a4"


@pytest.fixture(scope="session")
def run(vit_run) -> Path:
    """A finished run to push."""
    return vit_run


@pytest.fixture
def hub() -> Iterator[Stub]:
    with running() as stub:
        yield stub


@pytest.fixture
def environment(tmp_path, hub) -> dict[str, str]:
    """That of a user with a token, who knows no hub but the stub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    # The hub's own chunk store, which the client prefers for large files, is more than a stub can be.
    home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1"}
    return kept | home | {"HF_TOKEN": TOKEN}


@pytest.fixture
def halfbyte(environment) -> Command:
    """Runs `halfbyte ARGUMENTS...` in a process of its own; `without` names variables that it is not given."""

    def call(*arguments: object, without: tuple[str, ...] = (), **more: str) -> Outcome:
        given = {name: value for name, value in {**environment, **more}.items() if name not in without}
        command = [sys.executable, "-m", "halfbyte", *map(str, arguments)]
        done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=120)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def pushed(halfbyte, run, hub) -> Stub:
    """The hub with the run in it."""
    outcome = halfbyte("push", run, NAME)
    assert outcome.code == 0, outcome.err
    hub.asked.clear()
    return hub
