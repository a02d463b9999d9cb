"""Runs exported models as somebody else does: without halfbyte, in a process of its own.

    python outside.py IMAGES.npy OUT.npz NAME=FILE...

Writes the logits of ONNX Runtime as `onnxruntime NAME`, of OpenVINO as `openvino NAME`, and of the first image alone
and the first three as `onnxruntime 1 NAME`, `onnxruntime 3 NAME` and so on.
"""

import sys

import numpy as np
import onnxruntime
import openvino

BATCH = 50


def onnxruntime_model(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 2
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"input": images})[0]


def openvino_model(path):
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    model = core.compile_model(core.read_model(path), "CPU", settings)
    return lambda images: model([images])["logits"].copy()


def main(images_path, out, *models):
    images = np.load(images_path)
    found = {}
    for entry in models:
        name, _, path = entry.partition("=")
        for engine, load in (("onnxruntime", onnxruntime_model), ("openvino", openvino_model)):
            if engine == "onnxruntime" and path.endswith(".xml"):
                continue
            run = load(path)
            found[f"{engine} {name}"] = np.concatenate(
                [run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
            )
            found.update({f"{engine} {count} {name}": run(images[:count]) for count in (1, 3)})
    assert "halfbyte" not in sys.modules
    assert "torch" not in sys.modules
    np.savez(out, **found)


main(*sys.argv[1:])
