"""The engines that an artifact is timed against: its architecture with its dequantized weights, as others run it.

A peer is a call without arguments that runs one fixed batch; what it returns is not used.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from halfbyte.errors import HalfbyteError, check_installed, did_you_mean
from halfbyte.layers.attention import AttentionAdapter
from halfbyte.layers.site import WeightedSite
from halfbyte.prepare import set_state
from halfbyte.progress import Progress
from halfbyte.quiet_openvino import openvino

Call = Callable[[], object]
# What each choice needs, and the extra that installs it.
PACKAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "torch": ((), ""),
    "onnxruntime": (("onnx", "onnxscript", "onnxruntime"), "onnx"),
    "openvino": (("openvino",), "openvino"),
}
# Batches of random images from which ONNX Runtime takes its ranges: they set its accuracy, not its speed.
_CALIBRATION = 2


@dataclass(frozen=True)
class Work:
    """What every peer is given: the float model, a batch `[B, C, H, W]`, how many threads, and a folder for its files.

    `compiles`: whether torch.compile is tried too, which takes minutes for a large model.
    """

    model: nn.Module
    images: Tensor
    threads: int
    folder: Path
    progress: Progress
    compiles: bool = True


def chosen(against: str | None) -> tuple[str, ...]:
    """The peers of a list with commas, or all that are installed (None).

    Raises `HalfbyteError` for a name that is unknown, and for a package that is not installed.
    """
    if against is None:
        return tuple(name for name, (packages, _) in PACKAGES.items() if all(map(importlib.util.find_spec, packages)))
    names = tuple(dict.fromkeys(part.strip() for part in against.split(",")))
    for name in names:
        if name not in PACKAGES:
            raise HalfbyteError(f"--against {name!r} is not available{did_you_mean(name, PACKAGES)}")
        check_installed(f"--against {name}", *PACKAGES[name])
    return names


def float_model(model: nn.Module) -> nn.Module:
    """A copy of a quantized model that computes in float32 with its dequantized weights, as fast as torch can."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, WeightedSite):
            weight = module.quantizer("weight").dequantize(module.codes())
            module.weight, module.weight_codes, module.trained_bias = nn.Parameter(weight), None, None
        elif isinstance(module, AttentionAdapter):
            # Nothing is quantized between the products, so torch's fused attention may do what timm lets it do.
            module.__dict__["attend"] = _fused_attention
    set_state(model, "float")
    return model.requires_grad_(False)


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0 if scale is None else scale)
    return mixed.transpose(1, 2).flatten(2)


def peers(name: str, work: Work) -> dict[str, Call]:
    """The calls of one of `PACKAGES`, by the engine's name; all use `work.threads` threads."""
    return {"torch": _torch, "onnxruntime": _onnxruntime, "openvino": _openvino}[name](work)


def _torch(work: Work) -> dict[str, Call]:
    model, images = work.model, work.images
    calls: dict[str, Call] = {"torch eager": lambda: model(images)}
    if not work.compiles:
        return calls
    compiled = torch.compile(model, dynamic=False)
    try:
        with _quiet():
            compiled(images)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        work.progress.say(f"torch compiled is left out, as torch.compile fails here: {reason}")
        return calls
    return {**calls, "torch compiled": lambda: compiled(images)}


def _onnxruntime(work: Work) -> dict[str, Call]:
    onnx: Any = import_module("onnx")
    quantization: Any = import_module("onnxruntime.quantization")
    pre_process: Any = import_module("onnxruntime.quantization.shape_inference").quant_pre_process
    exported, prepared, static, dynamic = (
        work.folder / f"{name}.onnx" for name in ("float", "prepared", "static", "dynamic")
    )
    with _quiet(), torch.inference_mode(False), torch.no_grad():
        torch.onnx.export(
            work.model, (work.images.clone(),), exported, dynamo=True, external_data=False, verbose=False,
            input_names=["images"], output_names=["logits"],
        )  # fmt: skip
        pre_process(exported, prepared, skip_symbolic_shape=True)
        # It turns weights around and leaves the old shapes in place, at which the quantizers stop.
        graph = onnx.load(prepared)
        del graph.graph.value_info[:]
        onnx.save(graph, prepared)
        kinds = quantization.QuantType
        quantization.quantize_static(
            prepared, static, _reader(quantization, work.images), quant_format=quantization.QuantFormat.QDQ,
            activation_type=kinds.QUInt8, weight_type=kinds.QInt8, per_channel=True,
        )  # fmt: skip
        # Convolutions with ranges found at each call are slower than float ones.
        linears = ["MatMul", "Gemm"]
        quantization.quantize_dynamic(prepared, dynamic, weight_type=kinds.QInt8, op_types_to_quantize=linears)
    files = {"float": exported, "int8 static": static, "int8 dynamic": dynamic}
    return {f"onnxruntime {kind}": _session(file, work) for kind, file in files.items()}


def _reader(quantization: Any, images: Tensor) -> Any:
    """A few batches of random images, in the form that ONNX Runtime's calibration asks for."""
    generator = torch.Generator().manual_seed(1)
    batches = iter([torch.randn(images.shape, generator=generator).numpy() for _ in range(_CALIBRATION)])

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {"images": batch}

    return Reader()


def _session(file: Path, work: Work) -> Call:
    runtime: Any = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = work.threads, 1
    options.log_severity_level = 3
    # Its threads else go on turning after a run, on the cores of whoever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feed = {"images": work.images.numpy()}
    return lambda: session.run(None, feed)


def _openvino(work: Work) -> dict[str, Call]:
    tool = openvino()
    with _quiet(), torch.inference_mode(False), torch.no_grad():
        graph = tool.convert_model(
            work.model, example_input=work.images.clone(), input=[tuple(work.images.shape)]
        )  # fmt: skip
    # float32, as the others: it would take bfloat16 where the processor has it.
    compiled = tool.Core().compile_model(
        graph, "CPU", {
            "INFERENCE_NUM_THREADS": work.threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False,
        },
    )  # fmt: skip
    request, feed = compiled.create_infer_request(), [work.images.numpy()]
    return {"openvino float": lambda: request.infer(feed)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters and quantizers tell their own developers."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
