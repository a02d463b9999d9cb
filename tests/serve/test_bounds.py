"""What the server spends on clients who keep it waiting or ask for much: connections, places, memory, time."""

from __future__ import annotations

import contextlib
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.serve.conftest import ENDS, STARTS, answer_of, begin_upload, serving_here, wait_for, with_scans

from halfbyte.serve.classifier import Classifier
from halfbyte.serve.picture import Limits

MEGABYTE = 10**6
REQUEST = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module")
def hasty(artifact) -> Classifier:
    """Clients of this one have little time."""
    return Classifier(artifact, Limits(seconds=0.4))


@contextlib.contextmanager
def held(classifier: Classifier):
    """No picture is decoded within this block."""
    with classifier._decoded.taken(classifier.limits.pixels):
        yield


def connected(server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def is_closed(client: socket.socket) -> bool:
    client.settimeout(0)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_a_slow_upload_is_given_up(hasty) -> None:
    with serving_here(hasty) as (server, _):
        start = time.monotonic()
        reply = answer_of(begin_upload(server, bytes(1000)))
        reply.refused(408, "longer than 0.4 seconds")
        assert 0.3 < time.monotonic() - start < 10
        assert reply.headers["connection"] == "close"


@pytest.mark.parametrize("said", [b"", b"G", b"GET / HTTP/1.1\r\nX-Slow: ", REQUEST, REQUEST + b"G"])
@pytest.mark.parametrize("drips", [False, True], ids=["silent", "dripping"])
def test_a_client_that_does_not_finish_its_header_is_hung_up_on(hasty, said, drips) -> None:
    with serving_here(hasty) as (server, _), connected(server) as client:
        client.sendall(said)
        start = time.monotonic()
        if said.startswith(REQUEST):
            assert b"200 OK" in client.recv(4096)
        with contextlib.suppress(ConnectionError):
            while not is_closed(client) and time.monotonic() < start + 10:
                time.sleep(0.05)
                client.sendall(b"a" if drips else b"")
        assert 0.3 < time.monotonic() - start < 4


def test_what_follows_an_early_refusal_is_not_awaited_for_ever(hasty) -> None:
    with serving_here(hasty) as (server, _), connected(server) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n")
        assert b"413" in client.recv(4096)
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < start + 10:
                client.sendall(b"a")
                time.sleep(0.05)
        assert time.monotonic() - start < 4


def test_a_client_that_reads_nothing_is_hung_up_on(hasty) -> None:
    with serving_here(hasty) as (server, web), connected(server) as client:
        client.settimeout(0.2)
        # Until neither side takes any more; if the server hangs up before, that is well.
        with contextlib.suppress(OSError):
            while True:
                client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)
        start = time.monotonic()
        while web.server_state.connections and time.monotonic() < start + 10:
            time.sleep(0.05)
        assert time.monotonic() - start < 4


PAGE = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
DAMAGED = b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"


def silent(server, asked: bytes) -> socket.socket:
    """A client that reads no answer."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(2)
    client.connect(("127.0.0.1", server.port))
    with contextlib.suppress(OSError):
        client.sendall(asked)
    return client


@pytest.fixture(scope="module")
def pages(hasty) -> int:
    """How many answers wait to be read where the server stops to answer a client that reads none."""
    with serving_here(hasty) as (server, web), silent(server, 1500 * PAGE):
        wait_for(lambda: web.server_state.total_requests and not web.server_state.connections)
        return web.server_state.total_requests


def test_a_client_that_is_refused_and_reads_nothing_is_hung_up_on(hasty, pages) -> None:
    """Less waits to be read than what would count as a stall, and the refusal behind it."""
    with serving_here(hasty) as (server, web), contextlib.ExitStack() as clients:
        for count in range(pages - 14, pages + 1):
            clients.enter_context(silent(server, count * PAGE + DAMAGED))
        wait_for(lambda: web.server_state.total_requests)
        start = time.monotonic()
        while web.server_state.connections and time.monotonic() < start + 10:
            time.sleep(0.05)
        assert time.monotonic() - start < 4


def test_clients_that_are_refused_and_read_nothing_are_as_many_as_others(artifact, pages) -> None:
    patient = Classifier(artifact, Limits())
    with serving_here(patient, most=3) as (server, web), contextlib.ExitStack() as clients:
        for count in range(pages - 14, pages + 1):
            answered = web.server_state.total_requests + count
            client = clients.enter_context(silent(server, count * PAGE))
            wait_for(lambda: web.server_state.total_requests >= answered)  # noqa: B023
            client.sendall(DAMAGED)
        server.ask("GET", "/health")
        assert len(web.server_state.connections) <= 4


def test_a_thousand_silent_clients_lock_nobody_out(server, png) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    clients = []
    try:
        clients.extend(connected(server) for _ in range(1200))
        server.is_well()
        assert server.predict(png).status == 200
        assert sum(map(is_closed, clients)) >= 1200 - 512
        assert not is_closed(clients[-1])
    finally:
        for client in clients:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(server.said) == 1


def answering(web) -> int:
    """How many requests have arrived and are not answered."""
    cycles = [connection.cycle for connection in web.server_state.connections]
    return sum(cycle is not None and not cycle.more_body and not cycle.response_complete for cycle in cycles)


def test_where_all_connections_are_in_use_a_new_one_is_refused(artifact, png) -> None:
    classifier = Classifier(artifact, Limits())
    with serving_here(classifier, queue=7, most=4) as (server, web), ThreadPoolExecutor(4) as pool:
        with held(classifier):
            # Slow uploads make way for others; requests that are being answered do not.
            slow = [begin_upload(server, png) for _ in range(3)]
            running = [pool.submit(server.predict, png) for _ in range(4)]
            wait_for(lambda: answering(web) == 4)
            wait_for(lambda: all(is_closed(upload.sock) for upload in slow))
            with connected(server) as client:
                refused = client.recv(4096)
                assert refused.startswith(b"HTTP/1.1 503")
                assert b"\r\nRetry-After: 1\r\n" in refused
        assert [reply.result().status for reply in running] == [200] * 4
        assert server.predict(png).status == 200


def test_too_many_requests_are_told_to_come_again(artifact, png) -> None:
    classifier = Classifier(artifact, Limits())
    with serving_here(classifier, queue=1) as (server, web), ThreadPoolExecutor(2) as pool:
        with held(classifier):
            running = [pool.submit(server.predict, png) for _ in range(2)]
            wait_for(lambda: answering(web) == 2)
            reply = server.predict(png)
            reply.refused(503, "try again")
            assert reply.headers["retry-after"] == "1"
        assert [reply.result().status for reply in running] == [200, 200]
        assert server.predict(png).status == 200


def test_slow_uploads_take_nobody_s_place(artifact, start, png) -> None:
    with start(artifact, "--concurrency", 1, "--queue", 0) as server:
        slow = [begin_upload(server, png) for _ in range(60)]
        assert server.predict(png).status == 200
        for upload in slow[1:]:
            upload.close()
        slow[0].send(png[len(png) // 2 :])
        assert len(answer_of(slow[0]).top) == 5
        slow[0].close()


def test_uploads_share_their_memory(artifact) -> None:
    classifier = Classifier(artifact, Limits(upload=1000))
    with serving_here(classifier, queue=1) as (server, _):
        # Two places, so 2,000 bytes together.
        slow = [begin_upload(server, bytes(1000)) for _ in range(4)]
        wait_for(lambda: server.predict(b"abc").status == 503)
        slow.pop().close()
        wait_for(lambda: server.predict(b"abc").status == 415)
        for upload in slow:
            upload.close()


def test_forms_need_no_disk(artifact, start, noise, encode) -> None:
    content = encode(noise(1000, 1000), "BMP")
    assert len(content) > 2 * MEGABYTE
    with start(artifact) as server:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, 0))
        assert server.predict_form(content).top == server.predict(content).top


def test_a_client_whose_image_takes_too_long_at_the_end_is_told(hasty, png, capfd) -> None:
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as block, serving_here(hasty) as (server, web):
        block.enter_context(held(hasty))
        running = pool.submit(server.predict, png)
        wait_for(lambda: answering(web) == 1)
        web.should_exit = True
        running.result(ENDS).refused(503, "the server stops")
        block.close()
    assert "Traceback" not in capfd.readouterr().err


STUBBORN = """
import sys; from pathlib import Path
from halfbyte.serve.picture import Limits
Limits.__init__.__defaults__ = (10_000_000, 50_000_000, 0.5, 10**9)
from halfbyte.serve.server import ServeOptions, serve
serve(ServeOptions(Path(sys.argv[1]), port=0))
"""


def test_the_process_ends_though_an_image_is_being_decoded(artifact) -> None:
    command = [sys.executable, "-c", STUBBORN, str(artifact)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child, ThreadPoolExecutor(1) as pool:
        try:
            port = int(re.search(r":(\d+)$", child.stderr.readline())[1])
            with socket.create_connection(("127.0.0.1", port), timeout=STARTS) as client:
                bomb = with_scans(4000, 4000, 20_000)
                client.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(bomb) + bomb)
                time.sleep(1)
                child.send_signal(signal.SIGTERM)
                answer = pool.submit(client.recv, 4096).result(ENDS)
            assert answer.startswith(b"HTTP/1.1 503")
            assert child.wait(ENDS) == 0
            said = child.stderr.read()
        finally:
            child.kill()
    assert "Traceback" not in said
    assert said.endswith("stopped\n")
