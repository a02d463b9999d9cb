"""The runtimes that can check an exported model, and which products they compute with integers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from halfbyte.files import temporary_folder
from halfbyte.program.ops import INPUT, Array
from halfbyte.quiet_openvino import openvino

# Images `[B, C, H, W]` to every output of a model by name.
Run = Callable[[Array], dict[str, Array]]

_INTEGER = {"QLinearConv", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger", "QGemm"}
_FLOAT = {"MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv", "NhwcFusedConv", "MatMulNBits"}
_PRODUCTS = {"FullyConnected", "MatMul", "Convolution", "GroupConvolution"}


@dataclass
class Placement:
    """Names of a runtime's own nodes that compute products, by kind: with integers, and in float."""

    integer: dict[str, list[str]] = field(default_factory=dict)
    float: dict[str, list[str]] = field(default_factory=dict)


def _onnxruntime_session(content: bytes, threads: int, saved: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def load_onnxruntime(content: bytes, threads: int = 1) -> Run:
    """A model in ONNX Runtime on the CPU, with so many threads (0: one a core)."""
    session = _onnxruntime_session(content, threads)
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {INPUT: images}), strict=True))


def place_onnxruntime(content: bytes) -> Placement:
    """By the graph that ONNX Runtime makes of the model."""
    with temporary_folder() as folder:
        saved = folder / "optimized.onnx"
        _onnxruntime_session(content, 1, saved)
        nodes = onnx.load(str(saved)).graph.node
    found = Placement()
    for node in nodes:
        kinds = found.integer if node.op_type in _INTEGER else found.float if node.op_type in _FLOAT else None
        if kinds is not None:
            kinds.setdefault(node.op_type, []).append(node.name)
    return found


def _compiled(content: bytes, threads: int) -> Any:
    core = openvino().Core()
    # Without the hint processors that can would compute the rest in bfloat16.
    precise = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(core.read_model(content), "CPU", precise)


def load_openvino(content: bytes, threads: int = 1) -> Run:
    """A model in OpenVINO on the CPU, with so many threads (0: one a core)."""
    model = _compiled(content, threads)

    def run(images: Array) -> dict[str, Array]:
        values = model([images])
        return {name: values[port].copy() for port in model.outputs for name in port.names}

    return run


def place_openvino(content: bytes) -> Placement:
    """By the precisions in which OpenVINO's runtime model executes."""
    found = Placement()
    for op in _compiled(content, 1).get_runtime_model().get_ordered_ops():
        facts = op.get_rt_info()
        kind, precision = (_word(facts, key) for key in ("layerType", "runtimePrecision"))
        if kind in _PRODUCTS:
            # Of 4-bit weights only the store is meant: they are widened to float before the product.
            kinds = found.integer if precision in ("i8", "u8") else found.float
            kinds.setdefault(f"{kind} {precision}", []).append(op.get_friendly_name())
    return found


def _word(facts: Any, key: str) -> str:
    """A fact of a node, empty where it has none; OpenVINO's map of them lacks `get`."""
    value = facts[key] if key in facts else ""  # noqa: SIM401
    return str(getattr(value, "value", value))


@dataclass(frozen=True)
class Runtime:
    """How a runtime, which is there where its package is, loads and places a model."""

    package: str
    load: Callable[[bytes, int], Run]
    place: Callable[[bytes], Placement]

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    def run(self, content: bytes, images: Array) -> dict[str, Array]:
        """Every output of a model, by name, for images `[B, C, H, W]`."""
        return self.load(content, 1)(images)


RUNTIMES = (
    Runtime("onnxruntime", load_onnxruntime, place_onnxruntime),
    Runtime("openvino", load_openvino, place_openvino),
)
