"""The whole way, from weights in a file to a loaded artifact, over the architectures of timm."""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import halfbyte
from halfbyte.api import Result
from halfbyte.data.images import open_images
from halfbyte.families.describe import describe
from halfbyte.layers.site import SiteModule
from halfbyte.models.load import create_architecture
from halfbyte.models.names import PAPER_MODELS, resolve
from halfbyte.prepare import model_state, prepare
from halfbyte.recipe import BitPlan

IMAGES = 2
PATCHES = 7


@dataclass(frozen=True)
class Expected:
    """The least ratio in dB of the float logits to their error at 8 bits, and the operations left in float by place."""

    decibel: float = 20.0
    in_float: dict[str, int] = field(default_factory=dict)


LEAST_AT_A_SITE = 15.0
# A long chain of BatchNorms with random weights is chaotic: each site adds an error of -20 dB or less, but from site to
# site it grows, unlike in a trained network. Less is asked of their logits, and nothing where little is left of them.
CHAIN = Expected(8.0)
CHAOS = -10.0
EXPECTED: dict[str, Expected] = {
    **{name: CHAIN if name in ("resnet50", "resnet101") else Expected() for name in PAPER_MODELS},
    # Vision transformers of the known families: registers, LayerScale, norms of q and k, every rotary embedding, a
    # stem of weight-standardized convolutions, pooling between stages.
    "vit_tiny_patch16_224": Expected(),
    "vit_tiny_r_s16_p8_224": Expected(),
    "vit_wee_patch16_reg1_gap_256": Expected(),
    "vit_small_patch14_reg4_dinov2": Expected(),
    "deit3_small_patch16_224": Expected(),
    "pit_ti_224": Expected(),
    "beit_base_patch16_224": Expected(),
    "eva02_tiny_patch14_224": Expected(),
    "vit_tiny_patch16_dinov3_qkvb": Expected(),
    "vit_small_patch16_rope_mixed_224": Expected(),
    "vit_medium_patch16_rope_reg1_gap_256": Expected(),
    # Convolutions, with and without squeeze-and-excite, padded like TensorFlow, weight-standardized, or with attention.
    "cifar_resnet20": Expected(),
    # Blocks that run twice, attention inside slices of the tokens.
    "sret_t": Expected(),
    "mobilenetv2_100": CHAIN,
    "mobilenetv3_large_100": CHAIN,
    "tf_efficientnet_lite0": CHAIN,
    "efficientnet_b0": CHAIN,
    "regnety_004": CHAIN,
    "nfnet_l0": Expected(),
    "convnext_tiny": Expected(),
    "convnextv2_atto": Expected(),
    "poolformer_s12": Expected(),
    "mobilevit_xs": CHAIN,
    # Attentions that no family rewrites: their two products stay in float, and so does a projection whose weight the
    # attention takes without calling the module (Swin v2), and what makes a position encoding.
    "swinv2_tiny_window8_256": Expected(
        in_float={
            "aten.addmm layers.*.blocks.*.attn": 12,
            "aten.bmm layers.*.blocks.*.attn": 24,
            "aten.addmm layers.*.blocks.*.attn.cpb_mlp.*": 12,
            "aten.mm layers.*.blocks.*.attn.cpb_mlp.*": 12,
        }
    ),
    "vit_dpwee_patch16_reg1_gap_256": Expected(in_float={"aten.bmm blocks.*": 32}),
    "cait_xxs24_224": Expected(in_float={"aten.bmm blocks.*.attn": 48, "aten.bmm blocks_token_only.*.attn": 4}),
    "xcit_nano_12_p16_224": Expected(
        in_float={
            "aten.convolution pos_embed.token_projection": 1,
            "aten.bmm blocks.*.attn": 24,
            "aten.bmm cls_attn_blocks.*.attn": 4,
        }
    ),
    "pvt_v2_b0": Expected(in_float={"aten.bmm stages.*.blocks.*.attn": 16}),
    "levit_128s": Expected(
        CHAOS,
        {"aten.bmm stages.*.blocks.*.attn": 18, "aten.bmm stages.*.downsample.attn_downsample": 4},
    ),
    "efficientformer_l1": Expected(8.0, {"aten.bmm stages.*.blocks.*.token_mixer": 2}),
    "edgenext_xx_small": Expected(
        in_float={
            "aten.convolution stages.*.blocks.*.pos_embd.token_projection": 1,
            "aten.bmm stages.*.blocks.*.xca": 6,
        }
    ),
    "halonet26t": Expected(8.0, {"aten.bmm stages.*.*.self_attn": 6, "aten.mm stages.*.*.self_attn.pos_embed": 6}),
}


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
    """Give every BatchNorm the statistics of the images: with others a deep network says the same of every image."""
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
    def go(name: str, folder: Path, recipe: str = "repq", settings: tuple[str, ...] = ("repq.images=2",)) -> Way:
        known = resolve(name)
        torch.manual_seed(0)
        original = create_architecture(known.architecture, known.tag).eval()
        config: Any = original.pretrained_cfg
        weights, pictures = folder / "weights.safetensors", folder / "pictures.npz"
        x = coarse_pictures(*config["input_size"][1:])
        np.savez(pictures, x=x, y=np.arange(IMAGES))
        calib = pictures
        if recipe != "repq":
            # Its steps ask for eight images: these and their mirror images.
            calib = folder / "calib.npz"
            mirrored = np.concatenate([x, x[:, ::-1], x[:, :, ::-1], x[:, ::-1, ::-1]])
            np.savez(calib, x=mirrored, y=np.arange(4 * IMAGES) % IMAGES)
        images = open_images(pictures, {**config, "crop_pct": 1.0}, num_classes=None)
        pixels = torch.stack([images[i][0] for i in range(IMAGES)])
        strong_weights(original)
        settle_batch_norms(original, pixels)
        save_file({key: tensor.contiguous() for key, tensor in original.state_dict().items()}, weights)
        run = halfbyte.quantize(
            model=name, recipe=recipe, weights=weights, calib=calib, val=pictures, w_bits=8, a_bits=8, crop_pct=1.0,
            settings=settings, batch_size=IMAGES, workers=0, device="cpu", out=folder / "run",
        )  # fmt: skip
        return Way(original, pixels, run, halfbyte.load(folder / "run"))

    def logits(self, model: nn.Module, batch_size: int = IMAGES) -> Tensor:
        with torch.inference_mode():
            return torch.cat([model(batch) for batch in self.pixels.split(batch_size)])


def decibel(exact: Tensor, got: Tensor) -> float:
    return float(10 * torch.log10(exact.double().square().sum() / (got.double() - exact.double()).square().sum()))


def least_at_a_site(way: Way) -> float:
    """The worst ratio in dB of a site's output to its error where the site alone is quantized."""
    found: list[float] = []

    def compare(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept = output.clone()
        with model_state(module, "quantized"):
            found.append(decibel(kept, module.forward(*inputs)))

    for module in way.run.model.modules():
        if isinstance(module, SiteModule):
            module.register_forward_hook(compare)
    with model_state(way.run.model, "float"):
        way.logits(way.run.model)
    return min(found)


def float_operations(run: Result) -> dict[str, int]:
    """How many of each operation are left in float, by place; numbers in a place are `*`."""
    left = run.metrics["coverage"]["float"]
    return dict(Counter(f"{entry['operation']} {re.sub('[0-9]+', '*', entry['where'])}" for entry in left))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_a_model_goes_the_whole_way(name: str, tmp_path: Path) -> None:
    expected = EXPECTED[name]
    way = Way.go(name, tmp_path)
    exact = way.logits(way.original)
    assert decibel(exact, exact.flip(0)) < 30, "the images must matter"

    prepared = copy.deepcopy(way.original)
    prepare(prepared, describe(prepared), BitPlan(8, 8))
    torch.testing.assert_close(way.logits(prepared), exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))

    loaded = way.logits(way.loaded)
    assert decibel(exact, loaded) > expected.decibel
    with model_state(way.run.model, "quantized"):
        assert torch.equal(way.logits(way.run.model), loaded)
    assert torch.equal(way.logits(way.loaded, batch_size=1), loaded)
    assert float_operations(way.run) == expected.in_float
    assert least_at_a_site(way) > LEAST_AT_A_SITE


# One of each kind: rotations of the residual stream or of heads alone, or none; blocks that halve their image, that
# have no norm, that run twice.
DEFAULT = (
    "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "deit3_small_patch16_224", "eva02_tiny_patch14_224",
    "pit_ti_224", "vit_wee_patch16_reg1_gap_256", "sret_t", "mobilevit_xs", "convnextv2_atto", "poolformer_s12",
    "tf_efficientnet_lite0", "cifar_resnet20",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFAULT)
def test_the_default_recipe_goes_the_whole_way(name: str, tmp_path: Path) -> None:
    few = ("adalog.images=2", "adalog.candidates=64", "adalog.steps=1", "refit.images=8", "qwt.images=8")
    way = Way.go(name, tmp_path, "halfbyte-fast", few)
    loaded = way.logits(way.loaded)
    assert decibel(way.logits(way.original), loaded) > EXPECTED.get(name, Expected()).decibel - 5
    with model_state(way.run.model, "quantized"):
        assert torch.equal(way.logits(way.run.model), loaded)
    assert torch.equal(way.logits(way.loaded, batch_size=1), loaded)
