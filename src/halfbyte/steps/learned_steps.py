"""Quantizers whose steps training learns, started by least squares (LSQ; VVTQ's module-dependent scheme)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from halfbyte.families.layout import Site
from halfbyte.layers.activation import ExactElementwise, ExactGELU
from halfbyte.layers.attention import AttentionAdapter
from halfbyte.layers.linear import QuantLinear
from halfbyte.layers.site import SiteModule, WeightedSite
from halfbyte.prepare import model_state, site_module
from halfbyte.quantizers.lsq import LsqQuantizer, bounds, least_squares_step, published_step
from halfbyte.session import Session

SCHEMES = ("lsq", "vvtq")
# Values of one operand by which its step is chosen, and the steps that are tried, as shares of the one that clips none.
SAMPLES = 2**16
SHARES = torch.linspace(0.05, 1.0, 96)


@dataclass(frozen=True)
class LearnedSteps:
    """Give every site quantizers of `quantizers.lsq`.

    Signed, but for attention maps and what comes out of ReLU, and behind GELU with an offset. scheme: `vvtq` has one
    step a weight, and q, k and v apart; `lsq` one for each output channel. images: by which the steps of activations
    are chosen, that of least squared error; a recipe that is `paper_exact` takes VVTQ's first guess instead, by one
    batch.
    """

    calibrates: ClassVar[bool] = True
    scheme: str = "vvtq"
    images: int = 64

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}")
        if self.images < 1:
            raise ValueError("images must be at least 1")

    def run(self, session: Session) -> dict[str, Any]:
        """Split the packed projections where the scheme asks for it, then choose every step."""
        if self.scheme == "vvtq":
            for path, module in list(session.model.named_modules()):
                if isinstance(module, AttentionAdapter) and isinstance(getattr(module, "qkv", None), QuantLinear):
                    session.edit("split_qkv", attention=path)
        seen = _Samples(session)
        with torch.no_grad(), model_state(session.model, "observe", seen):
            for batch in session.images(self.images):
                session.model(batch)
        for site in session.layout.sites:
            self._set(session, site, seen)
        return {"steps": sum(len(site.operands) for site in session.layout.sites)}

    def _set(self, session: Session, site: Site, seen: _Samples) -> None:
        module, (weight_bits, activation_bits) = site_module(session.model, site.name), session.bits.of(site)
        for operand in site.operands:
            if operand == "weight":
                assert isinstance(module, WeightedSite)
                axis = 0 if self.scheme == "lsq" else None
                quantizer = LsqQuantizer(weight_bits, axis)
                quantizer.set_step(least_squares_step(module.float_weight().detach(), weight_bits, axis=axis))
            else:
                signed, shifted = form_of(session.model, site, operand)
                quantizer = LsqQuantizer(activation_bits, signed=signed, with_offset=shifted)
                values = seen.of(module, operand)
                if session.recipe.paper_exact:
                    quantizer.set_step(published_step(values, activation_bits))
                else:
                    quantizer.set_step(*chosen_step(values, quantizer))
            module.set_quantizer(operand, quantizer.to(session.device))


def form_of(model: nn.Module, site: Site, operand: str) -> tuple[bool, bool]:
    """Whether an activation's levels are signed, and whether they have an offset."""
    if site.role == "pv" and operand == "left":
        return False, False
    activation = model.get_submodule(site.activation) if site.activation else None
    if isinstance(activation, (ExactGELU, ExactElementwise)):
        return False, True
    return activation is None, False


def chosen_step(values: Tensor, quantizer: LsqQuantizer) -> tuple[Tensor, Tensor | None]:
    """The step, and the offset where there is one, of least squared error: the best of some, then least squares.

    An offset begins at the smallest value, which unsigned levels could not reach without it.
    """
    low, high = bounds(quantizer.bits, quantizer.signed)
    beta = values.min() if quantizer.with_offset else torch.zeros(())
    moved = values - beta
    largest = torch.maximum(moved.max() / high, -moved.min() / -low if low else torch.zeros(()))
    largest = largest if float(largest) > 0 else torch.ones(())
    errors = [(moved - (moved / step).clamp(low, high).round() * step).square().mean() for step in SHARES * largest]
    step = SHARES[int(torch.stack(errors).argmin())] * largest
    levels = (moved / step).clamp(low, high).round()
    if float(levels.square().sum()) > 0:
        better = (moved * levels).sum() / levels.square().sum()
        step = better if float(better) > 0 else step
    return step, beta if quantizer.with_offset else None


class _Samples:
    """An observer that keeps some values of every activation, drawn from all batches alike."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._kept: dict[tuple[SiteModule, str], list[Tensor]] = {}

    def __call__(self, module: SiteModule, operand: str, x: Tensor) -> Tensor:
        if operand != "weight":
            flat = x.detach().float().flatten()
            drawn = torch.randint(len(flat), (min(SAMPLES, len(flat)),), generator=self.session.generator)
            self._kept.setdefault((module, operand), []).append(flat[drawn.to(flat.device)].cpu())
        return x

    def of(self, module: SiteModule, operand: str) -> Tensor:
        """At most `SAMPLES` values."""
        values = torch.cat(self._kept[module, operand])
        return values[:: -(-len(values) // SAMPLES)]
