"""Mixed precision: widths by how much each site suffers, within a budget of bits or bytes (HAWQ-V2, Dong et al., 2020:
curvature; the allocation by Lagrange's relaxation)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from halfbyte.artifact import named_leftovers, stored_dtype
from halfbyte.calibrate.allocate import allocate
from halfbyte.errors import HalfbyteError
from halfbyte.families.layout import Site
from halfbyte.layers.site import WeightedSite
from halfbyte.prepare import set_default_quantizers, site_module
from halfbyte.quantizers.base import MAX_BITS, MIN_BITS
from halfbyte.recipe import Bits
from halfbyte.session import Session
from halfbyte.steps.sensitivity import SENSITIVITIES

BUDGET = re.compile(r"(\d+(?:\.\d+)?) ?(bits|MB)")
# What a file says of a tensor besides its numbers, at most; and a row's scale and zero point.
TENSOR_BYTES, ROW_BYTES = 160, 8


@dataclass(frozen=True)
class Mixed:
    """Give every site whose widths neither its role nor its name fixes widths of its own, before any calibration.

    budget: `4.0bits`: so many an average weight, and an average multiply-accumulate's activation; or `3.2MB`: of the
    artifact's tensors, activations as planned. sensitivity: by `curvature`, to second order, or `measured`, one forward
    pass for each width of each operand. images, draws: how many, and how many backward passes an image, from which it
    comes. least, most: the widths to choose from.
    """

    prepares: ClassVar[bool] = True
    calibrates: ClassVar[bool] = False
    budget: str = "4.0bits"
    sensitivity: str = "curvature"
    images: int = 64
    draws: int = 2
    least: int = MIN_BITS
    most: int = MAX_BITS

    def __post_init__(self) -> None:
        if BUDGET.fullmatch(self.budget) is None:
            raise ValueError("budget must be like 4.0bits or 3.2MB")
        if self.sensitivity not in SENSITIVITIES:
            raise ValueError(f"sensitivity must be one of {', '.join(SENSITIVITIES)}")
        if not MIN_BITS <= self.least <= self.most <= MAX_BITS:
            raise ValueError(f"least and most must be from {MIN_BITS} to {MAX_BITS}, in this order")
        amount, unit = _parsed(self.budget)
        if unit == "bits" and amount < self.least:
            raise ValueError(f"budget must be at least {self.least}bits, the least width there is, not {self.budget}")
        if self.images < 1 or self.draws < 1:
            raise ValueError("images and draws must be at least 1")

    def run(self, session: Session) -> dict[str, Any]:
        """Measure, choose, and give the sites quantizers of the widths chosen, not yet fitted.

        Raises `HalfbyteError` where the budget is too small, or no site is free.
        """
        sites = self.check(session)
        widths = list(range(self.least, self.most + 1))
        costs = SENSITIVITIES[self.sensitivity](session, sites, widths, self.images, self.draws)
        weighted = [site for site in sites if "weight" in site.operands]
        amount, unit = _parsed(self.budget)
        # Sums beyond 2^24 are exact in float64 alone.
        sizes = torch.tensor([_elements(session, site) for site in weighted], dtype=torch.float64)
        bits = amount * float(sizes.sum()) if unit == "bits" else 8 * (1e6 * amount - _fixed_bytes(session, weighted))
        found = self._chosen(costs, weighted, ("weight",), sizes, bits, widths)
        chosen = {site.name: Bits(weight=width) for site, width in zip(weighted, found, strict=True)}
        if unit == "bits":
            macs = torch.tensor([site.macs for site in sites], dtype=torch.float64)
            found = self._chosen(costs, sites, ("input", "left", "right"), macs, amount * float(macs.sum()), widths)
            for site, width in zip(sites, found, strict=True):
                chosen[site.name] = replace(chosen.get(site.name, Bits()), activation=width)
        session.bits = replace(session.bits, sites={**session.bits.sites, **chosen})
        for site in sites:
            set_default_quantizers(site_module(session.model, site.name), *session.bits.of(site))
        return {"sites": {name: [bits.weight, bits.activation] for name, bits in chosen.items()}}

    def check(self, session: Session) -> list[Site]:
        """The sites whose widths are free; raises `HalfbyteError` where there are none."""
        sites = [site for site in session.layout.sites if session.bits.is_free(site)]
        if not sites:
            raise HalfbyteError("mixed: roles and sites fix the widths of all sites; leave the step out")
        return sites

    def _chosen(
        self,
        costs: dict[tuple[str, str], Tensor],
        sites: list[Site],
        operands: tuple[str, ...],
        sizes: Tensor,
        budget: float,
        widths: list[int],
    ) -> list[int]:
        """The widths of these operands, each of which takes `sizes` times its width of the budget."""
        cost = torch.stack([
            torch.stack([costs[site.name, operand] for operand in site.operands if operand in operands]).sum(0)
            for site in sites
        ])  # fmt: skip
        cost = _alike(cost, [site.role for site in sites])
        try:
            choice = allocate(cost.cpu(), sizes[:, None] * torch.tensor(widths, dtype=torch.float64), budget)
        except ValueError:
            raise HalfbyteError(
                f"mixed: {self.budget} is too little even at {self.least} bits everywhere; give more"
            ) from None  # fmt: skip
        return [widths[number] for number in choice]


def _alike(cost: Tensor, roles: list[str]) -> Tensor:
    """Costs `[sites, widths]` that fall with the width as those of the site's role do, and never rise.

    Each site has a level of its own, the geometric mean over the widths; what else distinguishes it is mostly the noise
    of few images, which an allocation would follow.
    """
    log = cost.clamp(min=max(1e-9 * float(cost.max()), torch.finfo(cost.dtype).tiny)).log()
    level = log.mean(1, keepdim=True)
    for role in sorted(set(roles)):
        same = torch.tensor([number for number, other in enumerate(roles) if other == role])
        log[same] = level[same] + (log - level)[same].mean(0)
    return log.exp().flip(1).cummax(1).values.flip(1)


def _parsed(budget: str) -> tuple[float, str]:
    found = BUDGET.fullmatch(budget)
    assert found is not None
    return float(found[1]), found[2]


def _elements(session: Session, site: Site) -> int:
    module = site_module(session.model, site.name)
    assert isinstance(module, WeightedSite)
    return module.float_weight().numel()


def _fixed_bytes(session: Session, free: list[Site]) -> float:
    """Of the artifact, what no choice changes: leftovers, scales, and the weights of sites that are not free."""
    leftovers = named_leftovers(session.model)
    total = sum(
        tensor.numel() * stored_dtype(name, tensor).itemsize + TENSOR_BYTES for name, tensor in leftovers.items()
    )
    names = {site.name for site in free}
    for site in session.layout.sites:
        total += 4 * TENSOR_BYTES
        if "weight" in site.operands:
            module = site_module(session.model, site.name)
            assert isinstance(module, WeightedSite)
            total += ROW_BYTES * len(module.float_weight())
            if site.name not in names:
                total += _elements(session, site) * session.bits.of(site)[0] // 8
    return float(total)
