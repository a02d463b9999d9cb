"""How much a model suffers where one operand of one site has few bits: by the curvature of its predictions, or
tried."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from halfbyte.calibrate.percentile import REPQ_PERCENTILES, fit_best_range, fit_uniform, quantiles, rows_of
from halfbyte.families.layout import Site
from halfbyte.layers.activation import ExactGELU
from halfbyte.layers.norm import ExactLayerNorm
from halfbyte.layers.site import SiteModule, WeightedSite
from halfbyte.prepare import model_state, site_module
from halfbyte.quantizers.log import GELU_SHIFT, LogSqrt2Quantizer
from halfbyte.quantizers.uniform import UniformQuantizer
from halfbyte.session import Session

# Images that go through the model at once: their activations are all kept.
BATCH = 4
# The steps whose quantizers fit what transformers do to activations.
_SPECIAL = ("repq", "adalog")


def curvature(
    session: Session, sites: list[Site], widths: list[int], images: int, labels: int
) -> dict[tuple[str, str], Tensor]:
    """For each site and operand the cost `[widths]` of giving it so many bits, float64: what KL(float model || model)
    grows by, to second order, in nats an image.

    Activations are quantized roughly as the recipe's calibration would: RepQ-ViT's and AdaLog's are logarithmic behind
    softmax and GELU, and have a range for each channel behind a norm.

    That is half the mean of (g d)^2, d the change of the site's output and g the gradient of log p(y) for labels y that
    the float model draws: the Fisher information, of which `labels` draws an image are taken.
    """
    costs: dict[tuple[str, str], Tensor] = {}
    weights = {site.name: _weight_changes(site_module(session.model, site.name), widths) for site in sites}
    modules = {site_module(session.model, site.name): site for site in sites}
    for batch in session.images(images, BATCH):
        with torch.enable_grad(), _calls(modules) as calls, model_state(session.model, "float"):
            logits = session.model(batch).log_softmax(-1)
        outputs = [output for _, _, output in calls]
        drawn = torch.multinomial(logits.detach().exp().cpu(), labels, replacement=True, generator=session.generator)
        chosen = logits.gather(1, drawn.to(logits.device)).sum(0)
        gradients = [torch.autograd.grad(likelihood, outputs, retain_graph=True) for likelihood in chosen]
        # A site that is called more than once moves the predictions by the sum of what its calls do.
        moved: dict[tuple[str, str], Tensor] = {}
        for call, *slopes in zip(calls, *gradients, strict=True):
            site = modules[call[0]]
            for operand, along in _along(session, site, call, slopes, weights[site.name], widths).items():
                key = (site.name, operand)
                moved[key] = moved[key] + along if key in moved else along
        for key, along in moved.items():
            cost = 0.5 * along.double().square().flatten(1).sum(1) / (images * labels)
            costs[key] = costs[key] + cost if key in costs else cost
    return costs


@torch.no_grad()
def measured(
    session: Session, sites: list[Site], widths: list[int], images: int, labels: int
) -> dict[tuple[str, str], Tensor]:
    """What `curvature` estimates, tried: KL(float model || model) in nats an image where this operand alone has so many
    bits. A forward pass for each width of each operand; `labels` are not needed."""
    costs = {(site.name, operand): torch.zeros(len(widths), dtype=torch.float64)
             for site in sites for operand in site.operands}  # fmt: skip
    batches = list(session.images(images))
    with model_state(session.model, "float"):
        exact = [session.model(batch).double().log_softmax(-1) for batch in batches]
    for site in session.progress.track(sites, "trying widths", len(sites)):
        weights = _weight_changes(site_module(session.model, site.name), widths)
        for operand in site.operands:
            for number, bits in enumerate(widths):
                alone = _Alone(session, site, operand, bits, weights[number] if operand == "weight" else None)
                with model_state(session.model, "observe", alone):
                    for batch, reference in zip(batches, exact, strict=True):
                        found = session.model(batch).double().log_softmax(-1)
                        lost = (reference.exp() * (reference - found)).sum()
                        costs[site.name, operand][number] += lost.cpu() / images
    return costs


@dataclass(frozen=True)
class _Alone:
    """An observer that quantizes one operand of one site, a weight by the change known for it, and nothing else."""

    session: Session
    site: Site
    operand: str
    bits: int
    change: Tensor | None

    def __call__(self, module: SiteModule, operand: str, x: Tensor) -> Tensor:
        if operand != self.operand or module is not site_module(self.session.model, self.site.name):
            return x
        return (
            x + self.change
            if self.change is not None
            else next(_quantized(self.session, self.site, operand, x, [self.bits]))
        )


# The ways to tell it, by name.
SENSITIVITIES = {"curvature": curvature, "measured": measured}

Call = tuple[SiteModule, tuple[Tensor, ...], Tensor]


@contextmanager
def _calls(modules: dict[SiteModule, Site]) -> Iterator[list[Call]]:
    """For a with-block, the calls of these sites: their inputs, with gradients, and their outputs."""
    calls: list[Call] = []

    def keep(module: SiteModule, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        calls.append((module, inputs, output))
        # An activation behind may work in place.
        return output.clone()

    def tracked(_module: SiteModule, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x if x.requires_grad else x.requires_grad_(True) for x in inputs)

    handles = [module.register_forward_pre_hook(tracked) for module in modules]
    handles += [module.register_forward_hook(keep) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _along(
    session: Session, site: Site, call: Call, slopes: list[Tensor], weights: Tensor, widths: list[int]
) -> dict[str, Tensor]:
    """Of each operand, for each width, label and image, the change of the log likelihood `[widths, labels, images]`.

    slopes: for each label the gradient by the output.
    """
    module, inputs, output = call
    found = {}
    by_input = [torch.autograd.grad(output, inputs, slope, retain_graph=True) for slope in slopes]
    operands = [operand for operand in module.operands if operand != "weight"]
    for number, operand in enumerate(operands):
        exact = inputs[number].detach()
        along = torch.stack([slope[number].flatten(1) for slope in by_input])
        changes = (quantized - exact for quantized in _quantized(session, site, operand, exact, widths))
        found[operand] = torch.stack([torch.einsum("bn,lbn->lb", change.flatten(1), along) for change in changes])
    if isinstance(module, WeightedSite):
        # [groups, images, rows of an image, ...]
        patches = _by_image(module.patches(inputs[0].detach()), len(inputs[0]))
        by_label = []
        for slope in slopes:
            rows = _by_image(module.by_patch(slope), len(inputs[0]))
            by_label.append(weights.flatten(1) @ torch.einsum("gbro,gbrk->bgok", rows, patches).flatten(1).T)
        found["weight"] = torch.stack(by_label, 1)
    return found


def _by_image(rows: Tensor, images: int) -> Tensor:
    return rows.reshape(len(rows), images, -1, rows.shape[-1])


def _weight_changes(module: SiteModule, widths: list[int]) -> Tensor:
    """`[widths, O, ...]`: what rounding to so many bits does to a weight; empty for a product of activations."""
    if not isinstance(module, WeightedSite):
        return torch.zeros(0)
    weight = module.float_weight().detach()
    return torch.stack([fit_uniform(UniformQuantizer(bits, axis=0), weight)(weight) - weight for bits in widths])


def _quantized(session: Session, site: Site, operand: str, x: Tensor, widths: list[int]) -> Iterator[Tensor]:
    """An activation in each width, in the form in which a calibration for ViTs would quantize it."""
    special = any(call.name in _SPECIAL for call in session.recipe.steps)
    feeds = session.model.get_submodule(site.activation) if site.activation and special else None
    if (special and site.role == "pv" and operand == "left") or isinstance(feeds, ExactGELU):
        for bits in widths:
            log = LogSqrt2Quantizer(bits, shift=0.0 if site.role == "pv" else GELU_SHIFT)
            log.set_scale(x.amax() + log.shift)
            yield log(x)
        return
    norm = session.model.get_submodule(site.norm) if site.norm else None
    axis = 1 if site.role in ("qk", "pv") else x.ndim - 1 if isinstance(norm, ExactLayerNorm) else None
    axis = axis if special else None
    covers_zero = bool(site_module(session.model, site.name).quantizer(operand).spec().get("covers_zero", False))
    rows = rows_of(x, axis)
    edges = quantiles(rows.values, [edge for share in REPQ_PERCENTILES for edge in (1 - share, share)])
    ranges = list(zip(edges[::2], edges[1::2], strict=True))
    for bits in widths:
        yield fit_best_range(UniformQuantizer(bits, axis, covers_zero=covers_zero), rows, ranges)(x)
