"""The page in Chromium: choose, drop or paste a file, see the answer; by mouse and by keyboard, light and dark."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]

# As a browser builds it when a file is dropped or pasted.
SEND = """([content, name, target, kind]) => {
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: "image/png" }));
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true })
    : new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.querySelector(target).dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as drivers:
        running = drivers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(params=["light", "dark"])
def page(browser, server, request) -> Iterator:
    """A fresh page, which must not complain."""
    opened = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=request.param)
    said: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda sent: asked.append(sent.url))
    opened.goto(f"http://127.0.0.1:{server.port}/")
    opened.complaints = said
    yield opened
    assert said == []
    assert all(url.startswith((f"http://127.0.0.1:{server.port}/", "blob:", "data:,")) for url in asked), asked
    opened.close()


def shown(page) -> list[str]:
    """The names of the classes that are listed, once they are."""
    page.wait_for_selector("#result:not([hidden])")
    return page.locator("#rows th").all_inner_texts()


def labels(server, content: bytes) -> list[str]:
    return [entry["label"] for entry in server.predict(content).top]


def test_a_chosen_file(page, server, png) -> None:
    assert page.locator("#status").inner_text() == "No image yet."
    page.set_input_files("#file", {"name": "a <b>.png", "mimeType": "image/png", "buffer": png})
    expected = labels(server, png)
    assert shown(page) == expected
    assert page.locator("#status").inner_text().startswith(f"{expected[0]}, ")
    assert page.locator("#preview").get_attribute("alt") == "The image that was sent: a <b>.png"
    assert page.locator("#preview").evaluate("image => image.naturalWidth") == 28
    for name in ("engine", "prepare", "wait", "trip"):
        assert page.locator(f"#{name}").inner_text().endswith("ms")
    # Nothing is cut off or must be scrolled sideways on a phone.
    assert page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_file_that_is_dropped_or_pasted(page, server, noise, encode, kind) -> None:
    for seed in (1, 2):
        content = encode(noise(40, 40, seed))
        target = "#drop" if kind == "drop" else "body"
        page.evaluate(SEND, [base64.b64encode(content).decode(), "b.png", target, kind])
        expected = labels(server, content)
        page.wait_for_function("name => document.querySelector('#rows th')?.textContent === name", arg=expected[0])
        assert shown(page) == expected


def test_dragging_over_the_field_is_shown(page, png) -> None:
    content = base64.b64encode(png).decode()
    page.evaluate(SEND, [content, "a.png", "#drop", "dragover"])
    assert page.locator("#drop.over").count() == 1
    page.evaluate(SEND, [content, "a.png", "#drop", "dragleave"])
    assert page.locator("#drop.over").count() == 0


def test_what_is_no_image_is_told(page, server, png) -> None:
    page.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"hello"})
    page.wait_for_selector("#error:not(:empty)")
    assert "no image that can be read" in page.locator("#error").inner_text()
    assert page.locator("#error").get_attribute("role") == "alert"
    # Chromium reports every answer of 400 and above.
    assert [text for text in page.complaints if "415" not in text] == []
    page.complaints.clear()
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png})
    assert shown(page) == labels(server, png)
    assert page.locator("#error").inner_text() == ""


def test_what_is_too_large_is_not_even_sent(page) -> None:
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": bytes(10_000_001)})
    page.wait_for_selector("#error:not(:empty)")
    assert page.locator("#error").inner_text() == "The image is larger than 10 MB."
    assert page.locator("#result").is_hidden()


def test_the_keyboard_reaches_the_file_dialog(page) -> None:
    # Asked for in time: the browser is told to hand over its dialog, but does not say when it has understood.
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "file"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Space")
    assert not chooser.value.is_multiple()


def test_what_a_screen_reader_is_told(page) -> None:
    assert page.get_by_label("Image to classify").count() == 1
    assert page.get_by_role("status").count() == 1
    assert page.get_by_role("heading", level=1).inner_text() == "fashion_vit"
    assert page.get_by_role("heading", level=2).inner_text() == "Most probable classes"
    assert page.locator("html").get_attribute("lang") == "en"
