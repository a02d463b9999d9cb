"""What decoding a JPEG file will cost, by its markers."""

from __future__ import annotations

import re

# Neither what is stuffed into or fills a scan, nor what stands alone: restarts and the like. Markers below 0xC0 are
# reserved: a decoder in search of a restart passes over them, whatever length seems to follow.
_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
_SCAN, _END = 0xDA, 0xD9
# Frames that are lossless, hierarchical or in arithmetic codes; 0xC4, 0xC8 and 0xCC begin no frame.
_UNUSUAL = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}


def survey(content: bytes, most: int) -> tuple[int, bool]:
    """The scans of a JPEG file's first picture, as a decoder finds them, and whether it is an ordinary picture: in
    Huffman codes, baseline or progressive. It ends behind `most` scans, and where the picture is not ordinary."""
    scans, place = 0, 0
    while scans <= most and (found := _SEGMENT.search(content, place)):
        kind, place = content[found.end() - 1], found.end()
        if kind == _END:
            break
        if kind in _UNUSUAL:
            return scans, False
        scans += kind == _SCAN
        # What looks like a scan within a segment, as in a thumbnail, is none.
        place += max(2, int.from_bytes(content[place : place + 2], "big"))
    return scans, True
