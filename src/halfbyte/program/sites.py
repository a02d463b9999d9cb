"""Modules with an arithmetic of their own, each recorded as one operation: sites, norms, GELU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from halfbyte.layers.activation import ExactGELU
from halfbyte.layers.compensation import HalfBranch
from halfbyte.layers.conv import QuantConv2d
from halfbyte.layers.linear import QuantLinear
from halfbyte.layers.matmul import QuantMatMul
from halfbyte.layers.norm import ExactBatchNorm, ExactLayerNorm, ExactRMSNorm
from halfbyte.layers.site import WeightedSite
from halfbyte.program.kinds import LARGEST_ZERO
from halfbyte.program.trace import ModuleRule, Recorder, as_array
from halfbyte.quantizers.base import Quantizer
from halfbyte.quantizers.groupwise import CentredQuantizer, GroupwiseQuantizer
from halfbyte.quantizers.log import LogQuantizer
from halfbyte.quantizers.lsq import LsqQuantizer
from halfbyte.quantizers.uniform import UniformQuantizer

Forward = Callable[..., Any]
Arguments = tuple[Any, ...]


def _numbers(tensor: Tensor) -> list[Any]:
    numbers: list[Any] = as_array(tensor).reshape(-1).tolist()
    return numbers


def _axis(recorder: Recorder, parameter: Tensor) -> int | None:
    """The dimension along which a parameter has more than one number."""
    axes = [axis for axis, size in enumerate(parameter.shape) if size > 1]
    if len(axes) > 1:
        raise recorder.refuse("has a quantizer with scales along several dimensions")
    return axes[0] if axes else None


def _zero_and_last(recorder: Recorder, quantizer: Quantizer) -> tuple[list[int], int]:
    """Of codes that lie evenly: which of them stands for 0, one number or one an index, and the largest code."""
    if not quantizer.exact_integers:
        raise recorder.refuse(
            f"has a {quantizer.kind} quantizer whose levels are no whole numbers", "quantize without paper_exact"
        )
    zero: list[int]
    if isinstance(quantizer, UniformQuantizer):
        zero, last = _numbers(quantizer.calibrated(quantizer.zero_point)), quantizer.last_code
    elif isinstance(quantizer, (LsqQuantizer, GroupwiseQuantizer)):
        zero, last = [-quantizer.low], quantizer.high - quantizer.low
    elif isinstance(quantizer, CentredQuantizer):
        low, high = quantizer.bounds
        zero, last = [-int(low)], int(high - low)
    else:
        raise recorder.refuse(f"has a quantizer of the kind {quantizer.kind}", "choose a recipe with uniform ones")
    if max(map(abs, zero)) > LARGEST_ZERO:
        raise recorder.refuse("has a zero point beyond 2**23", "calibrate it with a range that reaches nearer to zero")
    return zero, last


def _quantize(recorder: Recorder, x: Tensor, quantizer: Quantizer, name: str) -> tuple[int, dict[str, Any]]:
    """Record the codes of `x`; returns their value and what they stand for in integer arithmetic."""
    quantizer.calibrated(quantizer.scale)
    if isinstance(quantizer, LogQuantizer):
        if quantizer.paper_exact:
            raise recorder.refuse("has the paper's own log quantizer", "quantize without paper_exact")
        halves = quantizer.thresholds().view(np.uint32) >> 16
        shift = float(np.float32(quantizer.shift))
        attributes = {"shift": shift, "thresholds": [int(half) for half in halves]}
        codes = recorder.emit("quantize_log", [x], None, attributes, name=name)
        return codes, {"levels": [int(level) for level in quantizer.level_table()]}
    if isinstance(quantizer, GroupwiseQuantizer) and quantizer.groups > 1:
        raise recorder.refuse(
            "has a step for each group of channels, which is a simulation",
            "fold the groups: fold=true of the step that makes them",
        )
    zero, last = _zero_and_last(recorder, quantizer)
    scale = quantizer.factor
    beta = quantizer.offset if isinstance(quantizer, LsqQuantizer) else 0.0
    attributes = {"scale": _numbers(scale), "zero": zero, "beta": beta, "last": last, "axis": _axis(recorder, scale)}
    return recorder.emit("quantize", [x], None, attributes, name=name), {"zero": zero}


def _weights(recorder: Recorder, site: WeightedSite) -> tuple[int, dict[str, Any]]:
    """Bits of a site's weight, and its tensors: codes, zero points, scale and bias."""
    quantizer = site.quantizer("weight")
    if isinstance(quantizer, GroupwiseQuantizer) and quantizer.groups > 1:
        raise recorder.refuse("has weights with a step for each group of channels", "quantize them with one a row")
    zero, _ = _zero_and_last(recorder, quantizer)
    form, codes = site.integer_form(), site.codes()
    count = len(codes)
    zeros = np.broadcast_to(np.array(zero, np.int32), (count,)).copy()
    tensors = {"weight": as_array(codes), "zero": zeros, "scale": as_array(form.scale)}
    if form.bias is not None:
        tensors["bias"] = as_array(form.bias)
    return quantizer.bits, tensors


def _linear(recorder: Recorder, module: nn.Module, forward: Forward, args: Arguments) -> Tensor:
    site, x = cast(QuantLinear, module), cast(Tensor, args[0])
    scaled = x if site.input_scale is None else x * site.input_scale
    with recorder.paused():
        y = cast(Tensor, forward(x))
        codes, operand = _quantize(recorder, scaled, site.quantizer("input"), f"{recorder.where}.input")
        bits, tensors = _weights(recorder, site)
        recorder.emit("linear", [codes], y, {"bits": bits, "input": operand}, tensors, recorder.where)
    return y


def _conv(recorder: Recorder, module: nn.Module, forward: Forward, args: Arguments) -> Tensor:
    site, x = cast(QuantConv2d, module), cast(Tensor, args[0])
    with recorder.paused():
        y = cast(Tensor, forward(x))
        codes, operand = _quantize(recorder, x, site.quantizer("input"), f"{recorder.where}.input")
        bits, tensors = _weights(recorder, site)
        attributes = {
            "bits": bits, "input": operand, "strides": list(site.stride), "pads": _pads(site, x),
            "dilations": list(site.dilation), "groups": site.groups,
        }  # fmt: skip
        recorder.emit("conv", [codes], y, attributes, tensors, recorder.where)
    return y


def _pads(site: QuantConv2d, x: Tensor) -> list[list[int]]:
    """[[top, bottom], [left, right]]"""
    if site.same_padding:
        left, right, top, bottom = site._same_pads(x)
        return [[top, bottom], [left, right]]
    if site.padding == "same":
        totals = [step * (size - 1) for step, size in zip(site.dilation, site.kernel_size, strict=True)]
        return [[total // 2, total - total // 2] for total in totals]
    return [[0, 0], [0, 0]] if isinstance(site.padding, str) else [[int(pad), int(pad)] for pad in site.padding]


def _matmul(recorder: Recorder, module: nn.Module, forward: Forward, args: Arguments) -> Tensor:
    site = cast(QuantMatMul, module)
    with recorder.paused():
        y = cast(Tensor, forward(*args))
        a, b = site.quantizer("left"), site.quantizer("right")
        left, left_operand = _quantize(recorder, args[0], a, f"{recorder.where}.left")
        right, right_operand = _quantize(recorder, args[1], b, f"{recorder.where}.right")
        scale = (a.factor.double() * b.factor.double()).float()
        if _axis(recorder, scale) not in (None, 1):
            raise recorder.refuse("has scales along another dimension than that of the heads")
        attributes = {"left": left_operand, "right": right_operand, "scale": _numbers(scale)}
        recorder.emit("matmul", [left, right], y, attributes, name=recorder.where)
    return y


def _norm(kind: str) -> ModuleRule:
    def rule(recorder: Recorder, module: nn.Module, forward: Forward, args: Arguments) -> Tensor:
        norm = cast(ExactLayerNorm, module)
        with recorder.paused():
            y = cast(Tensor, forward(args[0]))
            parts = (("weight", norm.weight), ("bias", norm.bias))
            tensors = {role: as_array(tensor) for role, tensor in parts if tensor is not None}
            recorder.emit(kind, [args[0]], y, {"eps": float(norm.eps)}, tensors, recorder.where)
        return y

    return rule


def _batch_norm(recorder: Recorder, module: nn.Module, forward: Forward, args: Arguments) -> Tensor:
    norm = cast(ExactBatchNorm, module)
    with recorder.paused():
        scale, shift = norm.scale_and_shift()
        y = (args[0] * scale.view(-1, 1, 1)).add_(shift.view(-1, 1, 1))
        tensors = {"scale": as_array(scale), "shift": as_array(shift)}
        recorder.emit("affine", [args[0]], y, {"axis": 1}, tensors, recorder.where)
    return cast(Tensor, norm.act(y))


def _gelu(recorder: Recorder, module: nn.Module, forward: Forward, args: Arguments) -> Tensor:
    with recorder.paused():
        y = cast(Tensor, forward(args[0]))
        recorder.emit("gelu", [args[0]], y, name=recorder.where)
    return y


def _half_branch(recorder: Recorder, module: nn.Module, forward: Forward, args: Arguments) -> Tensor:
    raise recorder.refuse("multiplies in float16", "compensate with integers: --set qwt.form=int8")


RULES: dict[type, ModuleRule] = {
    QuantLinear: _linear, QuantConv2d: _conv, QuantMatMul: _matmul, ExactRMSNorm: _norm("rms_norm"),
    ExactLayerNorm: _norm("layer_norm"), ExactBatchNorm: _batch_norm, ExactGELU: _gelu, HalfBranch: _half_branch,
}  # fmt: skip
