"""What the tests of robustness share: commands as processes, and what these read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.hub.stub import TOKEN, Commit, Repository, Stub, running
from tests.robustness.commands import Commands
from tests.robustness.verbs import REPOSITORY, Inputs, make_inputs

from halfbyte.artifact_files import ARTIFACT


@pytest.fixture(scope="session")
def hub() -> Iterator[Stub]:
    """A model hub on loopback."""
    with running() as stub:
        yield stub


@pytest.fixture(scope="session")
def commands(hub, tmp_path_factory) -> Iterator[Commands]:
    """Starts commands, which know no other hub."""
    home = {"HF_HOME": str(tmp_path_factory.mktemp("home")), "HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN}
    # The hub's own chunk store, which the client prefers for large files, is more than a stub can be.
    made = Commands({**home, "HF_HUB_DISABLE_XET": "1"})
    yield made
    made.close()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, hub) -> Inputs:
    """What commands read; no test changes it."""
    made = make_inputs(tmp_path_factory.mktemp("inputs"))
    files = {name: (made.bare / name).read_bytes() for name in ARTIFACT}
    hub.repositories[REPOSITORY] = Repository(private=False, commits=[Commit(files)])
    return made


@pytest.fixture
def place(tmp_path) -> Path:
    """An empty folder."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder
