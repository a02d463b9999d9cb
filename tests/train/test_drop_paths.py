"""Stochastic depth: the share grows over the blocks, and the model is afterwards what it was."""

from __future__ import annotations

import timm
import torch
from timm.layers.drop import DropPath
from torch import nn

from halfbyte.models.builtin import create_builtin
from halfbyte.train.drop_paths import drop_path_places, dropping_paths


def test_the_share_grows_and_the_model_is_left_as_it_was():
    model = create_builtin("fashion_vit")
    before = dict(model.named_modules())
    with dropping_paths(model, 0.3):
        shares = [getattr(getattr(module, name), "drop_prob", 0.0) for module, name in drop_path_places(model)]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 0.3)
    assert all(module is before[name] for name, module in model.named_modules())


def test_branches_are_left_out_for_whole_images():
    torch.manual_seed(0)
    model = create_builtin("fashion_vit").eval()
    images = torch.randn(1, 1, 28, 28).expand(64, 1, 28, 28)
    with torch.no_grad():
        expected = model(images[:1])
        with dropping_paths(model, 0.5):
            model.train()
            found = model(images)
            assert len({round(float(value), 4) for value in found[:, 0]}) > 1
        # Without a share nothing is drawn.
        with dropping_paths(model, 0.0):
            model.train()
            torch.testing.assert_close(model(images), expected.expand(64, -1), atol=1e-5, rtol=1e-5)


def test_every_family_but_resnets_has_places():
    for name in ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224"):
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
        places = drop_path_places(model)
        assert len(places) == 24
        assert all(isinstance(getattr(module, leaf), (DropPath, nn.Identity)) for module, leaf in places)
    assert not drop_path_places(create_builtin("fashion_resnet"))
