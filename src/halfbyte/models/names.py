"""Which model a name means: the papers' short names, timm's names with and without a tag, and Halfbyte's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from halfbyte.errors import HalfbyteError, did_you_mean
from halfbyte.models.builtin import BUILTIN_MODELS
from halfbyte.models.cifar_resnet import CIFAR_MODELS
from halfbyte.models.sret import SRET_MODELS

# Our own implementations, which come without weights.
OTHER_MODELS = (*CIFAR_MODELS, *SRET_MODELS)


@dataclass(frozen=True)
class PaperModel:
    """A model of the papers' tables.

    `timm_name` is the architecture with the tag of the weights, `top1` the float accuracy on ImageNet-1k that the
    papers quote, in percent; `note` says where weights and quoted accuracy are known to differ.
    """

    timm_name: str
    top1: float
    note: str | None = None


def _resnet(depth: int, quoted: float, tagged: float) -> PaperModel:
    note = (
        f"the papers quote {quoted} for weights of their own, in torchvision's v1.5 layout; "
        f"tv_in1k ({tagged}) is the nearest that timm has"
    )
    return PaperModel(f"resnet{depth}.tv_in1k", quoted, note)


# timm's default tags have moved on since the papers (vit_base is augreg2 now, swin_small is pretrained on ImageNet-22k,
# the ResNets are a1_in1k), so every short name carries the tag whose accuracy the tables start from.
PAPER_MODELS: dict[str, PaperModel] = {
    "vit_small": PaperModel("vit_small_patch16_224.augreg_in21k_ft_in1k", 81.39),
    "vit_base": PaperModel("vit_base_patch16_224.augreg_in21k_ft_in1k", 84.54),
    "deit_tiny": PaperModel("deit_tiny_patch16_224.fb_in1k", 72.21),
    "deit_small": PaperModel("deit_small_patch16_224.fb_in1k", 79.85),
    "deit_base": PaperModel("deit_base_patch16_224.fb_in1k", 81.80),
    "deit_tiny_distilled": PaperModel("deit_tiny_distilled_patch16_224.fb_in1k", 74.5),
    "deit_small_distilled": PaperModel("deit_small_distilled_patch16_224.fb_in1k", 81.2),
    "deit_base_distilled": PaperModel("deit_base_distilled_patch16_224.fb_in1k", 83.3),
    "swin_tiny": PaperModel("swin_tiny_patch4_window7_224.ms_in1k", 81.35),
    "swin_small": PaperModel("swin_small_patch4_window7_224.ms_in1k", 83.23),
    "swin_base": PaperModel("swin_base_patch4_window7_224.ms_in22k_ft_in1k", 85.27),
    "resnet18": _resnet(18, 71.0, 69.76),
    "resnet50": _resnet(50, 76.6, 76.13),
    "resnet101": _resnet(101, 77.3, 77.37),
}


@dataclass(frozen=True)
class ModelName:
    """What a name stands for: `architecture` (timm's without tag, or our own), the weights' `tag`, and a remark."""

    architecture: str
    tag: str | None = None
    note: str | None = None

    @property
    def full(self) -> str:
        """The name with its tag."""
        return f"{self.architecture}.{self.tag}" if self.tag else self.architecture


def import_timm() -> Any:
    """The package timm; raises `HalfbyteError` where it cannot be imported because torch and torchvision differ."""
    try:
        import timm
    except RuntimeError as error:
        # torchvision's compiled operators register only with the torch they were built for.
        if "torchvision::nms" not in str(error):
            raise
        raise HalfbyteError(
            "torchvision does not fit the installed torch, so timm cannot be imported: install torch and torchvision "
            "from the same index, such as pip install --force-reinstall torch torchvision"
        ) from error
    return timm


def known_names() -> set[str]:
    """Every name that `resolve` takes, timm's with and without tags."""
    timm = import_timm()
    return {
        *PAPER_MODELS,
        *BUILTIN_MODELS,
        *OTHER_MODELS,
        *timm.list_models(),
        *timm.list_models(include_tags=True),
    }


def resolve(name: str) -> ModelName:
    """The model that `name` means.

    A short name of the papers wins over timm's model of that name; a timm name without a tag gets timm's default
    tag. Raises `HalfbyteError` with the nearest names for an unknown model or tag.
    """
    if name in BUILTIN_MODELS or name in OTHER_MODELS:
        return ModelName(name)
    if name in PAPER_MODELS:
        paper = PAPER_MODELS[name]
        architecture, tag = paper.timm_name.split(".")
        return ModelName(architecture, tag, paper.note)
    return _resolve_timm(name)


def _resolve_timm(name: str) -> ModelName:
    timm = import_timm()
    current = timm.models.get_deprecated_models().get(name)
    architecture, _, tag = (current or name).partition(".")
    if not timm.is_model(architecture):
        raise HalfbyteError(f"unknown model {name!r}{did_you_mean(name, known_names())}")
    try:
        config = timm.get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)
    except RuntimeError as error:
        tags = timm.list_models(f"{architecture}.*", include_tags=True)
        raise HalfbyteError(f"model {architecture!r} has no tag {tag!r}{did_you_mean(name, tags)}") from error
    return ModelName(architecture, (config.tag if config else tag) or None)
