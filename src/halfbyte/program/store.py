"""A program as bytes: a JSON header and the tensors that are nowhere else; the same bytes for the same program.

    8 bytes   magic
    32 bytes  sha256 of all that follows
    4 bytes   length of the header, little endian
    header    JSON: input shape, output, facts, operations, and how each tensor is stored
    payload   the tensors' bytes, one behind the other in the header's order, little endian

A tensor is stored `raw`, as codes of few bits (`packed`, `palette`: the codes are places in a list of its values), or
not at all: `shared` is a tensor of an artifact's model.safetensors, cast and reshaped; `product` two of them multiplied
in float64 and rounded once.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from halfbyte.errors import HalfbyteError
from halfbyte.form import misfit, optional, whole
from halfbyte.program.check import check
from halfbyte.program.ops import Array, Op, Program
from halfbyte.quantizers.packing import pack, packed_size, unpack

MAGIC, VERSION = b"HBPROG01", 1
_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ("uint8", "int32", "float32")}
_MAX_HEADER = 2**26
_PALETTE, _WORTH = 256, 256
_GROWTH = 64
_HEADER = {
    "version": whole(1), "input_shape": [whole(1)], "output": str, "facts": dict,
    "ops": [{"kind": str, "inputs": [str], "output": str, "attributes": optional(dict), "tensors": optional(dict)}],
    "tensors": [{"name": str, "dtype": lambda name: isinstance(name, str) and name in _DTYPES, "shape": [whole(0)],
                 "bits": optional(lambda bits: whole(1)(bits) and bits <= 8), "palette": optional(whole(1)),
                 "shared": optional(str), "product": optional([str])}],
}  # fmt: skip


class _DamagedError(ValueError):
    pass


class _NewerError(HalfbyteError):
    pass


def to_bytes(program: Program, shared: Mapping[str, Array] | None = None) -> bytes:
    """The file of a program; what `shared` (the tensors of an artifact by name) holds already is only named in it."""
    known = _Shared(shared or {})
    bits = {op.tensors["weight"]: op.attributes["bits"] for op in program.ops if op.kind in ("linear", "conv")}
    entries, payload = [], []
    for name, tensor in program.tensors.items():
        plain = {"name": name, "dtype": tensor.dtype.name, "shape": list(tensor.shape)}
        found = known.find(name, tensor, bits.get(name))
        if found is None:
            found, content = _stored(tensor, bits.get(name))
            payload.append(content)
        entries.append(plain | found)
    ops = [
        {"kind": op.kind, "inputs": list(op.inputs), "output": op.output}
        | ({"attributes": dict(op.attributes)} if op.attributes else {})
        | ({"tensors": dict(op.tensors)} if op.tensors else {})
        for op in program.ops
    ]
    header = {"version": VERSION, "input_shape": list(program.input_shape), "output": program.output,
              "facts": program.facts, "ops": ops, "tensors": entries}  # fmt: skip
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    return framed(text, b"".join(payload))


def framed(header: bytes, payload: bytes) -> bytes:
    """Header and payload with what stands before them."""
    body = struct.pack("<I", len(header)) + header + payload
    return MAGIC + hashlib.sha256(body).digest() + body


def from_bytes(content: bytes, shared: Mapping[str, Array] | None = None, name: str = "the program") -> Program:
    """The program of a file's content, checked; raises `HalfbyteError`, which begins with `name`, for others."""
    try:
        program = _parsed(content, shared or {})
        check(program)
    except _NewerError as error:
        raise HalfbyteError(f"{name} {error}") from None
    except HalfbyteError as error:
        raise HalfbyteError(f"{name} is damaged: {error}") from None
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError, struct.error) as error:
        raise HalfbyteError(f"{name} is damaged: {error}") from None
    return program


def _parsed(content: bytes, shared: Mapping[str, Array]) -> Program:
    if content[: len(MAGIC)] != MAGIC:
        raise _DamagedError("it does not begin like a program of this version")
    body = memoryview(content)[len(MAGIC) + 32 :]
    if hashlib.sha256(body).digest() != content[len(MAGIC) : len(MAGIC) + 32]:
        raise _DamagedError("its sha256 is another one")
    (length,) = struct.unpack("<I", body[:4])
    if length > min(_MAX_HEADER, len(body) - 4):
        raise _DamagedError("its header is longer than the file")
    header = json.loads(bytes(body[4 : 4 + length]), parse_constant=_no_number)
    if (wrong := misfit(header, _HEADER, "header")) is not None:
        raise _DamagedError(f"{wrong} is missing or wrong")
    if header["version"] > VERSION:
        raise _NewerError("was written by a newer halfbyte; upgrade halfbyte")
    tensors, rest = {}, body[4 + length :]
    # What is stored as one bit may be a float32; beyond that only a file that names one tensor again and again grows.
    room = _GROWTH * (len(content) + sum(tensor.nbytes for tensor in shared.values())) + _MAX_HEADER
    for entry in header["tensors"]:
        room -= math.prod(entry["shape"]) * _DTYPES[entry["dtype"]].itemsize
        if room < 0:
            raise _DamagedError("its tensors are too large for the file")
        tensors[entry["name"]], rest = _read(entry, rest, shared)
    if len(rest):
        raise _DamagedError(f"{len(rest)} bytes too many")
    if len(tensors) != len(header["tensors"]):
        raise _DamagedError("two tensors have one name")
    ops = []
    for op in header["ops"]:
        roles = op.get("tensors") or {}
        if not all(isinstance(tensor, str) for tensor in roles.values()):
            raise _DamagedError("the tensors of an operation must be named")
        ops.append(Op(op["kind"], tuple(op["inputs"]), op["output"], op.get("attributes") or {}, roles))
    return Program(tuple(ops), tensors, tuple(header["input_shape"]), header["output"], header["facts"])


def _no_number(text: str) -> Any:
    raise _DamagedError(f"{text} is no number")


def _stored(tensor: Array, bits: int | None) -> tuple[dict[str, Any], bytes]:
    """How a tensor is stored in the file, and its bytes: the shortest way."""
    raw = np.ascontiguousarray(tensor, _DTYPES[tensor.dtype.name])
    if bits is not None:
        return {"bits": bits}, pack(tensor, bits).tobytes()
    if raw.nbytes > _WORTH:
        # By bits, not by value: -0.0 is another number than 0.0.
        unsigned = raw.view(np.uint32) if raw.itemsize == 4 else raw
        values, places = np.unique(unsigned.reshape(-1), return_inverse=True)
        width = max(1, math.ceil(math.log2(len(values))))
        if len(values) <= _PALETTE and len(values) * raw.itemsize + packed_size(raw.size, width) < raw.nbytes:
            content = values.astype(unsigned.dtype).tobytes() + pack(places.astype(np.uint8), width).tobytes()
            return {"bits": width, "palette": len(values)}, content
    return {}, raw.tobytes()


def _read(entry: dict[str, Any], rest: memoryview, shared: Mapping[str, Array]) -> tuple[Array, memoryview]:
    """The tensor of a header's entry, and what of the payload is left behind it."""
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    count, bits = math.prod(shape), entry.get("bits")
    if len(shape) > 8 or count > 2**31:
        raise _DamagedError(f"a tensor {list(shape)}")
    if (factors := entry.get("product")) is not None:
        return _product([_of(shared, name) for name in factors], shape), rest
    if (source := entry.get("shared")) is not None:
        tensor = _of(shared, source)
        if bits is not None:
            return unpack(tensor, bits, shape), rest
        if tensor.size != count:
            raise _DamagedError(f"{source} cannot be {list(shape)}")
        return tensor.astype(dtype.newbyteorder("=")).reshape(shape), rest
    if bits is None:
        size = count * dtype.itemsize
        return np.frombuffer(_part(rest, 0, size), dtype).astype(dtype.newbyteorder("=")).reshape(shape), rest[size:]
    head = (entry.get("palette") or 0) * dtype.itemsize
    size = packed_size(count, bits)
    codes = unpack(np.frombuffer(_part(rest, head, size), np.uint8), bits, shape)
    if head:
        palette = np.frombuffer(_part(rest, 0, head), dtype).astype(dtype.newbyteorder("="))
        if count and int(codes.max()) >= len(palette):
            raise _DamagedError("a place outside its palette")
        return palette[codes], rest[head + size :]
    return codes, rest[size:]


def _part(rest: memoryview, start: int, size: int) -> memoryview:
    if start + size > len(rest):
        raise _DamagedError("it ends before its last tensor")
    return rest[start : start + size]


def _of(shared: Mapping[str, Array], name: str) -> Array:
    if name not in shared:
        raise _DamagedError(f"it needs the tensor {name} of the artifact that it belongs to")
    return shared[name]


def _product(factors: list[Array], shape: tuple[int, ...]) -> Array:
    if len(factors) != 2 or factors[1].size != 1 or factors[0].size not in (1, math.prod(shape)):
        raise _DamagedError("a product of tensors that do not fit")
    wide = factors[0].astype(np.float64).reshape(-1) * factors[1].astype(np.float64).reshape(-1)
    with np.errstate(over="ignore"):
        return np.array(np.broadcast_to(wide.astype(np.float32), (math.prod(shape),)).reshape(shape))


class _Shared:
    """Finds what an artifact's tensors hold already, by content."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self.tensors = tensors
        self._by_content: dict[tuple[str, bytes], str] = {}
        for name, tensor in sorted(tensors.items(), reverse=True):
            kept = tensor.astype(np.float32) if tensor.dtype.kind == "f" else tensor
            self._by_content[kept.dtype.name, _digest(kept)] = name

    def find(self, name: str, tensor: Array, bits: int | None) -> dict[str, Any] | None:
        """How the header names it; None where it is nowhere."""
        if not self.tensors:
            return None
        wanted = tensor if bits is None else pack(tensor, bits)
        if (found := self._by_content.get((wanted.dtype.name, _digest(wanted)))) is not None:
            return {"shared": found} | ({} if bits is None else {"bits": bits})
        site, dot, role = name.rpartition(".")
        factors = [f"{site}.weight_quantizer.scale", f"{site}.input_quantizer.scale"]
        if dot and role == "scale" and all(factor in self.tensors for factor in factors):
            try:
                made = _product([self.tensors[factor] for factor in factors], tensor.shape)
            except _DamagedError:
                return None
            return {"product": factors} if made.tobytes() == tensor.tobytes() else None
        return None


def _digest(tensor: Array) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(tensor).tobytes()).digest()
