"""What changed image by image and class by class, from the logits of both models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from halfbyte.data.images import ImageSet
from halfbyte.findings.thumbnail import thumbnail

SHOWN = 12


def prediction_findings(
    images: ImageSet, floats: Tensor, quantized: Tensor, model: nn.Module, preprocessing: Mapping[str, Any]
) -> dict[str, Any]:
    """`classes`: for each class that occurs its images, and how many of them either model gets right; `changed`: how
    many images have another first class, and those of them of which the float model was surest; `images`: a checksum
    of the images' names and classes, by which runs on the same images know each other.

    `floats` and `quantized` are logits `[N, classes]` of `images`.
    """
    names = _class_names(images, model)
    return {
        "outputs": floats.shape[1],
        "classes": _by_class(images, floats, quantized, names),
        "changed": _changed(images, floats, quantized, names, preprocessing),
        "images": hashlib.sha256(json.dumps([images.names, images.labels]).encode()).hexdigest(),
    }


def _class_names(images: ImageSet, model: nn.Module) -> dict[int, str]:
    """Names by class, as far as the images' folders or the model know them."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    labels = config.get("label_names") or ()
    return {**dict(enumerate(map(str, labels))), **images.class_names}


def _by_class(images: ImageSet, floats: Tensor, quantized: Tensor, names: Mapping[int, str]) -> list[dict[str, Any]]:
    labels = np.asarray(images.labels)
    counts = np.bincount(labels)
    before, after = (
        np.bincount(labels[logits.argmax(1).numpy() == labels], minlength=len(counts)) for logits in (floats, quantized)
    )
    return [
        {"class": label, "name": names.get(label), "images": int(counts[label]), "float": int(before[label]),
         "quantized": int(after[label])}
        for label in np.flatnonzero(counts).tolist()
    ]  # fmt: skip


def _changed(
    images: ImageSet,
    floats: Tensor,
    quantized: Tensor,
    names: Mapping[int, str],
    preprocessing: Mapping[str, Any],
) -> dict[str, Any]:
    rows = (floats.argmax(1) != quantized.argmax(1)).nonzero()[:, 0]
    before, after = (logits[rows].double().softmax(1).max(1) for logits in (floats, quantized))
    shown = []
    for place in before.values.argsort(descending=True, stable=True)[:SHOWN].tolist():
        number = int(rows[place])
        pixels, label = images[number]
        pair = {
            key: {"class": int(found.indices[place]), "name": names.get(int(found.indices[place])),
                  "probability": round(float(found.values[place]), 4)}
            for key, found in (("float", before), ("quantized", after))
        }  # fmt: skip
        shown.append({
            "image": images.names[number], "class": label, "name": names.get(label), **pair,
            "picture": thumbnail(pixels, preprocessing),
        })  # fmt: skip
    return {"count": len(rows), "of": len(images), "shown": shown}
