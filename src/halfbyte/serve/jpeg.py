"""How often a JPEG file goes over its picture."""

from __future__ import annotations

import re

# Neither what is stuffed into or fills a scan, nor what stands alone: restarts and the like. Markers below 0xC0 are
# reserved: a decoder in search of a restart passes over them, whatever length seems to follow.
_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
_SCAN, _END = 0xDA, 0xD9


def count_scans(content: bytes, most: int) -> int:
    """The scans of a JPEG file's first picture, as a decoder finds them; counting ends behind `most`."""
    scans, place = 0, 0
    while scans <= most and (found := _SEGMENT.search(content, place)):
        kind, place = content[found.end() - 1], found.end()
        if kind == _END:
            break
        scans += kind == _SCAN
        # What looks like a scan within a segment, as in a thumbnail, is none.
        place += max(2, int.from_bytes(content[place : place + 2], "big"))
    return scans
