"""Small timm models of other families, with random weights: every operation as the interpreter computes it."""

from __future__ import annotations

import pytest
from tests.export.following import follow
from tests.program.conftest import TIMM, images_of, random_model

from halfbyte.export.onnx import OnnxForm, to_onnx
from halfbyte.export.probe import probe
from halfbyte.export.runtimes import RUNTIMES
from halfbyte.program.lower import lower

FORMS = (OnnxForm(), OnnxForm(opset=21), OnnxForm(convolutions="integer"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_each_operation_of_a_timm_model(name):
    program = lower(*random_model(name))
    images = images_of(program.input_shape, 2).numpy()
    for form in FORMS:
        written = to_onnx(program, form)
        for runtime in RUNTIMES:
            found = probe(written, images, runtime.run)
            assert found.different <= (0 if runtime.package == "onnxruntime" else found.codes * 1e-4), found
            assert found.product_error < 2e-6, found
            assert runtime.run(written.model.SerializeToString(), images)["logits"].shape == (2, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_codes_of_whole_models(name, form):
    """Only codes are looked at, so that runtimes compute what is between them in their own way: OpenVINO lost the scale
    of convolutions that a quantizer and an addition read."""
    program = lower(*random_model(name))
    written, images = to_onnx(program, form), images_of(program.input_shape, 2).numpy()
    for runtime in RUNTIMES:
        codes = follow(written, images, runtime.run)
        # Where norms and the sums of pools are the runtime's own, values between two codes fall on the other side.
        assert len(codes.distances) <= codes.compared * 1e-4, runtime.package
        assert max(codes.distances, default=0) < 1e-4, runtime.package
