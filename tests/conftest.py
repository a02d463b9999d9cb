"""What tests of several folders use: the processes of one run as threads of the test, a run that is killed, a machine
whose network and hub are not there, and the native kernels with each instruction set."""

from __future__ import annotations

import copy
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from halfbyte import api
from halfbyte.distributed import World
from halfbyte.errors import HalfbyteError
from halfbyte.progress import Progress
from halfbyte.runtime import native

Together = Callable[[int, Callable[[World], Any]], list[Any]]


@dataclass
class Table:
    """Where the threads meet."""

    barrier: threading.Barrier
    places: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class ThreadWorld(World):
    """A world of threads, which see copies of what the others have."""

    table: Table | None = None

    def gather(self, value: Any) -> list[Any]:
        self.table.places[self.rank] = value
        self.table.barrier.wait()
        found = copy.deepcopy(self.table.places)
        self.table.barrier.wait()
        return found

    def merge(self, rows: Tensor) -> Tensor:
        return rows.copy_(sum(self.gather(rows)))


@pytest.fixture
def together() -> Together:
    """Runs a function of a `World` as so many processes would; returns what each returns or raises."""

    def run(count: int, work: Callable[[World], Any]) -> list[Any]:
        table = Table(threading.Barrier(count, timeout=60), [None] * count)

        def one(rank: int) -> Any:
            torch.set_num_threads(1)
            try:
                return work(ThreadWorld(rank, count, table))
            except HalfbyteError as error:
                return error
            except Exception as error:
                table.barrier.abort()
                return error

        threads = torch.get_num_threads()
        with ThreadPoolExecutor(count) as pool:
            results = list(pool.map(one, range(count)))
        torch.set_num_threads(threads)
        return results

    return run


@pytest.fixture
def kill_when() -> Callable[..., None]:
    """Start a command, and kill it as soon as `reached()` is true."""

    def kill(command: list[str], reached: Callable[[], bool], seconds: float = 300) -> None:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + seconds
            while not reached():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.002)
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL

    return kill


@pytest.fixture
def no_network(monkeypatch):
    """A network without names or routes, counting the attempts."""
    attempts = []

    def refuse(*address, **_):
        attempts.append(address)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


@pytest.fixture
def empty_hub(monkeypatch, tmp_path):
    """A cache of the hub with nothing in it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture(scope="session")
def vit_run(tmp_path_factory) -> Path:
    """A finished run: a `fashion_vit` of 4 bits, evaluated on 20 images."""
    folder = tmp_path_factory.mktemp("runs") / "vit"
    api.quantize(
        model="fashion_vit", recipe="repq", calib_images=32, limit=20, workers=0, out=folder,
        progress=Progress(quiet=True),
    )  # fmt: skip
    return folder


@pytest.fixture(params=native.kernels().isas() if native.available() else ["portable"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The native kernels with one instruction set after the other that this processor has."""
    if not native.available():
        pytest.skip("the native kernels were not built")
    kernels, wanted = native.kernels(), str(request.param)
    before = kernels.isa()
    kernels.choose_isa(wanted)
    yield wanted
    kernels.choose_isa(before)
