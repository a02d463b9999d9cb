"""Codes of 2..8 bits as a dense stream of bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[Any]


def packed_size(count: int, bits: int) -> int:
    """The bytes that `count` codes of `bits` bits take."""
    return (count * bits + 7) // 8


def pack(codes: Codes, bits: int) -> Codes:
    """Codes (integers below 2**bits, any shape) as a uint8 stream, least significant bit first, without gaps.

    Raises `ValueError` where a code does not fit.
    """
    flat = np.ascontiguousarray(codes).reshape(-1)
    if flat.size and (flat.min() < 0 or flat.max() >= 2**bits):
        raise ValueError(f"a code does not fit in {bits} bits")
    spread = np.unpackbits(flat.astype(np.uint8)[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(spread.reshape(-1), bitorder="little")


def unpack(stream: Codes, bits: int, shape: tuple[int, ...]) -> Codes:
    """The uint8 codes of `shape` that `pack` wrote; raises `ValueError` where the stream's length does not fit."""
    count = int(np.prod(shape, dtype=np.int64))
    if stream.dtype != np.uint8 or stream.shape != (packed_size(count, bits),):
        raise ValueError(f"{count} codes of {bits} bits take {packed_size(count, bits)} bytes, not {stream.shape}")
    # Eight codes are whole bytes, so that each of the eight comes from the same bits of them.
    groups = np.zeros(((count + 7) // 8, bits), np.uint8)
    groups.reshape(-1)[: stream.size] = stream
    codes = np.empty((len(groups), 8), np.uint8)
    for place in range(8):
        byte, shift = divmod(place * bits, 8)
        code = groups[:, byte] >> shift
        if shift + bits > 8:
            code |= groups[:, byte + 1] << (8 - shift)
        codes[:, place] = code & (2**bits - 1)
    return codes.reshape(-1)[:count].reshape(shape)
