"""How much a model suffers where one operand of one site has few bits: by the curvature of its predictions, or
tried."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from halfbyte.families.layout import Site
from halfbyte.layers.site import SiteModule, WeightedSite
from halfbyte.prepare import model_state, site_module
from halfbyte.session import Session
from halfbyte.steps.rough_quantizers import RoughQuantizers

# Images that go through the model at once: their activations are all kept.
BATCH = 4


def curvature(
    session: Session, sites: list[Site], widths: list[int], images: int, draws: int
) -> dict[tuple[str, str], Tensor]:
    """For each site and operand the cost `[widths]` of giving it so many bits, float64: what KL(float model || model)
    grows by, to second order, in nats an image.

    Operands are quantized roughly as the recipe's calibration would (`RoughQuantizers`).

    That is half the sum over the classes y of p(y) (g_y d)^2, d the change of the site's output and g_y the gradient of
    log p(y): the Fisher information. A backward pass gives the square of one sum of sqrt(p(y)) g_y d with random signs,
    whose mean it is; `draws` are taken an image. Labels drawn by p would scatter far more: rare ones weigh most.
    """
    costs: dict[tuple[str, str], Tensor] = {}
    rough = RoughQuantizers(session, sites, widths)
    weights = {site.name: rough.weight_changes(site) for site in sites}
    modules = {site_module(session.model, site.name): site for site in sites}
    for batch in session.images(images, BATCH):
        with torch.enable_grad(), _calls(modules) as calls, model_state(session.model, "float"):
            logits = session.model(batch).log_softmax(-1)
        outputs = [output for _, _, output in calls]
        signs = torch.randint(2, (draws, *logits.shape), generator=session.generator).to(logits.device) * 2 - 1
        sums = (signs * logits.detach().div(2).exp() * logits).flatten(1).sum(1)
        gradients = [torch.autograd.grad(one, outputs, retain_graph=True) for one in sums]
        # A site that is called more than once moves the predictions by the sum of what its calls do.
        moved: dict[tuple[str, str], Tensor] = {}
        for call, *slopes in zip(calls, *gradients, strict=True):
            site = modules[call[0]]
            for operand, along in _along(rough, site, call, slopes, weights[site.name], widths).items():
                key = (site.name, operand)
                moved[key] = moved[key] + along if key in moved else along
        for key, along in moved.items():
            cost = 0.5 * along.double().square().flatten(1).sum(1) / (images * draws)
            costs[key] = costs[key] + cost if key in costs else cost
    return costs


@torch.no_grad()
def measured(
    session: Session, sites: list[Site], widths: list[int], images: int, draws: int
) -> dict[tuple[str, str], Tensor]:
    """What `curvature` estimates, tried: KL(float model || model) in nats an image where this operand alone has so many
    bits. A forward pass for each width of each operand; `draws` are not needed."""
    costs = {(site.name, operand): torch.zeros(len(widths), dtype=torch.float64)
             for site in sites for operand in site.operands}  # fmt: skip
    rough = RoughQuantizers(session, sites, widths)
    batches = list(session.images(images))
    with model_state(session.model, "float"):
        exact = [session.model(batch).double().log_softmax(-1) for batch in batches]
    for site in session.progress.track(sites, "trying widths", len(sites)):
        weights = rough.weight_changes(site)
        for operand in site.operands:
            for number, bits in enumerate(widths):
                alone = _Alone(session, rough, site, operand, bits, weights[number] if operand == "weight" else None)
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
    rough: RoughQuantizers
    site: Site
    operand: str
    bits: int
    change: Tensor | None

    def __call__(self, module: SiteModule, operand: str, x: Tensor) -> Tensor:
        if operand != self.operand or module is not site_module(self.session.model, self.site.name):
            return x
        return x + self.change if self.change is not None else self.rough.quantized(self.site, operand, x, self.bits)


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
    rough: RoughQuantizers, site: Site, call: Call, slopes: list[Tensor], weights: Tensor, widths: list[int]
) -> dict[str, Tensor]:
    """The product of each operand's change with the gradient, `[widths, draws, images]`.

    slopes: for each draw the gradient by the output.
    """
    module, inputs, output = call
    found = {}
    by_input = [torch.autograd.grad(output, inputs, slope, retain_graph=True) for slope in slopes]
    operands = [operand for operand in module.operands if operand != "weight"]
    for number, operand in enumerate(operands):
        exact = inputs[number].detach()
        along = torch.stack([slope[number].flatten(1) for slope in by_input])
        changes = (rough.quantized(site, operand, exact, bits) - exact for bits in widths)
        found[operand] = torch.stack([torch.einsum("bn,lbn->lb", change.flatten(1), along) for change in changes])
    if isinstance(module, WeightedSite):
        # [groups, images, rows of an image, ...]
        patches = _by_image(module.patches(inputs[0].detach()), len(inputs[0]))
        by_draw = []
        for slope in slopes:
            rows = _by_image(module.by_patch(slope), len(inputs[0]))
            by_draw.append(weights.flatten(1) @ torch.einsum("gbro,gbrk->bgok", rows, patches).flatten(1).T)
        found["weight"] = torch.stack(by_draw, 1)
    return found


def _by_image(rows: Tensor, images: int) -> Tensor:
    return rows.reshape(len(rows), images, -1, rows.shape[-1])
