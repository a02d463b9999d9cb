"""Accuracy, agreement with the float model, and the error of each site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from halfbyte.data.images import ImageSet, batches
from halfbyte.distributed import World
from halfbyte.families.layout import Layout
from halfbyte.prepare import model_state, site_module
from halfbyte.progress import Progress


@dataclass(frozen=True)
class Metrics:
    """Percentages of the images; `kl` in nats, the mean divergence of the model's prediction from the float one.

    `agreement` (the same first class) and `kl` are None where there is no float model.
    """

    images: int
    top1: float
    top5: float
    agreement: float | None = None
    kl: float | None = None


@dataclass(frozen=True)
class Loop:
    """How images are run through a model: how many at a time, where, by which processes, and who is told."""

    batch_size: int = 32
    workers: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    world: World = field(default_factory=World)
    progress: Progress = field(default_factory=lambda: Progress(quiet=True))


@torch.inference_mode()
def evaluate(
    model: Callable[[Tensor], Tensor],
    images: ImageSet,
    loop: Loop | None = None,
    reference: Tensor | None = None,
    label: str = "evaluating",
) -> tuple[Metrics, Tensor]:
    """Metrics of `model` over `images`, and its logits `[N, classes]` (float32, on the CPU).

    `reference` holds the float model's logits of the same images. Under torchrun each process takes every so-many-th
    batch; every image is counted once and the batches are those of a single process, so the result is the same.
    """
    loop = loop or Loop()
    starts = range(0, len(images), loop.batch_size)[loop.world.rank :: loop.world.size]
    own = images.subset([i for start in starts for i in range(start, min(start + loop.batch_size, len(images)))])
    logits: Tensor | None = None
    follow = loop.progress if loop.world.leads else Progress(quiet=True)
    loader = follow.track(batches(own, loop.batch_size, loop.workers), label, len(starts))
    for start, (pixels, _) in zip(starts, loader, strict=True):
        output = model(pixels.to(loop.device)).float().cpu()
        if logits is None:
            logits = torch.zeros(len(images), output.shape[1])
        logits[start : start + len(output)] = output
    if logits is None:  # More processes than batches: this one has none, but must know the shape.
        logits = torch.zeros(len(images), model(images[0][0][None].to(loop.device)).shape[1])
    logits = loop.world.merge(logits)
    return metrics(logits, torch.tensor(images.labels), reference), logits


def metrics(logits: Tensor, labels: Tensor, reference: Tensor | None = None) -> Metrics:
    """Metrics of logits `[N, classes]` for labels `[N]`; ties in a rank count for the lower class."""
    order = logits.argsort(dim=1, descending=True, stable=True)
    hits = order[:, :5] == labels[:, None]
    agreement = kl = None
    if reference is not None:
        same = logits.argmax(1) == reference.argmax(1)
        agreement = _percent(int(same.sum()), len(labels))
        target, log_q = reference.double().log_softmax(1), logits.double().log_softmax(1)
        kl = float((target.exp() * (target - log_q)).sum(1).mean())
    first, any_of_five = int(hits[:, 0].sum()), int(hits.any(1).sum())
    return Metrics(len(labels), _percent(first, len(labels)), _percent(any_of_five, len(labels)), agreement, kl)


@torch.inference_mode()
def site_sqnr(model: nn.Module, layout: Layout, pixels: Tensor) -> dict[str, float | None]:
    """Signal-to-quantization-noise ratio in dB of each site's output for images `[B, C, H, W]`.

    Signal: what the site gives in the state `float`; noise: what it gives in the state `quantized`, less that. An error
    of zero counts as 200 dB. What stands beside a block runs in no float model: None. Only one image's outputs are
    kept at a time.
    """
    own = {site.name for site in layout.sites if site.role != "side"}
    signal: dict[str, float] = {site.name: 0.0 for site in layout.sites}
    noise = dict(signal)
    for image in pixels:
        kept = _outputs(model, layout, image[None], "float")
        quantized = _outputs(model, layout, image[None], "quantized")
        for name in own:
            for exact, got in zip(kept[name], quantized[name], strict=True):
                signal[name] += float(exact.double().square().sum())
                noise[name] += float((got.double() - exact.double()).square().sum())
    return {name: _decibel(signal[name], noise[name]) if name in own else None for name in signal}


def _outputs(model: nn.Module, layout: Layout, image: Tensor, state: Any) -> dict[str, list[Tensor]]:
    kept: dict[str, list[Tensor]] = {site.name: [] for site in layout.sites}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            kept[name].append(output.clone())

        return hook

    hooks = [site_module(model, name).register_forward_hook(keep(name)) for name in kept]
    try:
        with model_state(model, state):
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return kept


def _decibel(signal: float, noise: float) -> float:
    ratio = torch.tensor(signal / noise if noise > 0 and signal > 0 else (1e20 if noise == 0 else 1e-20))
    return round(float(10 * ratio.double().log10().clamp(-200, 200)), 2)


def _percent(hits: int, count: int) -> float:
    return 100.0 * hits / count
