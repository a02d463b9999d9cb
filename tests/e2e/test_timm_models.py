"""The whole way, from weights in a file to a loaded artifact, over the architectures of timm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import halfbyte
from halfbyte.api import Result
from halfbyte.data.images import open_images
from halfbyte.models.load import create_architecture
from halfbyte.models.names import resolve

IMAGES = 2
PATCHES = 7
CLOSE_DB = 10.0


def strong_weights(model: nn.Module) -> None:
    """Random parameters with which every part of the model has a say in its logits, whatever timm starts it with.

    LayerScales of 1e-5, last norms of 0, matrices a tenth of what keeps the variance: all of them would hide mistakes.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 or parameter.numel() == max(parameter.shape):
                scales = name.endswith(("weight", "gamma", "scale")) or float(parameter.abs().mean()) > 0.5
                parameter.copy_(1 + 0.1 * noise(parameter) if scales else 0.1 * noise(parameter))
            elif name.endswith("weight"):
                parameter.copy_(noise(parameter) / math.sqrt(parameter[0].numel()))
            else:  # tokens, position embeddings and tables
                parameter.copy_(0.5 * noise(parameter))


def settle_batch_norms(model: nn.Module, pixels: Tensor) -> None:
    """Give every BatchNorm the statistics of the images: with any others a deep network says the same of every image."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        model(pixels)
    model.eval()


def coarse_pictures(height: int, width: int) -> np.ndarray[Any, Any]:
    """uint8 `[N, H, W, 3]`: large patches of colour, for fine noise alone looks the same to a global pool."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (IMAGES, PATCHES, PATCHES, 3))
    rows, columns = (np.arange(size) * PATCHES // size for size in (height, width))
    grain = random.integers(-30, 31, (IMAGES, height, width, 3))
    return np.clip(colours[:, rows][:, :, columns] + grain, 0, 255).astype(np.uint8)


@dataclass
class Way:
    """What is left at the end of the way: the float model and its images, the run, and the loaded artifact."""

    original: nn.Module
    pixels: Tensor
    run: Result
    loaded: nn.Module

    @staticmethod
    def go(name: str, folder: Path) -> Way:
        known = resolve(name)
        torch.manual_seed(0)
        original = create_architecture(known.architecture, known.tag).eval()
        config: Any = original.pretrained_cfg
        weights, pictures = folder / "weights.safetensors", folder / "pictures.npz"
        np.savez(pictures, x=coarse_pictures(*config["input_size"][1:]), y=np.arange(IMAGES))
        images = open_images(pictures, {**config, "crop_pct": 1.0}, num_classes=None)
        pixels = torch.stack([images[i][0] for i in range(IMAGES)])
        strong_weights(original)
        settle_batch_norms(original, pixels)
        save_file({key: tensor.contiguous() for key, tensor in original.state_dict().items()}, weights)
        run = halfbyte.quantize(
            model=name, weights=weights, calib=pictures, val=pictures, w_bits=8, a_bits=8, crop_pct=1.0,
            settings=(f"repq.images={IMAGES}",), batch_size=IMAGES, workers=0, device="cpu", out=folder / "run",
        )  # fmt: skip
        return Way(original, pixels, run, halfbyte.load(folder / "run"))

    def logits(self, model: nn.Module, batch_size: int = IMAGES) -> Tensor:
        with torch.inference_mode():
            return torch.cat([model(batch) for batch in self.pixels.split(batch_size)])


def decibel(exact: Tensor, got: Tensor) -> float:
    return float(10 * torch.log10(exact.double().square().sum() / (got.double() - exact.double()).square().sum()))
