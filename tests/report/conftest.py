"""A strict reading of a report's page, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser

import pytest

_VOID = {"meta", "img"}
_BLOCKS = {"div", "dl", "ul", "p", "pre", "table", "section", "details", "h1", "h2", "h3", "svg", "figure", "nav"}


class Page(HTMLParser):
    """The elements of a page in order, each with its attributes, its ancestors and the text inside it."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = source
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> repeats an attribute"
        assert "p" not in self._open or tag not in _BLOCKS, f"<{tag}> would end its <p>"
        self.elements.append((tag, dict(attrs), tuple(self._open)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            assert self._open, "text outside the document"
            self.texts.append((self._open[-1], data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]

    def text(self) -> str:
        """What a reader sees, with no-break spaces as plain ones."""
        shown = "\n".join(text for tag, text in self.texts if tag not in ("style", "title"))
        return shown.replace("\u00a0", " ")


@pytest.fixture
def read_page() -> Callable[[str], Page]:
    return Page
