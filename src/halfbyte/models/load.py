"""From a name and perhaps a file to a float model, with where it came from and how its images are prepared."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn

from halfbyte.data.preprocessing import checked_preprocessing
from halfbyte.errors import HalfbyteError, did_you_mean
from halfbyte.models.builtin import BUILTIN_MODELS, DEFAULT_MODEL, create_builtin
from halfbyte.models.cifar_resnet import CIFAR_MODELS, create_cifar_resnet
from halfbyte.models.names import OTHER_MODELS, ModelName, import_timm, resolve
from halfbyte.models.pretrained import fetch_weights
from halfbyte.models.sret import SRET_MODELS, create_sret
from halfbyte.models.weights import load_state, read_state, sha256_file

EMBEDDED = "embedded"
HUB = "hub"
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Source:
    """Where a model came from.

    `name` as it was asked for; `architecture` without the `tag` of the weights; `weights` a file's name without its
    folder, `"embedded"` or `"hub"`, and the `sha256` of that file; `note` a remark for the report.
    """

    name: str
    architecture: str
    tag: str | None
    weights: str | None
    sha256: str | None
    note: str | None

    def as_dict(self) -> dict[str, str | None]:
        """The fields by name, for JSON."""
        return dataclasses.asdict(self)


@dataclass
class LoadedModel:
    """A float32 model in eval mode on the CPU.

    `data_config` is timm's preprocessing: `input_size` (channels, height, width), `interpolation`, `mean`, `std`,
    `crop_pct`, `crop_mode`.
    """

    model: nn.Module
    source: Source
    data_config: dict[str, Any]


def load_model(
    name: str | None,
    weights: Path | None = None,
    *,
    crop_pct: float | None = None,
    interpolation: str | None = None,
) -> LoadedModel:
    """Load a model by a timm name with or without tag, a short name of the papers, or a name of our own.

    None is the embedded default. `weights` is a file that must fit exactly; without it timm's published weights are
    fetched. `crop_pct` (the share of the resized image that the centre crop keeps) and `interpolation` replace the
    model's own preprocessing. Raises `HalfbyteError` for unknown names, unusable weights and impossible settings.
    """
    asked = DEFAULT_MODEL if name is None else name
    resolved = resolve(asked)
    settings = checked_preprocessing(crop_pct, interpolation)
    if weights is None and resolved.architecture in BUILTIN_MODELS:
        with _embedded_weights(resolved.architecture) as path:
            model, digest = _with_weights(resolved, path)
        origin = EMBEDDED
    elif weights is None and resolved.architecture in OTHER_MODELS:
        raise HalfbyteError(f"{asked} comes without weights; give --weights FILE (.safetensors or .pth)")
    else:
        path = fetch_weights(resolved) if weights is None else Path(weights)
        model, digest = _with_weights(resolved, path)
        origin = HUB if weights is None else path.name
    source = Source(asked, resolved.architecture, resolved.tag, origin, digest, resolved.note)
    return LoadedModel(model.float().eval(), source, _preprocessing(model, settings))


def create_architecture(architecture: str, tag: str | None = None, **model_args: Any) -> nn.Module:
    """Build an architecture with random weights, without any network; `model_args` go to its constructor.

    A model without a classifier gets one for the 1,000 ImageNet classes. Raises `HalfbyteError` for an unknown
    architecture or tag, and for arguments that it does not take.
    """
    if architecture in BUILTIN_MODELS:
        return _built(architecture, lambda: create_builtin(architecture, **model_args))
    if architecture in CIFAR_MODELS:
        return _built(architecture, lambda: create_cifar_resnet(architecture, **model_args))
    if architecture in SRET_MODELS:
        return _built(architecture, lambda: create_sret(architecture, **model_args))
    timm = import_timm()
    if not timm.is_model(architecture):
        known = (*BUILTIN_MODELS, *OTHER_MODELS, *timm.list_models())
        raise HalfbyteError(f"unknown architecture {architecture!r}{did_you_mean(architecture, known)}")
    name = resolve(f"{architecture}.{tag}") if tag else ModelName(architecture)
    config = timm.get_pretrained_cfg(name.full)
    if config is not None and config.num_classes == 0:
        model_args.setdefault("num_classes", IMAGENET_CLASSES)
    return _built(architecture, lambda: timm.create_model(name.full, pretrained=False, **model_args))


def _built(architecture: str, build: Any) -> nn.Module:
    try:
        model: nn.Module = build()
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise HalfbyteError(f"cannot build {architecture}: {error}") from error
    return model


def _embedded_weights(architecture: str) -> Any:
    """A context with the path of the weights that ship with the package."""
    resource = resources.files("halfbyte") / "assets" / f"{architecture}.safetensors"
    if not resource.is_file():
        raise HalfbyteError(f"this installation lacks the weights of {architecture}; install halfbyte again")
    return resources.as_file(resource)


def _with_weights(name: ModelName, path: Path) -> tuple[nn.Module, str]:
    # The file first: a wrong path must not wait for a large model to be built.
    state = read_state(path)
    model = create_architecture(name.architecture, name.tag)
    load_state(model, state, path)
    return model, sha256_file(path)


def _preprocessing(model: nn.Module, settings: dict[str, Any]) -> dict[str, Any]:
    from timm.data.config import resolve_model_data_config

    configure: Any = resolve_model_data_config
    config: dict[str, Any] = configure(model, args=settings)
    return config
