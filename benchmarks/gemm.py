"""How fast the native kernels multiply: GMAC/s of every pair of bit widths at the shapes of DeiT-T/S/B.

    python benchmarks/gemm.py --out benchmarks/results/gemm.json
    python benchmarks/gemm.py --isas avx2 --bits 2 3 4 --out benchmarks/results/gemm_tables.json

Beside them PyTorch float32 and, where onnxruntime and onnx are installed, ONNX Runtime int8, all on one thread. Each
repetition times every engine in turn, so that a busy machine disturbs all alike: one call that is not timed, then the
fastest of three. Times are those of the processor, without what other programs took. The figures are medians over
the repetitions. `peak` is what a loop of multiply-adds in registers reaches on the same instruction set.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halfbyte.facts import environment
from halfbyte.runtime.native import kernels

ROWS = 197
WIDTHS = {"DeiT-T": 192, "DeiT-S": 384, "DeiT-B": 768}
Call = Callable[[], object]


def shapes() -> dict[str, tuple[int, int]]:
    """K and N of the four linears of a block, for each model."""
    of_width = {"qkv": (1, 3), "proj": (1, 1), "fc1": (1, 4), "fc2": (4, 1)}
    return {f"{m} {name}": (c * k, c * n) for m, c in WIDTHS.items() for name, (k, n) in of_width.items()}


def native_calls(k: int, n: int, isas: list[str], bits: list[int], generator: np.random.Generator) -> dict[str, Call]:
    native = kernels()
    scale, bias = np.ones(n, np.float32), np.zeros(n, np.float32)
    out = np.empty((ROWS, n), np.float32)
    calls: dict[str, Call] = {}
    for isa in isas:
        native.choose_isa(isa)
        for w in bits:
            for a in bits:
                codes = generator.integers(0, 2**a, (ROWS, k)).astype(np.uint8)
                weight = generator.integers(0, 2**w, (n, k)).astype(np.uint8)
                packed = native.pack_weight(weight, w, 2 ** (w - 1), a)
                calls[f"{isa} w{w}a{a}"] = lambda c=codes, p=packed, a=a: native.linear(
                    c, p, 2 ** (a - 1), scale, bias, out
                )
    return calls


def torch_call(k: int, n: int) -> Call:
    x, weight, bias = torch.randn(ROWS, k), torch.randn(n, k), torch.randn(n)
    return lambda: torch.nn.functional.linear(x, weight, bias)


def onnxruntime_call(k: int, n: int, generator: np.random.Generator) -> Call | None:
    """uint8 codes times int8 weights to uint8 codes, in one QLinearMatMul."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return None
    constants = {
        "sx": np.float32(0.1), "zx": np.uint8(128), "sw": np.float32(0.1), "zw": np.int8(0), "sy": np.float32(1),
        "zy": np.uint8(128), "w": generator.integers(-64, 64, (k, n)).astype(np.int8),
    }  # fmt: skip
    node = helper.make_node("QLinearMatMul", ["x", "sx", "zx", "w", "sw", "zw", "sy", "zy"], ["y"])
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [ROWS, k])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [ROWS, n])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = {"x": generator.integers(0, 256, (ROWS, k)).astype(np.uint8)}
    return lambda: session.run(None, x)


def seconds(call: Call) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def medians(calls: dict[str, Call], repetitions: int) -> dict[str, float]:
    """Seconds of each call."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions):
        for name, call in calls.items():
            call()
            times[name].append(min(seconds(call) for _ in range(3)))
    return {name: statistics.median(values) for name, values in times.items()}


def peaks(isas: list[str]) -> dict[str, dict[str, float]]:
    native = kernels()
    found = {}
    for isa in isas:
        native.choose_isa(isa)
        found[isa] = {kind: round(native.multiply_add_peak(kind), 1) for kind in ("bytes", "words", "floats")}
    return found


def table(
    rows: dict[str, dict[str, float]], isas: list[str], bits: list[int], peak: dict[str, dict[str, float]]
) -> None:
    pairs = [(2, 4), *((b, b) for b in (2, 4, 6, 8))]
    shown = [f"{isa} w{w}a{a}" for isa in isas for w, a in pairs if {w, a} <= set(bits)]
    others = [name for name in ("torch float32", "onnxruntime int8") if name in next(iter(rows.values()))]
    print(" | ".join(["GMAC/s".ljust(12), *(name.rjust(15) for name in [*others, *shown])]))
    for shape, speeds in rows.items():
        print(" | ".join([shape.ljust(12), *(f"{speeds[name]:15.1f}" for name in [*others, *shown])]))
    middle = {name: statistics.median(speeds[name] for speeds in rows.values()) for name in [*others, *shown]}
    print(" | ".join(["median".ljust(12), *(f"{middle[name]:15.1f}" for name in [*others, *shown])]))
    ratios = [f"{middle[name] / middle['torch float32']:15.2f}" for name in [*others, *shown]]
    print(" | ".join(["/ torch".ljust(12), *ratios]))
    share = [" " * 15 for _ in others] + [f"{middle[name] / peak[name.split()[0]]['bytes']:15.2f}" for name in shown]
    print(" | ".join(["/ peak".ljust(12), *share]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--isas", nargs="+", help="instruction sets (default: all vector ones of this processor)")
    parser.add_argument("--bits", nargs="+", type=int, default=list(range(2, 9)), help="of weights and of activations")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    isas = options.isas or [isa for isa in kernels().isas() if isa != "portable"] or ["portable"]
    before = peaks(isas)
    rows: dict[str, dict[str, float]] = {}
    for shape, (k, n) in shapes().items():
        calls = {"torch float32": torch_call(k, n)}
        if (peer := onnxruntime_call(k, n, generator)) is not None:
            calls["onnxruntime int8"] = peer
        calls |= native_calls(k, n, isas, options.bits, generator)
        taken = medians(calls, options.repetitions)
        rows[shape] = {name: round(ROWS * k * n / median / 1e9, 1) for name, median in taken.items()}
    after = peaks(isas)
    peak = {isa: {kind: max(before[isa][kind], after[isa][kind]) for kind in before[isa]} for isa in isas}
    table(rows, isas, options.bits, peak)
    if options.out is not None:
        facts: dict[str, Any] = {
            "environment": environment(torch.device("cpu")), "rows": ROWS, "threads": 1,
            "repetitions": options.repetitions, "peak_gmacs": peak, "gmacs": rows,
        }  # fmt: skip
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
