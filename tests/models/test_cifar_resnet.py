"""The CIFAR ResNets against the paper's description and against trained weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from halfbyte.data.images import batches, limit, open_images
from halfbyte.models.cifar_resnet import CIFAR_MODELS, CifarBasicBlock, CifarResNet, PaddedShortcut, create_cifar_resnet
from halfbyte.models.load import load_model

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared weights and images")


@pytest.mark.parametrize(
    ("name", "parameters"),
    # He et al., table 6, in millions: 0.27, 0.46, 0.66, 0.85, 1.7
    [
        ("cifar_resnet20", 269_722),
        ("cifar_resnet32", 464_154),
        ("cifar_resnet44", 658_586),
        ("cifar_resnet56", 853_018),
        ("cifar_resnet110", 1_727_962),
    ],
)
def test_sizes_are_those_of_the_paper(name, parameters):
    model = create_cifar_resnet(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) + 1 == int(name.removeprefix("cifar_resnet"))


def test_all_names_can_be_built_and_others_cannot():
    assert tuple(f"cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110)) == CIFAR_MODELS
    with pytest.raises(KeyError):
        create_cifar_resnet("cifar_resnet21")
    with pytest.raises(ValueError, match="6n"):
        CifarResNet(21)


def test_the_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides():
    x = torch.arange(2 * 2 * 4 * 4).reshape(2, 2, 4, 4).float()
    y = PaddedShortcut(2, 1)(x)
    assert y.shape == (2, 4, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, [0, 2]][:, :, :, [0, 2]])
    assert not y[:, [0, 3]].any()


def test_a_block_computes_what_it_says():
    torch.manual_seed(0)
    block = CifarBasicBlock(16, 32, 2).eval()
    x = torch.randn(2, 16, 9, 9)
    with torch.no_grad():
        inner = torch.nn.functional.conv2d(x, block.conv1.weight, stride=2, padding=1).div(1.00001**0.5).clamp(min=0)
        inner = torch.nn.functional.conv2d(inner, block.conv2.weight, padding=1).div(1.00001**0.5)
        expected = (inner + PaddedShortcut(2, 8)(x)).clamp(min=0)
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_the_model_carries_its_preprocessing_and_takes_other_class_counts():
    model = create_cifar_resnet("cifar_resnet20", num_classes=7)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert model.pretrained_cfg["num_classes"] == 7
    config = create_cifar_resnet("cifar_resnet20").pretrained_cfg
    assert config["input_size"] == (3, 32, 32)
    assert (config["crop_pct"], config["interpolation"], config["num_classes"]) == (1.0, "bicubic", 10)
    assert (config["first_conv"], config["classifier"]) == ("conv1", "linear")
    assert config["mean"] == (0.485, 0.456, 0.406)


# The weights were trained on the original images. The shared ones went through JPEG of quality 75 with halved colour
# resolution, which costs much at 32 x 32 pixels; with a shortcut padded on one side only they would score below 20 %.
@needs_shared
@pytest.mark.parametrize(("depth", "top1"), [(20, 79.0), pytest.param(56, 84.6, marks=pytest.mark.slow)])
def test_trained_weights_load_strictly_and_classify(depth, top1):
    loaded = load_model(f"cifar_resnet{depth}", SHARED / "weights" / f"cifar10_resnet{depth}.safetensors")
    images = open_images(SHARED / "cifar10_test_5000.npz", loaded.data_config, num_classes=10)
    sample = limit(images, 500)
    assert [sample.labels.count(label) for label in range(10)] == [50] * 10
    with torch.inference_mode():
        hits = sum(int((loaded.model(x).argmax(1) == y).sum()) for x, y in batches(sample, 125))
    assert 100 * hits / 500 == pytest.approx(top1, abs=1.0)
