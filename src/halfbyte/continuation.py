"""Going on from an artifact: its quantizers, edits and leftovers on the float weights from which it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfbyte.artifact import load_artifact, named_leftovers
from halfbyte.artifact_files import read_facts
from halfbyte.edits import LEARNS_ANEW
from halfbyte.errors import HalfbyteError
from halfbyte.families.layout import Site
from halfbyte.layers.norm import ExactBatchNorm
from halfbyte.layers.site import WeightedSite
from halfbyte.models.load import EMBEDDED
from halfbyte.prepare import site_module
from halfbyte.recipe import BitPlan, bit_plan
from halfbyte.session import Session

# Of the largest entry: what rounding may have moved a bias that no step corrected.
SAME_BIAS = 1e-4
# The steps that need no float model but their teacher.
TRAINS = ("train", "quantformer")


def artifact_plan(folder: Path) -> tuple[BitPlan, bool]:
    """The bit widths with which an artifact was made, and whether it is `paper_exact`."""
    facts, _ = read_facts(folder)
    recipe = facts.get("recipe")
    if recipe is None:
        raise HalfbyteError(f"--from {folder}: the artifact does not say by which recipe it was made")
    return bit_plan(recipe.get("bits"), f"--from {folder}"), bool(facts.get("paper_exact"))


def artifact_source(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where an artifact's float model came from, and the preprocessing of its images."""
    facts, _ = read_facts(folder)
    return facts["source"], facts["preprocessing"]


def source_name(source: dict[str, Any]) -> str:
    """The name that loads the architecture of an artifact's source again, with the same preprocessing."""
    plain = source["tag"] is None or source["weights"] == EMBEDDED
    return str(source["architecture"] if plain else source["name"])


def check_weights(source: dict[str, Any], sha256: str | None, what: str) -> None:
    """Raise `HalfbyteError` unless the weights of that hash are those from which an artifact was made."""
    if sha256 != source["sha256"]:
        raise HalfbyteError(f"{what} are not the weights from which the artifact was made (sha256 differs)")


@torch.no_grad()
def adopt(session: Session, folder: Path) -> None:
    """Bring a session's freshly prepared model to where the artifact in `folder` is.

    The float weights are rescaled as the artifact's steps rescaled them; its integer codes stay until a step changes
    the weight's quantizer. Where training changed the weights, they are what the codes stand for, and only training can
    go on. Raises `HalfbyteError` for what was learned and cannot be had again.
    """
    artifact = load_artifact(folder)
    learned = any(plain["name"] == "train_model" for plain in artifact.facts["edits"])
    only_trains = all(call.name in TRAINS for call in session.recipe.steps)
    for plain in artifact.facts["edits"]:
        if plain["name"] == "train_model" and only_trains:
            continue
        if (what := LEARNS_ANEW.get(plain["name"])) is not None:
            raise HalfbyteError(
                f"--from {folder}: its {what} were learned, and the trained ones are not in it; put all steps in one "
                "recipe"
            )
    for plain in artifact.facts["edits"]:
        session.edit(plain["name"], **plain["arguments"])
    kept = named_leftovers(artifact.model)
    for path, norm in session.model.named_modules():
        if isinstance(norm, ExactBatchNorm):
            norm.restate(kept[f"{path}.running_mean"], kept[f"{path}.running_var"])
    trained = {name: tensor.detach().clone() for name, tensor in named_leftovers(session.model).items()}
    for name, tensor in named_leftovers(session.model).items():
        tensor.copy_(kept[name])
    for site in session.layout.sites:
        module, source = site_module(session.model, site.name), site_module(artifact.model, site.name)
        for operand in site.operands:
            module.set_quantizer(operand, source.quantizer(operand).to(session.device))
        if isinstance(module, WeightedSite) and isinstance(source, WeightedSite):
            if module.folded_scale is not None:
                module.rescale_weight(module.folded_scale)
            module.weight_codes = source.codes().to(session.device)
            if learned and module.weight is not None:
                module.weight.copy_(source.float_weight())
                continue
            _tell_corrected_bias(module, site, trained, kept)


def _tell_corrected_bias(module: WeightedSite, site: Site, trained: dict[str, Tensor], kept: dict[str, Tensor]) -> None:
    """Where an artifact's bias is more than the trained one with what its norm's shift asks for, keep the latter for
    the state `float`."""
    if module.bias is None:
        return
    bias = trained[f"{site.name}.bias"].double()
    if site.norm is not None and module.folded_scale is not None and module.weight is not None:
        before, after = trained[f"{site.norm}.bias"].double(), kept[f"{site.norm}.bias"].to(bias.device).double()
        bias = bias + module.weight.double() @ (before / module.folded_scale.double() - after)
    if not torch.allclose(bias.float(), module.bias, rtol=0, atol=SAME_BIAS * float(bias.abs().max())):
        module.trained_bias = bias.float()
