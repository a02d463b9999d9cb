"""Stochastic depth (Huang et al., ECCV 2016): for some images of a batch a branch is left out in training."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torchvision.ops import StochasticDepth

# Where models apply it to a branch; one that was built without it has an identity there.
_NAME = re.compile(r"drop_path\d?")


def drop_path_places(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """The modules with a place for it and the place's name, in the order of the blocks."""
    return [(module, name) for module in model.modules() for name, child in module.named_children()
            if _NAME.fullmatch(name) and (isinstance(child, nn.Identity) or hasattr(child, "drop_prob"))]  # fmt: skip


@contextmanager
def dropping_paths(model: nn.Module, rate: float) -> Iterator[None]:
    """For a with-block leave each branch out for a share of the images that grows over the blocks from 0 to `rate`."""
    places = [(module, name, getattr(module, name)) for module, name in drop_path_places(model)]
    for number, (module, name, _) in enumerate(places):
        setattr(module, name, StochasticDepth(rate * number / max(1, len(places) - 1), "row"))
    try:
        yield
    finally:
        for module, name, before in places:
            setattr(module, name, before)
