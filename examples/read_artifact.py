"""Read the weights of an artifact with NumPy and the standard library, without Halfbyte.

python examples/read_artifact.py runs/vit4
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

# --8<-- [start:reader]
TYPES = {"U8": "u1", "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4"}


def tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file: the length of a JSON header, the header, then the bytes that it places."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        found[name] = np.frombuffer(content[start:end], TYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


def unpacked(stream: np.ndarray, bits: int) -> np.ndarray:
    """Codes from a stream of bits, the least significant bit of each first."""
    spread = np.unpackbits(stream, bitorder="little")
    spread = spread[: spread.size // bits * bits].reshape(-1, bits)
    return spread @ (1 << np.arange(bits))


def weights(folder: Path) -> dict[str, np.ndarray]:
    """Every quantized weight by its site's name, float32 `[O, K]`; K runs over inputs and the kernel."""
    stored = tensors(folder / "model.safetensors")
    facts: dict[str, Any] = json.loads((folder / "quantization.json").read_text())
    found = {}
    for site in facts["sites"]:
        quantizer, name = site["quantizers"].get("weight"), f"{site['name']}.weight"
        if quantizer is None:  # a product of two activations
            continue
        if quantizer.get("axis") != 0 or quantizer["kind"] not in ("uniform", "lsq"):
            raise SystemExit(f"{name}: this example reads weights with a step for each row")
        scale = stored[f"{name}_quantizer.scale"].reshape(-1, 1)
        half = 1 << (quantizer["bits"] - 1)
        zero = stored[f"{name}_quantizer.zero_point"].reshape(-1, 1) if quantizer["kind"] == "uniform" else half
        codes = unpacked(stored[f"{name}_codes"], quantizer["bits"])
        rows = codes[: codes.size // len(scale) * len(scale)].reshape(len(scale), -1)
        found[site["name"]] = (rows - zero).astype(np.float32) * scale
    return found


# --8<-- [end:reader]


def main(folder: Path) -> None:
    """Print the shape and the largest magnitude of every weight."""
    for name, weight in weights(folder).items():
        print(f"{name}: {weight.shape[0]} x {weight.shape[1]}, largest {abs(weight).max():.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
