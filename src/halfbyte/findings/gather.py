"""Everything that a report shows of a quantized model: which sites, which images, and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from halfbyte.data.images import ImageSet
from halfbyte.families.layout import Layout
from halfbyte.findings.attention import attention_findings
from halfbyte.findings.operands import operand_findings

ATTENTION_IMAGES, ATTENTION_SITES = 3, 2


def model_findings(
    teacher: nn.Module,
    model: nn.Module,
    layout: Layout,
    sites: Sequence[Mapping[str, Any]],
    images: ImageSet,
    pixels: Tensor,
    preprocessing: Mapping[str, Any],
) -> dict[str, Any]:
    """`ranges` of all operands, `histograms` of the site of lowest SQNR in each role, and `attention` of the first
    images.

    `sites` are those of the metrics, with their SQNR; `pixels` `[B, C, H, W]` on the model's device run through every
    site, `images` give the attention maps.
    """
    lowest = _lowest_by_role(sites)
    ranges, histograms = operand_findings(model, layout, pixels, set(lowest.values()))
    attended = [site.name for site in layout.sites if site.role == "pv"]
    # The one that the quantizers hurt most, and what the classifier is made from.
    wanted = (lowest.get("pv"), *attended[-1:], *attended[:1])
    shown = list(dict.fromkeys(name for name in wanted if name is not None))[:ATTENTION_SITES]
    attention: list[dict[str, Any]] = []
    if shown:
        few = torch.stack([images[number][0] for number in range(min(ATTENTION_IMAGES, len(images)))])
        attention = attention_findings(teacher, model, layout, shown, few.to(pixels.device), preprocessing)
    return {"ranges": ranges, "histograms": histograms, "attention": attention}


def _lowest_by_role(sites: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The name of the site of lowest SQNR in each role; what stands beside the blocks has none."""
    best: dict[str, Mapping[str, Any]] = {}
    for site in sites:
        if site["sqnr_db"] is not None:
            role = site["role"]
            if role not in best or site["sqnr_db"] < best[role]["sqnr_db"]:
                best[role] = site
    return {role: str(site["name"]) for role, site in best.items()}
