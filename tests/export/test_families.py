"""Small timm models of other families, with random weights: every operation as the interpreter computes it."""

from __future__ import annotations

import pytest
from tests.program.conftest import TIMM, images_of, random_model

from halfbyte.export.onnx import OnnxForm, to_onnx
from halfbyte.export.probe import probe
from halfbyte.export.runtimes import RUNTIMES
from halfbyte.program.interpret import run
from halfbyte.program.lower import lower


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_each_operation_of_a_timm_model(name):
    program = lower(*random_model(name))
    images = images_of(program.input_shape, 2).numpy()
    for form in (OnnxForm(), OnnxForm(opset=21, convolutions="integer")):
        written = to_onnx(program, form)
        for runtime in RUNTIMES:
            found = probe(written, images, runtime.run)
            assert found.different <= (0 if runtime.package == "onnxruntime" else found.codes * 1e-4), found
            assert found.product_error < 2e-6, found
        assert RUNTIMES[0].run(written.model.SerializeToString(), images)["logits"].shape == run(program, images).shape
