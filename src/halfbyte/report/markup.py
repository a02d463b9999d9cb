"""HTML that is escaped by construction: a plain string becomes markup through `escape` or `element` only."""

from __future__ import annotations

import html
from typing import NewType

from halfbyte.printable import printable

Html = NewType("Html", str)
"""A fragment that is safe to put into a page. Functions take `str` where they escape and `Html` where they do not."""

_VOID = frozenset({"meta", "img"})


def escape(text: str) -> Html:
    """`text` as HTML, also inside a quoted attribute.

    Names come from users' files, so what is not printable is shown as U+FFFD.
    """
    # The slashes of an address look the same as references, and a plain text search then proves that a page
    # refers to nothing outside itself.
    return Html(html.escape(printable(text)).replace("://", ":&#47;&#47;"))


def element(tag: str, *children: Html, **attributes: str | int | None) -> Html:
    """`<tag attributes>children</tag>`. In attribute names `_` stands for `-` and a final `_` is dropped (`class_`).

    An attribute whose value is None is left out.
    """
    opening = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Html(f"<{tag}{opening}>")
    return Html(f"<{tag}{opening}>{''.join(children)}</{tag}>")


def lines(*fragments: Html) -> Html:
    """The fragments one below the other, so that the page's source can be read and compared; empty ones vanish."""
    return Html("\n".join(fragment for fragment in fragments if fragment))
