"""The native engine gives what the interpreter defines, bit for bit, and needs no torch."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from tests.program.conftest import EMBEDDED, TIMM, images_of

from halfbyte.errors import HalfbyteError
from halfbyte.program.interpret import compute, run
from halfbyte.program.ops import INPUT, Op, Program, at_batch
from halfbyte.runtime import Engine, native
from halfbyte.runtime.operations import OPERATIONS

pytestmark = pytest.mark.skipif(not native.available(), reason="the native kernels were not built")
MODELS = (*EMBEDDED, *((name, None) for name in TIMM))


@pytest.mark.parametrize(("name", "recipe"), MODELS, ids=lambda value: str(value))
def test_whole_models_give_the_interpreter_s_logits(lowered, isa, name, recipe):
    program = lowered(name, recipe).program
    images = images_of(program.input_shape, 3).numpy()
    expected = run(program, images)
    # Sums in float64 may round otherwise: of a mean of thousands, or in a norm.
    assert np.mean(Engine(program, threads=1)(images) == expected) > 0.99
    np.testing.assert_allclose(Engine(program, threads=2)(images), expected, rtol=1e-5, atol=1e-5)


def test_batches_and_threads_change_nothing(lowered):
    program = lowered("fashion_swin", "repq").program
    images = images_of(program.input_shape, 5).numpy()
    expected = Engine(program, threads=1)(images)
    for threads in (2, 3):
        engine = Engine(program, threads=threads)
        assert (engine(images) == expected).all()
        assert (np.concatenate([engine(images[n : n + 1]) for n in range(5)]) == expected).all()


def test_one_engine_serves_several_threads(lowered):
    program = lowered("fashion_vit", "repq").program
    engine = Engine(program, threads=2)
    batches = [images_of(program.input_shape, 2, seed).numpy() for seed in range(6)]
    expected = [run(program, batch) for batch in batches]
    wrong = []

    def serve(number):
        wrong.extend(number for _ in range(20) if not (engine(batches[number]) == expected[number]).all())

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_artifact_runs_without_torch_and_timm(artifact, lowered, tmp_path):
    folder = artifact("fashion_vit", "repq")
    program = lowered("fashion_vit", "repq").program
    images = images_of(program.input_shape, 2).numpy()
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'timm', 'torchvision'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "import numpy as np\n"
        "from halfbyte.runtime import Engine\n"
        f"logits = Engine({str(folder)!r}, threads=1)(np.load({str(tmp_path / 'images.npy')!r}))\n"
        f"np.save({str(tmp_path / 'logits.npy')!r}, logits)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (np.load(tmp_path / "logits.npy") == run(program, images)).all()


BATCH = {"batch": 1, "plus": 0}
# By their roles: the values have six channels, maps and columns.
TENSORS = {"index": np.int32([5, 0, 0, 3])} | {
    role: np.linspace(start, 2, 6, dtype=np.float32)
    for role, start in (("weight", -1), ("bias", -3), ("scale", 0.5), ("shift", -2))
}


def program_of(*ops, shape=(2, 6, 6)):
    """The operations, and their last value as rows: what a program returns."""
    values = {INPUT: images_of(shape, 1).numpy()}
    for op in ops:
        tensors = {role: TENSORS[name] for role, name in op.tensors.items()}
        inputs = [values[name] for name in op.inputs]
        values[op.output] = compute(op.kind, inputs, at_batch(op.attributes, 1), tensors)
    rows = Op("reshape", (ops[-1].output,), "rows", {"shape": [BATCH, values[ops[-1].output].size]})
    return Program((*ops, rows), TENSORS, shape, "rows")


# What moves values about, in forms that no tested model has.
MOVES = {
    "roll": Op("roll", ("q",), "y", {"shifts": [2, -1], "axes": [2, 3]}),
    "repeat": Op("repeat", ("q",), "y", {"times": [1, 2, 1, 3]}),
    "slice": Op("slice", ("q",), "y", {"axis": 2, "start": 1, "stop": 6, "step": 2}),
    "concat": Op("concat", ("q", "q"), "y", {"axis": 3}),
    "transpose": Op("transpose", ("q",), "y", {"axes": [0, 3, 1, 2]}),
    "pad": Op("pad", ("q",), "y", {"pads": [[0, 0], [1, 0], [2, 3], [0, 1]], "value": 0.25}),
    "mean": Op("mean", ("q",), "y", {"axes": [1, 3], "keep": True}),
    "average_pool": Op("average_pool", ("q",), "y", {"kernel": [3, 2], "strides": [2, 2], "pads": [[1, 1], [0, 1]]}),
    "max_pool": Op(
        "max_pool", ("q",), "y", {"kernel": [2, 3], "strides": [1, 2], "pads": [[1, 0], [1, 1]], "dilations": [2, 1]}
    ),
    "clip": Op("clip", ("q",), "y", {"low": -0.5, "high": 0.75}),
    "silu": Op("silu", ("q",), "y", {}),
    "softmax": Op("softmax", ("q",), "y", {"axis": 3}),
    **{
        f"{kind} of a number": Op(kind, ("q",), "y", {"scalar": 3.0})
        for kind in ("add", "subtract", "multiply", "divide")
    },
    **{kind: Op(kind, ("q", "q"), "y", {}) for kind in ("add", "subtract", "multiply", "divide")},
    **{
        kind: Op(kind, ("q",), "y", {})
        for kind in ("relu", "gelu", "sigmoid", "tanh", "gelu_tanh", "hardsigmoid", "hardswish")
    },
    **{
        kind: Op(kind, ("q",), "y", {"eps": 1e-5}, {"weight": "weight", "bias": "bias"})
        for kind in ("layer_norm", "rms_norm")
    },
    "layer_norm alone": Op("layer_norm", ("q",), "y", {"eps": 1e-5}),
    "affine": Op("affine", ("q",), "y", {"axis": 2}, {"scale": "scale", "shift": "shift"}),
    "gather": Op("gather", ("q",), "y", {"axis": 3}, {"index": "index"}),
    "select": Op("select", ("q",), "y", {"axis": 2, "index": 4}),
    "reshape": Op("reshape", ("q",), "y", {"shape": [BATCH, 3, 24]}),
}


def test_every_kind_that_is_no_product_and_makes_no_codes_is_among_them():
    here = {op.kind for op in MOVES.values()}
    assert here == OPERATIONS.keys() - {"linear", "conv", "matmul", "quantize", "quantize_log", "constant", "expand"}


def test_constants_and_what_is_spread():
    program = program_of(
        Op("mean", (INPUT,), "m", {"axes": [1], "keep": True}), Op("expand", ("m",), "e", {"shape": [BATCH, 3, 6, 6]}),
        Op("transpose", ("e",), "t", {"axes": [0, 2, 1, 3]}), Op("constant", (), "c", {}, {"value": "weight"}),
        Op("gelu", ("c",), "g", {}), Op("multiply", ("t", "g"), "y", {}),
    )  # fmt: skip
    images = images_of((2, 6, 6), 2).numpy()
    assert (Engine(program, threads=1)(images) == run(program, images)).all()


@pytest.mark.parametrize("kind", MOVES)
def test_single_operations_on_views_with_gaps(kind):
    """Each works on a transposed view: on values that do not lie in memory row by row."""
    program = program_of(Op("transpose", (INPUT,), "q", {"axes": [0, 1, 3, 2]}), MOVES[kind])
    images = images_of((2, 6, 6), 2).numpy()
    assert (Engine(program, threads=1)(images) == run(program, images)).all()


def test_what_it_cannot_run_is_told():
    unknown = program_of(Op("group_norm", (INPUT,), "y", {"eps": 1e-5, "groups": 1}))
    with pytest.raises(HalfbyteError, match=r"the native engine has no group_norm \(y\); use --engine interpreter"):
        Engine(unknown)
