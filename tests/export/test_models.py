"""Exported models in other people's runtimes, in a process that does not know halfbyte."""

from __future__ import annotations

import pytest
from tests.export.conftest import CASES, FORMS, FUSES, Case

from halfbyte.export.onnx import OnnxForm, to_onnx
from halfbyte.export.probe import probe
from halfbyte.export.runtimes import RUNTIMES
from halfbyte.export.verify import verify
from halfbyte.progress import Progress

ENGINES = ("onnxruntime", "openvino")
ALL = [
    *(pytest.param(case, id=case.name) for case in CASES),
    *(pytest.param(case, id=case.name, marks=pytest.mark.slow) for case in FORMS),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", ALL)
def test_other_runtimes_see_the_same_classes(outside, interpreted, pictures, case, engine):
    wanted, found = interpreted(case).argmax(1), outside(case)[f"{engine} {case.name}"].argmax(1)
    classes = pictures[1]
    assert (found == wanted).mean() >= (0.99 if case.bits == 8 else 0.85)
    assert abs((found == classes).mean() - (wanted == classes).mean()) <= 0.015


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", ALL)
def test_any_number_of_images(outside, case, engine):
    whole = outside(case)[f"{engine} {case.name}"]
    for count in (1, 3):
        few = outside(case)[f"{engine} {count} {case.name}"]
        assert few.shape == (count, 10)
        assert (few.argmax(1) == whole[:count].argmax(1)).all()


@pytest.mark.parametrize("case", ALL)
def test_every_constant_is_read(program, case):
    graph = to_onnx(program(case), case.form).model.graph
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read


def test_openvinos_own_form(outside, interpreted):
    wanted = interpreted(Case("fashion_vit", "repq", 8)).argmax(1)
    assert (outside(None)["openvino converted"].argmax(1) == wanted).mean() >= 0.99
    assert outside(None)["openvino 3 converted"].shape == (3, 10)


@pytest.mark.parametrize("runtime", RUNTIMES, ids=ENGINES)
@pytest.mark.parametrize("case", ALL)
def test_each_operation_given_the_same_inputs(program, pictures, case, runtime):
    """Codes are the interpreter's: of ONNX Runtime all of them; OpenVINO multiplies where the definition divides, which
    moves values that lie between two codes to the bit. Where ONNX Runtime quantizes in the kernel of a convolution, the
    bias is rounded."""
    found = probe(to_onnx(program(case), case.form), pictures[0][:2], runtime.run)
    assert found.codes > 15_000
    exact = runtime.package == "onnxruntime" and case.form.convolutions != "fused"
    assert found.different <= (0 if exact else found.codes * 2e-4), found
    assert found.product_error < 2e-6, found


def test_linear_layers_run_as_integers_in_both_runtimes(program):
    case = Case("fashion_vit", "repq", 4)
    content = to_onnx(program(case)).model.SerializeToString()
    by_onnxruntime, by_openvino = (runtime.place(content) for runtime in RUNTIMES)
    # 4 in each of 6 blocks, the head, and the products of queries and keys.
    assert len(by_onnxruntime.integer["MatMulIntegerToFloat"]) == 31
    assert sum(len(names) for kind, names in by_openvino.integer.items() if kind.startswith("FullyConnected")) == 25


@pytest.mark.skipif(not FUSES, reason="needs a later ONNX Runtime, which has no Python 3.10")
def test_convolutions_run_as_integers_with_the_quantizer_behind_them(program, pictures):
    case = Case("fashion_resnet", "repq", 4, OnnxForm(convolutions="fused"))
    entry = verify(to_onnx(program(case), case.form), program(case), pictures[0][:4], Progress(quiet=True))[0]
    sites = {op.output for op in program(case).ops if op.kind in ("linear", "conv")}
    integer, in_float = ([name for names in entry[kind].values() for name in names] for kind in ("integer", "float"))
    # What a residual is added to before it is quantized stays in float.
    assert entry["integer"]["QLinearConv"] == ["conv1", "maxpool.0", *(f"layer{n}.0.conv1" for n in range(1, 5))]
    assert len(integer) + len(in_float) == len(sites)
    assert {*integer, *in_float} == sites
    assert entry["codes"] < 100


def test_products_go_by_the_names_of_their_sites_in_every_runtime(program, pictures):
    case = Case("fashion_vit", "repq", 4)
    products = [op.output for op in program(case).ops if op.kind in ("linear", "conv", "matmul")]
    for entry in verify(to_onnx(program(case)), program(case), pictures[0][:4], Progress(quiet=True)):
        named = [name for kind in ("integer", "float") for names in entry[kind].values() for name in names]
        assert sorted(named) == sorted(products), entry["engine"]
