"""A prepared image as a small picture inside a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

SIDE = 96
# Smaller pictures are kept to the pixel: they take no more room so.
_LEAST_JPEG = 48
_QUALITY = 75


def thumbnail(pixels: Tensor, preprocessing: Mapping[str, Any]) -> str:
    """What the model sees, `[C, H, W]` normalized as timm's `preprocessing` says, as a `data:` address of a picture of
    at most 96 x 96 pixels."""
    mean, std = (torch.tensor(preprocessing[key]).view(-1, 1, 1) for key in ("mean", "std"))
    channels = (pixels.cpu().float() * std + mean).clamp(0, 1).mul(255).round().byte()
    values = channels[0] if len(channels) == 1 else channels.permute(1, 2, 0)
    picture = Image.fromarray(values.contiguous().numpy())
    picture.thumbnail((SIDE, SIDE))
    form = "JPEG" if max(picture.size) >= _LEAST_JPEG else "PNG"
    file = io.BytesIO()
    picture.save(file, form, **({"quality": _QUALITY} if form == "JPEG" else {"optimize": True}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
