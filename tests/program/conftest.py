"""Small artifacts of the embedded models, and their programs; made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from halfbyte import api
from halfbyte.artifact import load_artifact, round_leftovers
from halfbyte.families.describe import describe
from halfbyte.families.layout import Layout
from halfbyte.prepare import model_state, prepare, set_state
from halfbyte.program import sites
from halfbyte.program.load import load_program
from halfbyte.program.lower import lower
from halfbyte.program.ops import Program
from halfbyte.program.trace import Recorder
from halfbyte.quantizers.base import Quantizer
from halfbyte.recipe import BitPlan

# The recipe adalog-qwt, without what takes long and changes no operation.
ADALOG_QWT = """
name: adalog-qwt
bits: {weight: 4, activation: 4}
steps:
  - adalog: {images: 2, candidates: 64, steps: 1, rounds: 1}
  - qwt: {images: 32}
"""
FEW: dict[str, tuple[str, ...]] = {
    "repq": (),
    "percentile-qwt": ("percentile.images=8", "bn_recalibrate.images=32", "bias_correct.images=32", "qwt.images=32"),
}
# A model and its recipe; timm's models get the ranges of random images, and random weights.
EMBEDDED = (
    ("fashion_vit", "repq"), ("fashion_swin", "repq"), ("fashion_resnet", "repq"), ("fashion_vit", "adalog-qwt"),
    ("fashion_resnet", "percentile-qwt"),
)  # fmt: skip
TIMM: dict[str, dict[str, Any]] = {
    "tf_efficientnet_lite0": {"input_size": (3, 65, 65)},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "depths": (2, 2), "num_heads": (2, 4), "embed_dim": 32},
    "resnet18": {"input_size": (3, 64, 64)},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "depth": 2},
    "eva02_tiny_patch14_224": {"img_size": 56, "depth": 2},
    "mobilenetv3_small_100": {"input_size": (3, 64, 64)},
}
# Squeeze-and-excitation with every gate and activation, and a mean over tokens.
MEANS: dict[str, dict[str, Any]] = {
    "mobilenetv3_small_100": TIMM["mobilenetv3_small_100"],
    "efficientnet_b0": {"input_size": (3, 64, 64)},
    "regnety_002": {"input_size": (3, 64, 64)},
    "vit_wee_patch16_reg1_gap_256": {"img_size": 64, "depth": 2},
}


@dataclass(frozen=True)
class Lowered:
    """A quantized model and its program."""

    model: nn.Module
    layout: Layout
    program: Program
    folder: Path | None = None


@pytest.fixture(scope="session")
def artifact(tmp_path_factory) -> Callable[[str, str], Path]:
    """The folder of an embedded model quantized by a recipe."""

    @cache
    def make(model: str, recipe: str) -> Path:
        out = tmp_path_factory.mktemp("program") / f"{model}-{recipe}"
        if recipe == "adalog-qwt":
            (out.parent / "recipe.yaml").write_text(ADALOG_QWT)
        found = out.parent / "recipe.yaml" if recipe == "adalog-qwt" else recipe
        api.quantize(
            model=model, recipe=found, settings=FEW.get(recipe, ()), calib_images=32, limit=4, workers=0, out=out
        )
        return out

    return make


@pytest.fixture(scope="session")
def lowered(artifact) -> Callable[..., Lowered]:
    """A quantized model and its program: of an artifact, by model and recipe, or of timm's, by name."""

    @cache
    def make(name: str, recipe: str | None = None) -> Lowered:
        if recipe is None:
            model, layout = random_model(name)
            return Lowered(model, layout, lower(model, layout))
        folder = artifact(name, recipe)
        loaded = load_artifact(folder)
        return Lowered(loaded.model, loaded.layout, load_program(folder), folder)

    return make


def random_model(name: str, **options: Any) -> tuple[nn.Module, Layout]:
    """A timm model with random weights, 4 bits everywhere, ranges from two random images; small by default."""
    options = options or dict((TIMM | MEANS)[name])
    shape = options.pop("input_size", None) or (3, options["img_size"], options["img_size"])
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=10, **options).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": shape}
    layout = prepare(model, describe(model), BitPlan(4, 4))
    with torch.no_grad(), model_state(model, "observe", _fit):
        model(images_of(shape, 2))
    round_leftovers(model)
    set_state(model, "quantized")
    return model, layout


def images_of(shape: tuple[int, ...], count: int, seed: int = 0) -> Tensor:
    """Random images `[count, *shape]`."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def _fit(site: Any, operand: str, x: Tensor) -> Tensor:
    quantizer = site.quantizer(operand)
    if quantizer.axis == 0:
        rows = x.flatten(1)
        shape = (-1,) + (1,) * (x.ndim - 1)
        quantizer.set_range(rows.amin(1).view(shape), rows.amax(1).view(shape))
    elif not quantizer.fitted:
        quantizer.set_range(x.min(), x.max())
    return x


@pytest.fixture
def recorded() -> Callable[[Quantizer, Tensor], tuple[str, dict[str, Any], dict[str, Any]]]:
    """How a quantizer is recorded: kind and attributes of the operation, and what its codes stand for."""

    def record(quantizer: Quantizer, x: Tensor) -> tuple[str, dict[str, Any], dict[str, Any]]:
        recorder = Recorder(nn.Identity(), x, {}, {})
        _, operand = sites._quantize(recorder, x, quantizer, "codes")
        return recorder.records[-1].kind, recorder.records[-1].attributes, operand

    return record
