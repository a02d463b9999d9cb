"""Real weights and images: exported files in a process without halfbyte, against the native engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.export.conftest import Logits, run_outside
from tests.export.following import follow

from halfbyte import api
from halfbyte.artifact_files import read_facts
from halfbyte.data.images import batches, open_images
from halfbyte.export.onnx import to_onnx
from halfbyte.export.runtimes import RUNTIMES
from halfbyte.program.load import load_program
from halfbyte.runtime import Engine

DATA = Path(__file__).parents[2].parent / "shared" / "data"
MODEL = "deit_tiny_patch16_224"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="real models and images are not beside this checkout"),
]
RECIPES = {8: "mse", 4: "repq"}
IMAGES = 650
FORMS = {"17": {"opset": 17}, "21": {"opset": 21}, "ir": {"to": "openvino"}}
# Files of opset 21 differ where there are few bits.
RUNS = [
    *((8, run) for run in ("onnxruntime 17", "openvino 17", "openvino ir")),
    *((4, run) for run in ("onnxruntime 17", "onnxruntime 21", "openvino 17", "openvino 21", "openvino ir")),
]
# Percent of images with the native engine's class, and points of top-1 either way. A code or two on the other side of a
# border, which every runtime has in an image, move these logits by 0.25: one image in fifteen hangs on less, and which
# of them change is chance. Of 650 images 5 to 8 did, in OpenVINO's own form the most.
LEAST = {8: {"17": 99, "ir": 98}, 4: {"17": 85, "21": 85, "ir": 85}}
FARTHEST = 1.5
# The native engine's lead of its class over the next in images that others put elsewhere; its median is 2.6 of all.
LEAD = {8: 0.5, 4: np.inf}


@dataclass(frozen=True)
class Case:
    bits: int
    folder: Path
    pixels: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    native: npt.NDArray[np.float32]
    outside: Logits


@pytest.fixture(scope="module")
def case(request, tmp_path_factory) -> Case:
    bits, folder = request.param, tmp_path_factory.mktemp("deit")
    api.quantize(
        model=MODEL, weights=DATA / "weights" / f"{MODEL}.safetensors", recipe=RECIPES[bits],
        calib=DATA / "imagenet_calib", calib_images=32, val=DATA / "imagenet_val", limit=4, crop_pct=0.985,
        w_bits=bits, a_bits=bits, out=folder / "run",
    )  # fmt: skip
    facts, config = read_facts(folder / "run")
    images = open_images(DATA / "imagenet_val", facts["preprocessing"], num_classes=config["num_classes"])
    parts = zip(*batches(images, 50), strict=True)
    pixels, classes = (torch.cat(part).numpy() for part in parts)
    models = {}
    for name in {run.split()[1] for width, run in RUNS if width == bits}:
        out = folder / f"{name}{'.xml' if name == 'ir' else '.onnx'}"
        models[name] = api.export(folder / "run", out=out, **FORMS[name]).files[0]
    outside = run_outside(pixels, models, folder, timeout=3000)
    return Case(bits, folder / "run", pixels, classes, Engine(folder / "run")(pixels), outside)


@pytest.mark.parametrize(("case", "run"), RUNS, indirect=["case"])
def test_other_runtimes_see_the_same_classes(case, run):
    wanted, found = case.native.argmax(1), case.outside[run].argmax(1)
    assert len(found) == IMAGES
    assert 100 * (found == wanted).mean() >= LEAST[case.bits][run.split()[1]]
    first, second = np.sort(case.native, 1)[:, [-1, -2]].T
    assert (first - second)[found != wanted].max(initial=0) < LEAD[case.bits]
    assert abs(100 * ((found == case.classes).mean() - (wanted == case.classes).mean())) <= FARTHEST


@pytest.mark.parametrize("case", RECIPES, indirect=True)
@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda runtime: runtime.package)
def test_codes_differ_on_the_borders_alone(case, runtime):
    """So no runtime computes at a lower precision, and what logits differ by is what a few such codes become."""
    codes = follow(to_onnx(load_program(case.folder)), case.pixels[:2], runtime.run)
    assert codes.compared > 12_000_000
    assert len(codes.distances) <= codes.compared * 1e-5
    assert max(codes.distances, default=0) < 1e-4
