"""The native engine's speed beside PyTorch, ONNX Runtime and OpenVINO, and its memory, load time and bytes.

    python benchmarks/engine_speed.py --out benchmarks/results/engine_speed.json                 # random weights
    python benchmarks/engine_speed.py --artifact runs/deit --out ...                             # and a real artifact
    python benchmarks/engine_speed.py --table --out ...                                          # the README's table

Models of timm with random weights and the ranges of two random images: speed does not depend on the values. "W4A4" and
so on has uniform quantizers and log-sqrt2 ones behind softmax, as `repq`; "adalog" has AdaLog's behind softmax and
GELU. The peers run the float model, once for all widths. Each setting is a process of its own: "default" lets every
engine use what the processor has, "avx2" is HALFBYTE_ISA=avx2 and for the peers ATEN_CPU_CAPABILITY=avx2,
ONEDNN_MAX_CPU_ISA=AVX2 and MKL_ENABLE_INSTRUCTIONS=AVX2; ONNX Runtime and OpenVINO have no such switch, and are taken
from the folder that avx2_only.py makes. Results are added to those that --out already holds.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import avx2_only
import timm
import torch
from torch import Tensor, nn

from halfbyte.artifact import load_artifact, round_leftovers
from halfbyte.bench import gathered, interleaved, processor, row
from halfbyte.facts import environment
from halfbyte.families.describe import describe
from halfbyte.peers import Call, Work, chosen, float_model
from halfbyte.prepare import model_state, prepare
from halfbyte.program.lower import lower
from halfbyte.program.ops import Program
from halfbyte.progress import Progress
from halfbyte.quantizers.log import AdaLogQuantizer, LogQuantizer, LogSqrt2Quantizer, level_bits_behind_gelu
from halfbyte.recipe import BitPlan
from halfbyte.runtime import Engine
from halfbyte.runtime.native import isa

MODELS = {
    "deit_tiny_patch16_224": (("w4a4", "adalog w4a4", "w3a3", "w6a6", "w8a8"), ((1, 1), (2, 1), (1, 8), (2, 8))),
    "deit_small_patch16_224": (("w4a4", "w8a8"), ((1, 1),)),
    "swin_tiny_patch4_window7_224": (("w4a4", "w8a8"), ((1, 1),)),
    "resnet50": (("w4a4", "w8a8"), ((1, 1),)),
}
GELU_MINIMUM = -0.17  # a little below, so that every input is positive
SETTINGS = {
    "default": {},
    "avx2": {
        "HALFBYTE_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}  # fmt: skip
# What a process says of itself: resident bytes of a bare interpreter and then of the engine, seconds of the load.
FOOTPRINT = """
import json, sys, time
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
bare = resident()
import numpy
with_numpy = resident()
from halfbyte.runtime import Engine
start = time.perf_counter()
engine = Engine(sys.argv[1], threads=1)
seconds = time.perf_counter() - start
loaded = resident()
engine(numpy.zeros((1, *engine.input_shape), numpy.float32))
print(json.dumps({"bare": bare, "numpy": with_numpy, "loaded": loaded, "after_one_image": resident(), "load": seconds}))
"""


def fit(site: Any, operand: str, x: Tensor) -> Tensor:
    """An observer that takes the range of what it sees first."""
    quantizer = site.quantizer(operand)
    if isinstance(quantizer, LogQuantizer):
        quantizer.set_scale(x.max() + quantizer.shift)
    elif quantizer.axis == 0:
        rows, shape = x.flatten(1), (-1,) + (1,) * (x.ndim - 1)
        quantizer.set_range(rows.amin(1).view(shape), rows.amax(1).view(shape))
    elif not quantizer.fitted:
        quantizer.set_range(x.min(), x.max())
    return x


def quantized(model: nn.Module, form: str, images: Tensor) -> Program:
    """The program of a copy of `model` in a form such as "w4a4" or "adalog w4a4"; stem and head have 8 bits."""
    model, widths = copy.deepcopy(model), form.split()[-1]
    bits = int(widths[1]), int(widths[3])
    layout = prepare(model, describe(model), BitPlan(*bits))
    for site in layout.sites:
        module = model.get_submodule(site.name)
        if site.role == "pv":
            module.set_quantizer("left", AdaLogQuantizer(bits[1]) if "adalog" in form else LogSqrt2Quantizer(bits[1]))
        elif site.role == "fc2" and "adalog" in form:
            shifted = AdaLogQuantizer(bits[1], shift=-GELU_MINIMUM, level_bits=level_bits_behind_gelu(bits[1]))
            module.set_quantizer("input", shifted)
    with model_state(model, "observe", fit):
        model(images)
    round_leftovers(model)
    return lower(model, layout)


def artifact_model(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """An artifact's float model, and its folder by its form, such as "repq w4a4"."""
    artifact = load_artifact(folder)
    recipe = artifact.facts["recipe"]
    widths = "w{weight}a{activation}".format(**recipe["bits"])
    levels = [step["adalog"].get("gelu_level_bits", 0) for step in recipe["steps"] if "adalog" in step]
    name = recipe["name"] + (f", {levels[0]}-bit levels," if levels and levels[0] else "")
    return float_model(artifact.model), {f"{name} {widths}": folder}


def random_model(name: str, forms: tuple[str, ...]) -> tuple[nn.Module, dict[str, Any]]:
    """timm's model as it is, and its programs by form."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval().requires_grad_(False)
    images = torch.randn(2, *model.pretrained_cfg["input_size"])
    return model, {form: quantized(model, form, images) for form in forms}


@torch.no_grad()
def measure(options: argparse.Namespace) -> None:
    """One process's share: one model, one number of threads, one batch; rows as JSON to `options.out`."""
    if hasattr(os, "sched_setaffinity"):
        # As many cores as threads, so that no engine wanders or takes more than its share.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.threads :])
    torch.set_num_threads(options.threads)
    progress = Progress()
    forms = MODELS.get(options.model, ((), ()))[0]
    model, sources = artifact_model(options.artifact) if options.artifact else random_model(options.model, forms)
    engines = {form: Engine(source, threads=options.threads) for form, source in sources.items()}
    shape = next(iter(engines.values())).input_shape
    images = torch.randn(options.batch_size, *shape)
    pixels = images.numpy()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        work = Work(model, images, options.threads, Path(folder), progress, compiles=not options.no_compile)
        calls: dict[str, Call] = gathered(chosen(options.against), work)
        calls |= {f"native {form}": lambda engine=engine: engine(pixels) for form, engine in engines.items()}
        taken = interleaved(calls, options.rounds, progress)
    rows = [row(name, options.threads, options.batch_size, milliseconds) for name, milliseconds in taken.items()]
    name = f"artifact, {next(iter(engines))}" if options.artifact else options.model
    facts = [{"setting": options.setting, "model": name, "isa": isa(), **one} for one in rows]
    options.out.write_text(json.dumps(facts))


def own_process(options: argparse.Namespace, setting: str, where: list[str], threads: int, batch: int) -> list[Any]:
    """`measure` in a process with the setting's environment; its rows."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [
            sys.executable, __file__, "--setting", setting, *where, "--threads", str(threads), "--batch-size",
            str(batch), "--rounds", str(options.rounds), "--against", options.against, "--out", str(out),
        ]  # fmt: skip
        command += ["--no-compile"] if options.no_compile else []
        peers = avx2_only.environment_of(options.avx2_peers) if setting == "avx2" else {}
        subprocess.run(command, check=True, env={**os.environ, **SETTINGS[setting], **peers})
        return json.loads(out.read_text())


def footprint(folder: Path) -> dict[str, Any]:
    """Megabytes above a bare interpreter, seconds of the load (median of five), bytes of the artifact."""
    found = [
        json.loads(subprocess.run([sys.executable, "-c", FOOTPRINT, folder], check=True, capture_output=True).stdout)
        for _ in range(5)
    ]
    last = found[-1]
    megabytes = {key: round((last[key] - last["bare"]) / 1e6, 1) for key in ("numpy", "loaded", "after_one_image")}
    files = ("model.safetensors", "program.bin", "quantization.json", "config.json")
    return {
        "megabytes_above_bare_interpreter": megabytes,
        "load_seconds": round(sorted(one["load"] for one in found)[len(found) // 2], 4),
        "artifact_bytes": {name: (folder / name).stat().st_size for name in files},
    }


def show(rows: list[dict[str, Any]]) -> None:
    """One group's rows, with how often the native engine's W4A4 (or first form) fits into each."""
    first = next(one for one in rows if one["engine"].startswith("native"))
    head = f"{first['model']}, {first['setting']}, {first['threads']} threads, batch {first['batch_size']}"
    print(f"{head}: x {first['engine']}")
    for one in rows:
        ratio = one["milliseconds"] / first["milliseconds"]
        print(f"  {one['engine']:26} {one['milliseconds']:9.2f} ms {ratio:6.2f}", flush=True)


PEERS = ("onnxruntime float", "onnxruntime int8 static", "onnxruntime int8 dynamic", "openvino float")
NAMES = {"default": "all", "avx2": "AVX2"}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: for each group how often the native engine's first form fits into the time of each peer."""
    lines = [
        "| | threads | batch | instructions | native, ms | PyTorch | ONNX Runtime float | int8 static | int8 dynamic "
        "| OpenVINO float |",
        "|---|--:|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    groups: dict[tuple[Any, ...], dict[str, float]] = {}
    for one in rows:
        key = (one["model"], one["threads"], one["batch_size"], one["setting"])
        groups.setdefault(key, {})[one["engine"]] = one["milliseconds"]
    for (model, threads, batch, setting), found in groups.items():
        native = {name.removeprefix("native "): ms for name, ms in found.items() if name.startswith("native")}
        first = next(iter(native.values()))
        torch_best = min(ms for name, ms in found.items() if name.startswith("torch"))
        times = [torch_best, *(found.get(name) for name in PEERS)]
        ratios = " | ".join("" if ms is None else f"{ms / first:.2f}" for ms in times)
        forms = ", ".join(f"{form} {ms:.1f}" for form, ms in native.items())
        lines.append(f"| {model} | {threads} | {batch} | {NAMES[setting]} | {forms} | {ratios} |")
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--artifact", type=Path, help="a real one: its speed, memory, load time and bytes")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--against", default="torch,onnxruntime,openvino")
    parser.add_argument("--avx2-peers", type=Path, help="what avx2_only.py made; needed for the setting avx2")
    parser.add_argument("--no-compile", action="store_true", help="without torch compiled")
    parser.add_argument("--shapes", nargs="+", help="only these, such as 1x1 or 2x8: threads x batch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--table", action="store_true", help="print what --out holds, and measure nothing")
    parser.add_argument("--out", type=Path, required=True)
    # What a process is given that measures one setting.
    for name, kind in (("--setting", str), ("--model", str), ("--threads", int), ("--batch-size", int)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parsed()
    if options.setting:
        measure(options)
        return
    if "avx2" in options.settings and not options.table and options.avx2_peers is None:
        raise SystemExit("the setting avx2 needs --avx2-peers: python benchmarks/avx2_only.py build/avx2_only")
    known = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    if options.table:
        print(table(known["rows"]))
        return
    groups: list[tuple[list[str], tuple[tuple[int, int], ...]]] = [
        (["--model", name], MODELS[name][1]) for name in options.models
    ]
    if options.artifact:
        known["footprint"] = footprint(options.artifact)
        print(json.dumps(known["footprint"], indent=1))
        groups.append((["--artifact", str(options.artifact)], ((1, 1),)))
    key = ("setting", "model", "threads", "batch_size")
    for where, shapes in groups:
        for threads, batch in shapes:
            if options.shapes and f"{threads}x{batch}" not in options.shapes:
                continue
            for setting in options.settings:
                rows = own_process(options, setting, where, threads, batch)
                show(rows)
                group = [rows[0][part] for part in key]
                known["rows"] = [one for one in known["rows"] if [one[part] for part in key] != group] + rows
                facts = {"cpu": processor(), "environment": environment(torch.device("cpu")), **known}
                options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
