"""The process: how it begins, what it refuses, how it stops, and what it does when it is asked for too much."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.serve.conftest import ENDS, answer_of, begin_upload

from halfbyte.artifact_files import CONFIG, QUANTIZATION, facts_sha256, json_bytes
from halfbyte.errors import HalfbyteError
from halfbyte.progress import Progress
from halfbyte.serve import classifier as classifier_module
from halfbyte.serve.classifier import Classifier
from halfbyte.serve.picture import Limits
from halfbyte.serve.server import ServeOptions, _listener, serve


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_it_finishes_what_runs_and_stops(artifact, start, png, number) -> None:
    with start(artifact) as server:
        idle = server.connection()
        idle.request("GET", "/health")
        assert answer_of(idle).status == 200
        connection = begin_upload(server, png)
        server.is_well()
        server.process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
        connection.send(png[len(png) // 2 :])
        assert len(answer_of(connection).top) == 5
        assert server.process.wait(ENDS) == 0
        idle.close()
    assert [line.split()[0] for line in server.said] == ["serving", "stopped"]


def test_more_clients_than_places_are_answered_one_way_or_the_other(artifact, start, png) -> None:
    with start(artifact, "--concurrency", 2, "--queue", 2) as server, ThreadPoolExecutor(16) as pool:
        statuses = [reply.status for reply in pool.map(server.predict, [png] * 200)]
        assert set(statuses) <= {200, 503}
        assert 200 in statuses
        server.is_well()
        assert server.stopped_by(signal.SIGTERM) == 0


def test_limits_are_options(artifact, start, noise, encode) -> None:
    with start(artifact, "--max-upload", 0.001, "--max-pixels", 0.002) as server:
        assert server.predict(encode(noise(40, 40))).status == 200
        server.predict(encode(noise(50, 50))).refused(413, "50 x 50", "0.002 megapixels")
        server.predict(bytes(1001)).refused(413, "larger than 0.001 MB")


def test_the_interpreter_answers_alike(artifact, start, server, png) -> None:
    with start(artifact, "--engine", "interpreter") as slow:
        assert slow.ask("GET", "/model").json["engine"] == "interpreter"
        theirs, ours = slow.predict(png).top, server.predict(png).top
    assert [entry["index"] for entry in theirs] == [entry["index"] for entry in ours]


class Listening(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_without_kernels_it_says_so_and_interprets(artifact, monkeypatch, png) -> None:
    monkeypatch.setattr(classifier_module, "available", lambda: False)
    progress = Listening()
    slow = Classifier(artifact, Limits(), progress=progress)
    assert slow.engine == "interpreter"
    assert len(progress.said) == 1
    assert "--engine interpreter" in progress.said[0]
    assert len(slow(png).top) == 5


def test_a_missing_package_is_one_line(artifact, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fastapi" else find(name))
    with pytest.raises(HalfbyteError, match=r"serving needs fastapi; pip install 'halfbyte\[serve\]'"):
        serve(ServeOptions(artifact))


def refused(*arguments: object) -> str:
    """The one line with which the command is refused."""
    command = [sys.executable, "-m", "halfbyte", "serve", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_a_port_in_use_is_one_line(artifact, server) -> None:
    line = refused(artifact, "--port", server.port)
    assert f"port {server.port}: Address already in use; choose another --port" in line


def test_what_cannot_be_served_is_one_line(artifact, tmp_path) -> None:
    assert "is not an artifact" in refused(tmp_path, "--port", 0)
    assert "nothing" in refused(tmp_path / "nothing", "--port", 0)
    for name in ("config.json", "quantization.json", "model.safetensors", "program.bin"):
        (tmp_path / name).write_bytes((artifact / name).read_bytes())
    (tmp_path / "program.bin").write_bytes(b"HBPROG01")
    assert "program.bin is damaged" in refused(tmp_path, "--port", 0)


@pytest.fixture
def edited(artifact, tmp_path) -> Callable[..., Path]:
    """The artifact with other facts and the checksum of these."""

    def edit(change: Callable[[dict, dict], None]) -> Path:
        folder = shutil.copytree(artifact, tmp_path / "edited")
        facts, config = (json.loads((folder / name).read_text()) for name in (QUANTIZATION, CONFIG))
        change(facts, config)
        facts["facts_sha256"] = facts_sha256(facts, config)
        for name, value in ((QUANTIZATION, facts), (CONFIG, config)):
            (folder / name).write_bytes(json_bytes(value))
        return folder

    return edit


@pytest.mark.parametrize("engine", ["native", "interpreter"])
@pytest.mark.parametrize("side", [32, 200_000, 10**12, 10**30])
def test_a_size_that_is_not_the_program_s_is_refused(edited, engine, side) -> None:
    folder = edited(lambda facts, _: facts["preprocessing"].update(input_size=[1, side, side]))
    said = rf"prepares images \[1, {side}, {side}\], and its program takes \[1, 28, 28"
    if side > 2**63:
        said = r"is damaged: quantization\.json\.preprocessing\.input_size\[1\] is missing or wrong"
    with pytest.raises(HalfbyteError, match=said):
        Classifier(folder, Limits(), engine)


@pytest.mark.parametrize("bits", ["x", [4], 0, 2.5, True, 10**400])
def test_bits_that_are_none_are_refused(edited, bits) -> None:
    folder = edited(lambda facts, _: facts["recipe"]["bits"].update(weight=bits))
    with pytest.raises(HalfbyteError, match=r"damaged: recipe\.bits\.weight is no number of bits"):
        Classifier(folder, Limits())


def test_names_that_are_no_utf_8_are_told_as_far_as_they_are(edited, start, png) -> None:
    def change(facts, config) -> None:
        config["pretrained_cfg"]["label_names"] = [f"caf\udce9 {number}" for number in range(10)]
        config["pretrained_cfg"].pop("label_descriptions", None)
        config["architecture"] = facts["source"]["architecture"] = "caf\udce9"

    with start(edited(change)) as server:
        for entry in server.predict(png).top:
            assert entry["label"] == f"caf\ufffd {entry['index']}"
        assert server.ask("GET", "/model").json["model"] == "caf\ufffd"
        assert server.ask("GET", "/openapi.json").status == 200
        assert "caf\ufffd" in server.ask("GET", "/").body.decode()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"port": 70000}, "--port 70000"),
        ({"port": -1}, "--port -1"),
        ({"host": "no.such.host.invalid", "port": 0}, "choose another --host"),
        *(({"host": host, "port": 0}, "no host's name; choose another --host") for host in ("..a", "a" * 70, "ü..x")),
        ({"host": "8.8.8.8", "port": 0}, "choose another --host"),
        ({"engine": "torch"}, "--engine 'torch' cannot serve; known: interpreter, native"),
        ({"threads": 0}, "threads must be from 1"),
        ({"concurrency": 0}, "--concurrency must be at least 1"),
        ({"queue": -1}, "--queue must be at least 0"),
        ({"max_upload": 0}, "--max-upload 0"),
        ({"max_pixels": float("nan")}, "--max-pixels nan"),
    ],
)
def test_impossible_options_are_one_line(artifact, options, part) -> None:
    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(HalfbyteError) as caught:
        serve(ServeOptions(artifact, **options))
    assert part in str(caught.value)


def test_help_loads_neither_the_server_nor_torch() -> None:
    program = "import halfbyte.cli, sys, json; print(json.dumps(sorted(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert not {name.partition(".")[0] for name in json.loads(printed)} & {"torch", "fastapi", "uvicorn", "PIL"}


def test_answers_do_not_wait_for_acknowledgements() -> None:
    with _listener("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
