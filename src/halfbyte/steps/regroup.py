"""New groups for the inputs of a model that is quantized already: the beginning of Quantformer's search."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from halfbyte.calibrate.channel_groups import PUBLISHED_CAP, channel_ranges, grouped_ranges
from halfbyte.layers.linear import QuantLinear
from halfbyte.layers.site import SiteModule
from halfbyte.prepare import model_state
from halfbyte.quantizers.groupwise import GroupwiseQuantizer
from halfbyte.session import Session
from halfbyte.steps.groupwise import fitted

IMAGES = 64
# Values of each site that tell how much of the ranges is worth clipping.
SAMPLED = 2**18


@torch.no_grad()
def regroup(session: Session, sites: Mapping[str, QuantLinear], groups: int, assignment: str) -> None:
    """Give the inputs of `sites` ranges for `groups` of channels, by what reaches them in the quantized model.

    Channels get the groups of their own ranges, unless the assignment is `random`.
    """
    seen = _Seen(session, sites)
    with model_state(session.model, "observe", seen):
        for batch in session.images(seen.images):
            session.model(batch)
    for name, module in sites.items():
        old = module.quantizer("input")
        assert isinstance(old, GroupwiseQuantizer)
        ranges, place = grouped_ranges(seen.ranges[name], groups)
        if assignment == "random":
            place = torch.randint(groups, place.shape, generator=session.generator).to(place.device)
        grouped = GroupwiseQuantizer(old.bits, groups, signed=old.signed, levels=old.level_rule)
        grouped.set_ranges(ranges, place)
        if not session.recipe.paper_exact:
            grouped = fitted(torch.cat(seen.rows.pop(name)), grouped)
        module.set_quantizer("input", grouped.to(session.device))


class _Seen:
    """An observer that lets a quantized model run and keeps of each site's input the channels' ranges and some rows."""

    def __init__(self, session: Session, sites: Mapping[str, QuantLinear]) -> None:
        self.images = min(IMAGES, len(session.calibration))
        self.ranges: dict[str, Tensor] = {}
        self.rows: dict[str, list[Tensor]] = {name: [] for name in sites}
        self._names: dict[SiteModule, str] = {module: name for name, module in sites.items()}
        self._cap = PUBLISHED_CAP if session.recipe.paper_exact else float("inf")

    def __call__(self, module: SiteModule, operand: str, x: Tensor) -> Tensor:
        if operand == "input" and module in self._names:
            name, values = self._names[module], x.flatten(0, -2)
            found = channel_ranges(values, self._cap)
            self.ranges[name] = torch.maximum(self.ranges[name], found) if name in self.ranges else found
            self.rows[name].append(values[:: max(1, values.numel() * self.images // (len(x) * SAMPLED))].clone())
        return module.quantizer(operand)(x)  # type: ignore[no-any-return]
