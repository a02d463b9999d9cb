"""OpenVINO's own form of an exported model, by OpenVINO's own converter."""

from __future__ import annotations

import onnx

from halfbyte.files import temporary_folder
from halfbyte.quiet_openvino import openvino


def to_openvino(model: onnx.ModelProto) -> dict[str, bytes]:
    """The two files of the intermediate representation by ending: `.bin`, its constants, and `.xml`, the graph."""
    with temporary_folder() as folder:
        source, target = folder / "model.onnx", folder / "model.xml"
        source.write_bytes(model.SerializeToString(deterministic=True))
        # Scales must stay as they are: half precision would move codes.
        tool = openvino()
        tool.save_model(tool.convert_model(source), target, compress_to_fp16=False)
        return {ending: target.with_suffix(ending).read_bytes() for ending in (".bin", ".xml")}
