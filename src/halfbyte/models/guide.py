"""A model that teaches another one, on images that were prepared for that one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Guide(nn.Module):
    """Logits of `model` for images prepared by `given`: undone, resized where its own size is another, and prepared by
    `own`, both timm's configurations."""

    factor: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model.eval()
        self.size = tuple(own["input_size"][1:])
        mean, std, own_mean, own_std = (
            torch.tensor(config[key]).view(-1, 1, 1) for config in (given, own) for key in ("mean", "std")
        )
        self.register_buffer("factor", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = images * self.factor + self.shift
        if tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        return cast(Tensor, self.model(x))
