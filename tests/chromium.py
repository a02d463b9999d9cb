"""Chromium without a window, driven over a pipe: what a page says, asks for and looks like.

For the tests of pages and for the pictures in docs/images; needs nothing but the browser itself.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next((found for name in _NAMES if (found := shutil.which(name))), None)
_SECONDS = 60.0
# Above those that the browser expects to be its own, 3 and 4.
_SPARE = 20


@dataclass
class Page:
    """A page that was opened: what it wrote to the console, and the addresses that it asked for besides its own."""

    browser: Browser
    session: str
    address: str
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the DevTools protocol, to this page."""
        return self.browser.call(method, self.session, **parameters)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for. Raises `RuntimeError` where it throws."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def screenshot(self, place: Path, height: int | None = None, top: int = 0) -> None:
        """A PNG of the whole page, or of `height` pixels of it from `top` on."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        tall = int(size["height"]) - top if height is None else height
        clip = {"x": 0, "y": top, "width": size["width"], "height": min(tall, 16_000), "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        place.write_bytes(base64.b64decode(shot["data"]))

    def note(self, event: dict[str, Any]) -> None:
        """Keep what matters of an event."""
        facts = event.get("params", {})
        if event["method"] == "Network.requestWillBeSent":
            address = facts["request"]["url"]
            if address != self.address and not address.startswith("data:"):
                self.requests.append(address)
        elif event["method"] == "Runtime.consoleAPICalled":
            self.messages.append(f"{facts['type']}: {facts['args']}")
        elif event["method"] == "Runtime.exceptionThrown":
            self.messages.append(f"exception: {facts['exceptionDetails']}")
        elif event["method"] == "Log.entryAdded":
            self.messages.append(f"{facts['entry']['level']}: {facts['entry']['text']}")


class Browser:
    """A running Chromium; a with-block ends it."""

    def __init__(self) -> None:
        if PROGRAM is None:
            raise RuntimeError("no Chromium was found")
        self._folder = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        to_browser, self._writes = os.pipe()
        self._reads, from_browser = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _SPARE) for end in (to_browser, from_browser)]
        self._process = subprocess.Popen(
            [PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
             "--remote-debugging-pipe", f"--user-data-dir={self._folder.name}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False,
            preexec_fn=lambda: (os.dup2(ends[0], 3), os.dup2(ends[1], 4)),
        )  # fmt: skip
        for end in (to_browser, from_browser, *ends):
            os.close(end)
        self._number = 0
        self._rest = b""
        self._pages: dict[str, Page] = {}

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.call("Browser.close")
        self._process.kill()
        self._process.wait()
        os.close(self._writes)
        os.close(self._reads)
        self._folder.cleanup()

    def open(self, address: str, *, width: int = 1100, dark: bool = False, scale: float = 1.0) -> Page:
        """A page at an address, in a window `width` CSS pixels wide; narrow ones are a phone's."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session, address)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=scale, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Page.navigate", url=address)
        page.evaluate("new Promise(done => document.readyState == 'complete' ? done() : onload = done)")
        return page

    def call(self, method: str, session: str | None = None, /, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events that come meanwhile go to their pages."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        command |= {} if session is None else {"sessionId": session}
        os.write(self._writes, json.dumps(command).encode() + b"\0")
        for message in self._messages():
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                answer: dict[str, Any] = message["result"]
                return answer
            if (page := self._pages.get(message.get("sessionId", ""))) is not None and "method" in message:
                page.note(message)
        raise RuntimeError(f"{method}: the browser has ended")

    def _messages(self) -> Iterator[dict[str, Any]]:
        deadline = time.monotonic() + _SECONDS
        while True:
            message, found, rest = self._rest.partition(b"\0")
            if found:
                self._rest = rest
                yield json.loads(message)
                continue
            if not select.select([self._reads], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise TimeoutError(f"the browser gave no answer in {_SECONDS:.0f} s")
            part = os.read(self._reads, 1 << 20)
            if not part:
                return
            self._rest += part
