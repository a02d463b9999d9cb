"""A small model in four bits, calibrated on a few images."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from halfbyte.data.images import EMBEDDED_TEST, ImageSet, limit, open_images
from halfbyte.families.describe import describe
from halfbyte.families.layout import Layout
from halfbyte.layers.site import SiteModule
from halfbyte.models.load import load_model
from halfbyte.prepare import model_state, prepare
from halfbyte.quantizers.log import LogSqrt2Quantizer
from halfbyte.recipe import BitPlan
from halfbyte.steps.repq import fit


@dataclass(frozen=True)
class Quantized:
    """The float model, the quantized one, and images for both."""

    teacher: nn.Module
    model: nn.Module
    layout: Layout
    images: ImageSet
    preprocessing: dict

    @property
    def pixels(self) -> Tensor:
        return torch.stack([self.images[number][0] for number in range(4)])


def quantized(name: str) -> Quantized:
    loaded = load_model(name)
    teacher = copy.deepcopy(loaded.model)
    images = limit(open_images(EMBEDDED_TEST, loaded.data_config, num_classes=10), 40)
    layout = prepare(loaded.model, describe(loaded.model), BitPlan(4, 4))
    for site in layout.sites:
        if site.role == "pv":
            loaded.model.get_submodule(site.name).set_quantizer("left", LogSqrt2Quantizer(4))

    def observe(module: SiteModule, operand: str, x: Tensor) -> Tensor:
        quantizer = module.quantizer(operand)
        if not quantizer.fitted:
            fit(quantizer, x, (0.999,))
        return quantizer(x)

    made = Quantized(teacher, loaded.model, layout, images, loaded.data_config)
    with torch.no_grad(), model_state(loaded.model, "observe", observe):
        loaded.model(made.pixels)
    return made


@pytest.fixture(scope="session")
def vit() -> Quantized:
    return quantized("fashion_vit")


@pytest.fixture(scope="session")
def swin() -> Quantized:
    return quantized("fashion_swin")
