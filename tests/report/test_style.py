"""The palette keeps the contrast that the Web Content Accessibility Guidelines (AA) ask for, light and dark."""

from __future__ import annotations

import pytest

from halfbyte.report.style import DARK, LIGHT

TEXT = ("text", "muted", "lowest", "linear")
BARS = ("linear", "convolution", "product", "other", "lowest")


def _luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["ground", "panel"])
def test_contrast(palette: dict[str, str], ground: str) -> None:
    for name in TEXT:
        assert _contrast(palette[name], palette[ground]) >= 4.5, name
    for name in BARS:
        assert _contrast(palette[name], palette[ground]) >= 3, name


def test_both_palettes_name_the_same_colours() -> None:
    assert list(LIGHT) == list(DARK)
