"""What both engines take as images, and the native one as threads: correct logits, or one line of what is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.program.conftest import images_of

from halfbyte.errors import HalfbyteError
from halfbyte.program.interpret import Interpreter
from halfbyte.program.ops import Program
from halfbyte.runtime import Engine, native

needs_kernels = pytest.mark.skipif(not native.available(), reason="the native kernels were not built")
# Images that are none of a model's, by what they are made of its own.
WRONG: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "none at all": (lambda x: x[:0], r"takes images \[B, 1, 28, 28\], one or more, not \[0, 1, 28, 28\]"),
    "an image without a batch": (lambda x: x[0], r"not \[1, 28, 28\]"),
    "a dimension too many": (lambda x: x[None], r"not \[1, 3, 1, 28, 28\]"),
    "another size": (lambda x: x[..., 1:], r"not \[3, 1, 28, 27\]"),
    "other channels": (lambda x: x.repeat(3, axis=1), r"not \[3, 3, 28, 28\]"),
    "channels last": (lambda x: x.transpose(0, 2, 3, 1), r"not \[3, 28, 28, 1\]"),
    "a number": (lambda x: np.float32(1), r"not \[\]"),
    "pixels": (lambda x: np.zeros(x.shape, np.uint8), "floats, not uint8; scale and normalise the pixels first"),
    "whole numbers": (lambda x: x.astype(np.int64), "floats, not int64"),
    "truths": (lambda x: x > 0, "floats, not bool"),
    "complex numbers": (lambda x: x + 1j, "floats, not complex"),
    "objects": (lambda x: x.astype(object), "floats, not object"),
    "words": (lambda x: x.astype(str), "floats, not <U"),
}
# The same images in other forms.
SAME: dict[str, Callable[[np.ndarray], Any]] = {
    "float64": lambda x: x.astype(np.float64),
    "half": lambda x: x.astype(np.float16),
    "big-endian": lambda x: x.astype(">f4"),
    "columns first": np.asfortranarray,
    "every other one": lambda x: np.repeat(x, 2, axis=0)[::2],
    "backwards": lambda x: x[::-1, :, ::-1].copy()[::-1, :, ::-1],
    "transposed": lambda x: np.ascontiguousarray(x.transpose(3, 1, 2, 0)).transpose(3, 1, 2, 0),
    "lists": lambda x: x.tolist(),
}


@pytest.fixture(params=["interpreter", pytest.param("native", marks=needs_kernels)])
def made(request, lowered) -> tuple[Callable[[Any], np.ndarray], np.ndarray]:
    """An engine, and images of which float16 loses nothing."""
    program: Program = lowered("fashion_vit", "repq").program
    images = images_of(program.input_shape, 3, seed=4).numpy().astype(np.float16).astype(np.float32)
    return (Engine(program, threads=2) if request.param == "native" else Interpreter(program)), images


@pytest.mark.parametrize("wrong", WRONG)
def test_what_no_images_are_is_told_in_one_line(made, wrong):
    engine, images = made
    change, told = WRONG[wrong]
    with pytest.raises(HalfbyteError, match=told) as raised:
        engine(change(images))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("form", SAME)
def test_the_same_images_in_another_form_give_the_same_logits(made, form):
    engine, images = made
    changed = SAME[form](images)
    np.testing.assert_array_equal(engine(changed), engine(images))


def test_images_that_may_not_be_written_stay_what_they_are(made):
    engine, images = made
    expected, before = engine(images), images.copy()
    images.setflags(write=False)
    np.testing.assert_array_equal(engine(images), expected)
    np.testing.assert_array_equal(images, before)


@needs_kernels
@pytest.mark.parametrize("threads", [0, -1, 257, 2**40, True, 2.0, "2"])
def test_impossible_numbers_of_threads(lowered, threads):
    with pytest.raises(HalfbyteError, match=f"threads must be from 1 to 256, not {threads!r}"):
        Engine(lowered("fashion_resnet", "repq").program, threads=threads)


@needs_kernels
def test_more_threads_than_cores_and_than_images(artifact, lowered, tmp_path):
    """In a process of its own, which then has 256 of them."""
    folder, program = artifact("fashion_resnet", "repq"), lowered("fashion_resnet", "repq").program
    images = images_of(program.input_shape, 300).numpy()
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, numpy as np\n"
        "from halfbyte.runtime import Engine\n"
        "images = np.load(sys.argv[2])\n"
        "expected = Engine(sys.argv[1], threads=1)(images)\n"
        "for threads, counts in ((256, (1, 300)), (3, (1, 2, 5))):\n"
        "    engine = Engine(sys.argv[1], threads=threads)\n"
        "    for count in counts:\n"
        "        assert np.array_equal(engine(images[:count]), expected[:count])\n"
        "np.save(sys.argv[2], expected)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path / "images.npy")], check=True, timeout=300)
    found = np.load(tmp_path / "images.npy")
    np.testing.assert_array_equal(found[:4], Interpreter(program)(images[:4]))


@needs_kernels
@pytest.mark.parametrize("place", ["nowhere", "file", "empty"])
def test_what_is_no_artifact(tmp_path, place):
    (tmp_path / "file").write_text("no artifact")
    (tmp_path / "empty").mkdir()
    said = "nowhere does not exist; give an artifact's folder" if place == "nowhere" else "is not an artifact"
    with pytest.raises(HalfbyteError, match=said) as raised:
        Engine(tmp_path / place)
    assert "\n" not in str(raised.value)
