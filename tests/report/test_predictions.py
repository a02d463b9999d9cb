"""What a report says of classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.report.facts import deit_tiny_metrics

from halfbyte.report.run import render_run


def test_classes_of_few_images_are_not_drawn_and_said_so(read_page: Callable[..., Any]) -> None:
    def classes(*rows: tuple[int, int]) -> dict[str, Any]:
        found = [{"class": label, "name": f"bird {label}", "images": images, "float": images, "quantized": right}
                 for label, (images, right) in enumerate(rows)]  # fmt: skip
        return {"classes": found}

    for rows, words in (
        (((50, 49), (9, 0)), "Of classes with 10 images or more, the one that changed, in percentage points"),
        (((50, 49), (9, 0), (20, 19)), "Of classes with 10 images or more, the 2 that changed most, in percentage"),
        (((50, 49), (20, 19)), "and 0 gained. The 2 that changed most, in percentage points"),
    ):
        assert words in read_page(render_run(deit_tiny_metrics(), "", classes(*rows), {})).text()
