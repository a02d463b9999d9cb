"""What decoding an upload may cost: scans of a JPEG, kinds of it, large pictures beside each other."""

from __future__ import annotations

import io
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.serve.conftest import ENDS, encoded, with_scans

from halfbyte.serve.gate import Share
from halfbyte.serve.jpeg import survey

MEGABYTE = 10**6


def scans_of(content: bytes, most: int) -> int:
    scans, ordinary = survey(content, most)
    assert ordinary
    return scans


def test_scans_are_counted_as_a_decoder_finds_them(noise) -> None:
    picture = noise(60, 60)
    assert scans_of(encoded(picture, "JPEG"), 100) == 1
    progressive = encoded(picture, "JPEG", progressive=True)
    assert 5 < scans_of(progressive, 100) < 20
    # Neither a thumbnail's in the notes nor what follows the picture.
    notes = b"\xff\xe1" + (2 + 4 * 500).to_bytes(2, "big") + b"\xff\xda\x00\x02" * 500
    assert scans_of(progressive[:2] + notes + progressive[2:] + 500 * b"\xff\xda\x00\x02", 100) < 20
    assert scans_of(with_scans(16, 16, 300), 1000) > 300
    assert scans_of(with_scans(16, 16, 300), 100) == 101
    # Fill bytes before a marker are part of none.
    assert scans_of(progressive.replace(b"\xff\xda", b"\xff\xff\xff\xda"), 100) == scans_of(progressive, 100)
    # Nor does a reserved marker hide what follows it from a decoder in search of a restart.
    last = progressive.rindex(b"\xff\xda")
    frame = progressive.index(b"\xff\xc2")
    restarts = progressive[:frame] + b"\xff\xdd\x00\x04\x00\x01" + progressive[frame:last]
    header = progressive[last : last + 2 + int.from_bytes(progressive[last + 2 : last + 4], "big")]
    hidden = header + b"\xff\x02\xff\xff" + 500 * (header + b"\xff\x02")
    assert scans_of(restarts + hidden + bytes(65_535) + b"\xff\xd9", 1000) > 500


@pytest.mark.parametrize("kind", [0xC3, 0xC5, 0xC9, 0xCA, 0xCB, 0xCF])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_another_kind_is_refused(server, noise, encode, kind, progressive) -> None:
    content = encode(noise(60, 60), "JPEG", progressive=progressive)
    frame = b"\xff\xc2" if progressive else b"\xff\xc0"
    assert content.count(frame) == 1
    assert server.predict(content).status == 200
    server.predict(content.replace(frame, bytes((0xFF, kind)))).refused(415, "arithmetic-coded")


def test_a_jpeg_of_many_scans_is_refused(server) -> None:
    assert server.predict(with_scans(200, 200, 50)).status == 200
    start = time.monotonic()
    server.predict(with_scans(4000, 4000, 3000)).refused(413, "more than 100 scans")
    assert time.monotonic() - start < 5


def test_a_share_lets_the_large_have_their_turn() -> None:
    share, order = Share(10), []

    def take(units: int) -> None:
        with share.taken(units):
            order.append(units)

    with share.taken(5):
        threads = []
        for units in (10, 5, 5):
            threads.append(threading.Thread(target=take, args=(units,)))
            threads[-1].start()
            time.sleep(0.1)
        assert order == []
    for thread in threads:
        thread.join(ENDS)
    assert order == [10, 5, 5]


@pytest.mark.slow
def test_large_pictures_are_not_decoded_together(artifact, start) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((7000, 7000), np.uint16)).save(stream, "PNG")
    with start(artifact, "--concurrency", 4) as server, ThreadPoolExecutor(4) as pool:
        before = server.resident()
        assert {reply.status for reply in pool.map(server.predict, [stream.getvalue()] * 4)} == {200}
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        peak = 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
        assert peak < before + 450 * MEGABYTE
        assert server.resident() < before + 100 * MEGABYTE
