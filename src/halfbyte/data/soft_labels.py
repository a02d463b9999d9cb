"""Soft labels of random crops, made once by a teacher (FKD, Shen and Xing, ECCV 2022): written, resumed and read.

A folder holds `labels.json` and shards of some hundred images each. A shard has, for n images, M crops and K classes,
the pictures' `sizes` `[n, 2]`, `boxes` `[n, M, 4]` in pixels, `mirrored` `[n, M]`, `ids` `[n, M, K]` and
`probabilities` `[n, M, K]` in float16, the most probable first, and the images' names in its header.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from halfbyte.data.crops import SCALE, Box, Cropper, draw_box, generator_of
from halfbyte.data.images import ImageSet
from halfbyte.errors import HalfbyteError
from halfbyte.files import LABELS, read_file, reason, remedy
from halfbyte.locks import Lock, locked_folder
from halfbyte.progress import Progress

FORMAT, VERSION = "halfbyte soft labels", 1
_MOST_HEADER = 2**20
SHARD = 256
_TENSORS = ("sizes", "boxes", "mirrored", "ids", "probabilities")
# Of ids and of boxes in the file.
MOST_CLASSES = MOST_PIXELS = 2**16


@dataclass(frozen=True)
class LabelPlan:
    """What decides the labels of an image, besides its pixels.

    teacher: architecture, tag and sha256. preprocessing: timm's `input_size`, `interpolation`, `mean`, `std` of the
    teacher. crops (M) an image, of which the `top` (K) probabilities of softmax(logits / temperature) are kept;
    scale: of the crops' areas.
    """

    teacher: dict[str, Any]
    preprocessing: dict[str, Any]
    classes: int
    crops: int = 16
    top: int = 5
    temperature: float = 1.0
    scale: tuple[float, float] = SCALE
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.crops <= 10_000 or not 1 <= self.top <= self.classes <= MOST_CLASSES:
            raise HalfbyteError(
                f"soft labels of {self.crops} crops and {self.top} of {self.classes} classes: give 1 to 10,000 crops "
                f"and 1 to {min(self.classes, MOST_CLASSES)} classes"
            )
        if not 0 < self.temperature < 1000:
            raise HalfbyteError(f"the temperature of soft labels must be above 0, not {self.temperature}")


@dataclass(frozen=True)
class SoftLabel:
    """The labels of one image's crops.

    fractions `[M, 4]`: top, left, height and width by the picture's size. mirrored `[M]`. ids, probabilities `[M, K]`:
    what they lack of 1 is spread over all other classes.
    """

    fractions: Tensor
    mirrored: Tensor
    ids: Tensor
    probabilities: Tensor

    def box(self, crop: int, height: int, width: int) -> Box:
        """The pixels of a crop in a picture of that size."""
        top, left, high, wide = (
            (self.fractions[crop] * torch.tensor([height, width, height, width])).round().int().tolist()
        )
        return top, left, max(1, high), max(1, wide)


class SoftLabels(Protocol):
    """Labels by an image's name."""

    def of(self, name: str) -> SoftLabel:
        """Of an image of that name; raises `HalfbyteError` where there are none."""


def write_labels(
    images: ImageSet,
    plan: LabelPlan,
    predict: Callable[[Tensor], Tensor],
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> None:
    """Label the crops of every image, shard after shard; `predict` gives the teacher's logits for `[M, C, H, W]`.

    Each image is a batch of its own, so its labels do not depend on the others. A run that was killed goes on with
    `resume` where it stopped. Raises `HalfbyteError` where the folder holds something else.
    """
    progress = progress or Progress(quiet=True)
    header = json.loads(json.dumps({"format": FORMAT, "version": VERSION, **asdict(plan), "images": len(images)}))
    held = _admit(folder, header, resume)
    try:
        _write_shards(images, plan, predict, folder, progress)
    finally:
        held.release()


def _write_shards(
    images: ImageSet, plan: LabelPlan, predict: Callable[[Tensor], Tensor], folder: Path, progress: Progress
) -> None:
    """The shards that are not there yet."""
    cropper, names = Cropper(plan.preprocessing), images.names
    shards = [range(first, min(first + SHARD, len(images))) for first in range(0, len(images), SHARD)]
    left = [(number, row) for number, rows in enumerate(shards) if not _shard(folder, number).exists() for row in rows]
    made: list[_Labelled] = []
    for number, row in progress.track(left, "labelling images", len(left)):
        made.append(_label(images, row, names[row], plan, cropper, predict))
        if row == shards[number][-1]:
            _save(made, _shard(folder, number))
            made = []


class _Labelled(NamedTuple):
    name: str
    size: tuple[int, int]
    boxes: list[Box]
    mirrored: list[bool]
    ids: Tensor
    probabilities: Tensor


def _label(
    images: ImageSet, row: int, name: str, plan: LabelPlan, cropper: Cropper, predict: Callable[[Tensor], Tensor]
) -> _Labelled:
    picture = images.picture(row)
    generator = generator_of(name, plan.seed)
    size = (picture.height, picture.width)
    if max(size) >= MOST_PIXELS:
        raise HalfbyteError(
            f"{name} has {size[1]} x {size[0]} pixels; soft labels hold fewer than {MOST_PIXELS} a side"
        )
    boxes = [draw_box(*size, generator, plan.scale) for _ in range(plan.crops)]
    mirrored = [bool(generator.random() < 0.5) for _ in range(plan.crops)]
    crops = torch.stack([cropper(picture, box, flip) for box, flip in zip(boxes, mirrored, strict=True)])
    best = (predict(crops).detach().cpu().double() / plan.temperature).softmax(-1).topk(plan.top)
    return _Labelled(name, size, boxes, mirrored, best.indices, best.values)


def _save(made: list[_Labelled], path: Path) -> None:
    tensors = {
        "sizes": torch.tensor([entry.size for entry in made]).to(torch.uint16),
        "boxes": torch.tensor([entry.boxes for entry in made]).to(torch.uint16),
        "mirrored": torch.tensor([entry.mirrored for entry in made]),
        "ids": torch.stack([entry.ids for entry in made]).to(torch.uint16),
        "probabilities": torch.stack([entry.probabilities for entry in made]).half(),
    }
    part = path.with_name(f"{path.name}.part")
    try:
        # Its own way into a file has a random name beside it, which a kill would leave there for ever.
        part.write_bytes(save(tensors, {"names": json.dumps([entry.name for entry in made])}))
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise HalfbyteError(f"cannot write {path} ({error}); free some space, then continue with --resume") from None


def _shard(folder: Path, number: int) -> Path:
    return folder / f"labels-{number:05d}.safetensors"


def _admit(folder: Path, header: dict[str, Any], resume: bool) -> Lock:
    """Make the folder with its header, or find the same labels begun there, and keep others from writing there; raises
    `HalfbyteError` otherwise."""
    if folder.exists() and not folder.is_dir():
        raise HalfbyteError(f"--out {folder} holds something else than soft labels; choose another folder")
    part = folder / f"{LABELS}.part"
    try:
        with locked_folder(folder) as held:
            if held is None:
                raise HalfbyteError(f"another process writes into --out {folder}; wait until it ends")
            # One that was killed in its first moment leaves half a header.
            if all(entry == part for entry in folder.iterdir()):
                _write_header(header, part, folder / LABELS)
            else:
                _check_begun(folder, header, resume)
            return held
    except OSError as error:
        raise HalfbyteError(
            f"cannot write to --out {folder}: {reason(error)}; {remedy(error, '--out')}"
        ) from None  # fmt: skip


def _check_begun(folder: Path, header: dict[str, Any], resume: bool) -> None:
    """Raise `HalfbyteError` unless a folder holds the same labels, begun, and they are to be continued."""
    if not (folder / LABELS).is_file():
        raise HalfbyteError(f"--out {folder} holds something else than soft labels; choose another folder")
    if not resume:
        raise HalfbyteError(f"--out {folder} holds soft labels; continue with --resume, or choose another folder")
    found = _header(folder)
    changed = sorted(key for key in header.keys() | found.keys() if header.get(key) != found.get(key))
    if changed:
        raise HalfbyteError(f"--out {folder} holds labels of another kind ({', '.join(changed)}); resume with the same")


def _write_header(header: dict[str, Any], part: Path, place: Path) -> None:
    try:
        part.write_text(json.dumps(header, indent=1) + "\n")
        os.replace(part, place)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _header(folder: Path) -> dict[str, Any]:
    try:
        header = json.loads(read_file(folder / LABELS, _MOST_HEADER).decode())
        if header["format"] != FORMAT or header["version"] != VERSION:
            raise ValueError(f"version {header['version']} of {header['format']}, not {VERSION} of {FORMAT}")
        if not all(isinstance(header[key], int) and header[key] > 0 for key in ("images", "classes", "crops", "top")):
            raise ValueError("sizes must be numbers above 0")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise HalfbyteError(f"soft labels {folder}: {LABELS} is damaged ({error}); make them again") from None
    return dict(header)


class ShardedLabels:
    """What `write_labels` wrote, for a model with so many classes. Every shard is checked at once; what an image needs
    is read from the file when it is asked for, so labels may be larger than the memory.

    Raises `HalfbyteError` where something is missing, damaged, or for other classes.
    """

    def __init__(self, folder: Path, classes: int) -> None:
        self.folder, self.header = folder, _header(folder)
        if self.header["classes"] != classes:
            raise HalfbyteError(
                f"soft labels {folder} are for {self.header['classes']} classes, the model has {classes}; choose others"
            )
        self._places: dict[str, tuple[int, int]] = {}
        count = -(-self.header["images"] // SHARD)
        for number in range(count):
            names = self._checked(_shard(folder, number))
            self._places |= {name: (number, row) for row, name in enumerate(names)}

    def of(self, name: str) -> SoftLabel:
        """Of an image of that name; raises `HalfbyteError` where there are none."""
        if name not in self._places:
            raise HalfbyteError(f"soft labels {self.folder} have none for {name}; make them for these images")
        number, row = self._places[name]
        path = _shard(self.folder, number)
        try:
            with safe_open(path, "pt") as file:
                found = {key: file.get_slice(key)[row : row + 1][0] for key in _TENSORS}
        except (SafetensorError, OSError) as error:
            raise HalfbyteError(f"soft labels {path} cannot be read any more ({error}); start again") from None
        height, width = found["sizes"].tolist()
        fractions = found["boxes"].double() / torch.tensor([height, width, height, width])
        return SoftLabel(fractions, found["mirrored"], found["ids"].long(), found["probabilities"].float())

    def _checked(self, path: Path) -> list[str]:
        """The names of a shard's images."""
        if not path.is_file():
            raise HalfbyteError(
                f"soft labels {self.folder}: {path.name} is missing; continue making them with --resume"
            )
        try:
            with safe_open(path, "pt") as file:
                names: list[str] = json.loads(file.metadata()["names"])
                tensors = {key: file.get_tensor(key) for key in _TENSORS}
            crops, top = self.header["crops"], self.header["top"]
            shapes = {"sizes": (2,), "boxes": (crops, 4), "mirrored": (crops,), "ids": (crops, top),
                      "probabilities": (crops, top)}  # fmt: skip
            for key, shape in shapes.items():
                if tuple(tensors[key].shape) != (len(names), *shape):
                    raise ValueError(f"{key} has the shape {tuple(tensors[key].shape)}")
            if int(tensors["ids"].int().max()) >= self.header["classes"] or int(tensors["sizes"].int().min()) < 1:
                raise ValueError("a class or a size is impossible")
            if not bool(tensors["probabilities"].isfinite().all()):
                raise ValueError("a probability is not finite")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise HalfbyteError(f"soft labels {path}: damaged ({error}); delete the file and make it again") from None
        return names
