"""Attention maps of a few images, by the float model and by the quantized one."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from halfbyte.families.describe import describe
from halfbyte.families.layout import Layout
from halfbyte.findings.thumbnail import thumbnail
from halfbyte.layers.site import SiteModule
from halfbyte.prepare import model_state, prepare, site_module

# A map has at most so many cells to a side; larger ones are averaged.
CELLS = 28


@torch.inference_mode()
def attention_findings(
    teacher: nn.Module,
    model: nn.Module,
    layout: Layout,
    names: Iterable[str],
    images: Tensor,
    preprocessing: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """For the sites `names` of role pv a row with a map of each image `[B, C, H, W]`, float and quantized.

    A map of a token grid tells where the class token looks (without one: what all tokens look at); elsewhere rows are
    queries and columns keys, the mean over windows. Both are means over heads. Sites that the float model does not have
    are left out. The teacher stays as it is: a copy of it is prepared for the length of the call.
    """
    original = copy.deepcopy(teacher)
    known = {site.name for site in prepare(original, describe(original)).sites}
    names = [name for name in names if name in known]
    rows: list[dict[str, Any]] = [{"site": name, "images": []} for name in names]
    grid = _Grid(model)
    for image in images:
        before, after = _weights(original, names, image, False), _weights(model, names, image, True)
        picture = thumbnail(image, preprocessing)
        for row in rows:
            pair = [grid.drawn(weights[row["site"]]) for weights in (before, after)]
            row |= {"kind": pair[0][0]}
            first, second = (cells.flatten() for _, cells in pair)
            row["images"].append({
                "picture": picture, "float": _plain(pair[0][1]), "quantized": _plain(pair[1][1]),
                "similarity": round(float(F.cosine_similarity(first, second, dim=0)), 4),
                "zeros": round(100 * float((after[row["site"]] == 0).double().mean()), 2),
            })  # fmt: skip
    return rows


def _weights(model: nn.Module, names: Iterable[str], image: Tensor, quantized: bool) -> dict[str, Tensor]:
    """The attention weights `[windows, heads, queries, keys]` of one image `[C, H, W]`, by site, as they are multiplied
    with the values."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: SiteModule, inputs: tuple[Tensor, ...]) -> None:
            # A block that runs several times shows its last.
            found[name] = (module.quantizer("left")(inputs[0]) if quantized else inputs[0]).float().cpu()

        return hook

    hooks = [site_module(model, name).register_forward_pre_hook(keep(name)) for name in names]
    try:
        with model_state(model, "quantized" if quantized else "float"):
            model(image[None])
    finally:
        for hook in hooks:
            hook.remove()
    return found


class _Grid:
    """Which tokens of a model lie on a grid over the image."""

    def __init__(self, model: nn.Module) -> None:
        self.prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
        # Without one the first tokens are registers.
        self.class_token = self.prefix > 0 and getattr(model, "cls_token", None) is not None
        size = getattr(getattr(model, "patch_embed", None), "grid_size", None)
        self.size = (int(size[0]), int(size[1])) if isinstance(size, (tuple, list)) and len(size) == 2 else None

    def drawn(self, weights: Tensor) -> tuple[str, Tensor]:
        """What a map shows (`class token`, `all tokens`, `queries and keys`), and its cells `[rows, columns]`."""
        windows, _, queries, keys = weights.shape
        size = self._of(keys - self.prefix)
        if windows > 1 or queries != keys or size is None:
            cells = weights.mean((0, 1))
            return "queries and keys", _pooled(cells)
        looks = weights[0, :, 0] if self.class_token else weights[0].mean(1)
        return ("class token" if self.class_token else "all tokens"), _pooled(looks.mean(0)[self.prefix :].view(size))

    def _of(self, tokens: int) -> tuple[int, int] | None:
        if self.size is not None and math.prod(self.size) == tokens:
            return self.size
        side = math.isqrt(max(tokens, 0))
        return (side, side) if side > 1 and side * side == tokens else None


def _pooled(cells: Tensor) -> Tensor:
    rows, columns = (min(CELLS, side) for side in cells.shape)
    return F.adaptive_avg_pool2d(cells[None], (rows, columns))[0]


def _plain(cells: Tensor) -> list[list[float]]:
    return [[float(f"{value:.3g}") for value in row] for row in cells.tolist()]
