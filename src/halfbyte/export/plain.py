"""An artifact's weights in the model as its library makes it, for runtimes that start from that."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from halfbyte.artifact import load_artifact
from halfbyte.layers.site import WeightedSite
from halfbyte.models.load import create_architecture
from halfbyte.prepare import example_input, model_state
from halfbyte.program.ops import Array

# How far apart the same function in float32 may lie, as a share of its largest value.
_SAME = 1e-4


def plain_state(folder: Path) -> dict[str, Array] | None:
    """The state of the plain model, as `create_architecture` makes it, with the artifact's dequantized weights.

    It may hold biases of linear layers and convolutions that the plain model has none for. None where the artifact's
    edits made another model of it: gave it something beside its blocks, or other modules, or tensors that another
    function needs. Raises `HalfbyteError` for a folder that is no artifact or is damaged.
    """
    artifact = load_artifact(folder)
    model, source = artifact.model, artifact.facts["source"]
    if any(site.role == "side" for site in artifact.layout.sites):
        return None
    plain = create_architecture(source["architecture"], source["tag"]).eval()
    known = model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, WeightedSite):
            known[f"{name}.weight"] = module.float_weight()
            found = dict(plain.named_modules()).get(name)
            if found is not None and found.bias is None and module.bias is not None:
                found.bias = nn.Parameter(module.bias.detach())
    # What no artifact keeps, such as how many batches a norm saw, stays as it is made.
    state = {name: known.get(name, tensor) for name, tensor in plain.state_dict().items()}
    try:
        plain.load_state_dict(state)
    except RuntimeError:  # of another shape
        return None
    image = torch.randn(example_input(model).shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), model_state(model, "float"):
        expected, result = model(image), plain(image)
    if (result - expected).abs().max() > _SAME * expected.abs().max():
        return None
    return {name: tensor.detach().numpy() for name, tensor in state.items()}
