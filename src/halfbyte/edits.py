"""Changes of a prepared model's structure, by name and with plain arguments, so that a file can repeat them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from halfbyte.errors import HalfbyteError
from halfbyte.layers.norm import ExactLayerNorm
from halfbyte.layers.site import WeightedSite
from halfbyte.prepare import site_module
from halfbyte.registry import Registry

EditFunction = Callable[..., None]
EDITS: Registry[EditFunction] = Registry("edit")


@dataclass(frozen=True)
class Edit:
    """One structural change: the registered name and its arguments, all plain values."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def apply(self, model: nn.Module) -> None:
        """Make the change; raises `HalfbyteError` for an unknown name or arguments that do not fit."""
        function = EDITS.get(self.name)
        try:
            function(model, **self.arguments)
        except (TypeError, AttributeError) as error:
            raise HalfbyteError(f"the edit {self.name} does not fit the model: {error}") from None


@EDITS.register("add_bias")
def add_bias(model: nn.Module, site: str) -> None:
    """Give a site without a bias one of zeros `[O]`."""
    module, weight = _weighted(model, site)
    if module.bias is None:
        del module.bias
        module.bias = nn.Parameter(torch.zeros(weight.shape[0], device=weight.device))


@EDITS.register("add_norm_affine")
def add_norm_affine(model: nn.Module, norm: str) -> None:
    """Give a norm without weight or bias those of the identity `[C]`."""
    module = model.get_submodule(norm)
    if not isinstance(module, ExactLayerNorm):
        raise HalfbyteError(f"{norm} is not a LayerNorm over one dimension")
    (channels,) = module.normalized_shape
    device = next(model.parameters()).device
    for name, fill in (("weight", 1.0), ("bias", 0.0)):
        if getattr(module, name) is None:
            delattr(module, name)
            setattr(module, name, nn.Parameter(torch.full((channels,), fill, device=device)))


@EDITS.register("track_scale")
def track_scale(model: nn.Module, site: str) -> None:
    """Let a site remember what its weight's input channels were multiplied by (`WeightedSite.folded_scale` `[I]`)."""
    module, weight = _weighted(model, site)
    if module.folded_scale is None:
        module.folded_scale = torch.ones(weight.shape[1], device=weight.device)


def _weighted(model: nn.Module, site: str) -> tuple[WeightedSite, Tensor]:
    """A site that has a weight, and this as float."""
    module = site_module(model, site)
    if not isinstance(module, WeightedSite):
        raise HalfbyteError(f"the site {site} is a product of activations and has no weight")
    return module, module.float_weight()
