"""`halfbyte labels`: soft labels of a folder of images from any teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfbyte.data.crops import SCALE
from halfbyte.data.images import open_images
from halfbyte.data.soft_labels import LabelPlan, write_labels
from halfbyte.errors import HalfbyteError
from halfbyte.inputs import embedded_images, pick_device
from halfbyte.models.load import load_model
from halfbyte.progress import Progress

# What a crop needs of timm's configuration; a crop has its own size and place.
_PREPROCESSING = ("input_size", "interpolation", "mean", "std")


@dataclass(frozen=True)
class LabelOptions:
    """What `halfbyte labels` is asked for; see `LabelPlan`."""

    teacher: str
    out: Path
    weights: Path | None = None
    data: Path | None = None
    crops: int = 16
    top: int = 5
    temperature: float = 1.0
    least_area: float = SCALE[0]
    seed: int = 0
    device: str = "auto"
    workers: int = 2
    resume: bool = False


def make_labels(options: LabelOptions, progress: Progress | None = None) -> dict[str, Any]:
    """Write the soft labels; returns what they are and how many bytes an image takes.

    Raises `HalfbyteError` for anything wrong with the inputs, before the folder is made.
    """
    progress = progress or Progress()
    if not 0 < options.least_area <= 1:
        raise HalfbyteError(f"--least-area {options.least_area}: must be above 0 and at most 1")
    if options.seed < 0:
        raise HalfbyteError(f"--seed must be at least 0, not {options.seed}")
    device = pick_device(options.device)
    loaded = load_model(options.teacher, options.weights)
    source, config = loaded.source.as_dict(), loaded.data_config
    where = options.data or embedded_images(source, "embedded:calibration")
    if where is None:
        raise HalfbyteError(f"{source['architecture']} comes without images; give --data DIR")
    images = open_images(where, config, num_classes=None, progress=progress, workers=options.workers)
    classes = int(loaded.model.num_classes)  # type: ignore[arg-type]
    plan = LabelPlan(
        {key: source[key] for key in ("architecture", "tag", "sha256")},
        {key: config[key] for key in _PREPROCESSING},
        classes, options.crops, min(options.top, classes), options.temperature, (options.least_area, 1.0), options.seed,
    )  # fmt: skip
    model = loaded.model.to(device)

    def predict(crops: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(crops.to(device))
        return logits.cpu()

    write_labels(images, plan, predict, options.out, resume=options.resume, progress=progress)
    stored = sum(path.stat().st_size for path in options.out.glob("labels-*.safetensors"))
    return {
        "schema": 1, "model": source["architecture"], "images": len(images), "crops": plan.crops, "top": plan.top,
        "bytes": stored, "bytes_per_image": round(stored / len(images), 1), "folder": str(options.out),
    }  # fmt: skip
