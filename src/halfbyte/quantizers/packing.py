"""Codes of 2..8 bits as a dense stream of bits."""

from __future__ import annotations

import numpy as np


def packed_size(count: int, bits: int) -> int:
    """The bytes that `count` codes of `bits` bits take."""
    return (count * bits + 7) // 8


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes (integers below 2**bits, any shape) as a uint8 stream, least significant bit first, without gaps.

    Raises `ValueError` where a code does not fit.
    """
    flat = np.ascontiguousarray(codes).reshape(-1)
    if flat.size and (flat.min() < 0 or flat.max() >= 2**bits):
        raise ValueError(f"a code does not fit in {bits} bits")
    spread = np.unpackbits(flat.astype(np.uint8)[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(spread.reshape(-1), bitorder="little")


def unpack(stream: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """The uint8 codes of `shape` that `pack` wrote; raises `ValueError` where the stream's length does not fit."""
    count = int(np.prod(shape, dtype=np.int64))
    if stream.dtype != np.uint8 or stream.shape != (packed_size(count, bits),):
        raise ValueError(f"{count} codes of {bits} bits take {packed_size(count, bits)} bytes, not {stream.shape}")
    spread = np.unpackbits(stream, count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(spread, axis=1, bitorder="little").reshape(shape)
