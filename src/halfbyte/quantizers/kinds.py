"""Quantizers by the name of their kind, for files that describe them."""

from __future__ import annotations

from typing import Any

from halfbyte.errors import HalfbyteError, did_you_mean
from halfbyte.quantizers.base import Quantizer, check_bits
from halfbyte.quantizers.groupwise import CentredQuantizer, GroupwiseQuantizer
from halfbyte.quantizers.log import AdaLogQuantizer, Log2Quantizer, LogSqrt2Quantizer
from halfbyte.quantizers.lsq import LsqQuantizer
from halfbyte.quantizers.twin import TwinUniformQuantizer
from halfbyte.quantizers.uniform import UniformQuantizer

_QUANTIZERS: tuple[type[Quantizer], ...] = (
    UniformQuantizer, Log2Quantizer, LogSqrt2Quantizer, AdaLogQuantizer, TwinUniformQuantizer, LsqQuantizer,
    GroupwiseQuantizer, CentredQuantizer,
)  # fmt: skip
KINDS: dict[str, type[Quantizer]] = {quantizer.kind: quantizer for quantizer in _QUANTIZERS}


def build_quantizer(spec: dict[str, Any]) -> Quantizer:
    """An unfitted quantizer from what `Quantizer.spec` gave; a wrong spec raises `HalfbyteError`."""
    plain = dict(spec)
    kind = plain.pop("kind", None)
    if kind not in KINDS:
        raise HalfbyteError(f"unknown kind of quantizer {kind!r}{did_you_mean(str(kind), KINDS)}")
    check_bits(plain.get("bits"))
    try:
        return KINDS[kind](**plain)
    except TypeError as error:
        raise HalfbyteError(f"a quantizer of kind {kind} cannot be built from {spec}: {error}") from None
