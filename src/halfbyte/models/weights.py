"""Weights in files: read without running anything that a file may hold, and fitted to a model strictly."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from halfbyte.errors import HalfbyteError
from halfbyte.models.sret import SReT, from_published

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".pth.tar")
WRAPPERS = ("model", "state_dict")
SHOWN = 5
# What timm's converters resample; in other places a name may come to mean another tensor.
RESAMPLED = ("pos", "patch_embed")


def sha256_file(path: Path) -> str:
    """The SHA-256 of the file's bytes, in hexadecimal; raises `HalfbyteError` where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise HalfbyteError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors`, `.pth`, `.pt`, `.bin` or `.pth.tar` file by name, on the CPU, as stored.

    Checkpoints that keep them under `model` or `state_dict`, or with `module.` before every name, are unwrapped.
    Raises `HalfbyteError` for anything else: missing, truncated, another format, pickled code, not tensors.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist" if not path.exists() else "is no regular file"
        raise HalfbyteError(f"weights {path}: {problem}; give a .safetensors or .pth file")
    if path.name.endswith(".safetensors"):
        return _named_tensors(_read_safetensors(path), path)
    if path.name.endswith(PICKLE_SUFFIXES):
        return _named_tensors(_read_pickle(path), path)
    raise HalfbyteError(
        f"weights {path}: unknown kind of file; give one that ends in .safetensors or {', '.join(PICKLE_SUFFIXES)}"
    )


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise HalfbyteError(
            f"weights {path}: not a readable safetensors file, perhaps truncated ({error}); fetch it again"
        ) from error


def _read_pickle(path: Path) -> object:
    try:
        # Training scripts often store their command line beside the weights, as a Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged or hostile file can make the reader raise anything at all
        if "weights_only" in str(error) or "Unsupported global" in str(error):
            raise HalfbyteError(
                f"weights {path}: holds pickled Python objects{_objects(path)}, which are never run; "
                "keep only the state dict, best as .safetensors"
            ) from error
        raise HalfbyteError(
            f"weights {path}: not a readable torch checkpoint, perhaps truncated ({_first_line(error)}); fetch it again"
        ) from error


def _objects(path: Path) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # only zip checkpoints can be listed; the names are a courtesy
        return ""
    return f" ({_some(sorted(names))})" if names else ""


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _named_tensors(content: object, path: Path) -> dict[str, Tensor]:
    for _ in WRAPPERS:
        if isinstance(content, Mapping):
            content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise HalfbyteError(f"weights {path}: holds no dictionary of tensors; save the model's state_dict()")
    wrong = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if wrong:
        raise HalfbyteError(
            f"weights {path}: {len(wrong)} of {len(content)} entries are no tensors ({_some(wrong)}); "
            "save the model's state_dict()"
        )
    if all(key.startswith("module.") for key in content):
        return {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def load_state(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy `state` into `model`, in the model's own precision.

    Where the names do not fit, timm's converter for the model's family, if there is one, is tried. Raises
    `HalfbyteError` that counts what is missing, unexpected or of another shape, and where a weight is not finite;
    `path` is for the message.
    """
    misfit = _compare(model, state)
    if misfit.names_differ:
        adapted = _converted(model, state)
        state, misfit = (adapted, _compare(model, adapted)) if adapted is not None else (state, misfit)
    if misfit:
        name = architecture_of(model)
        raise HalfbyteError(f"{path.name} does not fit {name}: {misfit.describe()}; weights for another model?")
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise HalfbyteError(f"{path.name}: {len(broken)} tensors hold NaN or infinite weights ({_some(broken)})")
    model.load_state_dict(dict(state), strict=False)


def architecture_of(model: nn.Module) -> str:
    """The name under which the model was created, else its class."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    return str(config.get("architecture") or type(model).__name__)


@dataclass(frozen=True)
class _Misfit:
    missing: list[str]
    unexpected: list[str]
    unlike: list[str]

    def __bool__(self) -> bool:
        return bool(self.names_differ or self.unlike)

    @property
    def names_differ(self) -> bool:
        return bool(self.missing or self.unexpected)

    def describe(self) -> str:
        parts = {"missing": self.missing, "unexpected": self.unexpected, "of another shape or type": self.unlike}
        return "; ".join(f"{len(keys)} {what} ({_some(keys)})" for what, keys in parts.items() if keys)


def _compare(model: nn.Module, state: Mapping[str, Tensor]) -> _Misfit:
    wanted: dict[str, Tensor] = model.state_dict()
    # A batch counter serves training only, and old checkpoints have none.
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unlike = []
    for key in wanted.keys() & state.keys():
        if state[key].shape != wanted[key].shape:
            unlike.append(f"{key} {list(state[key].shape)} for {list(wanted[key].shape)}")
        elif wanted[key].is_floating_point() and not state[key].is_floating_point():
            unlike.append(f"{key} {state[key].dtype} for {wanted[key].dtype}")
    return _Misfit(missing, [key for key in state if key not in wanted], sorted(unlike))


def _converted(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The state as timm's own loader, or ours for a model that timm lacks, converts it; None where it cannot."""
    import timm

    if isinstance(model, SReT):
        return from_published(dict(state))
    if not timm.is_model(architecture_of(model)):
        return None
    config: Any = model.pretrained_cfg
    classes: Any = model.num_classes
    # With as many classes as the model has, timm loads strictly: nothing is dropped and nothing stays random.
    config = dict(config, state_dict=dict(state), num_classes=classes)
    try:
        twin = timm.create_model(config["architecture"], pretrained=True, pretrained_cfg=config, num_classes=classes)
    except Exception:  # each converter fails in its own way on a state that is not its own
        return None
    converted: dict[str, Tensor] = twin.state_dict()
    # Converters also resample position embeddings and patches of another resolution: that is another model.
    resized = [key for key in state.keys() & converted.keys() if state[key].numel() != converted[key].numel()]
    resampled = any(part in key for key in resized for part in RESAMPLED)
    return None if resampled else converted


def _some(keys: Iterable[str]) -> str:
    listed = list(keys)
    return ", ".join(listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")
