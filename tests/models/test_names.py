"""Names of models, and the registry that they are promised to be in."""

from __future__ import annotations

import importlib.abc
import sys

import pytest
import timm

from halfbyte.errors import HalfbyteError
from halfbyte.models.names import PAPER_MODELS, ModelName, import_timm, known_names, resolve

QUOTED = {
    "vit_small": 81.39, "vit_base": 84.54, "deit_tiny": 72.21, "deit_small": 79.85, "deit_base": 81.80,
    "deit_tiny_distilled": 74.5, "deit_small_distilled": 81.2, "deit_base_distilled": 83.3, "swin_tiny": 81.35,
    "swin_small": 83.23, "swin_base": 85.27, "resnet18": 71.0, "resnet50": 76.6, "resnet101": 77.3,
}  # fmt: skip


def test_every_short_name_has_the_accuracy_that_the_papers_quote():
    assert {name: paper.top1 for name, paper in PAPER_MODELS.items()} == QUOTED


@pytest.mark.parametrize("short", sorted(PAPER_MODELS))
def test_short_names_are_tags_of_timm_with_published_weights(short):
    paper = PAPER_MODELS[short]
    assert paper.timm_name in timm.list_pretrained()
    config = timm.get_pretrained_cfg(paper.timm_name)
    assert config.num_classes == 1000
    assert config.input_size == (3, 224, 224)
    resolved = resolve(short)
    assert resolved.full == paper.timm_name
    assert resolved.architecture == config.architecture
    assert resolved.tag == config.tag


@pytest.mark.parametrize("short", ["vit_base", "swin_small", "resnet18", "resnet50"])
def test_the_papers_weights_are_not_timms_default(short):
    architecture, tag = PAPER_MODELS[short].timm_name.split(".")
    assert timm.get_pretrained_cfg(architecture).tag != tag


def test_a_resnet_says_that_its_weights_are_only_the_nearest():
    assert resolve("resnet50").note is not None
    assert "76.6" in resolve("resnet50").note
    assert "76.13" in resolve("resnet50").note
    assert resolve("deit_tiny").note is None


def test_a_short_name_wins_over_timms_name_but_not_over_a_tag():
    assert resolve("resnet18").tag == "tv_in1k"
    assert resolve("resnet18.a1_in1k") == ModelName("resnet18", "a1_in1k")


def test_a_timm_name_without_a_tag_gets_the_default_tag():
    assert resolve("deit_tiny_patch16_224") == ModelName("deit_tiny_patch16_224", "fb_in1k")
    assert resolve("vit_base_patch16_224").tag == "augreg2_in21k_ft_in1k"


def test_a_name_that_timm_has_replaced_resolves_to_the_new_one():
    assert resolve("tv_resnet50") == ModelName("resnet50", "tv_in1k")


def test_our_own_names_have_no_tag():
    assert resolve("fashion_vit") == ModelName("fashion_vit")
    assert resolve("cifar_resnet56") == ModelName("cifar_resnet56")


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("deit_tinny", "deit_tiny"),
        ("deit_tinny_patch16_224", "deit_tiny_patch16_224"),
        ("fashion_vti", "fashion_vit"),
        ("cifar_resnet21", "cifar_resnet20"),
        ("vit_base_patch16_224.augreg_in21k_ft_in1", "vit_base_patch16_224.augreg_in21k_ft_in1k"),
        ("deit_tiny_patch16_224.fb_in1", "deit_tiny_patch16_224.fb_in1k"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(wrong, meant):
    with pytest.raises(HalfbyteError) as error:
        resolve(wrong)
    assert meant in str(error.value)


@pytest.mark.parametrize("name", ["", "hf-hub:timm/resnet18.a1_in1k", "fashion_vit.tag", "../model", "."])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(HalfbyteError, match="unknown model"):
        resolve(name)


def test_known_names_are_of_all_four_sorts():
    names = {"deit_tiny", "fashion_swin", "cifar_resnet110", "deit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k"}
    assert names <= known_names()


class _Failing(importlib.abc.MetaPathFinder):
    def __init__(self, error):
        self.error = error

    def find_spec(self, fullname, path, target=None):
        if fullname == "timm":
            raise self.error
        return


def test_a_torchvision_of_another_torch_is_explained(monkeypatch):
    finder = _Failing(RuntimeError("operator torchvision::nms does not exist"))
    monkeypatch.delitem(sys.modules, "timm")
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    with pytest.raises(HalfbyteError, match="install torch and torchvision from the same index"):
        import_timm()


def test_another_failure_of_timm_stays_what_it_is(monkeypatch):
    monkeypatch.delitem(sys.modules, "timm")
    monkeypatch.setattr(sys, "meta_path", [_Failing(RuntimeError("something else")), *sys.meta_path])
    with pytest.raises(RuntimeError, match="something else"):
        import_timm()
