"""OpenVINO's own form of an exported model, by OpenVINO's own converter."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import openvino


def to_openvino(model: onnx.ModelProto) -> dict[str, bytes]:
    """The two files of the intermediate representation by ending: `.xml`, the graph, and `.bin`, its constants."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "model.xml"
        source.write_bytes(model.SerializeToString(deterministic=True))
        # Scales must stay as they are: half precision would move codes.
        openvino.save_model(openvino.convert_model(source), target, compress_to_fp16=False)
        return {ending: target.with_suffix(ending).read_bytes() for ending in (".xml", ".bin")}
