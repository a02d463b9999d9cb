"""Stochastic depth: the share grows over the blocks, and the model is afterwards what it was."""

from __future__ import annotations

import timm
import torch

from halfbyte.models.builtin import create_builtin
from halfbyte.models.sret import create_sret
from halfbyte.train.drop_paths import drop_path_places, dropping_paths


def test_the_share_grows_and_the_model_is_left_as_it_was():
    model = create_builtin("fashion_vit")
    before = dict(model.named_modules())
    with dropping_paths(model, 0.3):
        shares = [
            model.blocks[block].get_submodule(name).p for block in (0, -1) for name in ("drop_path1", "drop_path2")
        ]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 0.3)
    assert all(module is before[name] for name, module in model.named_modules())


def test_a_branch_is_left_out_for_whole_images_and_made_up_for():
    torch.manual_seed(0)
    model = create_builtin("fashion_vit")
    with dropping_paths(model, 0.5):
        branch = model.train().blocks[-1].drop_path2(torch.ones(1000, 3, 5)).flatten(1)
    assert sorted(set(branch.flatten().tolist())) == [0.0, 2.0]
    assert (branch == branch[:, :1]).all()
    assert 0.4 < float((branch == 0).float().mean()) < 0.6


def test_without_a_share_nothing_is_drawn():
    model, images = create_builtin("fashion_vit").eval(), torch.randn(4, 1, 28, 28)
    with torch.no_grad(), dropping_paths(model, 0.0):
        expected = model(images)
        assert torch.equal(model.train()(images), expected)


def test_every_family_but_resnets_has_places():
    with torch.device("meta"):
        for name in ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224"):
            assert len(drop_path_places(timm.create_model(name, pretrained=False))) == 24
            made_with = timm.create_model(name, pretrained=False, drop_path_rate=0.1)
            assert len(drop_path_places(made_with)) == 24
        assert drop_path_places(create_sret("sret_t"))
    assert not drop_path_places(create_builtin("fashion_resnet"))
