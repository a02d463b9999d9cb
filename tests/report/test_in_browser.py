"""Pages in a real browser: nothing asked of the network, no complaint, legible at every width and in the dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tests.chromium import PROGRAM, Browser, Page
from tests.report.test_comparison import PAGES
from tests.report.test_run_report import VARIANTS, render

import halfbyte
from halfbyte.progress import Progress
from halfbyte.report.compare import render_comparison
from halfbyte.report.comparison import compare_runs

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")]

WINDOWS = {"light": (1100, False), "dark": (1100, True), "phone": (390, False), "phone in the dark": (390, True)}
CHECKS = (Path(__file__).parent / "page_checks.js").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of made-up facts and of a real run."""
    folder = tmp_path_factory.mktemp("pages")
    run = folder / "run"
    halfbyte.quantize(model="fashion_vit", recipe="repq", limit=200, workers=0, out=run, progress=Progress(quiet=True))
    found = {"a real run": run / "report.html"}
    made = {
        "everything": render(VARIANTS["complete"]()),
        "metrics alone": render(VARIANTS["metrics alone"]()),
        "hostile": render(VARIANTS["hostile"]()),
        "two runs": render_comparison(compare_runs(PAGES["two"]())),
        "many runs": render_comparison(compare_runs(PAGES["many"]())),
        "runs alike": render_comparison(compare_runs(PAGES["alike"]())),
    }
    for name, source in made.items():
        found[name] = folder / f"{name}.html"
        found[name].write_text(source)
    return found


NAMES = ("a real run", "everything", "metrics alone", "hostile", "two runs", "many runs", "runs alike")


def opened(browser: Browser, place: Path, window: str) -> Page:
    width, dark = WINDOWS[window]
    return browser.open(place.as_uri(), width=width, dark=dark)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_quiet_and_legible(browser: Browser, pages, tmp_path, name: str, window: str) -> None:
    page = opened(browser, pages[name], window)
    assert page.evaluate(CHECKS) == []
    page.screenshot(tmp_path / "page.png")
    picture = Image.open(tmp_path / "page.png").convert("L")
    assert picture.width == WINDOWS[window][0]
    assert picture.height > 1000
    # The ground is what there is most of.
    assert (max(enumerate(picture.histogram()), key=lambda pair: pair[1])[0] < 60) == WINDOWS[window][1]
    assert page.messages == []
    assert page.requests == []


def test_the_checks_find_what_is_wrong(browser: Browser, tmp_path) -> None:
    """A page with one fault of each kind: the checks of the other tests are no formality."""
    place = tmp_path / "bad.html"
    place.write_text(
        "<body style='margin:0;background:#fff'><p style='color:#999'>grey</p><p style='font-size:9px'>tiny</p>"
        "<div style='width:3000px'>wide</div><img src='data:image/png;base64,AAAA' alt='none'>"
        "<svg role=img width=200 height=40><text x=5 y=20>one</text><text x=9 y=22>two</text></svg>"
        "<script>console.error('said'); fetch('http://127.0.0.1:9/x').catch(() => 0)</script>"
    )
    page = opened(browser, place, "phone")
    found = " | ".join(page.evaluate(CHECKS))
    for part in ("contrast 2.85: grey", "text of 9px: tiny", "pixels wide in a window", "broken picture", "one covers"):
        assert part in found
    assert any("said" in message for message in page.messages)
    assert "http://127.0.0.1:9/x" in page.requests


def test_everything_can_be_reached_by_the_keyboard(browser: Browser, pages) -> None:
    page = opened(browser, pages["everything"], "light")
    focusable = "a[href], summary, [tabindex='0']"
    count = page.evaluate(f"[...document.querySelectorAll(`{focusable}`)].filter(e => e.checkVisibility()).length")
    assert count > 25
    reached = set()
    for _ in range(count):
        for kind in ("keyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        number, outline = page.evaluate(
            f"[[...document.querySelectorAll(`{focusable}`)].indexOf(document.activeElement), "
            "getComputedStyle(document.activeElement).outlineStyle]"
        )
        assert outline not in ("none", ""), number
        reached.add(number)
    assert len(reached) == count
    closed = page.evaluate("document.querySelector('summary').focus() || document.querySelector('details').open")
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    assert page.evaluate("document.querySelector('details').open") is not closed
