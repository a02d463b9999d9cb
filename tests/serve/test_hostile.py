"""Uploads that mean harm, or are simply wrong: a clear answer, and the server goes on."""

from __future__ import annotations

import http.client
import io
import json
import socket
import struct
import zlib

import pytest
from PIL import Image
from tests.serve.conftest import BOUNDARY, answer_of, form

MEGABYTE = 10**6


@pytest.fixture(autouse=True)
def goes_on(server, png):
    yield
    server.is_well()
    assert server.predict(png).status == 200


def png_of(width: int, height: int, content: bytes = b"") -> bytes:
    """A greyscale PNG file whose header claims these sides."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def test_nothing_at_all(server) -> None:
    server.predict(b"").refused(400, "empty")
    server.predict_form(b"").refused(400, "empty")
    server.ask("POST", "/predict").refused(400, "empty")


def test_what_is_no_image(server) -> None:
    for content in (b"hello", bytes(1000), b"%PDF-1.7\n", b"<svg xmlns=''/>", b"\x80\x04K\x01."):
        server.predict(content).refused(415, "no image", "JPEG, PNG")
        server.predict_form(content).refused(415, "no image")
    for kind in ("TIFF", "PPM", "ICO", "TGA"):
        stream = io.BytesIO()
        Image.new("RGB", (32, 32)).save(stream, kind)
        server.predict(stream.getvalue()).refused(415)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_what_ends_too_early(server, noise, encode, kind) -> None:
    whole = encode(noise(200, 200), kind)
    assert server.predict(whole).status == 200
    for share in (0.02, 0.3, 0.6, 0.95):
        reply = server.predict(whole[: max(12, int(share * len(whole)))])
        assert reply.status in (400, 415), (share, reply.body)
        assert "error" in reply.json


def test_fifty_megabytes(server) -> None:
    before = server.resident()
    content = bytes(50 * MEGABYTE)
    server.predict(content).refused(413, "larger than 10 MB")
    server.predict_form(content).refused(413, "larger than 10 MB")
    assert server.resident() < before + 30 * MEGABYTE


def test_fifty_megabytes_that_do_not_say_so(server) -> None:
    """Without a length the bytes are counted as they come, and the answer comes before the last of them."""
    before = server.resident()
    for start in (b"", form(b"", "image", "a.png")[: -len(BOUNDARY) - 8]):
        connection = server.connection()
        connection.putrequest("POST", "/predict")
        connection.putheader("Transfer-Encoding", "chunked")
        if start:
            connection.putheader("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
        connection.endheaders()
        part = bytes(MEGABYTE)
        connection.send(b"%x\r\n%s\r\n" % (len(start), start) if start else b"")
        for _ in range(12):
            connection.send(b"%x\r\n%s\r\n" % (len(part), part))
        answer_of(connection).refused(413, "larger than 10 MB")
        connection.close()
    assert server.resident() < before + 40 * MEGABYTE


@pytest.mark.parametrize(
    "content",
    [
        png_of(40_000, 40_000, zlib.compress(bytes(10**6))),
        png_of(2**31 - 1, 2**31 - 1),
        png_of(7_100, 7_100, zlib.compress(bytes(7_101 * 7_100))),
        # Few pixels, but half a million wide when its one row is scaled up to 28.
        png_of(3_000_000, 1, zlib.compress(bytes(3_000_001))),
        png_of(1, 3_000_000, zlib.compress(bytes(6_000_000))),
    ],
    ids=["large", "largest", "just too large", "wide", "tall"],
)
def test_decompression_bombs(server, content) -> None:
    assert len(content) < 100_000
    before = server.resident()
    server.predict(content).refused(413, "pixels")
    server.predict_form(content).refused(413, "pixels")
    assert server.resident() < before + 10 * MEGABYTE


def test_a_bomb_in_webp(server, encode) -> None:
    content = encode(Image.new("RGB", (16_383, 10_000)), "WEBP", lossless=True, method=0, quality=0)
    before = server.resident()
    server.predict(content).refused(413, "pixels")
    assert server.resident() < before + 10 * MEGABYTE


def test_a_long_text_in_an_image(server, png) -> None:
    """Compressed text beside a PNG's pixels."""
    text = b"comment\x00\x00" + zlib.compress(bytes(200 * MEGABYTE))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    before = server.resident()
    assert server.predict(png[:33] + chunk + png[33:]).status in (200, 400, 415)
    assert server.resident() < before + 80 * MEGABYTE


def test_a_form_without_the_image(server, png) -> None:
    server.predict_form(png, name="picture").refused(400, "'image'")
    server.predict_form(png, file=None).refused(400, "'image'")
    server.predict(b"", f"multipart/form-data; boundary={BOUNDARY}").refused(400)
    server.predict(b"no form", f"multipart/form-data; boundary={BOUNDARY}").refused(400)
    server.predict(form(png, "image", "a.png"), "multipart/form-data").refused(400)
    server.predict(form(png, "image", "a.png")[:-60], f"multipart/form-data; boundary={BOUNDARY}").refused(400)
    for odd in (
        "charset=undefined",
        "charset=idna",
        "charset=hex",
        "charset=utf-16",
        "charset*=utf-8''a%00b",
        "a*=1; a*0=2",
    ):
        reply = server.predict(form(png, "\u00e9", "a.png"), f"multipart/form-data; boundary={BOUNDARY}; {odd}")
        reply.refused(400)
    two = form(png, "image", "a.png")[: -len(BOUNDARY) - 8] + b"\r\n" + form(png, "more", "b.png")
    server.predict(two, f"multipart/form-data; boundary={BOUNDARY}").refused(400, "Too many files")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_another_method(server, png, method) -> None:
    reply = server.ask(method, "/predict", png)
    reply.refused(405, f"{method} /predict")
    assert reply.headers["allow"] == "POST"


def test_another_place(server) -> None:
    for path in ("/docs", "/redoc", "/../etc/passwd", "/predict/../..", "/%00", "/predict/", "/health/"):
        server.ask("GET", path).refused(404)
    server.ask("POST", "/predict/", b"x").refused(404)


@pytest.mark.parametrize("path", ["/", "/health"])
def test_a_header_alone(server, path) -> None:
    asked, wanted = server.ask("HEAD", path), server.ask("GET", path)
    assert (asked.status, asked.body) == (200, b"")
    assert asked.headers["content-length"] == str(len(wanted.body))


def test_a_huge_header(server) -> None:
    connection = server.connection()
    connection.putrequest("POST", "/predict")
    connection.putheader("X-Long", "a" * MEGABYTE)
    try:
        connection.endheaders()
        assert answer_of(connection).status in (400, 431)
    except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected):
        pass  # It may hang up before all of the header was sent.
    finally:
        connection.close()


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        # Places that read no body answer all the same, and must not once this was refused.
        b"GET /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /nowhere HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HEAD /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=[
        "tls",
        "negative length",
        "two lengths",
        "no chunk",
        "no chunk, no reader",
        "no chunk, no place",
        "no chunk, no body",
    ],
)
def test_what_is_no_request(server, said) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 4")
    body = answer.partition(b"\r\n\r\n")[2]
    assert body == b"" if said.startswith(b"HEAD") else list(json.loads(body)) == ["error"]
    server.is_well()
    assert len(server.said) == 1


def test_clients_that_hang_up(server) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\nhello")
