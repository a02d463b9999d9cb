"""Architectures without weights: built without a network, or told why they cannot be."""

from __future__ import annotations

import pytest
import torch

from halfbyte.errors import HalfbyteError
from halfbyte.models.load import create_architecture


def test_architectures_are_built_without_a_network(no_network):
    assert create_architecture("fashion_swin")(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    assert create_architecture("test_vit", "r160_in1k").pretrained_cfg["tag"] == "r160_in1k"
    assert create_architecture("test_vit", num_classes=7).head.out_features == 7
    assert not no_network


def test_a_headless_model_gets_a_classifier():
    model = create_architecture("vit_small_patch14_dinov2", "lvd142m", img_size=56, depth=1)
    assert model.head.out_features == model.num_classes == 1000
    assert create_architecture("vit_small_patch14_dinov2", num_classes=7, img_size=56, depth=1).num_classes == 7


@pytest.mark.parametrize(
    ("architecture", "tag", "arguments", "message"),
    [
        ("resnet19", None, {}, "unknown architecture 'resnet19'; did you mean resnet18"),
        ("hf-hub:timm/resnet18", None, {}, "unknown architecture"),
        ("test_vit", "r161_in1k", {}, r"no tag 'r161_in1k'; did you mean test_vit\.r160_in1k"),
        ("test_vit", None, {"wings": 2}, "cannot build test_vit.*wings"),
        ("fashion_vit", None, {"wings": 2}, "cannot build fashion_vit.*wings"),
    ],
)
def test_what_cannot_be_built_is_told(architecture, tag, arguments, message):
    with pytest.raises(HalfbyteError, match=message):
        create_architecture(architecture, tag, **arguments)
