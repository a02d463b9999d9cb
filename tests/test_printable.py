"""Text of users' files is shown as it is, but for what harms."""

from __future__ import annotations

import pytest

from halfbyte.printable import printable


@pytest.mark.parametrize(
    "text",
    [
        "tench, Tinca tinca", "caf\u00e9\u00a0\u202f1", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u65e5\u672c\u3000\u8a9e", "\U0001f469\u200d\U0001f680", "two\nlines\tand a tab", "\u200fabc",
    ],
)  # fmt: skip
def test_words_of_any_script_stay(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("harmful", ["\x00", "\x1b", "\x7f", "\x9b", "\r", "\ud800", "\u202e", "\u2066", "\u2028"])
def test_what_harms_is_replaced(harmful: str) -> None:
    assert printable(f"a{harmful}b") == "a\ufffdb"
