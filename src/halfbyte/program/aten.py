"""How the tensor operations of a recorded forward pass become operations of a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfbyte.program.trace import Recorder, TensorRule, as_array

Args = Sequence[Any]
Kwargs = Mapping[str, Any]
_FLOATS = (torch.float32, torch.float64)
_LARGEST = float(np.finfo(np.float32).max)


def _get(args: Args, kwargs: Kwargs, position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _alias(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    if recorder.is_traced(args[0]) and output.dtype not in _FLOATS:
        raise recorder.refuse(f"casts to {output.dtype}, which no program does")
    if args[0].dtype in _FLOATS and output.dtype in _FLOATS:
        recorder.alias(args[0], output)


def _reshape(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    if args[0].shape == output.shape:
        recorder.alias(args[0], output)
    else:
        recorder.emit("reshape", [args[0]], output, {"shape": list(output.shape)})


def _permute(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    recorder.emit("transpose", [args[0]], output, {"axes": [axis % args[0].ndim for axis in args[1]]})


def _transpose(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    axes = list(range(args[0].ndim))
    first, second = (args[1], args[2]) if len(args) > 2 else (0, -1)
    axes[first], axes[second] = axes[second], axes[first]
    recorder.emit("transpose", [args[0]], output, {"axes": axes})


def _slice(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    axis = _get(args, kwargs, 1, "dim", 0) % args[0].ndim
    start, stop, step = (_get(args, kwargs, place, name) for place, name in ((2, "start"), (3, "end"), (4, "step")))
    size = args[0].shape[axis]
    start, stop, step = slice(start, stop, step).indices(size)
    if (start, stop, step) == (0, size, 1):
        recorder.alias(args[0], output)
    else:
        recorder.emit("slice", [args[0]], output, {"axis": axis, "start": start, "stop": stop, "step": step})


def _select(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    axis = args[1] % args[0].ndim
    recorder.emit("select", [args[0]], output, {"axis": axis, "index": args[2] % args[0].shape[axis]})


def _unbind(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    axis = _get(args, kwargs, 1, "dim", 0) % args[0].ndim
    for index, part in enumerate(output):
        recorder.emit("select", [args[0]], part, {"axis": axis, "index": index})


def _split(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    axis, start = _get(args, kwargs, 2, "dim", 0) % args[0].ndim, 0
    for part in output:
        stop = start + part.shape[axis]
        recorder.emit("slice", [args[0]], part, {"axis": axis, "start": start, "stop": stop, "step": 1})
        start = stop


def _cat(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    parts = [part for part in args[0] if part.numel()]
    recorder.emit("concat", parts, output, {"axis": _get(args, kwargs, 1, "dim", 0) % output.ndim})


def _stack(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    axis = _get(args, kwargs, 1, "dim", 0) % output.ndim
    shape = [1 if dimension == axis else size for dimension, size in enumerate(output.shape)]
    parts = [recorder.emit("reshape", [part], None, {"shape": shape}) for part in args[0]]
    recorder.emit("concat", parts, output, {"axis": axis})


def _expand(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    if args[0].shape == output.shape:
        recorder.alias(args[0], output)
    else:
        recorder.emit("expand", [args[0]], output, {"shape": list(output.shape)})


def _repeat(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    recorder.emit("repeat", [args[0]], output, {"times": list(args[1])})


def _pad(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    pads = [[0, 0] for _ in range(args[0].ndim)]
    for place, (before, after) in enumerate(zip(args[1][::2], args[1][1::2], strict=True)):
        pads[-1 - place] = [before, after]
    if min(min(pair) for pair in pads) < 0:
        raise recorder.refuse("crops by padding with negative numbers")
    # In front of a max pool some pad with -inf: the lowest number never wins either.
    value = max(float(np.float32(_get(args, kwargs, 2, "value", 0.0))), -_LARGEST)
    recorder.emit("pad", [args[0]], output, {"pads": pads, "value": value})


def _roll(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    axes = [axis % args[0].ndim for axis in _get(args, kwargs, 2, "dims", [])]
    if not axes:
        raise recorder.refuse("rolls a tensor without naming its dimensions")
    recorder.emit("roll", [args[0]], output, {"shifts": list(args[1]), "axes": axes})


def _index(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    given = [(axis, index) for axis, index in enumerate(args[1]) if index is not None]
    if len(given) != 1 or given[0][1].dtype not in (torch.int32, torch.int64) or recorder.is_traced(given[0][1]):
        raise recorder.refuse("picks entries by more than one index or by a computed one")
    axis, index = given[0]
    _gather(recorder, args[0], axis, index, output)


def _index_select(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    _gather(recorder, args[0], args[1] % args[0].ndim, args[2], output)


def _gather(recorder: Recorder, x: Tensor, axis: int, index: Tensor, output: Tensor) -> None:
    picked = as_array(index).astype(np.int64)
    flat = np.where(picked < 0, picked + x.shape[axis], picked).astype(np.int32).reshape(-1)
    if index.ndim == 1:
        recorder.emit("gather", [x], output, {"axis": axis}, {"index": flat})
    else:
        value = recorder.emit("gather", [x], None, {"axis": axis}, {"index": flat})
        recorder.emit("reshape", [value], output, {"shape": list(output.shape)})


def _binary(kind: str) -> TensorRule:
    def rule(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
        if _get(args, kwargs, 2, "alpha", 1) != 1 or kwargs.get("rounding_mode") is not None:
            raise recorder.refuse(f"runs {kind} with options that no program has")
        if output.dtype not in _FLOATS:
            if recorder.is_traced(args[0]):
                raise recorder.refuse(f"runs {kind} in {output.dtype}")
            return  # constants of another type
        other = args[1]
        if isinstance(other, Tensor):
            recorder.emit(kind, [args[0], other], output, computes=True)
        else:
            recorder.emit(kind, [args[0]], output, {"scalar": float(np.float32(other))}, computes=True)

    return rule


def _neg(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    recorder.emit("multiply", [args[0]], output, {"scalar": -1.0})


def _relu(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    recorder.emit("relu", [args[0]], output)


def _clip(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    low, high = _get(args, kwargs, 1, "min", None), _get(args, kwargs, 2, "max", None)
    limits = {"low": -_LARGEST if low is None else low, "high": _LARGEST if high is None else high}
    recorder.emit("clip", [args[0]], output, {name: float(np.float32(value)) for name, value in limits.items()})


def _hardtanh(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    low, high = _get(args, kwargs, 1, "min_val", -1), _get(args, kwargs, 2, "max_val", 1)
    _clip(recorder, (args[0], low, high), {}, output)


def _smooth(kind: str) -> TensorRule:
    def rule(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
        _compute(recorder, kind, args[0], output)

    return rule


def _compute(
    recorder: Recorder, kind: str, x: Tensor, output: Tensor, attributes: Any = None, tensors: Any = None
) -> None:
    """An operation in float64; where the model does it in float32, it is only nearly the same."""
    if x.dtype == torch.float32 and recorder.is_traced(x):
        recorder.approximate.append(f"{recorder.where or 'the model'}: {kind}")
    recorder.emit(kind, [x], output, attributes, tensors, computes=True)


def _gelu(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    if kwargs.get("approximate") == "tanh":
        _compute(recorder, "gelu_tanh", args[0], output)
    else:  # torch's own formula is another one
        recorder.approximate.append(f"{recorder.where or 'the model'}: gelu")
        recorder.emit("gelu", [args[0]], output, computes=True)


def _softmax(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    _compute(recorder, "softmax", args[0], output, {"axis": args[1] % args[0].ndim})


def _mean(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    axes = _get(args, kwargs, 1, "dim", None) or range(args[0].ndim)
    attributes = {"axes": sorted(axis % args[0].ndim for axis in axes), "keep": bool(_get(args, kwargs, 2, "keepdim"))}
    _compute(recorder, "mean", args[0], output, attributes)


def _average_pool(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    kernel, pads = _pair(args[1]), _pair(_get(args, kwargs, 3, "padding") or 0)
    strides = _pair(_get(args, kwargs, 2, "stride") or kernel)
    counts_padding = _get(args, kwargs, 5, "count_include_pad", True) or pads == [0, 0]
    if not counts_padding or _get(args, kwargs, 6, "divisor_override") is not None:
        raise recorder.refuse("divides an average pool by another number than its window's")
    _no_ceiling(recorder, _get(args, kwargs, 4, "ceil_mode", False), args[0], output, kernel, strides, pads, [1, 1])
    attributes = {"kernel": kernel, "strides": strides, "pads": [[pad, pad] for pad in pads]}
    _compute(recorder, "average_pool", args[0], output, attributes)


def _adaptive_average_pool(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    sizes = [(size, made) for size, made in zip(args[0].shape[-2:], output.shape[-2:], strict=True)]
    if any(size % made for size, made in sizes):
        raise recorder.refuse("pools windows of different sizes")
    kernel = [size // made for size, made in sizes]
    attributes = {"kernel": kernel, "strides": kernel, "pads": [[0, 0], [0, 0]]}
    _compute(recorder, "average_pool", args[0], output, attributes)


def _max_pool(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    kernel, pads = _pair(args[1]), _pair(_get(args, kwargs, 3, "padding") or 0)
    strides = _pair(_get(args, kwargs, 2, "stride") or kernel)
    dilations = _pair(_get(args, kwargs, 4, "dilation") or 1)
    ceiling = _get(args, kwargs, 5, "ceil_mode", False)
    _no_ceiling(recorder, ceiling, args[0], output[0], kernel, strides, pads, dilations)
    attributes = {"kernel": kernel, "strides": strides, "pads": [[pad, pad] for pad in pads], "dilations": dilations}
    recorder.emit("max_pool", [args[0]], output[0], attributes)


def _no_ceiling(
    recorder: Recorder, ceiling: bool, x: Tensor, output: Tensor, kernel: Any, strides: Any, pads: Any, dilations: Any
) -> None:
    """A pool that rounds its size up is only allowed where that changes nothing."""
    for axis in (0, 1):
        room = x.shape[axis + 2] + 2 * pads[axis] - dilations[axis] * (kernel[axis] - 1) - 1
        if ceiling and room // strides[axis] + 1 != output.shape[axis + 2]:
            raise recorder.refuse("pools windows that reach beyond the padding (ceil_mode)")


def _layer_norm(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    if len(args[1]) != 1:
        raise recorder.refuse("normalises over more than the last dimension")
    tensors = {role: as_array(t) for role, t in (("weight", args[2]), ("bias", args[3])) if t is not None}
    _compute(recorder, "layer_norm", args[0], output[0], {"eps": float(args[4])}, tensors)


def _group_norm(recorder: Recorder, args: Args, kwargs: Kwargs, output: Any) -> None:
    tensors = {role: as_array(t) for role, t in (("weight", args[1]), ("bias", args[2])) if t is not None}
    attributes = {"groups": int(args[6]), "eps": float(args[7])}
    _compute(recorder, "group_norm", args[0], output[0], attributes, tensors)


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


RULES: dict[str, TensorRule] = {
    **dict.fromkeys(("alias", "detach", "clone", "contiguous", "lift_fresh", "_to_copy"), _alias),
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias", "unsqueeze", "squeeze", "reshape"), _reshape),
    **{kind: _smooth(kind) for kind in ("sigmoid", "silu", "tanh", "hardswish", "hardsigmoid")},
    "permute": _permute, "transpose": _transpose, "t": _transpose, "slice": _slice, "select": _select,
    "unbind": _unbind, "split": _split, "split_with_sizes": _split, "cat": _cat, "stack": _stack, "expand": _expand,
    "repeat": _repeat, "constant_pad_nd": _pad, "roll": _roll, "index": _index, "index_select": _index_select,
    "add": _binary("add"), "sub": _binary("subtract"), "mul": _binary("multiply"), "div": _binary("divide"),
    "neg": _neg, "relu": _relu, "clamp": _clip, "clamp_min": _clip, "hardtanh": _hardtanh, "gelu": _gelu,
    "_softmax": _softmax, "mean": _mean, "avg_pool2d": _average_pool, "_adaptive_avg_pool2d": _adaptive_average_pool,
    "max_pool2d_with_indices": _max_pool, "native_layer_norm": _layer_norm, "native_group_norm": _group_norm,
}  # fmt: skip
